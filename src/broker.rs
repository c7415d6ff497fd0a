//! Where the brokers are, and how to get a connection to one of them.

mod bell;
mod channel;
mod connection;
mod control;
mod data_plane;
#[cfg(test)]
mod model;
mod reconnector;
mod sync;
mod tls;
mod transport;
mod turn;
mod url;

use std::fmt;
use std::time::Duration;

pub(crate) use self::channel::{CallError, Channel, Limit};
pub(crate) use self::connection::Connection;
pub(crate) use self::data_plane::DataPlane;
pub(crate) use self::reconnector::{Reconnector, Session};
pub use self::tls::TlsFiles;
pub(crate) use self::transport::WriteError;
pub(crate) use self::turn::Waiter;
pub(crate) use self::url::Endpoint;
use crate::deadline::Deadline;
use crate::error::{Error, Result};

/// One broker or several of one cluster, and how to connect to them.
///
/// ```
/// use std::time::Duration;
/// use rabbitmq_rpc::Brokers;
///
/// let mut brokers = Brokers::parse("amqp://ann:s3cret@rabbit-1,amqp://ann:s3cret@rabbit-2/%2f")?;
/// brokers.connect_timeout = Duration::from_secs(2);
/// assert_eq!(brokers.to_string(), "rabbit-1:5672, rabbit-2:5672");
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brokers {
    endpoints: Vec<Endpoint>,
    /// The most that connecting to one broker may take, from the TCP connection to the last
    /// handshake: 5 s unless set. A `connection_timeout` (in milliseconds) in a URL goes before.
    pub connect_timeout: Duration,
    /// The heartbeat in seconds: 10 unless set; a `heartbeat` in a URL goes before. A broker
    /// that is silent for twice as long counts as lost. 0 turns heartbeats off, and with them
    /// the only way of noticing a network that swallows packets
    /// ([Heartbeats](https://www.rabbitmq.com/docs/heartbeats)).
    pub heartbeat: u16,
    /// How long to keep trying to make the first connection, where no broker is up yet: not at all
    /// unless set, which tries each broker once. Programs that are started together with their
    /// broker then come up in any order. A connection that is lost later is always tried again.
    pub wait: Duration,
    /// Files for `amqps://`; none of them is needed where the system trusts the broker.
    pub tls: TlsFiles,
}

impl Brokers {
    /// Reads one URL, or several separated by commas, by
    /// [RabbitMQ's URI specification](https://www.rabbitmq.com/docs/uri-spec). What is absent
    /// is `guest`, `guest`, `localhost`, 5672 (5671 for `amqps`) and the virtual host `/`.
    ///
    /// # Errors
    /// [`Error::Config`] names the part that cannot be understood. Nothing is looked up here.
    pub fn parse(urls: &str) -> Result<Brokers> {
        let endpoints = urls.split(',').map(|url| url.trim().parse()).collect::<Result<_>>()?;
        Ok(Brokers {
            endpoints,
            connect_timeout: Duration::from_secs(5),
            heartbeat: 10,
            wait: Duration::ZERO,
            tls: TlsFiles::default(),
        })
    }

    /// How long making the first connection may take: each broker its time to connect, once more
    /// that time to set up what is needed there, or [`Brokers::wait`] if that is longer.
    pub(crate) fn first_limit(&self) -> Duration {
        let limits = self.endpoints.iter().map(|endpoint| self.limit(endpoint));
        let once = limits.fold(self.connect_timeout, Duration::saturating_add);
        once.max(self.wait)
    }

    fn limit(&self, endpoint: &Endpoint) -> Duration {
        endpoint.connection_timeout.unwrap_or(self.connect_timeout)
    }

    pub(crate) fn are_several(&self) -> bool {
        self.endpoints.len() > 1
    }

    /// Tries each broker once.
    pub(crate) fn connect_once(&self) -> Result<Connection> {
        let connected = self.connect(0, Deadline::after(Duration::MAX));
        connected.map(|(_, connection)| connection).map_err(|failed| failed.error)
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { brokers: self.to_string(), reason }
    }

    /// Tries each broker in turn, beginning with the one at `first` (the last that was good),
    /// until one takes the connection. Each gets its part of what is left of the deadline.
    /// Credentials that one broker refuses are not tried on the next. Also returns the broker's
    /// place in the list.
    fn connect(
        &self,
        first: usize,
        deadline: Deadline,
    ) -> Result<(usize, Connection), NoConnection> {
        let count = self.endpoints.len();
        let mut nobody_listens = true;
        let mut reasons = Vec::new();
        for turn in 0..count {
            let index = (first + turn) % count;
            let endpoint = &self.endpoints[index];
            let limit = self.limit(endpoint);
            let part = deadline.remaining() / (count - turn) as u32;
            let deadline = Deadline::after(limit.min(part));
            let tls = endpoint.tls.then(|| tls::Connector::new(&self.tls)).transpose();
            let tls = tls?;
            let heartbeat = endpoint.heartbeat.unwrap_or(self.heartbeat);
            let failed = match connection::dial(endpoint, deadline) {
                Ok(tcp) => {
                    nobody_listens = false;
                    match Connection::log_in(tcp, tls, endpoint, heartbeat, deadline) {
                        Ok(connection) => return Ok((index, connection)),
                        Err(Error::Unreachable { reason, .. }) => reason,
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => error.to_string(),
            };
            reasons.push(if count > 1 { format!("{endpoint}: {failed}") } else { failed });
        }
        Err(NoConnection { error: self.unreachable(reasons.join("; ")), nobody_listens })
    }
}

/// `host:port` of each, comma-separated.
impl fmt::Display for Brokers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        f.write_str(&endpoints.join(", "))
    }
}

/// The program's name: what operators see of it, and what goes into `app_id`, where AMQP has room
/// for 255 bytes.
pub(crate) fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().unwrap_or_default().to_string_lossy().chars().take(60).collect()
}

/// Why there is no connection.
struct NoConnection {
    error: Error,
    /// No broker took so much as a TCP connection, so that trying again soon burdens none.
    nobody_listens: bool,
}

impl From<Error> for NoConnection {
    fn from(error: Error) -> NoConnection {
        NoConnection { error, nobody_listens: false }
    }
}
