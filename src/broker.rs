//! Where the brokers are, and how to get a connection to one of them.

mod bell;
mod connection;
mod control;
mod data_plane;
#[cfg(test)]
mod model;
mod sync;
mod tls;
mod transport;
mod turn;
mod url;

use std::fmt;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

pub(crate) use self::connection::{CLOSING, Connection, closed_channel, explain, reason};
pub(crate) use self::data_plane::{DataPlane, Event};
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

    /// As [`Brokers::connect`], in a thread of its own, that nobody has to wait for: looking up a
    /// name takes as long as the system's resolver does. A caller that stops waiting drops the
    /// receiver, and the connection is closed again.
    pub(crate) fn connect_in_thread(
        &self,
        first: usize,
        deadline: Deadline,
    ) -> Receiver<Result<Connection, NoConnection>> {
        let (report, connected) = bounded(1);
        let brokers = self.clone();
        let failed = report.clone();
        let connect = move || drop(report.send(brokers.connect(first, deadline)));
        if let Err(error) = thread::Builder::new().name("rpc-connect".into()).spawn(connect) {
            let reason = format!("there is no thread to connect in: {error}");
            let error = Error::Unreachable { brokers: self.to_string(), reason };
            let _ = failed.send(Err(NoConnection { error, nobody_listens: false }));
        }
        connected
    }

    /// Tries each broker in turn, beginning with the one at `first` (the last that was good),
    /// until one takes the connection. Each gets its part of what is left of the deadline.
    /// Credentials that one broker refuses are not tried on the next.
    pub(crate) fn connect(
        &self,
        first: usize,
        deadline: Deadline,
    ) -> Result<Connection, NoConnection> {
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
            let tls = tls.map_err(|error| NoConnection { error, nobody_listens })?;
            let heartbeat = endpoint.heartbeat.unwrap_or(self.heartbeat);
            let failed = match connection::dial(endpoint, deadline) {
                Ok(tcp) => {
                    nobody_listens = false;
                    match Connection::log_in(tcp, tls, endpoint, heartbeat, index, deadline) {
                        Err(Error::Unreachable { reason, .. }) => reason,
                        done => {
                            return done.map_err(|error| NoConnection { error, nobody_listens });
                        }
                    }
                }
                Err(error) => error.to_string(),
            };
            reasons.push(if count > 1 { format!("{endpoint}: {failed}") } else { failed });
        }
        let error = Error::Unreachable { brokers: self.to_string(), reason: reasons.join("; ") };
        Err(NoConnection { error, nobody_listens })
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
pub(crate) struct NoConnection {
    pub(crate) error: Error,
    /// No broker took so much as a TCP connection, so that trying again soon burdens none.
    pub(crate) nobody_listens: bool,
}

impl From<NoConnection> for Error {
    fn from(no_connection: NoConnection) -> Error {
        no_connection.error
    }
}
