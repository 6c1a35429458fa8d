//! Why TLS failed, in sentences that end in what to do about it.

use std::path::{Path, PathBuf};

use rustls::server::VerifierBuilderError;
use rustls::{AlertDescription, CertificateError, Error};

use super::Files;

/// What a client means that hangs up instead of saying what is wrong, as those with GnuTLS do.
pub(super) const CLOSED: &str = "the client hung up during the TLS handshake; perhaps it does not trust the issuer of \
     --tls-cert: give it the root that leads there (ca-cert.pem)";

/// Why a client could not be encrypted.
pub(super) fn handshake(error: &Error) -> String {
    match error {
        Error::NoCertificatesPresented => "the client shows no certificate, which --tls-ca asks for".to_owned(),
        Error::InvalidCertificate(error) => certificate(error),
        Error::AlertReceived(alert) => told(*alert),
        Error::PeerIncompatible(_) => {
            "the client has no version of TLS and no cipher in common with this server, which has TLS 1.2 and 1.3 with \
             AES-GCM and ChaCha20-Poly1305"
                .to_owned()
        }
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord => "what the client sent is no TLS".to_owned(),
        Error::DecryptError => "what the client sent was changed on its way".to_owned(),
        other => format!("TLS with the client failed: {}", lower(&other.to_string())),
    }
}

/// What is wrong with the certificate of a client.
fn certificate(error: &CertificateError) -> String {
    let wrong = match error {
        CertificateError::UnknownIssuer => {
            "does not lead to a root in --tls-ca; perhaps an intermediate certificate is missing from what it shows"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired; renew it, or compare the clocks"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet; compare the clocks"
        }
        CertificateError::Revoked => "was revoked (--tls-crl)",
        CertificateError::UnknownRevocationStatus => {
            "has an issuer of whom --tls-crl has no list; put the lists of all issuers below the root into it"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not one for clients; its extended key usage must have clientAuth, or be left out"
        }
        CertificateError::BadSignature => "was signed by somebody else than it says",
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "was signed in a way that is not known here, or no longer safe; sign it with SHA-256 or better, by RSA of 2048 \
             bits or more, ECDSA or Ed25519"
        }
        CertificateError::Other(other) if is_authority(other) => {
            "is that of an authority; let the authority sign one for the client, that is none (CA:FALSE)"
        }
        _ => "cannot be used",
    };
    format!("the client's certificate {wrong}")
}

fn is_authority(other: &rustls::OtherError) -> bool {
    other.0.downcast_ref::<webpki::Error>() == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// What a client says to why it will not go on.
fn told(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA => {
            "it does not trust the issuer of --tls-cert; give it the root that leads there (ca-cert.pem)"
        }
        AlertDescription::CertificateExpired => "to it, the certificate in --tls-cert has expired",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown => {
            "it does not accept the certificate in --tls-cert; see whether that has the name it connects to"
        }
        AlertDescription::HandshakeFailure
        | AlertDescription::ProtocolVersion
        | AlertDescription::InsufficientSecurity => {
            "it has no version of TLS and no cipher in common with this server"
        }
        other => return format!("the client ended TLS, with alert {}", u8::from(other)),
    };
    format!("the client ended TLS: {why}")
}

/// Why clients cannot be judged by their certificates.
pub(super) fn roots(error: &VerifierBuilderError, files: &Files) -> String {
    let shown = |path: &Option<PathBuf>| path.as_deref().unwrap_or(Path::new("")).display().to_string();
    match error {
        VerifierBuilderError::InvalidCrl(_) => format!(
            "--tls-crl {}: a list in it cannot be read; it must be an X.509 list of version 2, which has a number \
             (for openssl ca: crlnumber)",
            shown(&files.crl)
        ),
        _ => format!("--tls-ca {}: no root in it can be used", shown(&files.ca)),
    }
}

/// Why a certificate and its key cannot be used.
pub(super) fn key_pair(error: &Error, cert: &Path, key: &Path) -> String {
    let (cert, key) = (cert.display(), key.display());
    match error {
        Error::InconsistentKeys(_) => {
            format!("{cert} and {key} do not go together: the certificate is that of another key")
        }
        Error::InvalidCertificate(_) => {
            format!("--tls-cert {cert}: the first certificate in it cannot be read")
        }
        // The backend says no more than that it has not understood it.
        _ => format!(
            "--tls-key {key}: the key cannot be used; it must be one of RSA with 2048 to 8192 bits, of ECDSA (P-256, \
             P-384 or P-521) or Ed25519"
        ),
    }
}

/// Why there is no key to be read from a file.
pub(super) fn no_key(path: &Path) -> String {
    let shown = path.display();
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("--tls-key {shown}: {error}"),
    };
    let wrong = if text.contains("ENCRYPTED") {
        "the key needs a password, and nobody is there to type one; write it without: openssl pkey -in OLD -out NEW"
    } else if text.contains("-----BEGIN CERTIFICATE-----") {
        "it has a certificate and no key; see whether --tls-cert and --tls-key are the wrong way round"
    } else {
        "it has no private key in PEM"
    };
    format!("--tls-key {shown}: {wrong}")
}

fn lower(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}
