//! Certificates for servers and clients in a guest.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::vm::Vm;

/// Where they are, by the names that libnbd, nbdkit and QEMU know: `ca-cert.pem`, `server-cert.pem` and
/// `client-cert.pem` with their keys, of a server that is called `localhost` and `127.0.0.1`.
pub const PKI: &str = "/run/pki";

impl Vm {
    /// Makes them anew.
    pub fn make_pki(&mut self) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority for a test");
        let root = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        self.put("ca-cert.pem", &root)?;
        for (name, hosts) in [("server", &["localhost", "127.0.0.1"][..]), ("client", &["client"])] {
            let key = KeyPair::generate()?;
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(hosts)?;
            params.distinguished_name.push(DnType::CommonName, name);
            let cert = params.signed_by(&key, &issuer)?.pem();
            self.put(&format!("{name}-cert.pem"), &cert)?;
            self.put(&format!("{name}-key.pem"), &key.serialize_pem())?;
        }
        Ok(())
    }

    fn put(&mut self, file: &str, text: &str) -> Result<()> {
        self.run(&format!("mkdir -p {PKI}; cat >{PKI}/{file} <<'END'\n{text}\nEND\n")).map(drop)
    }
}
