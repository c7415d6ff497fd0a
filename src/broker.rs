//! Addresses of brokers, and connecting to them.

mod brokers;
mod channel;
mod connection;
mod control;
mod control_stream;
mod data_plane;
mod ended;
mod login;
#[cfg(test)]
mod model;
mod notes;
mod reconnector;
mod refusal;
mod self_pipe;
mod slots;
mod socket;
mod status;
mod sync;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod try_order;
mod turn;
mod url;

pub use self::brokers::Brokers;
pub(crate) use self::channel::{CallError, Channel, Limit};
pub(crate) use self::connection::Connection;
pub(crate) use self::data_plane::DataPlane;
pub(crate) use self::ended::Ended;
pub(crate) use self::login::{host, program};
pub(crate) use self::reconnector::{Reconnector, Session};
pub(crate) use self::status::write_status;
pub use self::tls::TlsFiles;
pub(crate) use self::transport::WriteError;
pub(crate) use self::turn::Waiter;
pub(crate) use self::url::Endpoint;
