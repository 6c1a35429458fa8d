//! READ: all data in one piece, or holes told apart from data.

use std::io;

use common::command::{Chunks, Span};

use super::execute::Around;
use super::replies::{Body, Part};
use super::reply::Data;
use crate::device::{Content, Extent, Support, push_extent};
use crate::durability::Receipt;

/// Shortest hole that is told, and shortest read that looks for holes: to send fewer zeroes costs
/// less than to find them.
const HOLE_MIN: u64 = 32 << 10;

/// Reads a range, which is not empty.
pub(super) async fn read(span: Span, chunks: Chunks, receipt: &Receipt, around: &Around) -> io::Result<Body> {
    let device = around.export.device();
    if chunks == Chunks::One || span.len < HOLE_MIN || device.shape().sparse == Support::Emulate {
        return Ok(Body::Data(span.at, read_all(span.at, span.len, receipt, around).await?));
    }
    // Not to know the holes is no reason not to read.
    let extents = device.extents(receipt, span.at, span.len).await.unwrap_or_default();
    let (mut parts, mut at) = (Vec::new(), span.at);
    for Extent { len, content } in worth_telling(&extents, span.len) {
        parts.push(match content {
            Content::Hole => Part::Hole(at, u32::try_from(len).expect("a READ is bounded")),
            Content::Data => Part::Data(at, read_all(at, len, receipt, around).await?),
        });
        at += len;
    }
    Ok(Body::Parts(parts))
}

async fn read_all(at: u64, len: u64, receipt: &Receipt, around: &Around) -> io::Result<Data> {
    let (device, len) = (around.export.device(), usize::try_from(len).expect("a READ is bounded"));
    Ok(Data::Held(device.read(receipt, at, around.pool.take(len)).await?))
}

/// All of a range: short holes, and what the extents do not reach, count as data.
fn worth_telling(extents: &[Extent], len: u64) -> Vec<Extent> {
    let (mut told, mut left) = (Vec::new(), len);
    for extent in extents {
        let is_hole = extent.content == Content::Hole && extent.len >= HOLE_MIN;
        push_extent(&mut told, if is_hole { Content::Hole } else { Content::Data }, extent.len.min(left));
        left = left.saturating_sub(extent.len);
    }
    push_extent(&mut told, Content::Data, left);
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_holes_and_the_unknown_rest_are_read() {
        let extent = |content, len| Extent { len, content };
        let hole = |len| extent(Content::Hole, len);
        let data = |len| extent(Content::Data, len);
        assert_eq!(worth_telling(&[], 7), [data(7)]);
        assert_eq!(
            worth_telling(&[data(1), hole(HOLE_MIN - 1), data(2)], HOLE_MIN + 5),
            [data(HOLE_MIN + 5)]
        );
        let told = worth_telling(&[hole(HOLE_MIN), data(9), hole(1 << 40)], HOLE_MIN * 3);
        assert_eq!(told, [hole(HOLE_MIN), data(9), hole(HOLE_MIN * 2 - 9)]);
    }
}
