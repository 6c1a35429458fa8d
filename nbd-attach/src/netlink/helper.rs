//! The process that asks the driver in our place. The driver does its work inside of the call, and sleeps where no signal
//! reaches while another device's server hangs; a process in which a thread sleeps so cannot end, but it can leave another
//! one behind.
//!
//! A question is a packet: the command, the attributes, and the sockets beside them. So is its answer: what became of it,
//! and the attributes or the error number.

use super::client::{NetlinkError, Socket, exchange, index_of};
use super::message::{Attribute, Command, Message, SocketItem};
use super::refusal::Refusal;
use crate::bounded::Child;
use netlink_packet_core::{Emitable, ParseableParametrized};
use netlink_packet_generic::GenlHeader;
use nix::errno::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use tokio::signal::unix::{SignalKind, signal};

/// The command by which this program becomes one.
pub const COMMAND: &str = "netlink";
/// More than any question or answer has.
const PACKET_MAX: usize = 64 << 10;
/// More sockets than a device has.
const SOCKETS_MAX: usize = 64;

/// What a question can lead to, the first byte of an answer.
const DONE: u8 = 0;
const REFUSED: u8 = 1;
const NO_FAMILY: u8 = 2;
const BROKEN: u8 = 3;

/// A running process of that kind, which ends when this is dropped, or as soon as the driver lets it.
#[derive(Debug)]
pub(super) struct Helper {
    socket: OwnedFd,
}

impl Helper {
    pub(super) fn start() -> io::Result<Helper> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Child::of_ours([COMMAND]).holding(File::from(theirs)).left_alone()?;
        Ok(Helper { socket: ours })
    }

    /// Puts a question and waits for its answer, for as long as it takes. This wait can be given up.
    pub(super) fn exchange(
        &self,
        message: &Message,
        sockets: &[Socket],
    ) -> io::Result<Result<Vec<Attribute>, NetlinkError>> {
        let mut packet = vec![message.command.0];
        let mut attributes = vec![0; message.buffer_len()];
        message.emit(&mut attributes);
        packet.extend(attributes);
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.as_fd()).collect();
        send(self.socket.as_fd(), &packet, &sockets)?;
        let mut answer = vec![0; PACKET_MAX];
        let (length, _) = receive(self.socket.as_fd(), &mut answer)?;
        let (what, rest) = answer[..length].split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(match *what {
            DONE => Message::parse_with_param(rest, header(message.command))
                .map(|message| message.attributes)
                .map_err(|error| NetlinkError::Broken(error.to_string())),
            REFUSED => {
                let errno = rest.try_into().map_or(0, i32::from_ne_bytes);
                let (command, index) = (message.command, index_of(message));
                Err(Refusal { command, index, errno: Errno::from_raw(errno) }.into())
            }
            NO_FAMILY => Err(NetlinkError::NoFamily),
            _ => Err(NetlinkError::Broken(String::from_utf8_lossy(rest).into_owned())),
        })
    }
}

/// What such a process does until nobody asks any more. Its questions come on standard input.
///
/// # Errors
/// Netlink or its input fails.
pub fn serve() -> io::Result<()> {
    crate::keep::stay_in_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _reactor = runtime.enter();
    // Whoever asks decides when it ends: a signal to a group of processes is meant for him.
    let _deaf = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
        signal(SignalKind::quit())?,
    ];
    let (connection, mut handle, _) = genetlink::new_connection()?;
    runtime.spawn(connection);
    let input = io::stdin();
    let mut packet = vec![0; PACKET_MAX];
    loop {
        let (length, sockets) = receive(input.as_fd(), &mut packet)?;
        let Some((command, attributes)) = packet[..length].split_first() else { return Ok(()) };
        let command = Command(*command);
        let asked = Message::parse_with_param(attributes, header(command)).map_err(io::Error::other)?;
        let asked = with_sockets(asked, &sockets);
        let answer = runtime.block_on(exchange(&mut handle, asked));
        // The driver has them, or does not want them.
        drop(sockets);
        let made = made(command, &answer);
        if let Err(error) = send(input.as_fd(), &packed(command, answer), &[]) {
            // Whoever asked has ended, and nobody else knows of what was made for him.
            if let Some(undo) = made {
                let _ = runtime.block_on(exchange(&mut handle, undo));
            }
            return Err(error);
        }
    }
}

/// What takes back a device that was made, if one was.
pub(super) fn made(command: Command, answer: &Result<Vec<Attribute>, NetlinkError>) -> Option<Message> {
    let attributes = answer.as_ref().ok().filter(|_| command == Command::CONNECT)?;
    let index = attributes.iter().find(|attribute| matches!(attribute, Attribute::Index(_)))?;
    Some(Message { command: Command::DISCONNECT, attributes: vec![index.clone()] })
}

fn header(command: Command) -> GenlHeader {
    GenlHeader { cmd: command.0, version: 1 }
}

/// The numbers by which this process knows the sockets.
fn with_sockets(message: Message, sockets: &[OwnedFd]) -> Message {
    let items: Vec<SocketItem> =
        sockets.iter().map(|socket| SocketItem { fd: socket.as_raw_fd().unsigned_abs() }).collect();
    let renumbered = message.attributes.into_iter().map(|attribute| match attribute {
        Attribute::Sockets(_) => Attribute::Sockets(items.clone()),
        other => other,
    });
    Message { command: message.command, attributes: renumbered.collect() }
}

fn packed(command: Command, answer: Result<Vec<Attribute>, NetlinkError>) -> Vec<u8> {
    let (what, rest) = match answer {
        // A list of all devices may be longer than a packet, and nobody reads it.
        Ok(_) if command == Command::STATUS => (DONE, vec![]),
        Ok(attributes) => {
            let message = Message { command, attributes };
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            (DONE, bytes)
        }
        Err(NetlinkError::Refused(refusal)) => (REFUSED, (refusal.errno as i32).to_ne_bytes().to_vec()),
        Err(NetlinkError::NoFamily) => (NO_FAMILY, vec![]),
        Err(other) => (BROKEN, other.to_string().into_bytes()),
    };
    std::iter::once(what).chain(rest).collect()
}

fn send(to: BorrowedFd<'_>, packet: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("too many sockets"));
    }
    sendmsg(to, &[IoSlice::new(packet)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(from, &mut [IoSliceMut::new(packet)], &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let sockets = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    Ok((received.bytes, sockets.flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Index;

    #[test]
    fn an_answer_comes_as_it_was_given() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let helper = Helper { socket: ours };
        let asked = Message {
            command: Command::CONNECT,
            attributes: vec![Attribute::Index(3), Attribute::Sockets(vec![SocketItem { fd: 999 }])],
        };
        let socket = Socket::new(File::open("/dev/null").unwrap().into());
        let answers = [
            Ok(vec![Attribute::Index(3)]),
            Err(NetlinkError::NoFamily),
            Err(Refusal { command: Command::CONNECT, index: Index::new(3).ok(), errno: Errno::EBUSY }.into()),
            Err(NetlinkError::Broken("words".into())),
        ];
        let wanted = answers.len();
        let driver = std::thread::spawn(move || {
            let mut seen = vec![];
            for answer in answers {
                let mut packet = vec![0; PACKET_MAX];
                let (length, sockets) = receive(theirs.as_fd(), &mut packet).unwrap();
                let (command, rest) = packet[..length].split_first().unwrap();
                let message = Message::parse_with_param(rest, header(Command(*command))).unwrap();
                let message = with_sockets(message, &sockets);
                let Some(Attribute::Sockets(items)) = message.attributes.last() else {
                    panic!("{message:?}")
                };
                seen.push(items.len() == 1 && items[0].fd == sockets[0].as_raw_fd().unsigned_abs());
                send(theirs.as_fd(), &packed(message.command, answer), &[]).unwrap();
            }
            seen
        });
        let said: Vec<String> = (0..wanted)
            .map(|_| match helper.exchange(&asked, std::slice::from_ref(&socket)).unwrap() {
                Ok(attributes) => format!("{attributes:?}"),
                Err(error) => error.to_string(),
            })
            .collect();
        assert_eq!(said[0], "[Index(3)]");
        assert!(said[1].contains("modprobe nbd") && said[2].contains("/dev/nbd3: it is in use"), "{said:?}");
        assert!(said[3].contains("words"), "{said:?}");
        assert_eq!(driver.join().unwrap(), vec![true; wanted]);
        assert!(helper.exchange(&asked, &[]).is_err(), "it has ended");
    }
}
