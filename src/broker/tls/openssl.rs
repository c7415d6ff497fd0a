//! TLS by OpenSSL.
//!
//! This uses the `openssl` crate and not a crate that wraps each system's TLS library: such a crate
//! loads the system's authorities even if another file of authorities is given, which takes 80 ms
//! before the first call.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{
    ErrorCode, HandshakeError, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslStream,
    SslVerifyMode, SslVersion,
};
use openssl::x509::verify::X509CheckFlags;
use rustix::event::{PollFd, PollFlags, poll};

use super::TlsFiles;
use crate::broker::Endpoint;
use crate::broker::transport::{Stream, timespec_until};
use crate::deadline::Deadline;
use crate::error::{Error, Result};

/// The settings of a TLS session. Each connection reads the files again, so that it uses renewed
/// certificates.
pub(crate) struct Connector(SslContext);

impl Connector {
    pub(crate) fn new(files: &TlsFiles) -> Result<Connector> {
        let unset = |error| Error::Config(format!("TLS cannot be set up: {error}"));
        let mut context = SslContextBuilder::new(SslMethod::tls_client()).map_err(unset)?;
        context.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(unset)?;
        context.set_verify(SslVerifyMode::PEER);
        // A write that is tried again may come from another address.
        context.set_mode(
            SslMode::AUTO_RETRY
                | SslMode::ACCEPT_MOVING_WRITE_BUFFER
                | SslMode::ENABLE_PARTIAL_WRITE,
        );
        // One read of the socket for a record, instead of two.
        context.set_read_ahead(true);
        match &files.ca {
            Some(ca) => context
                .set_ca_file(ca)
                .map_err(|error| unusable(ca, "as the certificates of authorities", &error))?,
            None => context.set_default_verify_paths().map_err(unset)?,
        }
        match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                context
                    .set_certificate_chain_file(cert)
                    .map_err(|error| unusable(cert, "as the client certificate", &error))?;
                let pem = std::fs::read(key).map_err(|error| {
                    Error::Config(format!("cannot read {}: {error}", key.display()))
                })?;
                // With the wrong passphrase an encrypted key is an error; with none OpenSSL
                // would ask the terminal for one.
                PKey::private_key_from_pem_passphrase(&pem, b"")
                    .and_then(|key| context.set_private_key(&key))
                    .map_err(|error| unusable(key, "as the client certificate's key", &error))?;
            }
            (None, None) => {}
            _ => {
                let text =
                    "a client certificate needs its key, and a key its certificate: give both";
                return Err(Error::Config(text.into()));
            }
        }
        Ok(Connector(context.build()))
    }

    /// Blocks until the deadline at most.
    pub(crate) fn handshake(
        self,
        tcp: TcpStream,
        endpoint: &Endpoint,
        deadline: Deadline,
    ) -> Result<Box<dyn Stream>> {
        let ssl = self.expecting(&endpoint.host).map_err(|error| {
            Error::Config(format!("TLS cannot verify the host name {}: {error}", endpoint.host))
        })?;
        tcp.set_nonblocking(true).map_err(|error| endpoint.unreachable(error))?;
        let mut handshake = ssl.connect(tcp);
        loop {
            match handshake {
                Ok(stream) => return Ok(Box::new(Explaining(stream))),
                Err(HandshakeError::WouldBlock(unfinished)) => {
                    let wants = match unfinished.error().code() {
                        ErrorCode::WANT_WRITE => PollFlags::OUT,
                        _ => PollFlags::IN,
                    };
                    await_socket(unfinished.get_ref().as_fd(), wants, deadline.at)
                        .map_err(|_| endpoint.unreachable("the TLS handshake took too long"))?;
                    handshake = unfinished.handshake();
                }
                Err(error) => {
                    return Err(endpoint.unreachable(explain(&error.to_string(), &endpoint.host)));
                }
            }
        }
    }

    /// A session that accepts only a certificate for this host name or address (RFC 6125).
    fn expecting(&self, host: &str) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.0)?;
        match host.parse() {
            Ok(address) => ssl.param_mut().set_ip(address)?,
            Err(_) => {
                ssl.set_hostname(host)?;
                ssl.param_mut().set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
                ssl.param_mut().set_host(host)?;
            }
        }
        Ok(ssl)
    }
}

/// Blocks until a socket that nobody else uses yet is ready for one of `events`, or the time is up.
fn await_socket(fd: BorrowedFd<'_>, events: PollFlags, until: Instant) -> io::Result<()> {
    let found = poll(&mut [PollFd::from_borrowed_fd(fd, events)], Some(&timespec_until(until)))?;
    if found == 0 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
}

/// In TLS 1.3 the client has finished its handshake before the broker has looked at the client
/// certificate: what the broker says to that comes with the first read.
struct Explaining(SslStream<TcpStream>);

impl Read for Explaining {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into).map_err(|error| match alert(&error.to_string()) {
            Some(meaning) => io::Error::other(meaning),
            None => error,
        })
    }
}

impl Write for Explaining {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn unusable(path: &Path, purpose: &str, error: &ErrorStack) -> Error {
    let reasons: Vec<_> = error.errors().iter().filter_map(openssl::error::Error::reason).collect();
    Error::Config(format!("cannot use {} {purpose}: {}", path.display(), reasons.join(", ")))
}

/// OpenSSL's words, and what they mean here.
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

#[cfg(test)]
mod tests {
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
}
