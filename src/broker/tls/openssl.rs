//! TLS by OpenSSL.
//!
//! This uses the `openssl` crate and not a crate that wraps each system's TLS library: such a crate
//! loads the system's authorities even if another file of authorities is given, which takes 80 ms
//! before the first call.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{
    ErrorCode, HandshakeError, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslStream,
    SslVerifyMode, SslVersion,
};
use openssl::x509::verify::X509CheckFlags;
use rustix::event::{PollFd, PollFlags, poll};

use super::files::{TlsFiles, read_small};
use crate::broker::socket::{Stream, timespec_until};
use crate::broker::url::Endpoint;
use crate::deadline::Deadline;
use crate::error::{Error, Result, ensure};

/// The settings of a TLS session. Each connection reads the files again, so that it uses renewed
/// certificates.
pub(crate) struct Connector(SslContext);

impl Connector {
    pub fn new(files: &TlsFiles) -> Result<Connector> {
        forget_earlier_errors();
        let mut context = verifying_context(files.ca.is_none())
            .map_err(|error| Error::Config(format!("TLS cannot be set up: {error}")))?;
        if let Some(ca) = &files.ca {
            let purpose = "as the certificates of authorities";
            context.set_ca_file(ca).map_err(unusable(ca, purpose))?;
        }
        ensure(files.cert.is_some() == files.key.is_some(), || {
            "a client certificate needs its key, and a key its certificate: give both".into()
        })?;
        if let (Some(cert), Some(key)) = (&files.cert, &files.key) {
            let purpose = "as the client certificate";
            context.set_certificate_chain_file(cert).map_err(unusable(cert, purpose))?;
            let pem = read_small(key)?;
            // With a wrong passphrase, OpenSSL fails on an encrypted key. With no passphrase, it
            // would ask for one on the terminal.
            PKey::private_key_from_pem_passphrase(&pem, b"")
                .and_then(|key| context.set_private_key(&key))
                .map_err(unusable(key, "as the client certificate's key"))?;
        }
        Ok(Connector(context.build()))
    }

    /// Blocks until the handshake is done, at most until the deadline.
    pub fn handshake(
        &self,
        tcp: TcpStream,
        endpoint: &Endpoint,
        deadline: Deadline,
    ) -> Result<Box<dyn Stream>> {
        let host = &endpoint.host;
        let ssl = self.expecting(host).map_err(|error| {
            Error::Config(format!("TLS cannot verify the host name {host}: {error}"))
        })?;
        tcp.set_nonblocking(true).map_err(|error| endpoint.unreachable(error))?;
        forget_earlier_errors();
        let mut handshake = ssl.connect(tcp);
        loop {
            match handshake {
                Ok(stream) => return Ok(Box::new(TlsSession(stream))),
                Err(HandshakeError::WouldBlock(_)) if deadline.has_passed() => {
                    return Err(endpoint.unreachable("the TLS handshake took too long"));
                }
                Err(HandshakeError::WouldBlock(unfinished)) => {
                    let event = match unfinished.error().code() {
                        ErrorCode::WANT_WRITE => PollFlags::OUT,
                        _ => PollFlags::IN,
                    };
                    let socket = PollFd::new(unfinished.get_ref(), event);
                    // If the poll was interrupted, the next result is `WouldBlock` again.
                    let _ = poll(&mut [socket], Some(&timespec_until(deadline.at)));
                    forget_earlier_errors();
                    handshake = unfinished.handshake();
                }
                Err(error) => {
                    let reason = explain(&error.to_string()).replace("{host}", host);
                    return Err(endpoint.unreachable(reason));
                }
            }
        }
    }

    /// A session that accepts only a certificate for this host name or address (RFC 6125).
    fn expecting(&self, host: &str) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.0)?;
        if let Ok(address) = host.parse() {
            ssl.param_mut().set_ip(address)?;
        } else {
            ssl.set_hostname(host)?;
            ssl.param_mut().set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
            ssl.param_mut().set_host(host)?;
        }
        Ok(ssl)
    }
}

fn verifying_context(trust_system: bool) -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_verify(SslVerifyMode::PEER);
    // A repeated write may come from another buffer.
    context.set_mode(SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::ENABLE_PARTIAL_WRITE);
    // OpenSSL then reads the socket once for each record, not twice.
    context.set_read_ahead(true);
    if trust_system {
        context.set_default_verify_paths()?;
    }
    Ok(context)
}

fn unusable(path: &Path, purpose: &str) -> impl Fn(ErrorStack) -> Error {
    move |error| {
        let reasons: Vec<_> = error.errors().iter().filter_map(|error| error.reason()).collect();
        Error::Config(format!("cannot use {} {purpose}: {}", path.display(), reasons.join(", ")))
    }
}

/// Empties OpenSSL's queue of errors, which each thread has for all that it does with OpenSSL. An
/// error that other code has left there would count as that of the next operation
/// (SSL_get_error(3)).
fn forget_earlier_errors() {
    drop(ErrorStack::get());
}

/// A TLS session whose read errors explain the broker's alerts. In TLS 1.3 the client finishes its
/// handshake before the broker checks the client certificate, so an alert about the certificate
/// arrives with the first read.
struct TlsSession(SslStream<TcpStream>);

impl Read for TlsSession {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        forget_earlier_errors();
        // Only an error of OpenSSL contains another error. An error of the socket, such as the
        // frequent `WouldBlock`, contains none and is returned at once.
        self.0.read(into).map_err(|error| match error.get_ref().map(ToString::to_string) {
            Some(text) if text.contains("SSL alert number") => io::Error::other(explain(&text)),
            _ => error,
        })
    }
}

impl Write for TlsSession {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        forget_earlier_errors();
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What OpenSSL's errors mean here. The first row that has words of the error, in lower case,
/// applies. The numbers are those of alerts, with which the broker answers the client's side of the
/// handshake (TLS 1.3, RFC 8446, 6.2). TLS 1.2 has no alert for a missing certificate.
const MEANINGS: [(&[&str], &str); 13] = [
    (&["number 116"], "the broker asks for a client certificate; give one, with its key"),
    (&["number 40"], "the broker refused TLS; if it asks for a client certificate, give one"),
    (
        &["number 42", "number 43", "number 46", "number 48"],
        "the broker does not accept the client certificate; one of its authorities must sign it",
    ),
    (&["number 44"], "the broker says that the client certificate is revoked"),
    (&["number 45"], "the broker says that the client certificate has expired"),
    (&["number 70"], "the broker speaks no version of TLS that is safe to use"),
    (&["alert number"], "the broker ended TLS with an alert"),
    (
        &["hostname mismatch", "ip address mismatch"],
        "the broker's certificate is not for the host name {host}",
    ),
    (&["certificate has expired"], "the broker's certificate has expired"),
    (&["not yet valid"], "the broker's certificate is not valid yet"),
    (
        &["self-signed", "self signed", "local issuer", "unable to verify", "signature failure"],
        "the broker's certificate is not signed by an authority trusted here; name its CA file",
    ),
    (&["wrong version number"], "this port does not speak TLS; use amqp:// or the TLS port"),
    (&["unexpected eof", "connection reset"], "it hung up during the TLS handshake"),
];

fn explain(error: &str) -> String {
    let lower_case = error.to_ascii_lowercase();
    let applies = |words: &[&str]| words.iter().any(|words| lower_case.contains(words));
    let row = MEANINGS.iter().find(|(words, _)| applies(words));
    let meaning = row.map_or("the TLS handshake failed", |(_, meaning)| meaning);
    format!("{meaning} ({error})")
}

#[cfg(test)]
mod tests {
    #[test]
    fn explains_errors_of_openssl() {
        let verify = "error:0A000086:SSL routines:tls_post_process_server_certificate:certificate \
                      verify failed:../ssl/statem/statem_clnt.c:1889:";
        let alert = "error:0A000410:SSL routines:ssl3_read_bytes:sslv3 alert handshake failure:\
                     ../ssl/record/rec_layer_s3.c:1605:SSL alert number";
        for (error, meaning) in [
            (format!("{verify} (hostname mismatch)"), "not for the host name"),
            (format!("{verify} (IP address mismatch)"), "not for the host name"),
            (format!("{verify} (certificate has expired)"), "broker's certificate has expired"),
            (format!("{verify} (certificate is not yet valid)"), "not valid yet"),
            (format!("{verify} (self-signed certificate)"), "name its CA file"),
            (format!("{verify} (unable to get local issuer certificate)"), "name its CA file"),
            (format!("{alert} 40"), "if it asks for a client certificate"),
            (format!("{alert} 45"), "client certificate has expired"),
            (format!("{alert} 48"), "does not accept the client certificate"),
            (format!("{alert} 116"), "asks for a client certificate"),
        ] {
            let text = super::explain(&error);
            assert!(text.contains(meaning), "{text}");
        }
    }
}
