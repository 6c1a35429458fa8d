//! Moving a TLS session into the socket, so that the kernel's driver reads and writes plain text and the wire does
//! not (`Documentation/networking/tls.rst` in the kernel's source).

use super::record::RecordReader;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{SetSockOpt, setsockopt, sockopt};
use rustls::{CipherSuite, ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};
use std::os::fd::AsFd;
use tokio_rustls::client::TlsStream;

/// `TLS_1_2_VERSION` and its successor in `include/uapi/linux/tls.h`.
const TLS_1_2: u16 = 0x0303;
const TLS_1_3: u16 = 0x0304;
/// `TLS_CIPHER_…` there.
const AES_GCM_128: u16 = 51;
const AES_GCM_256: u16 = 52;
const CHACHA20_POLY1305: u16 = 54;

/// Why the kernel does not encrypt the connection. Nothing falls back to anything: the connection is given up.
#[derive(Debug, thiserror::Error)]
pub enum KernelTlsError {
    /// No kTLS.
    #[error("the kernel has no TLS of its own: load it with `modprobe tls` (CONFIG_TLS)")]
    NoModule,
    /// A part of it is missing.
    #[error(
        "the kernel cannot encrypt by {cipher:?}: its module is missing (gcm and aes for AES-GCM, chacha20poly1305 \
         and chacha for ChaCha20)"
    )]
    NoCipher {
        /// What was agreed on with the server.
        cipher: CipherSuite,
    },
    /// Something the kernel does not know.
    #[error("the kernel has no {cipher:?}; let the server offer AES-GCM or ChaCha20-Poly1305")]
    Unknown {
        /// What was agreed on with the server.
        cipher: CipherSuite,
    },
    /// More came than was asked for.
    #[error("the server sent something before transmission began; the kernel would miss it")]
    Ahead,
    /// Keys that cannot be had.
    #[error("the keys of the TLS session cannot be handed over: {0}")]
    Keys(#[from] rustls::Error),
    /// The socket does not take it.
    #[error("the kernel did not take the keys of the TLS session: {}", .0.desc())]
    Refused(Errno),
}

/// What the kernel encrypts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cipher {
    /// What was agreed on, by the name that TLS has for it.
    name: String,
    /// Records that may be sent with one key, if there is a limit worth minding. Peers renew their keys
    /// then, which the kernel's driver does not understand.
    pub records_max: Option<u64>,
}

impl Cipher {
    /// One that was agreed on.
    #[must_use]
    pub fn named(name: String) -> Cipher {
        let records_max = (!name.contains(CHACHA20)).then_some(AES_GCM_RECORDS);
        Cipher { name, records_max }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone()
    }
}

/// Whether a kernel of this release takes references to memory that has none, which xfs has its log in: seen on 7.3, and
/// reported of 6.18 and another driver.
#[must_use]
pub fn loses_count(release: &str) -> bool {
    let mut numbers = release.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(18))
}

/// In the names of the ciphers whose keys do not wear out.
const CHACHA20: &str = "CHACHA20";

/// AES-GCM is safe for 2^24.5 full records with a key (RFC 8446, section 5.5); GnuTLS and rustls stop at 2^24.
const AES_GCM_RECORDS: u64 = 1 << 24;

/// Hands the keys to the socket, whose stream is plain from now on.
///
/// # Errors
/// The kernel lacks something, or the server has sent more than was asked for. The session is lost then.
pub fn hand_over<S: AsFd>(stream: TlsStream<RecordReader<S>>) -> Result<(S, Cipher), KernelTlsError> {
    let (reader, mut session) = stream.into_inner();
    let unread = session.process_new_packets()?.plaintext_bytes_to_read();
    let socket = reader.into_inner().filter(|_| unread == 0).ok_or(KernelTlsError::Ahead)?;
    let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
    let cipher = suite.unwrap_or(CipherSuite::TLS_NULL_WITH_NULL_NULL);
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => TLS_1_3,
        _ => TLS_1_2,
    };
    let ExtractedSecrets { tx, rx } = session.dangerous_extract_secrets()?;
    setsockopt(&socket, sockopt::TcpUlp::default(), b"tls").map_err(|errno| match errno {
        Errno::ENOENT => KernelTlsError::NoModule,
        errno => KernelTlsError::Refused(errno),
    })?;
    set(&socket, sockopt::TcpTlsTx, version, cipher, tx)?;
    set(&socket, sockopt::TcpTlsRx, version, cipher, rx)?;
    Ok((socket, Cipher::named(format!("{cipher:?}"))))
}

/// Whether its keys do not wear out.
pub(super) fn is_chacha20(suite: CipherSuite) -> bool {
    // Three of TLS 1.2 and one of 1.3, which rustls tells apart from the others by their names only.
    format!("{suite:?}").contains(CHACHA20)
}

fn set(
    socket: &impl AsFd,
    option: impl SetSockOpt<Val = sockopt::TlsCryptoInfo>,
    version: u16,
    cipher: CipherSuite,
    (sequence, secrets): (u64, ConnectionTrafficSecrets),
) -> Result<(), KernelTlsError> {
    let info = crypto_info(version, sequence, &secrets).ok_or(KernelTlsError::Unknown { cipher })?;
    setsockopt(socket, option, &info).map_err(|errno| match errno {
        Errno::ENOENT => KernelTlsError::NoCipher { cipher },
        Errno::EINVAL | Errno::ENOTSUP => KernelTlsError::Unknown { cipher },
        errno => KernelTlsError::Refused(errno),
    })
}

/// The keys in the kernel's words; none if it has no words for them, or they are not as long as they ought to be.
fn crypto_info(
    version: u16,
    sequence: u64,
    secrets: &ConnectionTrafficSecrets,
) -> Option<sockopt::TlsCryptoInfo> {
    let rec_seq = sequence.to_be_bytes();
    let info = |cipher_type| libc::tls_crypto_info { version, cipher_type };
    Some(match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
            let (salt, iv) = gcm_nonce(iv.as_ref())?;
            let key = key.as_ref().try_into().ok()?;
            let info = info(AES_GCM_128);
            sockopt::TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
                info,
                iv,
                key,
                salt,
                rec_seq,
            })
        }
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
            let (salt, iv) = gcm_nonce(iv.as_ref())?;
            let key = key.as_ref().try_into().ok()?;
            let info = info(AES_GCM_256);
            sockopt::TlsCryptoInfo::Aes256Gcm(libc::tls12_crypto_info_aes_gcm_256 {
                info,
                iv,
                key,
                salt,
                rec_seq,
            })
        }
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            let (iv, key) = (iv.as_ref().try_into().ok()?, key.as_ref().try_into().ok()?);
            let info = info(CHACHA20_POLY1305);
            sockopt::TlsCryptoInfo::Chacha20Poly1305(libc::tls12_crypto_info_chacha20_poly1305 {
                info,
                iv,
                key,
                salt: [],
                rec_seq,
            })
        }
        _ => return None,
    })
}

/// The kernel has the first four bytes of a nonce as salt, and the rest as what changes.
fn gcm_nonce(iv: &[u8]) -> Option<([u8; 4], [u8; 8])> {
    Some((iv.get(..4)?.try_into().ok()?, iv.get(4..)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records_max(suite: CipherSuite) -> Option<u64> {
        Cipher::named(format!("{suite:?}")).records_max
    }

    #[test]
    fn only_some_ciphers_wear_out() {
        assert_eq!(records_max(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256), None);
        assert_eq!(records_max(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256), None);
        assert_eq!(records_max(CipherSuite::TLS13_AES_256_GCM_SHA384), Some(1 << 24));
    }

    #[test]
    fn only_newer_kernels_lose_count() {
        assert!(loses_count("6.18.3-amd64") && loses_count("7.3.4+deb13-cloud-amd64"));
        assert!(!loses_count("6.12.117+deb12-cloud-amd64") && !loses_count("6.1.0-56-cloud-amd64"));
        assert!(!loses_count(""));
    }

    #[test]
    fn a_nonce_is_salt_and_rest() {
        let nonce: Vec<u8> = (0..12).collect();
        assert_eq!(gcm_nonce(&nonce), Some(([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11])));
        assert_eq!(gcm_nonce(&nonce[..11]), None);
    }
}
