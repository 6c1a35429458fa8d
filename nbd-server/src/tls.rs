//! TLS by rustls: what a server shows of itself, and what it wants to see of its clients.
//!
//! No session tickets: they are records that arrive after the handshake, and a client that has given
//! its socket to the kernel by then cannot take them. The cipher is the client's choice: AES-GCM is faster where
//! processors have instructions for it, and a client of the kernel, whose AES-GCM keys wear out within a disk's life,
//! asks for ChaCha20-Poly1305.

mod explain;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
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
    /// Lists of those of the clients' certificates that are good no more.
    pub crl: Option<PathBuf>,
}

/// Upgrades connections.
#[derive(Clone)]
pub struct Upgrader(TlsAcceptor);

impl Upgrader {
    /// Reads and checks the files.
    pub fn open(files: &Files) -> anyhow::Result<Upgrader> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("TLS")?;
        let builder = match &files.ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .with_crls(files.crl.as_deref().map_or(Ok(Vec::new()), revoked)?)
                    .build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| anyhow!(explain::roots(&error, files)))?,
                )
            }
        };
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|_no_more_than_that| anyhow!(explain::no_key(&files.key)))?;
        let mut config = builder
            .with_single_cert(certificates(&files.cert, "--tls-cert")?, key)
            .map_err(|error| anyhow!(explain::key_pair(&error, &files.cert, &files.key)))?;
        // Nobody resumes a session: not by a ticket, and not by its number.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Upgrader(TlsAcceptor::from(Arc::new(config))))
    }

    /// Does the TLS handshake. Nothing is read beyond the last record of it that is needed.
    pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> std::io::Result<TlsStream<S>> {
        self.0.accept(stream).await.map_err(|error| {
            let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match reason.map(explain::handshake) {
                Some(reason) => std::io::Error::new(error.kind(), reason),
                None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    std::io::Error::new(error.kind(), explain::CLOSED)
                }
                None => error,
            }
        })
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

fn certificates(path: &Path, flag: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().with_context(|| format!("{flag} {shown}"))?;
    ensure!(!found.is_empty(), "{flag} {shown}: no certificate in it");
    Ok(found)
}

fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let shown = path.display();
    for (place, certificate) in (1..).zip(certificates(path, "--tls-ca")?) {
        let added = roots.add(certificate);
        added.map_err(|_| anyhow!("--tls-ca {shown}: certificate {place} in it cannot be read"))?;
    }
    Ok(roots)
}

/// The lists of certificates that were revoked.
fn revoked(path: &Path) -> anyhow::Result<Vec<CertificateRevocationListDer<'static>>> {
    let shown = path.display();
    let read = || CertificateRevocationListDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().with_context(|| format!("--tls-crl {shown}"))?;
    ensure!(!found.is_empty(), "--tls-crl {shown}: no list (X509 CRL in PEM) in it");
    Ok(found)
}
