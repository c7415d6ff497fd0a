//! A connection to one broker, from its login to its close.

#[cfg(test)]
mod tests;

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use amiquip::ConnectionTuning;
use crossbeam_channel::bounded;

use super::control_stream::ControlStream;
use super::data_plane::{CLOSE_TIMEOUT, DataPlane};
use super::ended::Ended;
use super::login::{Login, explain_handshake};
use super::tls::Connector;
use super::transport::Transport;
use super::turn::Waiter;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::Method;

/// An open connection. Dropping it closes it.
pub(crate) struct Connection(Arc<DataPlane>);

impl Connection {
    /// Performs the handshakes of TLS, if requested, and of AMQP on a TCP connection. A broker must
    /// begin to speak AMQP before `greeting`.
    fn log_in(
        tcp: TcpStream,
        login: &Login<'_>,
        greeting: Deadline,
        deadline: Deadline,
    ) -> Result<Connection> {
        let endpoint = login.endpoint;
        let failed = |error: io::Error| endpoint.unreachable(error);
        let handshake =
            |tls: &Connector| tls.handshake(tcp.try_clone().map_err(failed)?, endpoint, greeting);
        let session = login.tls.as_ref().map(handshake).transpose()?;
        let transport = Transport::new(tcp, session).map_err(failed)?;
        let data_plane =
            DataPlane::new(endpoint.clone(), transport, login.heartbeat).map_err(failed)?;
        let stream = ControlStream(Arc::clone(&data_plane));

        // amiquip blocks until the handshake is over, so it opens the connection in a new thread,
        // and this thread reads for it. After the handshake, the new thread becomes the reserve, and
        // keeps amiquip's connection until this one has ended.
        let (report, outcome) = bounded(1);
        let waiter: Arc<Waiter> = Arc::default();
        let options = login.options();
        let (shared, waiting) = (Arc::clone(&data_plane), Arc::clone(&waiter));
        let open_and_read = move || {
            let tuning = ConnectionTuning::default();
            let opened = amiquip::Connection::insecure_open_stream(stream, options, tuning);
            let (amiquip, failure) = match opened {
                Ok(amiquip) => (Some(amiquip), None),
                Err(error) => (None, Some(error)),
            };
            let _ = report.send(failure);
            shared.wake(&waiting);
            shared.read_as_reserve();
            // This waits for amiquip's I/O thread, which ends because its stream has ended.
            shared.control.end();
            drop(amiquip);
        };
        thread::Builder::new().name("rpc-reader".into()).spawn(open_and_read).map_err(failed)?;
        data_plane.wait(&waiter, greeting.at, || !outcome.is_empty());
        if data_plane.has_greeted() {
            data_plane.wait(&waiter, deadline.at, || !outcome.is_empty());
        }
        if outcome.is_empty() && data_plane.ended().is_none() {
            data_plane.cut(Ended::LoginTimedOut);
        }
        let failure = outcome
            .recv_timeout(CLOSE_TIMEOUT)
            .map_err(|_| endpoint.unreachable(Ended::LoginTimedOut))?;
        if let Some(error) = failure {
            let why = explain_handshake(error, endpoint, data_plane.ended());
            data_plane.cut("the login failed");
            return Err(why);
        }
        Ok(Connection(data_plane))
    }

    /// Closes the connection: orderly if the broker answers within [`CLOSE_TIMEOUT`], else by
    /// cutting it.
    pub(crate) fn close(&self) {
        if self.ended().is_none() {
            self.write_control(&Method::CloseConnection.encode(0), || true);
            self.wait(&Arc::default(), Instant::now() + CLOSE_TIMEOUT, || false);
        }
        self.cut(Ended::ThisSide);
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
        &self.0
    }
}

/// Connects to the first address of the endpoint at which a broker accepts the login. Looking up a
/// name blocks for as long as the system's resolver does. Notes if a TCP connection is accepted.
pub(super) fn connect(
    login: &Login<'_>,
    deadline: Deadline,
    has_reached: &mut bool,
) -> Result<Connection> {
    let found = (login.endpoint.host.as_str(), login.endpoint.port).to_socket_addrs();
    let addresses: Vec<_> = found.map_err(|error| login.endpoint.unreachable(error))?.collect();
    connect_to_any(&addresses, login, deadline, has_reached)
}

/// Tries all addresses: a broker may listen on `127.0.0.1` only, while `localhost` resolves to
/// `::1` first, where something else may listen. Each gets an equal share of the time that is left.
/// One at which a broker has answered gets all of it.
fn connect_to_any(
    addresses: &[SocketAddr],
    login: &Login<'_>,
    deadline: Deadline,
    has_reached: &mut bool,
) -> Result<Connection> {
    let mut reasons = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let share = deadline.remaining() / (addresses.len() - index) as u32;
        let share = Deadline::after(share.max(Duration::from_millis(1)));
        let dialled = dial(address, share).map_err(|error| login.endpoint.unreachable(error));
        *has_reached |= dialled.is_ok();
        match dialled.and_then(|tcp| Connection::log_in(tcp, login, share, deadline)) {
            Err(Error::Unreachable { reason, .. }) => reasons.push((address, reason)),
            connected => return connected,
        }
    }
    let reason = match &reasons[..] {
        [] => "the host name has no address".to_string(),
        [(_, first), others @ ..] if others.iter().all(|(_, other)| other == first) => {
            first.clone()
        }
        _ => {
            let each = reasons.iter().map(|(address, reason)| format!("at {address}, {reason}"));
            each.collect::<Vec<_>>().join("; ")
        }
    };
    Err(login.endpoint.unreachable(reason))
}

fn dial(address: &SocketAddr, deadline: Deadline) -> io::Result<TcpStream> {
    let tcp =
        TcpStream::connect_timeout(address, deadline.remaining().max(Duration::from_millis(1)))?;
    // A call sends two small messages. With Nagle's algorithm, each may wait 40 ms for a delayed
    // acknowledgement.
    tcp.set_nodelay(true)?;
    Ok(tcp)
}
