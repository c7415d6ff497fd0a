//! The brokers that a program may use, and connecting to one of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::connection::{Connection, connect};
use super::login::Login;
use super::tls::{Connector, TlsFiles, read_small};
use super::try_order::TryOrder;
use super::url::Endpoint;
use crate::deadline::Deadline;
use crate::error::{Error, Result, ensure};

/// One broker, or several brokers of one cluster, and how to connect to them.
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
    /// The time limit for connecting to one broker, from the TCP connection to the last handshake:
    /// 5 s unless set. A `connection_timeout` (in milliseconds) in a URL takes precedence.
    pub connect_timeout: Duration,
    /// The heartbeat interval in seconds: 10 unless set. A `heartbeat` in a URL takes precedence. A
    /// broker that suggests a lower one, but not 0, gets that. A broker that is silent for two
    /// intervals counts as lost. 0 turns heartbeats off. Nothing else detects a network that drops
    /// packets without an error ([Heartbeats](https://www.rabbitmq.com/docs/heartbeats)).
    pub heartbeat: u16,
    /// How long to retry the first connection while no broker is up yet, or while the user, the
    /// virtual host or a permission is not there yet: attempts begin until then. Unless this is
    /// set, each broker is tried once. With it, programs that start at the same time as their
    /// broker can come up in any order. A connection that is lost later is always retried.
    pub wait: Duration,
    /// A file with the password, in place of the one in the URL: none unless set. It is read again
    /// for each connection, so that a program goes on by itself after the password has changed. A
    /// line break at its end does not count.
    pub password_file: Option<PathBuf>,
    /// Files for `amqps://`. None is needed if the system trusts the broker's certificate.
    pub tls: TlsFiles,
}

impl Brokers {
    /// Parses one URL, or several URLs separated by commas, as in [RabbitMQ's URI
    /// specification](https://www.rabbitmq.com/docs/uri-spec). The defaults are user `guest`,
    /// password `guest`, host `localhost`, port 5672 (5671 for `amqps`) and virtual host `/`.
    ///
    /// # Errors
    /// [`Error::Config`] names the part that cannot be parsed. Host names are not looked up here.
    pub fn parse(urls: &str) -> Result<Brokers> {
        let endpoints = split(urls).map(|url| url.trim().parse()).collect::<Result<_>>()?;
        Ok(Brokers {
            endpoints,
            connect_timeout: Duration::from_secs(5),
            heartbeat: 10,
            wait: Duration::ZERO,
            password_file: None,
            tls: TlsFiles::default(),
        })
    }

    /// The time limit for the first connection: the time limits of all brokers, plus
    /// [`Brokers::connect_timeout`] to set up what the session needs; or [`Brokers::wait`] if that
    /// is longer.
    pub(crate) fn first_connect_timeout(&self) -> Duration {
        let limits = self.endpoints.iter().map(|endpoint| self.connect_timeout_of(endpoint));
        let once = limits.fold(self.connect_timeout, Duration::saturating_add);
        once.max(self.wait)
    }

    fn connect_timeout_of(&self, endpoint: &Endpoint) -> Duration {
        endpoint.connection_timeout.unwrap_or(self.connect_timeout)
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| &*endpoint.user)
    }

    pub(crate) fn are_several(&self) -> bool {
        self.endpoints.len() > 1
    }

    /// Tries each broker once, starting with the one at `endpoint`.
    pub(crate) fn connect_near(&self, endpoint: &Endpoint) -> Result<Connection> {
        self.connect(&mut self.order_from(endpoint), Deadline::after(Duration::MAX), Ok)
    }

    /// Tries each broker once, the one at `endpoint` last.
    pub(crate) fn connect_elsewhere(&self, endpoint: &Endpoint) -> Result<Connection> {
        let mut order = self.order_from(endpoint);
        order.move_to_end(endpoint);
        self.connect(&mut order, Deadline::after(Duration::MAX), Ok)
    }

    /// How to log in to this broker at present. The files are read again.
    fn login<'a>(&self, endpoint: &'a Endpoint) -> Result<Login<'a>> {
        let password = match &self.password_file {
            Some(path) => read_password(path)?,
            None => endpoint.password.clone(),
        };
        let tls = endpoint.tls.then(|| Connector::new(&self.tls)).transpose()?;
        let heartbeat = endpoint.heartbeat.unwrap_or(self.heartbeat);
        Ok(Login { endpoint, password, tls, heartbeat })
    }

    /// The order that begins with the first broker of the list.
    pub(super) fn order(&self) -> TryOrder {
        TryOrder::new(self.endpoints.clone())
    }

    fn order_from(&self, first: &Endpoint) -> TryOrder {
        let mut endpoints = self.endpoints.clone();
        endpoints.sort_by_key(|endpoint| endpoint != first);
        TryOrder::new(endpoints)
    }

    pub(super) fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { brokers: self.to_string(), reason }
    }

    /// Tries each broker once, in this order, until one accepts the connection and `set_up`
    /// succeeds on it. Each broker gets an equal share of the time that is left until the deadline.
    /// One that cannot be used, or does not take what follows the login, goes to the end of the
    /// order. If a broker refuses something, the next one is not tried.
    pub(super) fn connect<S>(
        &self,
        order: &mut TryOrder,
        deadline: Deadline,
        set_up: impl Fn(Connection) -> Result<S>,
    ) -> Result<S> {
        order.retry_early = false;
        let (mut has_reached, mut reasons) = (false, Vec::new());
        for (index, endpoint) in order.brokers.clone().iter().enumerate() {
            let login = self.login(endpoint)?;
            let share = deadline.remaining() / (self.endpoints.len() - index) as u32;
            let share = self.connect_timeout_of(endpoint).min(share);
            let connected = connect(&login, Deadline::after(share), &mut has_reached);
            let opened = connected.and_then(|connection| {
                set_up(connection).inspect_err(|_| order.move_to_end(endpoint))
            });
            let Err(Error::Unreachable { reason, .. }) = opened else { return opened };
            order.move_to_end(endpoint);
            reasons.push(match self.are_several() {
                true => format!("{endpoint}: {reason}"),
                false => reason,
            });
        }
        order.retry_early = !has_reached;
        Err(self.unreachable(reasons.join("; ")))
    }
}

fn read_password(path: &Path) -> Result<String> {
    let text = String::from_utf8(read_small(path)?)
        .map_err(|_| Error::Config(format!("the password file {} is not UTF-8", path.display())))?;
    let password = text.trim_end_matches(['\r', '\n']);
    ensure(!password.is_empty(), || format!("the password file {} is empty", path.display()))?;
    Ok(password.to_string())
}

/// Splits at each comma that a URL follows: a password or a virtual host may contain others.
fn split(urls: &str) -> impl Iterator<Item = &str> {
    let begins_url = |text: &str| {
        let scheme = text.trim_start().split_once("://").map_or("", |(scheme, _)| scheme);
        ["amqp", "amqps"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
    };
    let mut rest = Some(urls);
    std::iter::from_fn(move || {
        let urls = rest.take()?;
        let mut commas = urls.match_indices(',').map(|(at, _)| at);
        let Some(at) = commas.find(|at| begins_url(&urls[at + 1..])) else { return Some(urls) };
        rest = Some(&urls[at + 1..]);
        Some(&urls[..at])
    })
}

/// Writes the `host:port` of each broker, separated by commas.
impl fmt::Display for Brokers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        f.write_str(&endpoints.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_separate_urls_and_may_be_part_of_one() {
        for (urls, shown) in [
            ("amqp://a,AMQPS://b", "a:5672, b:5671"),
            (" amqp://u:p,q@a/v,w , amqp://b", "a:5672, b:5672"),
            ("amqp://[u]x:topsecret,tail@host", "host:5672"),
        ] {
            assert_eq!(Brokers::parse(urls).expect(urls).to_string(), shown);
        }
        for urls in ["amqp://a,b", "amqp://a,", "amqp://u:topsecret@a,http://b", ""] {
            let error = Brokers::parse(urls).expect_err(urls).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
