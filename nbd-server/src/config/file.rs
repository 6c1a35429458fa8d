//! A configuration file: TOML, with the words of the command line's flags.
//!
//! An error names the file and the line. Nothing is guessed: a word that means nothing is an error.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{Definition, Globals, Plan, Served, definition, globals, tls};
use crate::cli::{Serve, TlsPolicy, parse_mode, parse_size};
use crate::confine::Sandbox;
use crate::engine::Engine;
use crate::export::{Admission, Secrecy};

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    listen: Vec<String>,
    #[serde(default)]
    unix: Vec<PathBuf>,
    unix_mode: Option<String>,
    unix_group: Option<String>,
    #[serde(default)]
    vsock: Vec<u32>,
    admin: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    user: Option<String>,
    #[serde(default)]
    sandbox: Sandbox,
    #[serde(default)]
    directories: Vec<PathBuf>,
    #[serde(default)]
    engine: Engine,
    busy_poll: Option<u64>,
    workers: Option<NonZeroUsize>,
    max_connections: Option<NonZeroUsize>,
    max_memory: Option<Size>,
    handshake_timeout: Option<Seconds>,
    shutdown_timeout: Option<Seconds>,
    tls: Option<Tls>,
    #[serde(default)]
    export: Vec<Spanned<Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    cert: PathBuf,
    key: PathBuf,
    ca: Option<PathBuf>,
    crl: Option<PathBuf>,
    #[serde(default)]
    policy: TlsPolicy,
}

/// One `[[export]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    #[serde(default)]
    name: String,
    serve: String,
    description: Option<String>,
    durability: Option<String>,
    size: Option<Size>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    direct: bool,
    dirty_max: Option<Size>,
    dirty_age: Option<Seconds>,
    early_ack_max: Option<Size>,
    max_connections: Option<NonZeroUsize>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    allow_names: Vec<String>,
}

/// Bytes: a number, or a text with a binary suffix.
#[derive(Deserialize)]
#[serde(try_from = "SizeText")]
struct Size(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;
    fn try_from(text: SizeText) -> Result<Size, String> {
        match text {
            SizeText::Number(bytes) => Ok(Size(bytes)),
            SizeText::Text(text) => parse_size(&text).map(Size),
        }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "f64")]
struct Seconds(Duration);

impl TryFrom<f64> for Seconds {
    type Error = String;
    fn try_from(seconds: f64) -> Result<Seconds, String> {
        Duration::try_from_secs_f64(seconds).map(Seconds).map_err(|error| error.to_string())
    }
}

impl Plan {
    /// What a file says.
    pub fn read(path: &Path) -> anyhow::Result<Plan> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        Plan::parse(&text).map_err(|error| anyhow!("{shown}: {error:#}"))
    }

    /// What the text of a file says.
    ///
    /// # Errors
    /// They begin with the line, unless it is the whole that lacks something.
    pub fn parse(text: &str) -> anyhow::Result<Plan> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            anyhow!("line {line}: {}", error.message())
        })?;
        let serve = serve(&file)?;
        let globals = Globals { directories: file.directories.clone(), ..globals(&serve)? };
        let mut plan = Plan { globals, tls: tls(&serve), exports: Vec::new() };
        let mut served = Served::new();
        for table in &file.export {
            define(table.get_ref(), &serve)
                .and_then(|definition| plan.add(definition, &mut served))
                .with_context(|| {
                    let line = line_of(text, table.span().start);
                    format!("line {line}: export {:?}", table.get_ref().name)
                })?;
        }
        anyhow::ensure!(!plan.exports.is_empty(), "there is no [[export]]: nothing is to be served");
        Ok(plan)
    }
}

/// The same for all exports, as if it had been typed.
fn serve(file: &File) -> anyhow::Result<Serve> {
    let mut serve = Serve::untyped();
    serve.listen.clone_from(&file.listen);
    serve.unix.clone_from(&file.unix);
    serve.unix_mode =
        file.unix_mode.as_deref().map(parse_mode).transpose().map_err(|error| anyhow!(error))?;
    serve.unix_group.clone_from(&file.unix_group);
    serve.vsock.clone_from(&file.vsock);
    serve.admin.clone_from(&file.admin);
    serve.state_dir.clone_from(&file.state_dir);
    serve.user.clone_from(&file.user);
    serve.sandbox = file.sandbox;
    serve.engine = file.engine;
    serve.busy_poll = file.busy_poll.unwrap_or(serve.busy_poll);
    serve.workers = file.workers;
    serve.max_connections = file.max_connections.unwrap_or(serve.max_connections);
    serve.max_memory = file.max_memory.as_ref().map_or(serve.max_memory, |size| size.0);
    let seconds = |given: &Option<Seconds>, default| given.as_ref().map_or(default, |seconds| seconds.0);
    serve.handshake_timeout = seconds(&file.handshake_timeout, serve.handshake_timeout);
    serve.shutdown_timeout = seconds(&file.shutdown_timeout, serve.shutdown_timeout);
    if let Some(tls) = &file.tls {
        (serve.tls_cert, serve.tls_key) = (Some(tls.cert.clone()), Some(tls.key.clone()));
        serve.tls_ca.clone_from(&tls.ca);
        serve.tls_crl.clone_from(&tls.crl);
        ensure!(
            tls.crl.is_none() || tls.ca.is_some(),
            "[tls] crl needs a ca: without one, no client is asked for a certificate"
        );
        serve.tls = tls.policy;
    }
    Ok(serve)
}

fn define(table: &Table, serve: &Serve) -> anyhow::Result<Definition> {
    let mut own = serve.clone();
    own.read_only = table.read_only;
    own.direct = table.direct;
    if let Some(mode) = &table.durability {
        own.durability = mode.parse().map_err(|error: String| anyhow!(error))?;
    }
    own.dirty_max = table.dirty_max.as_ref().map_or(own.dirty_max, |size| size.0);
    own.dirty_age = table.dirty_age.as_ref().map_or(own.dirty_age, |age| age.0);
    own.early_ack_max = table.early_ack_max.as_ref().map_or(own.early_ack_max, |size| size.0);
    let addresses = table.allow.iter().map(|text| network(text)).collect::<anyhow::Result<_>>()?;
    if !table.allow_names.is_empty() && own.tls_ca.is_none() {
        anyhow::bail!("allow-names needs [tls] with a ca: without one, no client shows a name");
    }
    Ok(Definition {
        name: table.name.clone(),
        serve: table.serve.clone(),
        size: table.size.as_ref().map(|size| size.0),
        text: table.description.clone(),
        admission: Admission {
            addresses,
            names: table.allow_names.clone(),
            connections_max: table.max_connections.map(NonZeroUsize::get),
            secrecy: secrecy(serve),
        },
        ..definition(&own)?
    })
}

/// What clients must speak. The handshake sees to it, too, but not once it is over.
fn secrecy(serve: &Serve) -> Secrecy {
    match serve.tls {
        TlsPolicy::Required if serve.tls_cert.is_some() => Secrecy::Encrypted,
        _ => Secrecy::Clear,
    }
}

/// A network, or a single address.
fn network(text: &str) -> anyhow::Result<IpNet> {
    let single = || text.parse::<IpAddr>().map(IpNet::from).ok();
    let found = text.parse().ok().or_else(single);
    found.with_context(|| format!("allow: {text:?} is neither an address nor a network like 192.0.2.0/24"))
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Access;
    use crate::durability::Mode;

    const GOOD: &str = r#"
listen = ["127.0.0.1:0"]
max-memory = "64M"
shutdown-timeout = 2.5

[[export]]
name = "vm"
serve = "/dev/vg/vm"
description = "the machine's disk"
durability = "early-ack"
dirty-max = 1048576
early-ack-max = "64K"
max-connections = 4
allow = ["192.0.2.0/24", "2001:db8::1"]

[[export]]
serve = "memory:1M"
read-only = true
"#;

    #[test]
    fn the_words_are_those_of_the_flags() {
        let plan = Plan::parse(GOOD).unwrap();
        assert_eq!((plan.globals.memory_max, plan.globals.workers > 0), (64 << 20, true));
        assert_eq!(plan.globals.shutdown_timeout, Duration::from_millis(2500));
        let [vm, scratch] = &plan.exports[..] else { panic!("{:?}", plan.exports) };
        assert_eq!((vm.mode, vm.limits.dirty_max, vm.limits.early_max), (Mode::EarlyAck, 1 << 20, 64 << 10));
        assert_eq!((vm.admission.addresses.len(), vm.admission.connections_max), (2, Some(4)));
        assert_eq!(
            (&scratch.name[..], scratch.access, scratch.mode),
            ("", Access::ReadOnly, Mode::Writeback)
        );
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line, word) in [
            ("listen = 5\n", 1, "sequence"),
            ("\nwhat = 1\n[[export]]\nserve = \"x\"\n", 2, "what"),
            ("[[export]]\nserve = \"x\"\nmode = \"unsafe\"\n", 3, "mode"),
            ("\n[[export]]\nserve = \"x\"\ndurability = \"no\"\n", 2, "no"),
            ("[[export]]\nserve = \"x\"\ndirty-max = \"lots\"\n", 3, "lots"),
            ("[[export]]\nserve = \"x\"\n\n[[export]]\nserve = \"y\"\n", 4, "without a name"),
            ("[[export]]\nserve = \"x\"\nallow = [\"10.0.0.0/99\"]\n", 1, "10.0.0.0/99"),
            ("[[export]]\nserve = \"x\"\nallow-names = [\"a\"]\n", 1, "ca"),
            ("[[export]]\nname = \"x\"\n", 1, "serve"),
        ] {
            let error = format!("{:#}", Plan::parse(text).unwrap_err());
            assert!(
                error.starts_with(&format!("line {line}: ")) && error.contains(word),
                "{text:?}: {error}"
            );
        }
        assert!(format!("{:#}", Plan::parse("").unwrap_err()).contains("nothing is to be served"));
    }
}
