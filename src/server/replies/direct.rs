//! Separate connections for replies by [direct
//! reply-to](https://www.rabbitmq.com/docs/direct-reply-to) on old brokers.
//!
//! Such a `reply_to` names a process of a node. RabbitMQ up to 3.10.11 and 3.11.3 closes the
//! connection that published the reply, with INTERNAL_ERROR, if that node is not running. If that
//! were the connection that receives requests, the broker would redeliver all of them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::broker::{Brokers, Channel, Connection, Endpoint, Limit};
use crate::deadline::Deadline;
use crate::error::Result;
use crate::lock::lock;

/// The connections that no worker uses at present. There are at most as many for each broker as
/// workers have answered such requests at the same time.
pub(crate) struct DirectConnections {
    brokers: Brokers,
    idle: Mutex<Vec<DirectConnection>>,
}

/// Dropping the connection also closes the channel.
pub(crate) struct DirectConnection {
    /// The broker of the workers that may use this connection. The connection is to that broker, or
    /// to another one if that broker was not reachable.
    endpoint: Endpoint,
    _connection: Connection,
    pub(crate) channel: Channel,
    last_used: Instant,
}

impl DirectConnections {
    pub(super) fn new(brokers: &Brokers) -> DirectConnections {
        DirectConnections { brokers: brokers.clone(), idle: Mutex::default() }
    }

    /// Takes a connection for a worker of the broker at `endpoint`: those for others may lead to a
    /// frozen broker. Makes one if none is idle. Blocks for as long as connecting to each broker
    /// may take.
    pub(crate) fn take(&self, endpoint: &Endpoint) -> Result<DirectConnection> {
        let mut idle = lock(&self.idle);
        idle.retain(|direct| direct.works());
        let found = idle.iter().rposition(|direct| direct.endpoint == *endpoint);
        let direct = found.map(|index| idle.swap_remove(index));
        drop(idle);
        direct.map_or_else(|| connect(&self.brokers, endpoint), Ok)
    }

    /// Lets other workers use the connection.
    pub(crate) fn give_back(&self, mut direct: DirectConnection) {
        direct.last_used = Instant::now();
        lock(&self.idle).push(direct);
    }

    /// Closes a connection that has not been used for a while. Blocks for at most a second.
    pub(crate) fn close_unused(&self) {
        const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
        let is_unused = |direct: &mut DirectConnection| direct.last_used.elapsed() >= IDLE_TIMEOUT;
        let unused = lock(&self.idle).extract_if(.., is_unused).next();
        drop(unused);
    }

    /// Closes all connections. Blocks for at most a second for each.
    pub(crate) fn close(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        drop(idle);
    }
}

impl DirectConnection {
    pub(crate) fn works(&self) -> bool {
        self.channel.data_plane.ended().is_none()
    }
}

fn connect(brokers: &Brokers, endpoint: &Endpoint) -> Result<DirectConnection> {
    let connection = brokers.connect_near(endpoint)?;
    let limit = Limit::Until(Deadline::after(brokers.connect_timeout).at);
    match connection.open_channel(limit, Arc::default(), |_, _| {}) {
        Ok(channel) => Ok(DirectConnection {
            endpoint: endpoint.clone(),
            _connection: connection,
            channel,
            last_used: Instant::now(),
        }),
        Err(error) => Err(connection.explain(error, "open a channel")),
    }
}
