//! A sequence of requests against a session in transmission.
//!
//! The requests are made of the input, so that nearly all of them are well-formed and many refer to
//! the same bytes. They are sent one by one or all at once. Each must be answered exactly once, by
//! the error that [`RequestHeader::admit`](common::command::RequestHeader::admit) promises or by
//! success; sent one by one, a READ must tell what the writes before it have made of the export.

mod judge;
mod replies;
mod requests;
mod script;

use std::rc::Rc;

use common::handshake::context::{Agreed, Context, ReplyStyle};
use futures::stream::pending;
use nbd_server::export::ALLOCATION_CONTEXT;
use nbd_server::session::{Progress, transmit};

use crate::stage::Stage;
use judge::Judge;
use script::{Pace, Script};

/// The first byte chooses the mode, what was agreed and the pace; the rest are requests.
pub fn run(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let style = match choice >> 2 & 3 {
        0 => ReplyStyle::Simple,
        1 => ReplyStyle::Structured,
        _ => ReplyStyle::Extended,
    };
    let wants_contexts = choice & 16 != 0 && style != ReplyStyle::Simple;
    let allocation = Context { id: 1, name: ALLOCATION_CONTEXT.to_owned() };
    let contexts = if wants_contexts { vec![allocation] } else { Vec::new() };
    let agreed = Agreed { style, contexts };
    let pace = if choice & 32 != 0 { Pace::OneByOne } else { Pace::AtOnce };

    let mut stage = Stage::new(choice);
    let terms = stage.export.terms(&agreed);
    let requests = requests::all(rest, &terms);
    let script = Script::new(&requests, style, pace);
    let (export, memory) = (stage.export.clone(), stage.memory.clone());
    let (end, replies) = stage.play(async move {
        let mut script = script;
        let progress = Rc::new(Progress::default());
        let end = transmit(&mut script, export, agreed, memory, pending(), progress).await;
        (end, script.replies())
    });
    Judge::new(&requests, &terms, pace).judge(&end, &replies);
}
