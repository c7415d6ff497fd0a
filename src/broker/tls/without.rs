//! Stands in for TLS if the cargo feature `tls` is off.

use std::net::TcpStream;

use super::TlsFiles;
use crate::broker::Endpoint;
use crate::broker::transport::Stream;
use crate::deadline::Deadline;
use crate::error::{Error, Result};

/// This type has no values.
pub(crate) enum Connector {}

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
