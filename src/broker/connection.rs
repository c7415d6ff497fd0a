//! A connection to one broker: amiquip for the control plane, [`DataPlane`] for the messages.

use std::fmt;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, process};

use amiquip::{Auth, Channel, ConnectionOptions, ConnectionTuning};

use super::control::ControlStream;
use super::data_plane::{DataPlane, TOO_LATE, WITHOUT_A_WORD};
use super::transport::Transport;
use super::{Endpoint, program, tls};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::Close;

pub(crate) struct Connection {
    pub(crate) data_plane: Arc<DataPlane>,
    pub(crate) endpoint: Endpoint,
    /// Its broker's place in the list, to begin with next time.
    pub(crate) index: usize,
    /// `None` once it is closed.
    amiquip: Option<amiquip::Connection>,
}

/// How long closing in good order may take before the connection is cut.
pub(crate) const CLOSING: Duration = Duration::from_secs(1);

impl Connection {
    /// Runs TLS, if asked for, and AMQP's handshake on a TCP connection.
    pub(super) fn log_in(
        tcp: TcpStream,
        tls: Option<tls::Connector>,
        endpoint: &Endpoint,
        heartbeat: u16,
        index: usize,
        deadline: Deadline,
    ) -> Result<Connection> {
        let failed = |error: io::Error| endpoint.unreachable(error);
        let session = match tls {
            None => None,
            Some(tls) => {
                Some(tls.handshake(tcp.try_clone().map_err(failed)?, endpoint, deadline)?)
            }
        };
        let transport = Transport::new(tcp, session).map_err(failed)?;
        let interval = Duration::from_secs(heartbeat.into());
        let (data_plane, registration) = DataPlane::start(transport, interval).map_err(failed)?;
        let stream = ControlStream::new(Arc::clone(&data_plane), registration);

        let began = Instant::now();
        let opened = {
            let _limit = data_plane.time_limit(deadline.remaining());
            let options = endpoint.options().heartbeat(heartbeat);
            let tuning = ConnectionTuning::default();
            amiquip::Connection::insecure_open_stream(stream, options, tuning)
        };
        let amiquip = opened.map_err(|error| {
            explain_handshake(error, endpoint, data_plane.ended(), began.elapsed())
        })?;
        data_plane.opened();
        log::debug!("connected to {endpoint}");
        Ok(Connection { data_plane, endpoint: endpoint.clone(), index, amiquip: Some(amiquip) })
    }

    /// Opens a channel. Blocks until the broker answers: set a [`DataPlane::time_limit`] before.
    ///
    /// # Errors
    /// As amiquip's.
    pub(crate) fn open_channel(&mut self) -> Result<Channel, amiquip::Error> {
        let amiquip = self.amiquip.as_mut().expect("only closing takes it out");
        let channel = amiquip.open_channel(None)?;
        self.data_plane.channel_opened(channel.channel_id());
        Ok(channel)
    }

    /// What an error on a channel means; `doing` names the step, with the permission it takes.
    pub(crate) fn explain(&self, error: &amiquip::Error, doing: &str) -> Error {
        explain(&self.endpoint, &self.data_plane, error, doing)
    }

    /// Closes the connection, in good order if the broker answers within [`CLOSING`], and tells
    /// why it ended.
    pub(crate) fn close(mut self) -> String {
        self.close_amiquip();
        self.data_plane.ended().unwrap_or("it was closed").to_string()
    }

    fn close_amiquip(&mut self) {
        let Some(amiquip) = self.amiquip.take() else { return };
        let _limit = self.data_plane.time_limit(CLOSING);
        if let Err(error) = amiquip.close() {
            log::debug!("closing the connection to {}: {}", self.endpoint, reason(&error));
        }
    }
}

/// As [`Connection::close`].
impl Drop for Connection {
    fn drop(&mut self) {
        self.close_amiquip();
    }
}

/// Opens a TCP connection to the first address of the endpoint that takes one: a `localhost`
/// that is `::1` first must not hide a broker on `127.0.0.1`. Looking up a name blocks for as
/// long as the system's resolver does; each address gets its part of what then is left.
pub(super) fn dial(endpoint: &Endpoint, deadline: Deadline) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> =
        (endpoint.host.as_str(), endpoint.port).to_socket_addrs()?.collect();
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (index, address) in addresses.iter().enumerate() {
        let part = deadline.remaining() / (addresses.len() - index) as u32;
        match TcpStream::connect_timeout(address, part.max(Duration::from_millis(1))) {
            Ok(tcp) => {
                // A call is two small messages. Under Nagle's algorithm each may wait 40 ms for a
                // delayed acknowledgement.
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(refused) => error = refused,
        }
    }
    Err(error)
}

impl Endpoint {
    fn options(&self) -> ConnectionOptions<Auth> {
        let auth = match self.external {
            true => Auth::External,
            false => Auth::Plain { username: self.user.clone(), password: self.password.clone() },
        };
        ConnectionOptions::default()
            .auth(auth)
            .virtual_host(&self.vhost)
            .channel_max(self.channel_max)
            .information(Some(who_we_are()))
    }

    /// What the broker means by closing a channel
    /// ([Access control](https://www.rabbitmq.com/docs/access-control)).
    pub(crate) fn explain_close(&self, close: &Close, doing: &str) -> Error {
        let Endpoint { user, vhost, .. } = self;
        match close.code {
            403 => Error::Refused(format!(
                "user {user:?} lacks the permission in virtual host {vhost:?} to {doing}: {} \
                 (rabbitmqctl set_permissions)",
                close.text
            )),
            _ => self.unreachable(format!("cannot {doing}: the broker said {close}")),
        }
    }
}

/// See [`Connection::explain`].
pub(crate) fn explain(
    endpoint: &Endpoint,
    data_plane: &DataPlane,
    error: &amiquip::Error,
    doing: &str,
) -> Error {
    match (closed_channel(error), data_plane.ended()) {
        (Some(close), _) => endpoint.explain_close(&close, doing),
        (None, Some(ended)) => endpoint.unreachable(format!("cannot {doing}: {ended}")),
        (None, None) => endpoint.unreachable(format!("cannot {doing}: {}", reason(error))),
    }
}

/// What the broker said when it closed the channel, if that is what this error is about.
pub(crate) fn closed_channel(error: &amiquip::Error) -> Option<Close> {
    match error {
        amiquip::Error::ServerClosedChannel { code, message, .. } => {
            Some(Close { code: *code, text: message.clone() })
        }
        _ => None,
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
            WITHOUT_A_WORD.into()
        }
        amiquip::Error::MissedServerHeartbeats => "the broker was silent for two heartbeats".into(),
        other => other.to_string(),
    }
}

/// A refused login looks to amiquip like any connection that ends during it. RabbitMQ makes the
/// refused wait before it hangs up (`SILENT_CLOSE_DELAY` in its `rabbit_reader`: 3 s), which
/// tells a wrong password from a broker that goes down at that moment.
fn explain_handshake(
    error: amiquip::Error,
    endpoint: &Endpoint,
    ended: Option<&str>,
    took: Duration,
) -> Error {
    const REFUSAL_TAKES: Duration = Duration::from_millis(2500);
    let Endpoint { user, vhost, .. } = endpoint;
    match error {
        _ if ended == Some(TOO_LATE) => endpoint.unreachable(
            "it did not finish the login in time (a refused login takes RabbitMQ 3 s)",
        ),
        amiquip::Error::InvalidCredentials if ended != Some(WITHOUT_A_WORD) => {
            endpoint.unreachable(ended.unwrap_or("it hung up during the login"))
        }
        amiquip::Error::InvalidCredentials if took < REFUSAL_TAKES => {
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
        error @ amiquip::Error::ServerClosedConnection { .. } => {
            endpoint.unreachable(reason(&error))
        }
        error => match ended {
            Some(ended) => endpoint.unreachable(ended),
            None => endpoint.unreachable(reason(&error)),
        },
    }
}

/// Shown to operators as the connection's client property `information`.
fn who_we_are() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} (rabbitmq-rpc {version}) on {}, process {}", program(), host.trim(), process::id())
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Under Nagle's algorithm a call takes 44 ms.
    #[test]
    fn dial_tries_every_address_of_a_name_and_sets_nodelay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint: Endpoint = format!("amqp://localhost:{port}").parse().unwrap();
        let tcp = dial(&endpoint, Deadline::after(Duration::from_secs(5))).unwrap();
        assert!(tcp.nodelay().unwrap());
    }
}
