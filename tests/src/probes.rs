//! Whether an NBD server keeps the protocol: named probes that run on any server, given its address.
//!
//! A [`Probe`] is a short conversation, judged by what the spec says of it; what the server does not offer
//! is not held against it. Probes write to the export: give them one with nothing on it, of at least
//! [`SIZE_MIN`] bytes. The server is a black box, which other clients may use meanwhile.

mod chunks;
mod negotiation;
mod transmission;

use std::fmt;

use common::handshake::Export;
use common::handshake::context::ReplyStyle;
use common::option::Info;
use common::proto::{ClientFlags, OptionType, ReplyType, TransmissionFlags};
use serde_json::{Value, json};

use crate::audit::{NoFinding, Outcome};
use crate::chunked::Chunked;
use crate::client::{Client, Socket};
use crate::endpoint::Endpoint;
use crate::haggle::Haggle;

pub use crate::audit::Verdict;

/// Bytes of the export that the probes need.
pub const SIZE_MIN: u64 = 1 << 20;

/// One named property and the conversation that looks for it.
pub struct Probe {
    /// The section of the spec that demands it.
    pub section: &'static str,
    /// The property, in words.
    pub name: &'static str,
    script: fn(&Target) -> Outcome,
}

/// The server that is probed.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The name of the export.
    pub export: String,
}

/// Every probe, in the order of the spec.
pub fn all() -> impl Iterator<Item = &'static Probe> {
    [negotiation::PROBES, transmission::PROBES, chunks::PROBES].into_iter().flatten()
}

impl Probe {
    /// Has the conversation.
    #[must_use]
    pub fn run(&self, target: &Target) -> Verdict {
        Verdict::of(|| (self.script)(target))
    }
}

impl Target {
    /// A negotiation.
    fn haggle(&self) -> Haggle {
        Haggle::modern(&self.endpoint)
    }

    /// A connection in transmission, with simple replies.
    fn client(&self) -> Client {
        Client::try_connect(&self.endpoint, &self.export).expect("the server takes a connection")
    }

    /// A connection that was only opened: the server's greeting is on its way, in the clear.
    fn socket(&self) -> Socket {
        Socket::connect(&self.endpoint).expect("the server takes a connection")
    }

    /// A connection in transmission whose replies come in chunks.
    fn chunked(&self, style: ReplyStyle, contexts: &[&str]) -> anyhow::Result<Chunked> {
        let option = match style {
            ReplyStyle::Extended => OptionType::EXTENDED_HEADERS,
            ReplyStyle::Simple | ReplyStyle::Structured => OptionType::STRUCTURED_REPLY,
        };
        offered(self.haggle().ask(option, b"").1 == ReplyType::ACK)?;
        Ok(Chunked::connect_to(&self.endpoint, &self.export, style, contexts))
    }

    /// What the export says about itself, under simple replies.
    fn export(&self) -> Export {
        let export = self.client().export;
        assert!(export.size >= SIZE_MIN, "probes need {SIZE_MIN} bytes, and there are {}", export.size);
        export
    }

    /// A connection to an export that can be written and has all these flags.
    fn writable(&self, flags: TransmissionFlags) -> anyhow::Result<Client> {
        let client = self.client();
        offered(!client.export.flags.contains(TransmissionFlags::READ_ONLY))?;
        offered(client.export.flags.contains(flags))?;
        Ok(client)
    }

    /// What GO says beside its end.
    fn infos(&self, option: OptionType) -> (Vec<Info>, ReplyType) {
        let (pieces, reply) = self.haggle().ask_about(option, &self.export);
        (pieces.iter().map(|piece| Info::decode(piece).expect("an information")).collect(), reply)
    }
}

/// Goes on where the server has what is looked at.
fn offered(has: bool) -> anyhow::Result<()> {
    if has { Ok(()) } else { Err(NoFinding::NotOffered.into_error()) }
}

/// The flags of a client of fixed newstyle.
const FIXED: ClientFlags = ClientFlags::FIXED_NEWSTYLE;

/// Verdicts of every probe on some servers.
pub struct Table {
    columns: Vec<(String, Vec<Verdict>)>,
}

impl Table {
    /// Probes servers, one after the other.
    #[must_use]
    pub fn of(servers: &[(String, Target)]) -> Table {
        let probe = |target: &Target| all().map(|probe| probe.run(target)).collect();
        let columns = servers.iter().map(|(name, target)| (name.clone(), probe(target))).collect();
        Table { columns }
    }

    /// Whether the server of that name has no failing row.
    #[must_use]
    pub fn is_clean(&self, name: &str) -> bool {
        let mut columns = self.columns.iter().filter(|(column, _)| column == name);
        columns.all(|(_, verdicts)| verdicts.iter().all(|it| it.seen().is_none()))
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let column = |(name, verdicts): &(String, Vec<Verdict>)| {
            let rows: Vec<Value> = all()
                .zip(verdicts)
                .map(|(probe, verdict)| {
                    json!({
                        "section": probe.section,
                        "probe": probe.name,
                        "verdict": verdict.word(),
                        "seen": verdict.seen(),
                    })
                })
                .collect();
            json!({ "server": name, "probes": rows })
        };
        json!({ "servers": self.columns.iter().map(column).collect::<Vec<_>>() })
    }
}

/// Columns of the name of a probe.
const NAME_WIDTH: usize = 64;

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:NAME_WIDTH$}", "")?;
        self.columns.iter().try_for_each(|(name, _)| write!(f, "  {name:12}"))?;
        writeln!(f)?;
        for (row, probe) in all().enumerate() {
            write!(f, "{:NAME_WIDTH$}", probe.name)?;
            for (name, verdicts) in &self.columns {
                write!(f, "  {:width$}", verdicts[row].word(), width = name.len().max(12))?;
            }
            writeln!(f)?;
        }
        for (name, verdicts) in &self.columns {
            let faults = all().zip(verdicts).filter_map(|(probe, it)| Some((probe, it.seen()?)));
            for (probe, seen) in faults {
                writeln!(f, "\n{name}: {} ({:?} in the spec): {seen}", probe.name, probe.section)?;
            }
        }
        Ok(())
    }
}
