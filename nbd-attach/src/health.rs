//! How a device is, judged by what can be seen: its record, whether the process that wrote it lives, and the table of the
//! machine's TCP connections. Anyone may look, and looking takes nothing away.

use crate::event::{Event, Reason};
use crate::opener::Ends;
use crate::registry::{Connection, Phase, Record, Registry};
use serde::Serialize;
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// What a device is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// All its connections live, or nothing says that one does not.
    Up,
    /// Some of its connections are dead.
    Degraded,
    /// All are.
    Down,
    /// It was to be kept, and nobody keeps it.
    Unkept,
    /// Whoever made it was killed before he had looked at it; the same command finishes it.
    HalfMade,
    /// It is disconnected, and goes when nobody has it open any more.
    Disconnected,
    /// Another tool attached it.
    Foreign,
}

/// What can be told of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Health {
    pub(crate) state: State,
    pub(crate) connections: Vec<Connection>,
    /// The process that reconnects it.
    pub(crate) keeper: Option<u32>,
    pub(crate) trouble: Option<String>,
    /// Seconds since 1970.
    pub(crate) since: Option<f64>,
    pub(crate) reason: Option<Reason>,
}

impl Health {
    pub(crate) fn of(record: Option<&Record>, backend: Option<&str>, registry: &Registry) -> Health {
        let kept = backend.is_some_and(|backend| registry.is_kept(backend));
        let Some(record) = record else { return Health::unremembered(backend, kept) };
        // A keeper that was killed cannot say so; its right to keep the device ended with it.
        let keeper = record.keeper.filter(|_| kept);
        let connections = match keeper {
            Some(_) => record.connections_now(),
            None => looked_at(record),
        };
        let count = |how| connections.iter().filter(|connection| **connection == how).count();
        let orphaned = keeper.is_none() && record.attach.keep;
        let state = match (record.phase, count(Connection::Dead)) {
            (Phase::Disconnected, _) => State::Disconnected,
            (Phase::Made, _) if !kept => State::HalfMade,
            (_, dead) if dead > 0 && dead == connections.len() => State::Down,
            _ if orphaned => State::Unkept,
            (_, dead) if dead > 0 => State::Degraded,
            _ => State::Up,
        };
        let last = record.events.iter().rev().find(|entry| entry.event.is_trouble());
        let last = last.filter(|_| keeper.is_some());
        let trouble = match state {
            State::Disconnected => {
                Some("disconnected by force; it goes when nobody has it open any more".to_owned())
            }
            State::HalfMade => {
                Some("whoever attached it was killed on the way; the same command finishes it".to_owned())
            }
            State::Unkept | State::Down if orphaned => Some(record.ended_keeper()),
            State::Down if keeper.is_none() => {
                Some("its connections are dead, and nobody keeps it".to_owned())
            }
            State::Down | State::Degraded => last.map(|entry| entry.event.to_string()),
            _ => record.lasting_trouble(keeper.is_some()),
        };
        let reason = last.filter(|_| matches!(state, State::Down | State::Degraded)).and_then(|entry| {
            match &entry.event {
                Event::Failed { code, .. } => Some(*code),
                _ => None,
            }
        });
        let since = trouble.as_ref().and_then(|_| record.trouble_began());
        Health { state, connections, keeper, trouble, since, reason }
    }

    fn unremembered(backend: Option<&str>, kept: bool) -> Health {
        let ours = backend.is_some_and(|backend| crate::identifier::read(backend).is_some());
        let trouble = match (ours, kept) {
            (false, _) => None,
            (true, true) => Some("what its keeper knows cannot be remembered: is /run full?".to_owned()),
            (true, false) => Some(
                "what was remembered of it is lost; attaching it again by its id finds it out".to_owned(),
            ),
        };
        let state = if ours { State::Up } else { State::Foreign };
        Health { state, connections: vec![], keeper: None, trouble, since: None, reason: None }
    }
}

impl Record {
    /// Words about a keeper that is no more.
    fn ended_keeper(&self) -> String {
        let left = self.events.last().filter(|entry| matches!(entry.event, Event::Left { .. }));
        match (left, self.keeper) {
            (Some(entry), _) => entry.event.to_string(),
            (None, Some(pid)) => format!("its keeper, process {pid}, has ended; nobody reconnects it"),
            (None, None) => "it was to be kept, and nobody keeps it".to_owned(),
        }
    }

    /// What is wrong although all connections live.
    fn lasting_trouble(&self, kept: bool) -> Option<String> {
        let last = self.events.last().map(|entry| &entry.event)?;
        (kept && matches!(last, Event::Shrunk { .. } | Event::Stayed { .. })).then(|| last.to_string())
    }

    /// When the present trouble began: with the first death after everything was well.
    fn trouble_began(&self) -> Option<f64> {
        let well = |event: &Event| matches!(event, Event::Reconnected { .. } | Event::Kept { .. });
        let since = self.events.iter().rposition(|entry| well(&entry.event)).map_or(0, |at| at + 1);
        self.events.get(since).or(self.events.last()).map(|entry| entry.time)
    }
}

impl Record {
    /// The state of the connections: as the keeper knows its own, and as can be seen of those of an earlier keeper.
    fn connections_now(&self) -> Vec<Connection> {
        let ends = self.ends.iter().copied().chain(std::iter::repeat(None));
        let look = |(known, ends): (&Connection, Option<Ends>)| match (known, ends.map(lives)) {
            (Connection::Unknown, Some(Some(true))) => Connection::Alive,
            (known, _) => *known,
        };
        self.connections.iter().zip(ends).map(look).collect()
    }
}

/// Looks a connection up by its two addresses in the kernel's table of TCP connections.
pub(crate) fn lives(ends: Ends) -> Option<bool> {
    let Ends::Tcp { local, peer } = ends else { return None };
    let table = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    Some(table.iter().any(|table| is_established(table, local, peer)))
}

/// The state of the connections of a device without a keeper.
fn looked_at(record: &Record) -> Vec<Connection> {
    let look = |place: usize| match record.ends.get(place).copied().flatten().and_then(lives) {
        Some(true) => Connection::Alive,
        // Who gave it new connections would have written that down.
        Some(false) if record.reconnects == 0 => Connection::Dead,
        _ => Connection::Unknown,
    };
    (0..record.connections.len()).map(look).collect()
}

/// Whether a table of proc_pid_net(5) has a connection that lives.
fn is_established(table: &str, local: SocketAddr, peer: SocketAddr) -> bool {
    let wanted = [words(local), words(peer)];
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let ends = [fields.next(), fields.next()];
        ends.iter().zip(&wanted).all(|(end, wanted)| *end == Some(wanted.as_str()))
            && fields.next() == Some("01")
    })
}

/// An address as the kernel prints it: words of four bytes in the machine's order.
fn words(address: SocketAddr) -> String {
    let bytes: Vec<u8> = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |chunk: &[u8]| chunk.try_into().map_or(0, u32::from_ne_bytes);
    let text: String = bytes.chunks(4).map(|chunk| format!("{:08X}", word(chunk))).collect();
    format!("{text}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_found_while_it_lives() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else { continue };
            let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let theirs = listener.accept().unwrap();
            let ends = (ours.local_addr().unwrap(), ours.peer_addr().unwrap());
            let there = || {
                let table = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap());
                table.iter().any(|table| is_established(table, ends.0, ends.1))
            };
            assert!(there(), "{host}");
            drop(theirs);
            // The kernel's own work on the loopback is done when we see the end of it.
            let mut end = [0];
            assert_eq!(std::io::Read::read(&mut &ours, &mut end).unwrap(), 0);
            assert!(!there(), "{host}");
        }
    }
}
