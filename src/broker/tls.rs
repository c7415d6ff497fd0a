//! TLS between the socket and AMQP, by the system's TLS library.

use std::net::TcpStream;
use std::path::PathBuf;
#[cfg(feature = "tls")]
use std::{path::Path, time::Duration};

#[cfg(feature = "tls")]
use native_tls::{Certificate, HandshakeError, Identity, TlsConnector};

use super::Endpoint;
use super::line::Stream;
use crate::deadline::Deadline;
use crate::error::{Error, Result};

/// Files for TLS, all PEM. The broker's certificate and its host name are always verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the authorities to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The certificate (and its chain) to show to a broker that asks for one.
    pub cert: Option<PathBuf>,
    /// That certificate's private key, in PKCS#8 (`BEGIN PRIVATE KEY`).
    pub key: Option<PathBuf>,
}

#[cfg(feature = "tls")]
pub(crate) fn handshake(
    tcp: TcpStream,
    endpoint: &Endpoint,
    files: &TlsFiles,
    deadline: Deadline,
) -> Result<Box<dyn Stream>> {
    let connector = connector(files)?;
    let limit = Some(deadline.remaining().max(Duration::from_millis(1)));
    tcp.set_read_timeout(limit)
        .and_then(|()| tcp.set_write_timeout(limit))
        .map_err(|error| endpoint.unreachable(error))?;
    match connector.connect(&endpoint.host, tcp) {
        Ok(stream) => Ok(Box::new(stream)),
        Err(HandshakeError::WouldBlock(_)) => {
            Err(endpoint.unreachable("the TLS handshake took too long"))
        }
        Err(HandshakeError::Failure(error)) => {
            Err(endpoint.unreachable(explain(&error.to_string(), endpoint)))
        }
    }
}

#[cfg(feature = "tls")]
fn connector(files: &TlsFiles) -> Result<native_tls::TlsConnector> {
    let mut builder = TlsConnector::builder();
    if let Some(path) = &files.ca {
        let authorities = Certificate::stack_from_pem(&read(path)?);
        let authorities = authorities.map_err(|error| unusable(path, &error.to_string()))?;
        if authorities.is_empty() {
            return Err(unusable(path, "there is no BEGIN CERTIFICATE in it"));
        }
        builder.disable_built_in_roots(true);
        for authority in authorities {
            builder.add_root_certificate(authority);
        }
    }
    match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let identity = Identity::from_pkcs8(&read(cert)?, &read(key)?).map_err(|error| {
                let files = format!("{} with the key {}", cert.display(), key.display());
                let fix = "the key has to be PKCS#8: openssl pkcs8 -topk8 -nocrypt";
                Error::Config(format!("cannot use the certificate {files} ({error}); {fix}"))
            })?;
            builder.identity(identity);
        }
        (None, None) => {}
        _ => {
            let text = "a client certificate needs its key, and a key its certificate: give both";
            return Err(Error::Config(text.into()));
        }
    }
    builder.build().map_err(|error| Error::Config(format!("TLS cannot be set up: {error}")))
}

#[cfg(feature = "tls")]
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| unusable(path, &error.to_string()))
}

#[cfg(feature = "tls")]
fn unusable(path: &Path, reason: &str) -> Error {
    Error::Config(format!("cannot use {} for TLS: {reason}", path.display()))
}

/// OpenSSL's words, and what they mean here.
#[cfg(feature = "tls")]
fn explain(error: &str, endpoint: &Endpoint) -> String {
    let lower = error.to_ascii_lowercase();
    let meaning = if lower.contains("hostname mismatch") || lower.contains("ip address mismatch") {
        format!("the broker's certificate is not for the host name {}", endpoint.host)
    } else if lower.contains("expired") {
        "the broker's certificate has expired".into()
    } else if lower.contains("self-signed")
        || lower.contains("self signed")
        || lower.contains("unable to get local issuer")
        || lower.contains("unable to verify")
    {
        "the broker's certificate is not signed by an authority trusted here; name its CA file"
            .into()
    } else if lower.contains("wrong version number") || lower.contains("unexpected eof") {
        "this port does not speak TLS; use amqp:// or the TLS port".into()
    } else {
        "the TLS handshake failed".into()
    };
    format!("{meaning} ({error})")
}

#[cfg(not(feature = "tls"))]
pub(crate) fn handshake(
    _tcp: TcpStream,
    _endpoint: &Endpoint,
    _files: &TlsFiles,
    _deadline: Deadline,
) -> Result<Box<dyn Stream>> {
    Err(Error::Config(
        "amqps:// needs the cargo feature `tls`, which this program was built without".into(),
    ))
}
