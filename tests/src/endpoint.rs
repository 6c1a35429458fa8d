//! Where a client connects, and whom it trusts there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::uri::{Tls, Transport, Uri};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::pki::Authority;

/// Where a client connects.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
    /// One of them, encrypted.
    Tls(Box<Endpoint>, Trust),
}

/// Whom an encrypted client trusts, and what it shows of itself.
#[derive(Debug, Clone)]
pub struct Trust {
    /// With roots, and a certificate where the server wants one.
    pub config: Arc<ClientConfig>,
    /// The name in the server's certificate.
    pub name: ServerName<'static>,
}

impl Trust {
    /// Trusts the root in a PEM file, shows a certificate if there is one to show (with its key), expects that name,
    /// and speaks these versions of TLS.
    ///
    /// # Errors
    /// Where rustls does not take what is in the files.
    pub fn read(
        root: &Path,
        own: Option<(&Path, &Path)>,
        name: &str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> anyhow::Result<Trust> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(root)?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)?
            .with_root_certificates(roots);
        let config = match own {
            Some((cert, key)) => {
                let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Trust { config: Arc::new(config), name: ServerName::try_from(name.to_owned())? })
    }
}

impl Endpoint {
    /// The same, encrypted by a server that shows a certificate of `authority`, with whichever version of TLS.
    #[must_use]
    pub fn encrypted(&self, authority: &Authority) -> Endpoint {
        Endpoint::Tls(Box::new(self.clone()), authority.trust(ALL_VERSIONS))
    }

    /// The NBD URI of an export.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        let transport = match self {
            Endpoint::Unix(path) => Transport::Unix { path: path.clone() },
            Endpoint::Tcp(address) => Transport::Tcp { host: address.ip().to_string(), port: address.port() },
            Endpoint::Tls(inner, _) => return inner.uri(export).replacen("nbd", "nbds", 1),
        };
        let export = export.to_owned();
        Uri { transport, tls: Tls::Off, export, certificates: None }.to_string()
    }
}
