//! TLS between the socket and AMQP, if the cargo feature `tls` is on.

mod files;
#[cfg(feature = "tls")]
mod openssl;
#[cfg(not(feature = "tls"))]
mod without;

pub use self::files::TlsFiles;
pub(super) use self::files::read_small;
#[cfg(feature = "tls")]
pub(crate) use self::openssl::Connector;
#[cfg(not(feature = "tls"))]
pub(crate) use self::without::Connector;
