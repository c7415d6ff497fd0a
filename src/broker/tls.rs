//! TLS between the socket and AMQP, by the system's TLS library.

#[cfg(feature = "tls")]
use std::io::{self, Read, Write};
use std::net::TcpStream;
#[cfg(feature = "tls")]
use std::path::Path;
use std::path::PathBuf;

#[cfg(feature = "tls")]
use native_tls::{Certificate, HandshakeError, Identity, TlsConnector, TlsStream};

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

/// What a TLS handshake takes, made from the files before anything goes over the network. They
/// are read again for each connection, so that renewed certificates are taken up.
#[cfg(feature = "tls")]
pub(crate) struct Connector(TlsConnector);

#[cfg(feature = "tls")]
impl Connector {
    pub(crate) fn new(files: &TlsFiles) -> Result<Connector> {
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
                let identity =
                    Identity::from_pkcs8(&read(cert)?, &read(key)?).map_err(|error| {
                        let files = format!("{} with the key {}", cert.display(), key.display());
                        let fix = "the key has to be PKCS#8: openssl pkcs8 -topk8 -nocrypt";
                        Error::Config(format!(
                            "cannot use the certificate {files} ({error}); {fix}"
                        ))
                    })?;
                builder.identity(identity);
            }
            (None, None) => {}
            _ => {
                let text =
                    "a client certificate needs its key, and a key its certificate: give both";
                return Err(Error::Config(text.into()));
            }
        }
        let connector = builder.build();
        let connector = connector.map_err(|error| {
            Error::Config(format!("TLS cannot be set up with these files: {error}"))
        })?;
        Ok(Connector(connector))
    }

    /// Blocks until whoever holds the connection cuts it; then says that this took too long.
    pub(crate) fn handshake(
        self,
        tcp: TcpStream,
        endpoint: &Endpoint,
        deadline: Deadline,
    ) -> Result<Box<dyn Stream>> {
        self.0.connect(&endpoint.host, tcp).map(explaining).map_err(|error| {
            endpoint.unreachable(match error {
                HandshakeError::Failure(error) if !deadline.has_passed() => {
                    explain(&error.to_string(), &endpoint.host)
                }
                _ => "the TLS handshake took too long".into(),
            })
        })
    }
}

/// In TLS 1.3 the client is through with its handshake before the broker has looked at the
/// client certificate: what it says to that comes with the first read.
#[cfg(feature = "tls")]
fn explaining(stream: TlsStream<TcpStream>) -> Box<dyn Stream> {
    struct Explaining(TlsStream<TcpStream>);

    impl Read for Explaining {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.read(into).map_err(|error| match alert(&error.to_string()) {
                Some(meaning) => io::Error::other(meaning),
                None => error,
            })
        }
    }

    impl Explaining {
        /// A broker that hangs up on us has said why, and what we write then fails before that
        /// is read.
        fn instead_of(&mut self, error: io::Error) -> io::Error {
            match self.read(&mut [0]) {
                Err(said) if said.kind() == io::ErrorKind::Other => said,
                _ => error,
            }
        }
    }

    impl Write for Explaining {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = self.0.write(bytes);
            written.map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    self.instead_of(error)
                }
                _ => error,
            })
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }

    Box::new(Explaining(stream))
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
fn explain(error: &str, host: &str) -> String {
    if let Some(meaning) = alert(error) {
        return meaning;
    }
    let has = |words: &str| error.to_ascii_lowercase().contains(words);
    let meaning = if has("hostname mismatch") || has("ip address mismatch") {
        format!("the broker's certificate is not for the host name {host}")
    } else if has("certificate has expired") {
        "the broker's certificate has expired".into()
    } else if has("not yet valid") {
        "the broker's certificate is not valid yet".into()
    } else if has("self-signed")
        || has("self signed")
        || has("unable to get local issuer")
        || has("unable to verify")
        || has("certificate signature failure")
    {
        "the broker's certificate is not signed by an authority trusted here; name its CA file"
            .into()
    } else if has("wrong version number") {
        "this port does not speak TLS; use amqp:// or the TLS port".into()
    } else if has("unexpected eof") || has("connection reset") {
        "it hung up during the TLS handshake".into()
    } else {
        "the TLS handshake failed".into()
    };
    format!("{meaning} ({error})")
}

/// What the broker says to our side of the handshake, by the number of its alert (TLS 1.3,
/// RFC 8446, 6.2). A broker on TLS 1.2 has no alert of its own for a missing certificate.
#[cfg(feature = "tls")]
fn alert(error: &str) -> Option<String> {
    let (_, number) = error.split_once("SSL alert number ")?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    let meaning = match number[..digits].parse().ok()? {
        116 => "the broker asks for a client certificate; give one, with its key",
        40 => {
            "the broker refused the TLS handshake; if it asks for a client certificate, give one, \
             with its key"
        }
        42 | 43 | 46 | 48 => {
            "the broker does not accept the client certificate; it takes those signed by its own \
             authorities"
        }
        44 => "the broker says that the client certificate is revoked",
        45 => "the broker says that the client certificate has expired",
        70 => "the broker speaks no version of TLS that is safe to use",
        _ => "the broker ended TLS with an alert",
    };
    Some(format!("{meaning} ({error})"))
}

/// Without the feature there is no TLS, and so no value of this type.
#[cfg(not(feature = "tls"))]
pub(crate) enum Connector {}

#[cfg(not(feature = "tls"))]
impl Connector {
    pub(crate) fn new(_files: &TlsFiles) -> Result<Connector> {
        Err(Error::Config(
            "amqps:// needs the cargo feature `tls` of rabbitmq-rpc, which this program was built \
             without"
                .into(),
        ))
    }

    pub(crate) fn handshake(
        self,
        _tcp: TcpStream,
        _endpoint: &Endpoint,
        _deadline: Deadline,
    ) -> Result<Box<dyn Stream>> {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "tls")]
    #[test]
    fn openssls_words_are_told_apart() {
        let verify = "error:0A000086:SSL routines:tls_post_process_server_certificate:certificate \
                      verify failed:../ssl/statem/statem_clnt.c:1889:";
        let alert = "error:0A000410:SSL routines:ssl3_read_bytes:sslv3 alert handshake failure:\
                     ../ssl/record/rec_layer_s3.c:1605:SSL alert number";
        for (error, meaning) in [
            (format!("{verify} (hostname mismatch)"), "not for the host name rabbit"),
            (format!("{verify} (IP address mismatch)"), "not for the host name rabbit"),
            (format!("{verify} (certificate has expired)"), "broker's certificate has expired"),
            (format!("{verify} (certificate is not yet valid)"), "not valid yet"),
            (format!("{verify} (self-signed certificate)"), "name its CA file"),
            (format!("{verify} (unable to get local issuer certificate)"), "name its CA file"),
            (format!("{alert} 40"), "if it asks for a client certificate"),
            (format!("{alert} 45"), "client certificate has expired"),
            (format!("{alert} 48"), "does not accept the client certificate"),
            (format!("{alert} 116"), "asks for a client certificate"),
        ] {
            let text = super::explain(&error, "rabbit");
            assert!(text.contains(meaning), "{text}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn without_the_feature_amqps_says_how_to_get_it() {
        // Nobody listens on port 1, and nobody is asked.
        let brokers = crate::Brokers::parse("amqps://127.0.0.1:1").unwrap();
        let server = crate::RpcServer::connect(brokers, "q", crate::ServerOptions::default());
        let error = server.expect_err("there is no TLS");
        assert!(matches!(error, crate::Error::Config(_)), "{error:?}");
        assert!(error.to_string().contains("cargo feature `tls`"), "{error}");
    }
}
