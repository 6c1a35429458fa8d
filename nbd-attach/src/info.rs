//! `nbd-attach info`: what a server offers. Anyone may ask; nothing is attached.

use crate::config::{InfoConfig, Output};
use crate::dial::{DialError, dial};
use crate::negotiate::{NegotiateError, ask, start_tls};
use crate::status::human_size;
use crate::tls::TlsError;
use common::handshake::Listed;
use common::handshake::client::{Answer, Client, ClientError, Offer};
use common::handshake::context::ReplyStyle;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;
use tokio::time::timeout;

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
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No answer.
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    /// Not encrypted.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// stdout is gone.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// Asks the server and prints its answers.
pub async fn info(config: &InfoConfig, out: &mut dyn Write) -> Result<(), InfoError> {
    let mut rows = Vec::new();
    for name in names(config).await? {
        let client = Client::info(&name).map_err(NegotiateError::from)?;
        let Answer::Export(offer) = question(config, client).await? else {
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
async fn names(config: &InfoConfig) -> Result<Vec<String>, InfoError> {
    let named = config.uri.export.clone();
    if !named.is_empty() {
        return Ok(vec![named]);
    }
    match question(config, Client::list()).await {
        Ok(Answer::Exports(listed)) if !listed.is_empty() => {
            Ok(listed.into_iter().map(|Listed { name, .. }| name).collect())
        }
        // Not to list them is a policy that a server may have.
        Ok(_) | Err(InfoError::Negotiate(NegotiateError::Client(ClientError::Refused { .. }))) => {
            Ok(vec![named])
        }
        Err(error) => Err(error),
    }
}

/// One question on a connection of its own.
async fn question(config: &InfoConfig, client: Client) -> Result<Answer, InfoError> {
    let mut link = dial(&config.uri.transport, PATIENCE).await?;
    let Some(connector) = &config.tls else {
        return Ok(ask(link.stream(), client, PATIENCE).await?);
    };
    let rest = start_tls(link.stream(), client, PATIENCE).await?;
    let upgrade = timeout(PATIENCE, connector.upgrade(link.stream())).await;
    let mut encrypted = upgrade.map_err(|_| NegotiateError::Deadline(PATIENCE))??;
    Ok(rest.ask(&mut encrypted, PATIENCE).await?)
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
