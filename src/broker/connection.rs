//! A connection to one broker, from its login to its close.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, process, thread};

use amiquip::{Auth, ConnectionOptions, ConnectionTuning};
use crossbeam_channel::bounded;

use super::data_plane::{CLOSED_WITHOUT_REASON, DataPlane};
use super::transport::Transport;
use super::turn::Waiter;
use super::{Endpoint, program, tls};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::{Close, Method, RABBITMQ_FRAME_MAX};
use crate::lock::lock;

/// An open connection. Dropping it closes it.
pub(crate) struct Connection {
    data_plane: Arc<DataPlane>,
    /// `None` once the connection is closed.
    amiquip: Mutex<Option<amiquip::Connection>>,
}

/// The time limit for an orderly close. After it, the connection is cut.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Connection {
    /// Performs the handshakes of TLS, if requested, and of AMQP on a TCP connection.
    pub(super) fn log_in(
        tcp: TcpStream,
        tls: Option<tls::Connector>,
        endpoint: &Endpoint,
        heartbeat: u16,
        deadline: Deadline,
    ) -> Result<Connection> {
        let failed = |error: io::Error| endpoint.unreachable(error);
        let handshake = |tls: tls::Connector| {
            tls.handshake(tcp.try_clone().map_err(failed)?, endpoint, deadline)
        };
        let session = tls.map(handshake).transpose()?;
        let transport = Transport::new(tcp, session).map_err(failed)?;
        let interval = Duration::from_secs(heartbeat.into());
        let (data_plane, stream) =
            DataPlane::new(endpoint.clone(), transport, interval).map_err(failed)?;

        // amiquip blocks until the handshake is over, so it opens the connection in a new thread,
        // and this thread reads for it. After the handshake, the new thread becomes the reserve.
        let (report, opened) = bounded(1);
        let waiter: Arc<Waiter> = Arc::default();
        let options = endpoint.options().heartbeat(heartbeat);
        let (shared, waiting) = (Arc::clone(&data_plane), Arc::clone(&waiter));
        let open_and_read = move || {
            let tuning = ConnectionTuning::default();
            let _ = report.send(amiquip::Connection::insecure_open_stream(stream, options, tuning));
            shared.wake(&waiting);
            shared.turn.run_reserve(&*shared);
        };
        let began = Instant::now();
        thread::Builder::new().name("rpc-reader".into()).spawn(open_and_read).map_err(failed)?;
        data_plane.wait(&waiter, deadline.at, || !opened.is_empty());
        if opened.is_empty() && data_plane.ended().is_none() {
            data_plane.cut(LOGIN_TIMED_OUT);
        }
        let opened = opened
            .recv_timeout(CLOSE_TIMEOUT)
            .map_err(|_| endpoint.unreachable(LOGIN_TIMED_OUT))?;
        let amiquip = opened.map_err(|error| {
            let why = explain_handshake(error, endpoint, data_plane.ended(), began.elapsed());
            data_plane.cut("the login failed");
            why
        })?;
        data_plane.is_open.store(true, Ordering::Relaxed);
        log::debug!("connected to {endpoint}");
        Ok(Connection { data_plane, amiquip: Mutex::new(Some(amiquip)) })
    }

    /// Closes the connection: orderly if the broker answers within [`CLOSE_TIMEOUT`], else by
    /// cutting it.
    pub(crate) fn close(&self) {
        if let Some(amiquip) = lock(&self.amiquip).take() {
            if self.ended().is_none() {
                self.write_control(&Method::CloseConnection.encode(0), || true);
                self.wait(&Arc::default(), Instant::now() + CLOSE_TIMEOUT, || false);
            }
            self.cut("the connection was closed");
            // This waits only for amiquip's I/O thread, which ends because its stream has ended.
            drop(amiquip);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

impl Deref for Connection {
    type Target = Arc<DataPlane>;

    fn deref(&self) -> &Arc<DataPlane> {
        &self.data_plane
    }
}

/// The reason if the broker does not finish the login in time.
const LOGIN_TIMED_OUT: &str =
    "it did not finish the login in time (a refused login takes RabbitMQ 3 s)";

/// Opens a TCP connection to the first address of the endpoint that accepts one. It tries all
/// addresses, because a broker may listen on `127.0.0.1` only while `localhost` resolves to `::1`
/// first. Looking up a name blocks for as long as the system's resolver does. Each address gets an
/// equal share of the time that is left after that.
pub(super) fn dial(endpoint: &Endpoint, deadline: Deadline) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> =
        (endpoint.host.as_str(), endpoint.port).to_socket_addrs()?.collect();
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (index, address) in addresses.iter().enumerate() {
        let share = deadline.remaining() / (addresses.len() - index) as u32;
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(tcp) => {
                // A call sends two small messages. With Nagle's algorithm, each may wait 40 ms for
                // a delayed acknowledgement.
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
            .frame_max(RABBITMQ_FRAME_MAX as u32)
            .information(Some(client_information()))
    }

    /// Converts the reason that the broker gave for closing a channel ([Access
    /// control](https://www.rabbitmq.com/docs/access-control)).
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

/// Converts an error of the handshake. amiquip reports a refused login in the same way as a
/// connection that ends during the login. RabbitMQ waits before it closes the connection of a
/// refused login (`SILENT_CLOSE_DELAY` in its `rabbit_reader`: 3 s). This delay distinguishes a
/// wrong password from a broker that stops during the login.
fn explain_handshake(
    error: amiquip::Error,
    endpoint: &Endpoint,
    ended: Option<&str>,
    took: Duration,
) -> Error {
    const MIN_REFUSAL_DELAY: Duration = Duration::from_millis(2500);
    let Endpoint { user, vhost, .. } = endpoint;
    match error {
        _ if ended == Some(LOGIN_TIMED_OUT) => endpoint.unreachable(LOGIN_TIMED_OUT),
        amiquip::Error::InvalidCredentials if ended != Some(CLOSED_WITHOUT_REASON) => {
            endpoint.unreachable(ended.unwrap_or("it hung up during the login"))
        }
        amiquip::Error::InvalidCredentials if took < MIN_REFUSAL_DELAY => {
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
        // A limit on connections is not final: a connection may be available later.
        amiquip::Error::ServerClosedConnection { code: 402 | 403 | 530, message }
            if !message.contains("limit") =>
        {
            Error::Refused(format!(
                "{endpoint} refused user {user:?} the virtual host {vhost:?}: {message}"
            ))
        }
        // The error cannot contain a URL, and so no password: the connection is opened without one.
        error => endpoint.unreachable(ended.map_or_else(|| error.to_string(), str::to_string)),
    }
}

/// The connection's client property `information`, which operators see.
fn client_information() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} (rabbitmq-rpc {version}) on {}, process {}", program(), host.trim(), process::id())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// With Nagle's algorithm, a call takes 44 ms.
    #[test]
    fn dial_tries_every_address_of_a_name_and_sets_nodelay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint: Endpoint = format!("amqp://localhost:{port}").parse().unwrap();
        let tcp = dial(&endpoint, Deadline::after(Duration::from_secs(5))).unwrap();
        assert!(tcp.nodelay().unwrap());
    }
}
