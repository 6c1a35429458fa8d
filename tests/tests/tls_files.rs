//! Proves that certificates, keys and lists of revoked certificates are taken as OpenSSL makes them, that a list counts
//! from the reload on that brings it, and that what is wrong is told in sentences, to the operator and of clients.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::server::{Endpoint, Server};
use tests::{tool, wait_for};

/// What `openssl ca` wants to know.
const CONFIG: &str = "
[ca]
default_ca = own
[own]
database = DIR/index.txt
serial = DIR/serial
crlnumber = DIR/crlnumber
new_certs_dir = DIR
default_md = sha256
default_days = 30
default_crl_days = 30
policy = any
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = nobody
[nobody]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign,digitalSignature
[leaf]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost,IP:127.0.0.1
";

/// An authority that OpenSSL keeps, in a directory of its own.
struct Authority {
    openssl: PathBuf,
    dir: TempDir,
}

impl Authority {
    fn new(name: &str) -> Option<Authority> {
        let openssl = tool::find("openssl", "openssl")?;
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("config"), CONFIG.replace("DIR", text(dir.path()))).expect("it can be written");
        fs::write(at("index.txt"), "").expect("it can be written");
        fs::write(at("serial"), "1000\n").expect("it can be written");
        fs::write(at("crlnumber"), "01\n").expect("it can be written");
        let authority = Authority { openssl, dir };
        authority.run(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN={name} -extensions authority -keyout ca-key.pem -out \
             ca-cert.pem"
        ));
        Some(authority)
    }

    /// Runs openssl in the directory. Words that end in `.pem` are files there.
    fn run(&self, words: &str) {
        let mut all: Vec<String> = Vec::new();
        for word in words.split(' ') {
            let is_file = Path::new(word).extension().is_some_and(|it| it == "pem");
            all.push(if is_file { text(&self.at(word)).to_owned() } else { word.to_owned() });
        }
        let takes_config = matches!(all[0].as_str(), "req" | "ca");
        if takes_config {
            all.splice(1..1, ["-config".to_owned(), text(&self.at("config")).to_owned()]);
        }
        tool::succeed(&self.openssl, &all);
    }

    /// Signs a certificate of a new key, made by `kind`.
    fn sign(&self, name: &str, kind: &str) {
        self.run(&format!(
            "req -new -newkey {kind} -nodes -subj /CN={name} -keyout {name}-key.pem -out {name}-csr.pem"
        ));
        self.run(&format!(
            "ca -batch -notext -cert ca-cert.pem -keyfile ca-key.pem -extensions leaf -in {name}-csr.pem -out {name}-cert.pem"
        ));
    }

    /// Writes the list of those that were revoked.
    fn list(&self) {
        self.run("ca -gencrl -cert ca-cert.pem -keyfile ca-key.pem -out crl.pem");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory as libnbd wants it, which shows one of the certificates, or none.
    fn client(&self, shows: Option<&str>) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let copy = |from: &str, to: &str| {
            fs::copy(self.at(from), dir.path().join(to)).expect("it can be copied");
        };
        copy("ca-cert.pem", "ca-cert.pem");
        if let Some(name) = shows {
            copy(&format!("{name}-cert.pem"), "client-cert.pem");
            copy(&format!("{name}-key.pem"), "client-key.pem");
        }
        dir
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Whether nbdinfo gets the size of the default export.
fn is_served(nbdinfo: &Path, server: &Server, certificates: &Path) -> bool {
    let Endpoint::Tcp(address) = server.endpoint() else { panic!("it listens on TCP") };
    let uri = format!("nbds://{address}/?tls-certificates={}", text(certificates));
    tool::run(nbdinfo, &["--size", &uri]).status.success()
}

fn serve(authority: &Authority, name: &str, more: &[&str]) -> Server {
    let [cert, key] = ["cert", "key"].map(|what| authority.at(&format!("{name}-{what}.pem")));
    let words = ["--tls-cert", text(&cert), "--tls-key", text(&key)];
    Server::builder().export("memory:1M").tcp().args(&words).args(more).start()
}

#[test]
fn keys_of_every_common_kind_serve() {
    let (Some(authority), Some(nbdinfo)) = (Authority::new("ours"), tool::find("nbdinfo", "libnbd-bin"))
    else {
        return;
    };
    let client = authority.client(None);
    // 2432 bits are what certtool made for many years.
    for (name, kind) in [
        ("odd", "rsa:2432"),
        ("short", "rsa:2048"),
        ("long", "rsa:3072"),
        ("curve", "ec -pkeyopt ec_paramgen_curve:P-384"),
        ("edwards", "ed25519"),
    ] {
        authority.sign(name, kind);
        let server = serve(&authority, name, &[]);
        assert!(is_served(&nbdinfo, &server, client.path()), "{kind}");
    }
}

#[test]
fn who_was_revoked_is_refused_from_the_reload_on() {
    let (Some(authority), Some(nbdinfo)) = (Authority::new("ours"), tool::find("nbdinfo", "libnbd-bin"))
    else {
        return;
    };
    for name in ["server", "good", "bad"] {
        authority.sign(name, "rsa:2048");
    }
    authority.list();
    let [cert, key, ca, crl] =
        ["server-cert.pem", "server-key.pem", "ca-cert.pem", "crl.pem"].map(|name| authority.at(name));
    let file = authority.at("nbd.toml");
    let tls = format!("[tls]\ncert = {cert:?}\nkey = {key:?}\nca = {ca:?}\ncrl = {crl:?}\n");
    let config = format!("listen = [\"127.0.0.1:0\"]\n{tls}[[export]]\nserve = \"memory:1M\"\n");
    fs::write(&file, &config).expect("it can be written");
    let server = Server::builder().config(&file, 1).start();
    let (good, bad) = (authority.client(Some("good")), authority.client(Some("bad")));
    assert!(is_served(&nbdinfo, &server, good.path()) && is_served(&nbdinfo, &server, bad.path()));
    authority.run("ca -revoke bad-cert.pem -cert ca-cert.pem -keyfile ca-key.pem");
    authority.list();
    server.signal(Signal::SIGHUP);
    let _line = server.logged("the certificates were read again; connections that are open keep theirs");
    let _line = server.logged("was reloaded");
    assert!(!is_served(&nbdinfo, &server, bad.path()));
    let _line = server.logged("the client's certificate was revoked (--tls-crl)");
    assert!(is_served(&nbdinfo, &server, good.path()));
    // A list that is none changes nothing.
    fs::write(&crl, "nothing").expect("it can be written");
    server.signal(Signal::SIGHUP);
    let _line = server.logged("no list (X509 CRL in PEM) in it");
    assert!(!is_served(&nbdinfo, &server, bad.path()) && is_served(&nbdinfo, &server, good.path()));
    let lone = config.replace(&format!("ca = {ca:?}\n"), "");
    fs::write(&file, lone).expect("it can be written");
    let refused = Server::builder().config(&file, 1).refused();
    assert!(refused.log.contains("crl needs a ca"), "{refused:?}");
}

/// Fails where a message speaks of the inside of a program: in words with a capital inside.
fn is_english(line: &str) {
    let inside = |word: &str| {
        let known = [
            "nbdX",
            "SHA-256",
            "AES-GCM",
            "ChaCha20-Poly1305",
            "clientAuth",
            "extendedKeyUsage",
            "ECDSA",
            "Ed25519",
        ];
        let word = word.trim_matches(|sign: char| !sign.is_alphanumeric());
        let letters: Vec<char> = word.chars().collect();
        let camel = letters.windows(2).any(|two| two[0].is_lowercase() && two[1].is_uppercase());
        camel && !known.contains(&word) && !word.contains('/')
    };
    let said = line.split(' ').find(|word| inside(word));
    assert_eq!(said, None, "{line}");
}

#[test]
fn what_is_wrong_is_told_in_sentences() {
    let (Some(authority), Some(nbdinfo)) = (Authority::new("ours"), tool::find("nbdinfo", "libnbd-bin"))
    else {
        return;
    };
    let Some(stranger) = Authority::new("theirs") else { return };
    for (of, name) in [(&authority, "server"), (&authority, "expired"), (&stranger, "other")] {
        of.sign(name, "rsa:2048");
    }
    authority.run("pkey -in server-key.pem -aes256 -passout pass:secret -out locked-key.pem");
    authority.run("req -x509 -newkey rsa:1024 -nodes -subj /CN=weak -keyout weak-key.pem -out weak-cert.pem");
    for (cert, key, complaint) in [
        ("server-cert.pem", "locked-key.pem", "openssl pkey -in OLD -out NEW"),
        ("server-key.pem", "server-cert.pem", "wrong way round"),
        ("server-cert.pem", "expired-key.pem", "do not go together: the certificate is that of another key"),
        ("weak-cert.pem", "weak-key.pem", "RSA with 2048 to 8192 bits"),
    ] {
        let (cert, key) = (authority.at(cert), authority.at(key));
        let words = ["--tls-cert", text(&cert), "--tls-key", text(&key)];
        let refused = Server::builder().export("memory:1M").tcp().args(&words).refused();
        assert!(refused.log.contains(complaint) && refused.code == Some(1), "{complaint}: {refused:?}");
        is_english(refused.log.trim());
    }

    let root = authority.at("ca-cert.pem");
    let server = serve(&authority, "server", &["--tls-ca", text(&root)]);
    let refused = |certificates: &Path, complaint: &str| {
        assert!(!is_served(&nbdinfo, &server, certificates), "{complaint}");
        is_english(&server.logged(complaint));
    };
    refused(authority.client(None).path(), "the client shows no certificate, which --tls-ca asks for");
    let Some(impostor) = Authority::new("ours") else { return };
    impostor.sign("other", "rsa:2048");
    let strange = impostor.client(Some("other"));
    fs::copy(&root, strange.path().join("ca-cert.pem")).expect("it can be copied");
    refused(strange.path(), "was signed by somebody else than it says");
    let authority_itself = authority.client(None);
    for (from, to) in [("ca-cert.pem", "client-cert.pem"), ("ca-key.pem", "client-key.pem")] {
        fs::copy(authority.at(from), authority_itself.path().join(to)).expect("it can be copied");
    }
    refused(authority_itself.path(), "is that of an authority");
    refused(stranger.client(Some("other")).path(), "perhaps it does not trust the issuer of --tls-cert");
    // As what a browser or a scanner would say.
    let alone = serve(&authority, "server", &[]);
    let Endpoint::Tcp(address) = alone.endpoint() else { panic!("it listens on TCP") };
    let mut haggle = tests::haggle::Haggle::modern(&Endpoint::Tcp(*address));
    assert_eq!(haggle.ask(common::proto::OptionType::STARTTLS, b"").1, common::proto::ReplyType::ACK);
    std::io::Write::write_all(&mut haggle.socket, b"GET / HTTP/1.1\r\n\r\n").expect("the server listens");
    let line =
        wait_for("the complaint", || alone.log().lines().find(|it| it.contains("no TLS")).map(str::to_owned));
    is_english(&line);
}
