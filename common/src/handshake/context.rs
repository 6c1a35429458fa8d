//! Metadata contexts: what they are called, how they are asked for, which were selected.
//!
//! Two options ask: LIST with patterns, SET with exact names. A selection belongs to the export it
//! was made for ("Metadata querying" in the spec).

use crate::option::put_reply;
use crate::proto::{OptionType, ReplyType, TransmissionFlags};
use crate::wire::{self, Cursor, Malformed, Put};

/// A context that was selected for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// What chunks of BLOCK_STATUS call it.
    pub id: u32,
    /// Namespace, colon, leaf.
    pub name: String,
}

/// How READ and BLOCK_STATUS are answered; ordered by what can be said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplyStyle {
    /// By simple replies.
    #[default]
    Simple,
    /// In structured chunks.
    Structured,
    /// In structured chunks under extended headers, as every other request is.
    Extended,
}

impl ReplyStyle {
    /// The transmission flags that become true with it.
    #[must_use]
    pub fn flags(self) -> TransmissionFlags {
        match self {
            ReplyStyle::Simple => TransmissionFlags::NONE,
            ReplyStyle::Structured => TransmissionFlags::SEND_DF,
            ReplyStyle::Extended => TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD,
        }
    }
}

/// What was agreed on beside the export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreed {
    /// How requests are answered.
    pub style: ReplyStyle,
    /// What BLOCK_STATUS tells; with nothing selected, the request is an error.
    pub contexts: Vec<Context>,
}

/// The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRequest {
    /// The export asked about.
    pub export: String,
    /// What is asked for.
    pub queries: Vec<String>,
}

impl ContextRequest {
    /// Reads the data of either option.
    pub fn decode(data: &[u8]) -> Result<ContextRequest, Malformed> {
        let mut cursor = Cursor::new(data);
        let export = cursor.string()?.to_owned();
        let count = cursor.u32()?;
        // Each takes four bytes at least, so the count cannot make us loop for long.
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(cursor.string()?.to_owned());
        }
        cursor.end()?;
        Ok(ContextRequest { export, queries })
    }

    /// Writes the data of either option.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        data.put_string(&self.export);
        data.put_u32(u32::try_from(self.queries.len()).expect("queries of ours are few"));
        for query in &self.queries {
            data.put_string(query);
        }
        data
    }

    /// Those of `offered` that LIST names: all without a query, else those that a query is the
    /// name or the namespace of.
    pub fn listed<'a>(&self, offered: &'a [String]) -> impl Iterator<Item = &'a String> {
        let is_meant = |name: &str, query: &String| {
            let namespace =
                query.strip_suffix(':').is_some_and(|space| name.split(':').next() == Some(space));
            namespace || query == name
        };
        let queries = self.queries.clone();
        offered
            .iter()
            .filter(move |name| queries.is_empty() || queries.iter().any(|query| is_meant(name, query)))
    }

    /// Those of `offered` that SET selects: exactly those named.
    pub fn selected<'a>(&self, offered: &'a [String]) -> impl Iterator<Item = &'a String> {
        let queries = self.queries.clone();
        offered.iter().filter(move |name| queries.contains(name))
    }
}

/// Appends one NBD_REP_META_CONTEXT; the answers to LIST have no id.
pub fn put_context(out: &mut Vec<u8>, option: OptionType, id: u32, name: &str) {
    let mut data = Vec::new();
    data.put_u32(id);
    data.extend_from_slice(name.as_bytes());
    put_reply(out, option, ReplyType::META_CONTEXT, &data);
}

/// Reads the data of one NBD_REP_META_CONTEXT.
pub fn decode_context(data: &[u8]) -> Result<Context, Malformed> {
    let mut cursor = Cursor::new(data);
    let id = cursor.u32()?;
    Ok(Context { id, name: wire::string(cursor.rest())?.to_owned() })
}
