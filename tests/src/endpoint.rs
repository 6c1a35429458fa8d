//! Where a client connects, and whom it trusts there.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use common::uri::{Tls, Transport, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

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

impl Endpoint {
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
