//! Where the brokers are, and how to get a connection to one of them.

mod line;
mod socket;
mod tls;
mod url;

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning};

pub(crate) use self::line::{Line, Unwritten};
pub use self::tls::TlsFiles;
pub(crate) use self::url::Endpoint;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use socket::Socket;

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
            tls: TlsFiles::default(),
        })
    }

    pub(crate) fn are_several(&self) -> bool {
        self.endpoints.len() > 1
    }

    /// Tries each broker in turn, beginning with the one at `first` (the last that was good),
    /// until one takes the connection. Each gets its part of what is left of the deadline.
    /// Credentials that one broker refuses are not tried on the next.
    pub(crate) fn connect(&self, first: usize, deadline: Deadline) -> Result<Link, NoLink> {
        let count = self.endpoints.len();
        let mut nobody_listens = true;
        let mut reasons = Vec::new();
        for turn in 0..count {
            let index = (first + turn) % count;
            let endpoint = &self.endpoints[index];
            let limit = endpoint.connection_timeout.unwrap_or(self.connect_timeout);
            let part = deadline.remaining() / (count - turn) as u32;
            let deadline = Deadline::after(limit.min(part));
            let tls = endpoint.tls.then(|| tls::Connector::new(&self.tls)).transpose();
            let tls = tls.map_err(|error| NoLink { error, nobody_listens })?;
            let failed = match socket::dial(endpoint, deadline) {
                Ok(tcp) => {
                    nobody_listens = false;
                    match self.log_in(tcp, tls, index, deadline) {
                        Err(Error::Unreachable { reason, .. }) => reason,
                        done => return done.map_err(|error| NoLink { error, nobody_listens }),
                    }
                }
                Err(error) => error.to_string(),
            };
            reasons.push(if count > 1 { format!("{endpoint}: {failed}") } else { failed });
        }
        let error = Error::Unreachable { brokers: self.to_string(), reason: reasons.join("; ") };
        Err(NoLink { error, nobody_listens })
    }

    fn log_in(
        &self,
        tcp: TcpStream,
        tls: Option<tls::Connector>,
        index: usize,
        deadline: Deadline,
    ) -> Result<Link> {
        let endpoint = &self.endpoints[index];
        let failed = |error: io::Error| endpoint.unreachable(error);
        let line = Line::new(tcp);
        let fuse = line.fuse(deadline.remaining());
        if let Some(tls) = tls {
            let tcp = line.tcp().map_err(failed)?;
            line.carry(tls.handshake(tcp, endpoint, deadline)?);
        }
        let socket = Socket::new(line.clone()).map_err(failed)?;

        let began = Instant::now();
        let opened = Connection::insecure_open_stream(
            socket,
            self.options(endpoint),
            ConnectionTuning::default(),
        );
        drop(fuse);
        let connection =
            opened.map_err(|error| explain_handshake(error, endpoint, &line, began))?;
        log::debug!("connected to {endpoint}");
        Ok(Link { connection, line, endpoint: endpoint.clone(), index })
    }

    fn options(&self, endpoint: &Endpoint) -> ConnectionOptions<Auth> {
        let auth = match endpoint.external {
            true => Auth::External,
            false => {
                Auth::Plain { username: endpoint.user.clone(), password: endpoint.password.clone() }
            }
        };
        ConnectionOptions::default()
            .auth(auth)
            .virtual_host(&endpoint.vhost)
            .channel_max(endpoint.channel_max)
            .heartbeat(endpoint.heartbeat.unwrap_or(self.heartbeat))
            .information(Some(who_we_are()))
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

/// Shown to operators as the connection's client property `information`.
fn who_we_are() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let process = std::process::id();
    format!("{} (rabbitmq-rpc {version}) on {}, process {process}", program(), host.trim())
}

/// A refused login looks to amiquip like any connection that ends during it. RabbitMQ makes the
/// refused wait before it hangs up (`SILENT_CLOSE_DELAY` in its `rabbit_reader`: 3 s), which
/// tells a wrong password from a broker that goes down at that moment.
fn explain_handshake(
    error: amiquip::Error,
    endpoint: &Endpoint,
    line: &Line,
    began: Instant,
) -> Error {
    const REFUSAL_TAKES: Duration = Duration::from_millis(2500);
    let Endpoint { user, vhost, .. } = endpoint;
    match error {
        _ if line.was_cut() => endpoint.unreachable(
            "it did not finish the login in time (a refused login takes RabbitMQ 3 s)",
        ),
        amiquip::Error::InvalidCredentials if began.elapsed() < REFUSAL_TAKES => {
            endpoint.unreachable("it hung up during the login")
        }
        amiquip::Error::InvalidCredentials => Error::Refused(match endpoint.external {
            true => format!("{endpoint} refused the client certificate as a login"),
            false => format!(
                "{endpoint} refused the login of user {user:?}: check name and password{}",
                match user.as_str() {
                    "guest" => "; guest may log in from the broker's own machine only",
                    _ => "",
                }
            ),
        }),
        amiquip::Error::UnsupportedAuthMechanism { available, requested } => Error::Refused(
            format!("{endpoint} takes no login by {requested}; it takes {available}"),
        ),
        // Where a limit of connections is reached, there may be room for one later.
        amiquip::Error::ServerClosedConnection { code: 402 | 403 | 530, message }
            if !message.contains("limit") =>
        {
            Error::Refused(format!(
                "{endpoint} refused user {user:?} the virtual host {vhost:?}: {message}"
            ))
        }
        error => endpoint.unreachable(reason(&error)),
    }
}

/// Why there is no connection.
pub(crate) struct NoLink {
    pub(crate) error: Error,
    /// No broker took so much as a TCP connection, so that trying again soon burdens none.
    pub(crate) nobody_listens: bool,
}

impl From<NoLink> for Error {
    fn from(no_link: NoLink) -> Error {
        no_link.error
    }
}

/// A connection to one broker, with what is needed to end it and to explain its errors.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) line: Line,
    pub(crate) endpoint: Endpoint,
    /// Its broker's place in the list, to begin with next time.
    pub(crate) index: usize,
}

impl Link {
    /// Closes the connection in good order, or cuts it once `limit` is over.
    pub(crate) fn close(self, limit: Duration) {
        let _fuse = self.line.fuse(limit);
        if let Err(error) = self.connection.close() {
            log::debug!("closing the connection to {}: {}", self.endpoint, reason(&error));
        }
    }
}

impl Endpoint {
    /// What an error on a channel means; `doing` names the step, with the permission it takes
    /// ([Access control](https://www.rabbitmq.com/docs/access-control)).
    pub(crate) fn explain(&self, error: &amiquip::Error, doing: &str) -> Error {
        match error {
            amiquip::Error::ServerClosedChannel { code: 403, message, .. } => {
                let Endpoint { user, vhost, .. } = self;
                Error::Refused(format!(
                    "user {user:?} lacks the permission in virtual host {vhost:?} to {doing}: \
                     {message} (rabbitmqctl set_permissions)"
                ))
            }
            error => self.unreachable(format!("cannot {doing}: {}", reason(error))),
        }
    }
}

/// amiquip's error as half a sentence. None of those that print a URL can come up here, since
/// the connection is opened without one.
pub(crate) fn reason(error: &amiquip::Error) -> String {
    match error {
        amiquip::Error::ServerClosedConnection { code, message } => {
            format!("the broker closed the connection: {code} {message}")
        }
        amiquip::Error::ServerClosedChannel { code, message, .. } => {
            format!("the broker closed the channel: {code} {message}")
        }
        amiquip::Error::UnexpectedSocketClose | amiquip::Error::EventLoopDropped => {
            "the connection ended without a word".into()
        }
        amiquip::Error::MissedServerHeartbeats => "the broker was silent for two heartbeats".into(),
        amiquip::Error::IoErrorReadingSocket { source }
        | amiquip::Error::IoErrorWritingSocket { source } => source.to_string(),
        other => other.to_string(),
    }
}
