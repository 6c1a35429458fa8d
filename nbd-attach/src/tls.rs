//! TLS as a client: whom to trust, and what to show. The files are those of libnbd and QEMU.

pub mod kernel;
pub mod record;

use clap::ValueEnum;
use kernel::{KernelTlsError, is_chacha20};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, pem};
use rustls::{ClientConfig, RootCertStore, SupportedCipherSuite};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The root of the server's certificate.
const ROOT: &str = "ca-cert.pem";
/// What to show of oneself, and its key; servers that want none need none.
const OWN: [&str; 2] = ["client-cert.pem", "client-key.pem"];

/// Encrypts connections to one server.
#[derive(Clone)]
pub struct Connector {
    connector: TlsConnector,
    name: ServerName<'static>,
}

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
        let name =
            ServerName::try_from(name.to_owned()).map_err(|error| TlsError::Name(name.to_owned(), error))?;
        Ok(Connector { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Does the TLS handshake on a stream whose server awaits it.
    ///
    /// # Errors
    /// Where either side does not accept the other.
    pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<TlsStream<S>, TlsError> {
        self.connector.connect(self.name.clone(), stream).await.map_err(TlsError::Handshake)
    }
}

fn provider(preference: Preference) -> CryptoProvider {
    let mut provider = ring::default_provider();
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
