//! TLS as a client: whom to trust, and what to show. The files are those of libnbd and QEMU.

pub mod kernel;
pub mod record;

use crate::bounded::bounded;
use clap::ValueEnum;
use kernel::{KernelTlsError, is_chacha20};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, pem};
use rustls::{ClientConfig, RootCertStore, SupportedCipherSuite};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The root of the server's certificate.
const ROOT: &str = "ca-cert.pem";
/// What to show of oneself, and its key; servers that want none need none.
const OWN: [&str; 2] = ["client-cert.pem", "client-key.pem"];

/// Encrypts connections to one server, with the certificates that are in its directory at that time.
#[derive(Clone)]
pub struct Connector {
    dir: PathBuf,
    preference: Preference,
    name: ServerName<'static>,
    /// What was read last.
    read: Arc<Mutex<Read>>,
}

/// What was read of a directory.
struct Read {
    connector: TlsConnector,
    /// When its files were changed, and how large they were.
    stamp: Stamp,
}

type Stamp = [Option<(SystemTime, u64, u64)>; 3];

/// The directory may lie on what is to be reconnected, or be gone for a moment.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// Which cipher to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preference {
    /// ChaCha20-Poly1305 if the server has it, because its keys do not wear out.
    #[default]
    Chacha20,
    /// AES-GCM only: faster on processors with instructions for it; but its keys wear out, and a kept connection is
    /// replaced each time, for which what is in flight waits as after a death.
    AesGcm,
}

/// Why nothing can be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nobody to trust.
    #[error(
        "TLS needs the root of the server's certificate: --tls-certificates DIR, where DIR has a {ROOT}, and a \
         {} and {} if the server wants to know its clients",
        OWN[0], OWN[1]
    )]
    NoCertificates,
    /// A file that is missing or holds something else.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: pem::Error,
    },
    /// Certificate and key do not go together, or the like.
    #[error("the certificates in {dir}: {error}")]
    Certificates {
        /// Where.
        dir: PathBuf,
        /// Why.
        error: rustls::Error,
    },
    /// Not a name that a certificate can have.
    #[error("{0:?} is no name that a certificate can have; give another with --tls-hostname")]
    Name(String, #[source] InvalidDnsNameError),
    /// A Unix socket.
    #[error(
        "the kernel encrypts TCP connections only; a Unix socket does not leave the machine, so use nbd+unix://"
    )]
    OnlyTcp,
    /// The kernel does not take the session.
    #[error(transparent)]
    Kernel(#[from] KernelTlsError),
    /// The handshake failed: the peer is not who it should be, or does not want us.
    #[error("TLS with the server failed: {0}")]
    Handshake(io::Error),
}

impl Connector {
    /// For the server of that name, with the certificates in a directory.
    ///
    /// # Errors
    /// Where they cannot be used.
    pub fn open(dir: Option<&Path>, name: &str, preference: Preference) -> Result<Connector, TlsError> {
        let dir = dir.ok_or(TlsError::NoCertificates)?;
        let read = Mutex::new(read(dir, preference)?);
        let name =
            ServerName::try_from(name.to_owned()).map_err(|error| TlsError::Name(name.to_owned(), error))?;
        Ok(Connector { dir: dir.to_owned(), preference, name, read: Arc::new(read) })
    }

    /// Has the directory read before the next connection, whether it seems to have changed or not.
    pub fn forget(&self) {
        if let Ok(mut read) = self.read.lock() {
            read.stamp = Stamp::default();
        }
    }

    /// What to connect with now: what is in the directory, or what was there where it cannot be read.
    async fn current(&self) -> Result<TlsConnector, TlsError> {
        let last = || self.read.lock().map(|read| (read.connector.clone(), read.stamp));
        let (connector, known) = last().map_err(|_| TlsError::NoCertificates)?;
        let (dir, preference) = (self.dir.clone(), self.preference);
        let look = move || if stamp(&dir) == known { None } else { Some(read(&dir, preference)) };
        match bounded(READ_PATIENCE, look).await {
            Ok(None) => Ok(connector),
            Ok(Some(Ok(fresh))) => {
                tracing::debug!("certificates were read again from {}", self.dir.display());
                let connector = fresh.connector.clone();
                if let Ok(mut read) = self.read.lock() {
                    *read = fresh;
                }
                Ok(connector)
            }
            Ok(Some(Err(error))) => {
                tracing::debug!("going on with the certificates of before: {error}");
                Ok(connector)
            }
            Err(slow) => {
                tracing::debug!(
                    "going on with the certificates of before: {} gives {slow}",
                    self.dir.display()
                );
                Ok(connector)
            }
        }
    }

    /// Does the TLS handshake on a stream whose server awaits it.
    ///
    /// # Errors
    /// Where either side does not accept the other.
    pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<TlsStream<S>, TlsError> {
        self.current().await?.connect(self.name.clone(), stream).await.map_err(TlsError::Handshake)
    }
}

fn read(dir: &Path, preference: Preference) -> Result<Read, TlsError> {
    // First: what changes while it is read is read again next time.
    let stamp = stamp(dir);
    let unusable = |error| TlsError::Certificates { dir: dir.to_owned(), error };
    let mut roots = RootCertStore::empty();
    for root in certificates(&dir.join(ROOT))? {
        roots.add(root).map_err(unusable)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(provider(preference)))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots);
    let [cert, key] = OWN.map(|file| dir.join(file));
    let mut config = if cert.exists() {
        let own = certificates(&cert)?;
        let key = PrivateKeyDer::from_pem_file(&key)
            .map_err(|error| TlsError::File { path: key.clone(), error })?;
        builder.with_client_auth_cert(own, key).map_err(unusable)?
    } else {
        builder.with_no_client_auth()
    };
    // For the kernel, which takes the session over.
    config.enable_secret_extraction = true;
    Ok(Read { connector: TlsConnector::from(Arc::new(config)), stamp })
}

fn stamp(dir: &Path) -> Stamp {
    [ROOT, OWN[0], OWN[1]].map(|file| {
        let metadata = fs::metadata(dir.join(file)).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    })
}

fn provider(preference: Preference) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let is_chacha = |suite: &SupportedCipherSuite| is_chacha20(suite.suite());
    match preference {
        Preference::Chacha20 => provider.cipher_suites.sort_by_key(|suite| !is_chacha(suite)),
        // Servers have preferences, too: what they like better must not be offered.
        Preference::AesGcm => provider.cipher_suites.retain(|suite| !is_chacha(suite)),
    }
    provider
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    read().map_err(|error| TlsError::File { path: path.to_owned(), error })
}
