//! `nbd-attach info`: what a server offers. Anyone may ask; nothing is attached.

use crate::config::{InfoConfig, Output};
use crate::negotiate::NegotiateError;
use crate::opener::{OpenError, Opener};
use crate::size::human_size;
use common::handshake::Listed;
use common::handshake::client::{Answer, Client, ClientError, Offer};
use common::handshake::context::ReplyStyle;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// How long connecting may take, and how long one question may.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is told about an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What to ask for; empty for the default export.
    pub name: String,
    /// Bytes.
    pub size_bytes: u64,
    /// The server's text for people.
    pub description: Option<String>,
    /// Names of the transmission flags, as the protocol has them.
    pub flags: Vec<String>,
    /// Size constraints, where the server tells them.
    pub block_sizes: Option<BlockSizes>,
    /// The most that replies can say.
    pub replies: &'static str,
    /// Metadata contexts.
    pub contexts: Vec<String>,
}

/// Size constraints in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BlockSizes {
    /// Smallest length and alignment.
    pub minimum: u32,
    /// Smallest efficient request.
    pub preferred: u32,
    /// Longest payload.
    pub maximum_payload: u32,
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// No connection, or no answer.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Not an answer to the question.
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    /// stdout is gone.
    #[error("cannot print")]
    Print(#[from] io::Error),
}

/// Asks the server and prints its answers.
pub async fn info(config: &InfoConfig, out: &mut dyn Write) -> Result<(), InfoError> {
    let opener = Opener::new(&config.uri, config.tls.as_ref());
    let mut rows = Vec::new();
    for name in names(config, &opener).await? {
        let Answer::Export(offer) = opener.ask(|| Client::info(&name), PATIENCE).await? else {
            return Err(NegotiateError::Unasked.into());
        };
        rows.push(row(name, offer));
    }
    match config.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&rows).map_err(io::Error::from)?)?,
        Output::Human => rows.iter().try_for_each(|row| print(row, out))?,
    }
    Ok(out.flush()?)
}

/// The export that was named, or those that the server lists; where it lists none, the default one.
async fn names(config: &InfoConfig, opener: &Opener<'_>) -> Result<Vec<String>, InfoError> {
    let named = config.uri.export.clone();
    if !named.is_empty() {
        return Ok(vec![named]);
    }
    match opener.ask(|| Ok(Client::list()), PATIENCE).await {
        Ok(Answer::Exports(listed)) if !listed.is_empty() => {
            Ok(listed.into_iter().map(|Listed { name, .. }| name).collect())
        }
        // Not to list them is a policy that a server may have.
        Ok(_) | Err(OpenError::Negotiate(NegotiateError::Client(ClientError::Refused { .. }))) => {
            Ok(vec![named])
        }
        Err(error) => Err(error.into()),
    }
}

fn row(name: String, Offer { export, style, contexts }: Offer) -> Row {
    Row {
        name,
        size_bytes: export.size,
        description: export.description,
        flags: export.flags.names().map(ToString::to_string).collect(),
        block_sizes: export.block_sizes.map(|sizes| BlockSizes {
            minimum: sizes.minimum,
            preferred: sizes.preferred,
            maximum_payload: sizes.maximum_payload,
        }),
        replies: match style {
            ReplyStyle::Simple => "simple",
            ReplyStyle::Structured => "structured",
            ReplyStyle::Extended => "extended",
        },
        contexts,
    }
}

fn print(row: &Row, out: &mut dyn Write) -> io::Result<()> {
    // What a server sends is shown escaped: a terminal might obey it.
    let shown = |text: &str| text.escape_debug().to_string();
    writeln!(out, "export {:?}: {}", row.name, human_size(row.size_bytes))?;
    if let Some(text) = &row.description {
        writeln!(out, "  description  {}", shown(text))?;
    }
    writeln!(out, "  flags        {}", row.flags.join(" "))?;
    if let Some(sizes) = row.block_sizes {
        let BlockSizes { minimum, preferred, maximum_payload } = sizes;
        writeln!(out, "  block sizes  minimum {minimum}, preferred {preferred}, payload {maximum_payload}")?;
    }
    writeln!(out, "  replies      {}", row.replies)?;
    row.contexts.iter().try_for_each(|name| writeln!(out, "  context      {}", shown(name)))
}
