//! TLS by rustls: what a server shows of itself, and what it wants to see of its clients.
//!
//! No session tickets: they are records that arrive after the handshake, and a client that has given
//! its socket to the kernel by then cannot take them. ChaCha20-Poly1305 is preferred: AES-GCM keys wear
//! out within a disk's life, and such a client cannot take a new one either.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;

/// Where the parts of it are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate, and those that lead to its root.
    pub cert: PathBuf,
    /// The key of the first of them.
    pub key: PathBuf,
    /// Roots of the clients' certificates; without them a client needs none.
    pub ca: Option<PathBuf>,
}

/// Upgrades connections.
#[derive(Clone)]
pub struct Upgrader(TlsAcceptor);

impl Upgrader {
    /// Reads and checks the files.
    pub fn open(files: &Files) -> anyhow::Result<Upgrader> {
        let provider = Arc::new(provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("TLS")?;
        let builder = match &files.ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(
                    verifier.with_context(|| format!("--tls-ca {}", path.display()))?,
                )
            }
        };
        let shown = files.key.display();
        let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| format!("--tls-key {shown}"))?;
        let mut config = builder
            .with_single_cert(certificates(&files.cert, "--tls-cert")?, key)
            .with_context(|| format!("{} and {shown} do not go together", files.cert.display()))?;
        // Nobody resumes a session: not by a ticket, and not by its number.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ignore_client_order = true;
        Ok(Upgrader(TlsAcceptor::from(Arc::new(config))))
    }

    /// Does the TLS handshake. Nothing is read beyond the last record of it that is needed.
    pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> std::io::Result<TlsStream<S>> {
        self.0.accept(stream).await
    }
}

/// The DNS names in the certificate that the client has shown.
pub fn names<S>(stream: &TlsStream<S>) -> Vec<String> {
    let (_, session) = stream.get_ref();
    let Some([shown, ..]) = session.peer_certificates() else { return Vec::new() };
    match EndEntityCert::try_from(shown) {
        Ok(certificate) => certificate.valid_dns_names().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}

/// The cryptography, ChaCha20 first.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !is_chacha(suite.suite()));
    provider
}

fn is_chacha(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

fn certificates(path: &Path, flag: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().with_context(|| format!("{flag} {shown}"))?;
    ensure!(!found.is_empty(), "{flag} {shown}: no certificate in it");
    Ok(found)
}

fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, "--tls-ca")? {
        roots.add(certificate).with_context(|| format!("--tls-ca {}", path.display()))?;
    }
    Ok(roots)
}
