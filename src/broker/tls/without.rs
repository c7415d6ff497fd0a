//! Stands in for TLS if the cargo feature `tls` is off.

use std::net::TcpStream;

use super::files::TlsFiles;
use crate::broker::socket::Stream;
use crate::broker::url::Endpoint;
use crate::deadline::Deadline;
use crate::error::{Error, Result};

/// This type has no values.
pub(crate) enum Connector {}

impl Connector {
    pub fn new(_: &TlsFiles) -> Result<Connector> {
        let text = "amqps:// needs the cargo feature `tls` of rabbitmq-rpc, which this program was \
                    built without";
        Err(Error::Config(text.into()))
    }

    pub fn handshake(&self, _: TcpStream, _: &Endpoint, _: Deadline) -> Result<Box<dyn Stream>> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn amqps_names_the_missing_feature() {
        // No broker listens on port 1: the error comes before a connection is tried.
        let brokers = crate::Brokers::parse("amqps://127.0.0.1:1").unwrap();
        let server = crate::RpcServer::connect(brokers, "q", crate::ServerOptions::default());
        let error = server.expect_err("there is no TLS");
        assert!(matches!(error, crate::Error::Config(_)), "{error:?}");
        assert!(error.to_string().contains("cargo feature `tls`"), "{error}");
    }
}
