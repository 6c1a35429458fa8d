//! BLOCK_STATUS: what each context says about a range.

use std::io;

use common::command::{ContextSet, Extents, Span};
use common::handshake::context::Context;
use common::reply::Extent;

use super::execute::Around;
use super::replies::Body;
use crate::device::Content;
use crate::durability::Receipt;
use crate::export::ALLOCATION_CONTEXT;

/// Flags of `base:allocation`: a hole, and reads as zero.
const HOLE_AND_ZERO: u64 = 0b11;

/// What those of the selected contexts say that are asked.
pub(super) async fn status(
    span: Span,
    extents: Extents,
    asked: ContextSet,
    receipt: &Receipt,
    around: &Around,
) -> io::Result<Body> {
    let mut said = Vec::new();
    for context in around.contexts.iter().filter(|context| asked.contains(context.id)) {
        let mut told = one(span, context, receipt, around).await?;
        if extents == Extents::One {
            told.truncate(1);
        }
        said.push((context.id, told));
    }
    Ok(Body::Extents(said))
}

async fn one(span: Span, context: &Context, receipt: &Receipt, around: &Around) -> io::Result<Vec<Extent>> {
    if context.name != ALLOCATION_CONTEXT {
        // The range belongs to the epoch, which the context's name has told already.
        return Ok(vec![Extent { length: span.len, status: 0 }]);
    }
    let told = around.export.device().extents(receipt, span.at, span.len).await?;
    let extent = |extent: crate::device::Extent| {
        let status = if extent.content == Content::Hole { HOLE_AND_ZERO } else { 0 };
        Extent { length: extent.len, status }
    };
    Ok(told.into_iter().map(extent).collect())
}
