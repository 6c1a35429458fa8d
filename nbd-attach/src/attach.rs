//! `nbd-attach attach`: from a URI to a device that works, or to nothing at all.
//!
//! The handshakes are done here, on sockets of our own; the kernel inherits them with CONNECT. What is about to be made
//! is written down before that, and from that moment every way out but success takes it back; who is killed on the way
//! leaves what the same command finishes, see [`existing`].

pub mod claim;
mod error;
pub mod existing;
pub mod geometry;
mod links;
mod outcome;
pub mod settle;
pub mod undo;

pub use error::AttachError;
pub use outcome::{Answer, Attached, Held, Outcome};

use crate::config::{AttachConfig, Epoch, Keep};
use crate::device::Index;
use crate::driver;
use crate::host::Host;
use crate::identifier;
use crate::interrupt::Interrupt;
use crate::opener::Opener;
use crate::registry::{Lock, Phase, Record};
use crate::tls;
use crate::tls::kernel::Cipher;
use claim::claim;
use existing::existing;
use geometry::Geometry;
use links::{Links, open_links};
use settle::{Verdict, settle};
use std::io::Write;
use undo::{Attempt, UndoError};

/// Devices to try before giving up on finding one without stale limits. One renewal is enough
/// unless others attach and detach at the same time.
const ROUNDS_MAX: usize = 4;

/// Attaches, prints the result to `out`, and leaves nothing behind when any of it fails.
///
/// # Errors
/// There is no device.
pub async fn attach(
    config: &AttachConfig,
    host: &Host,
    interrupt: &mut Interrupt,
    out: &mut dyn Write,
) -> Result<Outcome, AttachError> {
    driver::check_privilege()?;
    driver::ensure_loaded(&host.sysfs).await?;
    host.registry.sweep(&host.sysfs);
    let anew = async |interrupt: &mut Interrupt, out: &mut dyn Write| {
        attach_anew(config, host, interrupt, out).await.map(|held| Outcome::Made(Box::new(held)))
    };
    let Some(id) = &config.id else { return anew(interrupt, out).await };
    // Held until the kernel knows the name, so that it is given once.
    let _turn = existing::turn(host, id).await?;
    match existing(config, host, id).await? {
        Some((attached, record, answer)) => {
            if answer == Answer::Read {
                attached.print(config.output, out)?;
            }
            Ok(Outcome::There(attached, Box::new(record), answer))
        }
        None => anew(interrupt, out).await,
    }
}

async fn attach_anew(
    config: &AttachConfig,
    host: &Host,
    interrupt: &mut Interrupt,
    out: &mut dyn Write,
) -> Result<Held, AttachError> {
    let opener = Opener::new(&config.uri, config.tls.as_ref());
    let mut device = config.device;
    for _ in 0..ROUNDS_MAX {
        let links = tokio::select! {
            links = open_links(config, &opener) => links?,
            signal = interrupt.ended() => return Err(AttachError::Interrupted(signal)),
        };
        if config.epoch == Epoch::Required && links.told.epoch.is_none() {
            return Err(AttachError::Epochless);
        }
        let geometry = Geometry::decide(config, &links.told.export, host.page_size)?;
        warn(config, &links, &geometry);
        let backend = identifier::create(&config.uri, config.id.as_ref())?;
        let attempt = Attempt { backend, sockets: links.sockets.clone() };
        let (mut record, lock) = begin(config, host, &attempt.backend, &links);
        match make(config, host, interrupt, out, &attempt, &links, &geometry, device).await {
            Ok(Made::Device(attached)) => {
                record.phase = Phase::Ready;
                remember(host, &record);
                let Links { sockets, cipher, .. } = links;
                return Ok(Held { attached, record, sockets, cipher, lock, answer: Answer::Read });
            }
            Ok(Made::Stale(index)) => {
                tracing::debug!("{index} keeps limits of an earlier server; making it anew");
                let cause = || Box::new(AttachError::Stale);
                let destroyed = attempt.destroy(host, index).await;
                destroyed.map_err(|undo| AttachError::Undo { cause: cause(), undo })?;
                host.registry.forget(&attempt.backend);
                device = Some(index);
            }
            Err(cause) => match taken_back(&attempt, host).await {
                // Somebody else was faster with the device made anew; any other will do.
                Ok(()) if device != config.device && cause.is_about_choice() => device = config.device,
                Ok(()) => return Err(cause),
                Err(undo) => return Err(AttachError::Undo { cause: Box::new(cause), undo }),
            },
        }
    }
    Err(AttachError::Stale)
}

async fn taken_back(attempt: &Attempt, host: &Host) -> Result<(), UndoError> {
    attempt.undo(host).await?;
    host.registry.forget(&attempt.backend);
    Ok(())
}

/// Writes down what is about to be made, and takes the right to it. A device works without that, only this tool then
/// knows less of it.
fn begin(config: &AttachConfig, host: &Host, backend: &str, links: &Links) -> (Record, Option<Lock>) {
    let record = Record {
        cipher: links.cipher.as_ref().map(Cipher::name),
        ends: links.ends.clone(),
        ..Record::new(backend, &config.typed, &links.told)
    };
    let lock = host.registry.keeper(backend);
    if let Err(error) = &lock {
        tracing::warn!("the device will not be remembered: {error}");
        return (record, None);
    }
    remember(host, &record);
    (record, lock.ok().flatten())
}

fn remember(host: &Host, record: &Record) {
    if let Err(error) = host.registry.remember(record) {
        tracing::warn!("the device will not be remembered: {error}");
    }
}

enum Made {
    Device(Attached),
    Stale(Index),
}

/// One CONNECT and what must follow it. The caller takes the device back when this fails.
#[expect(clippy::too_many_arguments, reason = "they are what a device is made of")]
async fn make(
    config: &AttachConfig,
    host: &Host,
    interrupt: &mut Interrupt,
    out: &mut dyn Write,
    attempt: &Attempt,
    links: &Links,
    geometry: &Geometry,
    device: Option<Index>,
) -> Result<Made, AttachError> {
    let index = claim(host, &links.connect(config, &attempt.backend, geometry, device)).await?;
    let directory = host.sysfs.device(index);
    let verdict = tokio::select! {
        verdict = settle(&directory, geometry, config.timeout) => verdict,
        signal = interrupt.ended() => return Err(AttachError::Interrupted(signal)),
    };
    match verdict.map_err(|error| AttachError::Settle { device: index, error })? {
        Verdict::Stale => Ok(Made::Stale(index)),
        Verdict::Usable => {
            directory.announce();
            let attached = Attached::made(config, &attempt.backend, geometry, index);
            attached
                .print(config.output, out)
                .map_err(|error| AttachError::Print { device: index, error })?;
            Ok(Made::Device(attached))
        }
    }
}

fn warn(config: &AttachConfig, links: &Links, geometry: &Geometry) {
    if geometry.tail > 0 {
        tracing::warn!(
            "the export is no multiple of the block size {}: its last {} bytes are out of reach",
            geometry.block_size,
            geometry.tail
        );
    }
    if config.timeout.is_zero() {
        tracing::warn!("--timeout 0: when the server dies, requests will hang for ever");
    }
    if config.keep == Keep::Reconnect && links.told.epoch.is_none() {
        tracing::warn!(
            "the server has no epoch: if it loses writes that it has acknowledged, as in a crash of its host, nobody \
             notices, and another disk of this size only by what lies on it (--require-epoch refuses such servers)"
        );
    }
    if links.cipher.is_some() && tls::kernel::loses_count(&driver::release()) {
        tracing::warn!(
            "the TLS of Linux 6.18 and later is known to lose count of the memory of xfs's log (\"Bad page state\"): put \
             another file system on this device, or attach it without TLS"
        );
    }
    if config.keep == Keep::No && links.cipher.as_ref().is_some_and(|cipher| cipher.records_max.is_some()) {
        tracing::warn!(
            "the keys of AES-GCM wear out, and without --keep nobody replaces them: the server may end the connection \
             after 16 million requests"
        );
    }
}
