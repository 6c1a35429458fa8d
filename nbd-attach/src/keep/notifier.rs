//! What systemd is told, by a thread of its own: its socket has room for a few messages, and a systemd that waits for the
//! device takes none.

use sd_notify::NotifyState;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

/// Messages that may wait; what is more is lost, and the next one tells how things are then.
const WAITING_MAX: usize = 16;
/// Enough for a message, and all of it stays in memory.
const STACK: usize = 64 << 10;

enum Message {
    Ready,
    Status(String),
}

/// Tells, and waits for nobody.
pub(super) struct Notifier {
    /// None where nobody listens.
    messages: Option<SyncSender<Message>>,
}

impl Notifier {
    /// Tells the systemd that has started this process as a service, if one has.
    pub(super) fn start() -> Notifier {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Notifier { messages: None };
        }
        Notifier::telling(|state| sd_notify::notify(&[state]))
    }

    fn telling(tell: impl Fn(NotifyState<'_>) -> io::Result<()> + Send + 'static) -> Notifier {
        let (messages, waiting) = sync_channel(WAITING_MAX);
        let work = move || {
            for message in waiting {
                // Without systemd a service works as well.
                let _ = match &message {
                    Message::Ready => tell(NotifyState::Ready),
                    Message::Status(words) => tell(NotifyState::Status(words)),
                };
            }
        };
        let thread = thread::Builder::new().name("notifier".to_owned()).stack_size(STACK).spawn(work);
        Notifier { messages: thread.is_ok().then_some(messages) }
    }

    /// The service has started.
    pub(super) fn ready(&self) {
        self.send(Message::Ready);
    }

    /// How it is.
    pub(super) fn status(&self, words: &str) {
        self.send(Message::Status(words.to_owned()));
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            let _there_may_be_no_room = messages.try_send(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn one_that_takes_nothing_holds_nobody_up() {
        let (told, seen) = channel();
        let (go_on, wait) = channel::<()>();
        let notifier = Notifier::telling(move |state| {
            let _ = told.send(format!("{state}"));
            let _ = wait.recv();
            Ok(())
        });
        notifier.ready();
        assert_eq!(seen.recv().unwrap(), "READY=1");
        // It hangs in the first one now.
        (0..10 * WAITING_MAX).for_each(|number| notifier.status(&number.to_string()));
        drop(go_on);
        drop(notifier);
        let words: Vec<String> = seen.iter().collect();
        let first: Vec<String> = (0..WAITING_MAX).map(|number| format!("STATUS={number}")).collect();
        assert_eq!(words, first);
    }
}
