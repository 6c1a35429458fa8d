//! Certificates for a test: an authority, a server it vouches for, and clients.

use std::fs;
use std::path::{Path, PathBuf};

use rustls::{ClientConnection, SupportedProtocolVersion};
use tempfile::TempDir;
use vm_tests::pki::{self, CLIENT, SERVER, Signed};

use crate::server::Trust;

/// An authority and what it has signed, in a directory of its own.
pub struct Authority {
    dir: TempDir,
    authority: pki::Authority,
}

impl Authority {
    /// A new one, which nobody else trusts.
    ///
    /// # Panics
    /// When the system has no randomness or no room.
    #[must_use]
    pub fn new() -> Authority {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let authority = pki::Authority::new().expect("an authority");
        fs::write(dir.path().join("ca-cert.pem"), authority.root()).expect("it can be written");
        Authority { dir, authority }
    }

    /// Its own certificate.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("ca-cert.pem")
    }

    /// Certificate and key of a server on this machine.
    #[must_use]
    pub fn server(&self) -> (PathBuf, PathBuf) {
        self.sign("server", SERVER)
    }

    /// A directory as libnbd and QEMU want it, which trusts this authority and shows a certificate of
    /// `signer`.
    #[must_use]
    pub fn client_of(&self, signer: &Authority) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let (cert, key) = signer.sign("client", CLIENT);
        for (from, to) in [(self.root(), "ca-cert.pem"), (cert, "client-cert.pem"), (key, "client-key.pem")] {
            fs::copy(from, dir.path().join(to)).expect("it can be copied");
        }
        dir
    }

    /// A directory as libnbd and QEMU want it, which trusts this authority and shows nothing.
    #[must_use]
    pub fn anonymous(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        fs::copy(self.root(), dir.path().join("ca-cert.pem")).expect("it can be copied");
        dir
    }

    /// A client's session of one version of TLS, which trusts this authority and prefers AES.
    ///
    /// # Panics
    /// When rustls does not take the certificate.
    #[must_use]
    pub fn session(&self, version: &'static SupportedProtocolVersion) -> ClientConnection {
        let trust = self.trust(&[version]);
        ClientConnection::new(trust.config, trust.name).expect("a session")
    }

    /// A client that trusts this authority, shows nothing, and speaks these versions of TLS.
    ///
    /// # Panics
    /// When rustls does not take the certificate.
    #[must_use]
    pub fn trust(&self, versions: &[&'static SupportedProtocolVersion]) -> Trust {
        Trust::read(&self.root(), None, "localhost", versions).expect("its own root and a fine name")
    }

    fn sign(&self, name: &str, alternatives: &[&str]) -> (PathBuf, PathBuf) {
        let Signed { cert, key } = self.authority.sign(name, alternatives).expect("a certificate");
        let at = |what| self.dir.path().join(format!("{name}-{what}.pem"));
        let write = |path: &Path, text: String| fs::write(path, text).expect("it can be written");
        write(&at("cert"), cert);
        write(&at("key"), key);
        (at("cert"), at("key"))
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}
