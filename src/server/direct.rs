//! Separate connections for replies by [direct
//! reply-to](https://www.rabbitmq.com/docs/direct-reply-to) on old brokers.
//!
//! Such a `reply_to` names a process of a node. RabbitMQ up to 3.10.11 and 3.11.3 closes the
//! connection that published the reply, with INTERNAL_ERROR, if that node is not running. If that
//! were the connection that receives requests, the broker would redeliver all of them.

use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use crate::broker::{Brokers, Channel, Connection, Endpoint, Limit};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::lock::lock;

/// There are at most as many connections for each broker as workers have answered such requests at
/// the same time.
pub(crate) struct DirectConnections {
    brokers: Brokers,
    open: Mutex<Vec<Open>>,
}

struct Open {
    /// A worker that uses the connection holds it as well.
    direct: Arc<DirectConnection>,
    last_taken: Instant,
}

/// Dropping the connection also closes the channel.
pub(crate) struct DirectConnection {
    /// The broker of the workers that may use this connection. The connection is to that broker, or
    /// to another one if that broker was not reachable.
    endpoint: Endpoint,
    _connection: Connection,
    pub(crate) channel: Channel,
}

impl DirectConnections {
    pub(super) fn new(brokers: &Brokers) -> DirectConnections {
        DirectConnections { brokers: brokers.clone(), open: Mutex::default() }
    }

    /// Takes a connection for a worker of the broker at `endpoint`, until the worker drops it:
    /// those for others may lead to a frozen broker. Makes one if none is idle; `None` if none can
    /// be had. Blocks for as long as connecting to each broker may take.
    pub(crate) fn take(&self, endpoint: &Endpoint) -> Option<Arc<DirectConnection>> {
        let last_taken = Instant::now();
        // Closing a connection may take a second, so it is not done under the lock.
        let is_dead = |open: &mut Open| !open.direct.works();
        let dead = lock(&self.open).extract_if(.., is_dead).collect::<Vec<_>>();
        drop(dead);
        let mut open = lock(&self.open);
        let is_free = |open: &&mut Open| open.is_idle() && open.direct.endpoint == *endpoint;
        if let Some(found) = open.iter_mut().rev().find(is_free) {
            found.last_taken = last_taken;
            return Some(Arc::clone(&found.direct));
        }
        drop(open);
        let direct = Arc::new(connect(&self.brokers, endpoint).map_err(warn_once).ok()?);
        lock(&self.open).push(Open { direct: Arc::clone(&direct), last_taken });
        Some(direct)
    }

    /// Closes a connection that has not been used for a while. Blocks for at most a second.
    pub(crate) fn close_unused(&self) {
        const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
        let is_unused =
            |open: &mut Open| open.is_idle() && open.last_taken.elapsed() >= IDLE_TIMEOUT;
        let unused = lock(&self.open).extract_if(.., is_unused).next();
        drop(unused);
    }

    /// Closes all connections. Blocks for at most a second for each.
    pub(crate) fn close(&self) {
        let open = std::mem::take(&mut *lock(&self.open));
        drop(open);
    }
}

impl Open {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.direct) == 1
    }
}

impl DirectConnection {
    pub(crate) fn works(&self) -> bool {
        self.channel.is_open() && self.channel.data_plane.ended().is_none()
    }
}

/// Says that replies go through the connection that they may end.
fn warn_once(error: Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        log::warn!(
            "there is no second connection for replies by direct reply-to: {error}; they go \
             through the connection of the requests, which this broker closes if the requester's \
             node is down"
        );
    });
}

fn connect(brokers: &Brokers, endpoint: &Endpoint) -> Result<DirectConnection> {
    let connection = brokers.connect_near(endpoint)?;
    let limit = Limit::Until(Deadline::after(brokers.connect_timeout).at);
    match connection.open_channel(limit, Arc::default(), |_, _| {}) {
        Ok(channel) => {
            Ok(DirectConnection { endpoint: endpoint.clone(), _connection: connection, channel })
        }
        Err(error) => Err(connection.explain(error, "open a channel")),
    }
}
