//! What an operator writes: a configuration file, or a line on the admin socket.

use nbd_server::admin::message::{Answer, Request};
use nbd_server::config::Plan;

/// Text is understood or refused with a sentence; an order that is understood is written the same.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A user is looked up in the machine's list.
    if !text.contains("user")
        && let Err(error) = Plan::parse(text)
    {
        let words = format!("{error:#}");
        assert!(words.starts_with("line ") || words.starts_with("there is no [[export]]"), "{words}");
    }
    if let Ok(request) = serde_json::from_str::<Request>(text) {
        let written = serde_json::to_string(&request).expect("it is JSON");
        assert_eq!(serde_json::from_str::<Request>(&written).ok(), Some(request));
    }
    let _no_answer = serde_json::from_str::<Answer>(text);
}
