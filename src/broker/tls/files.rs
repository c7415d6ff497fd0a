//! The files that TLS and a login need.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

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

/// Reads the whole of a small file, and refuses one without an end, such as a device.
pub(in crate::broker) fn read_small(path: &Path) -> Result<Vec<u8>> {
    const LONGEST: u64 = 1 << 20;
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut content));
    let checked = read.and_then(|length| match length as u64 <= LONGEST {
        true => Ok(content),
        false => Err(io::Error::other("it is larger than a megabyte")),
    });
    checked.map_err(|error| Error::Config(format!("cannot read {}: {error}", path.display())))
}
