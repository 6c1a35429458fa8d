//! NBD URIs (`doc/uri.md`): `nbd://host:port/export`, `nbd+unix:///export?socket=PATH` and kin.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use fluent_uri::pct_enc::encoder::{Data, Query};
use fluent_uri::pct_enc::{EStr, EString, Encoder, Table};

use crate::proto::DEFAULT_PORT;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A TCP port of a host.
    Tcp {
        /// A name, an IPv4 address, or an IPv6 address without brackets, perhaps with its zone: `fe80::1%eth0`.
        host: String,
        /// 10809 unless the URI says otherwise.
        port: u16,
    },
    /// A Unix domain socket.
    Unix {
        /// The socket's path.
        path: PathBuf,
    },
    /// A VM socket.
    Vsock {
        /// Context id: 2 is the host, 1 is this machine.
        cid: u32,
        /// 10809 unless the URI says otherwise.
        port: u32,
    },
}

/// Whether the scheme demands TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// `nbd`, `nbd+unix`, `nbd+vsock`.
    Off,
    /// `nbds`, `nbds+unix`, `nbds+vsock`.
    Required,
}

/// Where an export is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// How to reach the server.
    pub transport: Transport,
    /// Whether to encrypt.
    pub tls: Tls,
    /// Name of the export; empty for the default export.
    pub export: String,
    /// Where the client's certificates are: the parameter `tls-certificates`.
    pub certificates: Option<PathBuf>,
}

/// Why a text is no NBD URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not a URI by RFC 3986.
    #[error("not a URI: {0} (expected for example nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH)")]
    Syntax(String),
    /// A URI of another kind.
    #[error("{0:?} is no NBD scheme (known: nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock)")]
    Scheme(String),
    /// nbd:// without a host.
    #[error("the URI names no host")]
    NoHost,
    /// A port that is no number from 1 to 65535.
    #[error("{0:?} is no port number")]
    Port(String),
    /// nbd+unix:// without a socket.
    #[error("a Unix URI needs the socket's path: nbd+unix:///EXPORT?socket=PATH")]
    NoSocket,
    /// nbd+unix:// with a host.
    #[error("a Unix URI has no host (write nbd+unix:///EXPORT?socket=PATH, with three slashes)")]
    HostWithSocket,
    /// nbd+vsock:// with something else than a context id.
    #[error("{0:?} is no VM socket context id")]
    Cid(String),
    /// Percent-encoding of something that is no UTF-8.
    #[error("the {0} is not UTF-8")]
    NotUtf8(&'static str),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Uri, UriError> {
        let (text, zone) = without_zone(text);
        let uri = fluent_uri::Uri::parse(&*text).map_err(|e| UriError::Syntax(e.to_string()))?;
        let scheme = uri.scheme().as_str().to_ascii_lowercase();
        let (tls, kind) = match scheme.strip_prefix("nbd") {
            Some(rest) if rest.starts_with('s') => (Tls::Required, &rest[1..]),
            Some(rest) => (Tls::Off, rest),
            None => return Err(UriError::Scheme(scheme)),
        };
        let transport = match kind {
            "" => tcp(&uri, zone)?,
            "+unix" => unix(&uri)?,
            "+vsock" => vsock(&uri)?,
            _ => return Err(UriError::Scheme(scheme)),
        };
        let path = decode(uri.path(), "export name")?;
        let export = path.strip_prefix('/').unwrap_or(&path).to_owned();
        let certificates = parameter(&uri, "tls-certificates", "path of certificates")?.map(PathBuf::from);
        Ok(Uri { transport, tls, export, certificates })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls == Tls::Required { "s" } else { "" };
        let export = escape(&self.export);
        let mut separator = '?';
        match &self.transport {
            Transport::Tcp { host, port } if host.contains(':') => {
                let host = host.replacen('%', ZONE, 1);
                write!(f, "nbd{s}://[{host}]:{port}/{export}")?;
            }
            Transport::Tcp { host, port } => write!(f, "nbd{s}://{host}:{port}/{export}")?,
            Transport::Unix { path } => {
                write!(f, "nbd{s}+unix:///{export}?socket={}", escape(&path.to_string_lossy()))?;
                separator = '&';
            }
            Transport::Vsock { cid, port } => write!(f, "nbd{s}+vsock://{cid}:{port}/{export}")?,
        }
        match &self.certificates {
            Some(path) => write!(f, "{separator}tls-certificates={}", escape(&path.to_string_lossy())),
            None => Ok(()),
        }
    }
}

/// The separator of an IPv6 address and its zone in a URI (RFC 6874).
const ZONE: &str = "%25";

/// A URI without the zone of its IPv6 address, which RFC 3986 does not know, and that zone.
fn without_zone(text: &str) -> (Cow<'_, str>, Option<&str>) {
    let found = || {
        let (before, rest) = text.split_once("://[")?;
        let (host, after) = rest.split_once(']')?;
        let (address, zone) = host.split_once(ZONE).or_else(|| host.split_once('%'))?;
        let is_zone = !zone.is_empty() && !zone.contains(['/', '%', '?', '#', '@']);
        is_zone.then(|| (Cow::Owned(format!("{before}://[{address}]{after}")), Some(zone)))
    };
    found().unwrap_or((Cow::Borrowed(text), None))
}

fn tcp(uri: &fluent_uri::Uri<&str>, zone: Option<&str>) -> Result<Transport, UriError> {
    let authority = uri.authority().filter(|a| !a.host().is_empty()).ok_or(UriError::NoHost)?;
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port = match authority.port().map(EStr::as_str).filter(|p| !p.is_empty()) {
        None => DEFAULT_PORT,
        Some(port) => port.parse().ok().filter(|p| *p != 0).ok_or_else(|| UriError::Port(port.to_owned()))?,
    };
    let host = zone.map_or(bare.to_owned(), |zone| format!("{bare}%{zone}"));
    Ok(Transport::Tcp { host, port })
}

fn unix(uri: &fluent_uri::Uri<&str>) -> Result<Transport, UriError> {
    if uri.authority().is_some_and(|a| !a.host().is_empty()) {
        return Err(UriError::HostWithSocket);
    }
    let path = parameter(uri, "socket", "socket path")?.ok_or(UriError::NoSocket)?;
    Ok(Transport::Unix { path: PathBuf::from(path) })
}

/// The value of a parameter of the query, unless there is none or it is empty.
fn parameter(uri: &fluent_uri::Uri<&str>, key: &str, what: &'static str) -> Result<Option<String>, UriError> {
    let pairs = uri.query().map(EStr::as_str).unwrap_or_default().split('&');
    let found = pairs.filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key);
    let value = found.map(|(_, value)| value).filter(|value| !value.is_empty());
    value.and_then(EStr::<Query>::new).map(|value| decode(value, what)).transpose()
}

fn vsock(uri: &fluent_uri::Uri<&str>) -> Result<Transport, UriError> {
    let authority = uri.authority().filter(|a| !a.host().is_empty()).ok_or(UriError::NoHost)?;
    let cid = authority.host().parse().map_err(|_| UriError::Cid(authority.host().to_owned()))?;
    let port = match authority.port().map(EStr::as_str).filter(|p| !p.is_empty()) {
        None => DEFAULT_PORT.into(),
        Some(port) => port.parse().map_err(|_| UriError::Port(port.to_owned()))?,
    };
    Ok(Transport::Vsock { cid, port })
}

fn decode<E: Encoder>(text: &EStr<E>, what: &'static str) -> Result<String, UriError> {
    text.decode().to_string().map(Cow::into_owned).map_err(|_| UriError::NotUtf8(what))
}

/// What may stand as it is, in an export's name and in a query's value alike.
struct Plain;

impl Encoder for Plain {
    const TABLE: &Table = &Data::TABLE.or(&Table::new(b"/"));
}

/// Percent-encodes everything that could be mistaken for the URI's own punctuation.
fn escape(text: &str) -> EString<Query> {
    let mut out = EString::<Query>::new();
    out.encode_str::<Plain>(text);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export_of(text: &str) -> String {
        text.parse::<Uri>().unwrap().export
    }

    #[test]
    fn the_examples_of_the_specification() {
        assert_eq!(export_of("nbd://example.com/disk"), "disk");
        assert_eq!(export_of("nbd+unix:///disk?socket=sock"), "disk");
        assert_eq!(export_of("nbd://example.com/"), "");
        assert_eq!(export_of("nbd://example.com"), "");
        assert_eq!(export_of("nbd://example.com//disk"), "/disk");
        assert_eq!(export_of("nbd://example.com/hello%20world"), "hello world");
    }

    #[test]
    fn transports_and_defaults() {
        let tcp = |host: &str, port| Transport::Tcp { host: host.into(), port };
        assert_eq!("nbd://h".parse::<Uri>().unwrap().transport, tcp("h", 10809));
        assert_eq!("nbds://[::1]:99/x".parse::<Uri>().unwrap().transport, tcp("::1", 99));
        for text in ["nbd://[fe80::1%25eth0]:99/x", "nbd://[fe80::1%eth0]:99/x"] {
            let uri = text.parse::<Uri>().unwrap();
            assert_eq!(uri.transport, tcp("fe80::1%eth0", 99));
            assert_eq!(uri.to_string(), "nbd://[fe80::1%25eth0]:99/x");
        }
        let unix = "nbd+unix:///?socket=/run/a%20b".parse::<Uri>().unwrap().transport;
        assert_eq!(unix, Transport::Unix { path: "/run/a b".into() });
        let uri: Uri = "nbds+unix:///x?socket=/s&tls-certificates=/etc/pki/a%26b".parse().unwrap();
        assert_eq!(uri.certificates.as_deref(), Some(std::path::Path::new("/etc/pki/a&b")));
        assert_eq!(uri.to_string(), "nbds+unix:///x?socket=/s&tls-certificates=/etc/pki/a%26b");
        let vsock = "nbd+vsock://2:7/x".parse::<Uri>().unwrap().transport;
        assert_eq!(vsock, Transport::Vsock { cid: 2, port: 7 });
    }

    #[test]
    fn what_it_refuses() {
        let error = |text: &str| text.parse::<Uri>().unwrap_err();
        assert_eq!(error("http://h/"), UriError::Scheme("http".into()));
        assert_eq!(error("nbdx://h/"), UriError::Scheme("nbdx".into()));
        assert_eq!(error("nbd:///x"), UriError::NoHost);
        assert_eq!(error("nbd://h:99999/x"), UriError::Port("99999".into()));
        assert!(matches!(error("nbd://[fe80::1%25]/x"), UriError::Syntax(_)));
        assert_eq!(error("nbd+unix:///x"), UriError::NoSocket);
        assert_eq!(error("nbd+unix://h/x?socket=s"), UriError::HostWithSocket);
        assert_eq!(error("nbd+vsock://h/x"), UriError::Cid("h".into()));
        assert!(matches!(error("/dev/nbd0"), UriError::Syntax(_)));
    }
}
