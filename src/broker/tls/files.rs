//! The files that TLS needs.

use std::path::PathBuf;

/// Files for TLS, all in PEM format. The broker's certificate and its host name are always
/// verified.
///
/// ```
/// use rabbitmq_rpc::{Brokers, TlsFiles};
///
/// let mut brokers = Brokers::parse("amqps://ann:s3cret@rabbit-1")?;
/// brokers.tls = TlsFiles { ca: Some("/etc/ssl/our-ca.pem".into()), ..Default::default() };
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the authorities to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The client certificate, with its chain, for a broker that asks for one.
    pub cert: Option<PathBuf>,
    /// The private key of the client certificate, not encrypted.
    pub key: Option<PathBuf>,
}
