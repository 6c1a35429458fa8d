//! Certificates for a test: an authority and what it signs.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::vm::Vm;

/// Where a guest has them, by the names that libnbd, nbdkit and QEMU know: `ca-cert.pem`, `server-cert.pem` and
/// `client-cert.pem` with their keys.
pub const PKI: &str = "/run/pki";
/// What a server of this machine is called.
pub const SERVER: &[&str] = &["localhost", "127.0.0.1"];
/// What a client is called.
pub const CLIENT: &[&str] = &["client"];

/// An authority that nobody else trusts.
pub struct Authority {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub struct Signed {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority for a test");
        let root = params.self_signed(&key)?.pem();
        Ok(Authority { root, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate, as PEM.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A certificate for whoever is called so, and by these names.
    pub fn sign(&self, name: &str, alternatives: &[&str]) -> Result<Signed> {
        let key = KeyPair::generate()?;
        let alternatives: Vec<String> = alternatives.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(alternatives)?;
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Signed { cert, key: key.serialize_pem() })
    }
}

impl Vm {
    /// Makes certificates for servers and clients in the guest.
    pub fn make_pki(&mut self) -> Result<()> {
        let authority = Authority::new()?;
        self.put("ca-cert.pem", authority.root())?;
        for (name, alternatives) in [("server", SERVER), ("client", CLIENT)] {
            let Signed { cert, key } = authority.sign(name, alternatives)?;
            self.put(&format!("{name}-cert.pem"), &cert)?;
            self.put(&format!("{name}-key.pem"), &key)?;
        }
        Ok(())
    }

    fn put(&mut self, file: &str, text: &str) -> Result<()> {
        self.run(&format!("mkdir -p {PKI}; cat >{PKI}/{file} <<'END'\n{text}\nEND\n")).map(drop)
    }
}
