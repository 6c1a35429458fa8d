//! A client of the nbd netlink family whose calls end.
//!
//! The driver does its work inside the sender's `sendmsg`, under locks that a hung server can hold
//! for long; so another process sends, and callers wait for its answer with a deadline.
//! Commands queue behind one another here, as they would behind the kernel's own lock.

use super::helper::{Helper, made};
use super::message::{Attribute, ClientFlags, Command, DeviceItem, Message, SocketItem};
use super::refusal::Refusal;
use crate::device::Index;
use futures::StreamExt;
use genetlink::{GenetlinkError, GenetlinkHandle};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What went wrong between this process and the driver.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The family is not registered.
    #[error(
        "the nbd driver cannot be asked: it is not loaded (`modprobe nbd` loads it), or this is another network \
         namespace than the machine's first, from which Linux before 6.12 does not let it be asked"
    )]
    NoFamily,
    /// The driver said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer in time; whether the command took effect is unknown.
    #[error("the nbd driver did not answer within {} s: another device's server may be hanging", .0.as_secs())]
    Deadline(Duration),
    /// Netlink itself failed.
    #[error("talking to the kernel over netlink failed: {0}")]
    Broken(String),
}

/// What CONNECT is asked with. Every field is always sent: what is left out, the driver takes from
/// the device's previous life or from a default nobody wants.
#[derive(Clone, Debug)]
pub struct Connect {
    /// The device, or none to let the kernel choose a free one.
    pub index: Option<Index>,
    /// The size of the export.
    pub size: u64,
    /// Logical and physical block size.
    pub block_size: u32,
    /// How long a request may take; zero is for ever.
    pub timeout: Duration,
    /// How long to wait for a new socket once all are dead.
    pub dead_connection_timeout: Duration,
    /// The transmission flags.
    pub server_flags: u16,
    /// What `/sys/block/nbdN/backend` will say.
    pub backend: String,
    /// The connections, their handshakes done.
    pub sockets: Vec<Socket>,
}

/// A connection that is ours as well as the kernel's.
pub type Socket = Arc<OwnedFd>;

/// The handle to the thread that has the questions answered.
#[derive(Clone, Debug)]
pub struct Client {
    jobs: mpsc::UnboundedSender<Job>,
}

/// Who talks to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// This process, which is one to be left behind.
    Here,
    /// Another one, started when there is something to ask.
    Helper,
}

#[derive(Debug)]
struct Job {
    message: Message,
    /// Kept open until the kernel has looked the numbers up, even when nobody waits any more: a
    /// number closed and used again would hand a stranger's socket to the driver.
    sockets: Vec<Socket>,
    answer: oneshot::Sender<Result<Vec<Attribute>, NetlinkError>>,
}

impl Client {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is no thread or no netlink to be had.
    pub fn start(asker: Asker) -> io::Result<Client> {
        let (jobs, queue) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name("netlink".into());
        match asker {
            Asker::Helper => thread.spawn(move || serve_by_helper(queue))?,
            Asker::Here => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
                let (connection, handle, _) = {
                    let _reactor = runtime.enter();
                    genetlink::new_connection()?
                };
                thread.spawn(move || {
                    runtime.block_on(async {
                        tokio::spawn(connection);
                        serve(handle, queue).await;
                    });
                })?
            }
        };
        Ok(Client { jobs })
    }

    /// Attaches, and tells which device it became.
    pub async fn connect(&self, wish: &Connect, patience: Duration) -> Result<Index, NetlinkError> {
        let message = Message { command: Command::CONNECT, attributes: connect_attributes(wish) };
        let answer = self.ask(message, wish.sockets.clone(), patience).await?;
        let number = answer.iter().find_map(|attribute| match attribute {
            Attribute::Index(number) => Some(*number),
            _ => None,
        });
        number
            .and_then(|number| Index::new(number).ok())
            .or(wish.index)
            .ok_or_else(|| NetlinkError::Broken("the kernel attached a device but did not say which".into()))
    }

    /// Detaches whatever is attached there. The driver also says yes when nothing is.
    pub async fn disconnect(&self, index: Index, patience: Duration) -> Result<(), NetlinkError> {
        let attributes = vec![Attribute::Index(index.number())];
        self.ask(Message { command: Command::DISCONNECT, attributes }, vec![], patience).await.map(drop)
    }

    /// Changes what the driver does by itself with a device, if it still bears this identifier.
    pub async fn client_flags(
        &self,
        index: Index,
        backend: Option<&str>,
        flags: ClientFlags,
        patience: Duration,
    ) -> Result<(), NetlinkError> {
        let flags = [Attribute::ClientFlags(flags)];
        self.ask(reconfigure(index, backend, flags), vec![], patience).await.map(drop)
    }

    /// Gives a device, if it still bears this identifier, a connection for a dead one. Where none is dead the
    /// driver says yes and does nothing.
    pub async fn reconnect(
        &self,
        index: Index,
        backend: &str,
        socket: Socket,
        patience: Duration,
    ) -> Result<(), NetlinkError> {
        let item = Attribute::Sockets(vec![item(&socket)]);
        self.ask(reconfigure(index, Some(backend), [item]), vec![socket], patience).await.map(drop)
    }

    /// Changes how long the driver waits: for a request, and for a new connection once all are dead. A device that
    /// was attached without an identifier is changed without.
    pub async fn wait_for(
        &self,
        index: Index,
        backend: Option<&str>,
        [request, connection]: [Duration; 2],
        patience: Duration,
    ) -> Result<(), NetlinkError> {
        let times = [Attribute::Timeout(request.as_secs()), Attribute::DeadConnTimeout(connection.as_secs())];
        self.ask(reconfigure(index, backend, times), vec![], patience).await.map(drop)
    }

    /// Changes the size of a device that has a connection, if it still bears this identifier.
    pub async fn resize(
        &self,
        index: Index,
        backend: &str,
        size: u64,
        patience: Duration,
    ) -> Result<(), NetlinkError> {
        let size = [Attribute::SizeBytes(size)];
        self.ask(reconfigure(index, Some(backend), size), vec![], patience).await.map(drop)
    }

    /// Every device the driver has, with whether something holds it. Anyone may ask.
    pub async fn status(&self, patience: Duration) -> Result<Vec<DeviceItem>, NetlinkError> {
        let answer =
            self.ask(Message { command: Command::STATUS, attributes: vec![] }, vec![], patience).await?;
        let lists = answer.into_iter().filter_map(|attribute| match attribute {
            Attribute::DeviceList(items) => Some(items),
            _ => None,
        });
        Ok(lists.flatten().collect())
    }

    async fn ask(
        &self,
        message: Message,
        sockets: Vec<Socket>,
        patience: Duration,
    ) -> Result<Vec<Attribute>, NetlinkError> {
        let gone = || NetlinkError::Broken("the netlink thread ended".into());
        let (answer, wait) = oneshot::channel();
        self.jobs.send(Job { message, sockets, answer }).map_err(|_| gone())?;
        match tokio::time::timeout(patience, wait).await {
            Ok(answer) => answer.map_err(|_| gone())?,
            Err(_) => Err(NetlinkError::Deadline(patience)),
        }
    }
}

fn item(socket: &Socket) -> SocketItem {
    SocketItem { fd: socket.as_raw_fd().unsigned_abs() }
}

/// RECONFIGURE of a device, if it still bears this identifier.
fn reconfigure(index: Index, backend: Option<&str>, changes: impl IntoIterator<Item = Attribute>) -> Message {
    let backend = backend.map(|backend| Attribute::BackendIdentifier(backend.to_owned()));
    let device = [Attribute::Index(index.number())];
    let attributes = device.into_iter().chain(backend).chain(changes).collect();
    Message { command: Command::RECONFIGURE, attributes }
}

fn connect_attributes(wish: &Connect) -> Vec<Attribute> {
    let index = wish.index.map(|index| Attribute::Index(index.number()));
    let rest = [
        Attribute::SizeBytes(wish.size),
        Attribute::BlockSizeBytes(wish.block_size.into()),
        Attribute::Timeout(wish.timeout.as_secs()),
        Attribute::DeadConnTimeout(wish.dead_connection_timeout.as_secs()),
        Attribute::ServerFlags(wish.server_flags.into()),
        Attribute::BackendIdentifier(wish.backend.clone()),
        Attribute::Sockets(wish.sockets.iter().map(item).collect()),
    ];
    index.into_iter().chain(rest).collect()
}

async fn serve(mut handle: GenetlinkHandle, mut queue: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = queue.recv().await {
        if job.answer.is_closed() {
            // Nobody waits: a command given up before it was sent must not take effect later.
            continue;
        }
        let answer = exchange(&mut handle, job.message).await;
        // The caller may have given up while the driver was busy; it then looks at sysfs instead.
        let _ = job.answer.send(answer);
    }
}

/// One that has ended, however, is succeeded when it is needed next.
fn serve_by_helper(mut queue: mpsc::UnboundedReceiver<Job>) {
    let mut helper: Option<Helper> = None;
    while let Some(job) = queue.blocking_recv() {
        // See above.
        if job.answer.is_closed() {
            continue;
        }
        let started = match helper.take() {
            Some(running) => Ok(running),
            None => Helper::start(),
        };
        let asked = started.and_then(|running| {
            let answer = running.exchange(&job.message, &job.sockets)?;
            helper = Some(running);
            Ok(answer)
        });
        let ended = |error: io::Error| Err(NetlinkError::Broken(format!("the process that asks: {error}")));
        let answer = asked.unwrap_or_else(ended);
        let undo = made(job.message.command, &answer);
        // Nobody has waited for a device that was made so late.
        if let (Err(_), Some(undo), Some(running)) = (job.answer.send(answer), undo, &helper) {
            let _ = running.exchange(&undo, &[]);
        }
    }
}

pub(super) async fn exchange(
    handle: &mut GenetlinkHandle,
    message: Message,
) -> Result<Vec<Attribute>, NetlinkError> {
    let (command, index) = (message.command, index_of(&message));
    let broken = |error: &dyn std::error::Error| NetlinkError::Broken(error.to_string());
    match handle.resolve_family::<Message>().await {
        Err(GenetlinkError::NetlinkError(error)) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
            return Err(NetlinkError::NoFamily);
        }
        other => other.map_err(|error| broken(&error))?,
    };
    let mut request = NetlinkMessage::from(GenlMessage::from_payload(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut answers = handle.request(request).await.map_err(|error| broken(&error))?;
    let mut attributes = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.map_err(|error| broken(&error))?.payload {
            NetlinkPayload::InnerMessage(answer) => attributes.extend(answer.into_parts().1.attributes),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                let errno = Errno::from_raw(-error.raw_code());
                return Err(Refusal { command, index, errno }.into());
            }
            _ => {}
        }
    }
    Ok(attributes)
}

pub(super) fn index_of(message: &Message) -> Option<Index> {
    message.attributes.iter().find_map(|attribute| match attribute {
        Attribute::Index(number) => Index::new(*number).ok(),
        _ => None,
    })
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
