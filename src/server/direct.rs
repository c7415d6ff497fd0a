//! A separate connection for replies by [direct
//! reply-to](https://www.rabbitmq.com/docs/direct-reply-to) on old brokers.
//!
//! Such a `reply_to` names a process of a node. RabbitMQ up to 3.10.11 and 3.11.3 closes the
//! connection that published the reply, with INTERNAL_ERROR, if that node is not running. If that
//! were the connection that receives requests, the broker would redeliver all of them. Each worker
//! has a connection of its own, so that its end can be charged to one reply.

use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use crate::broker::{Brokers, Channel, Connection, Endpoint, Limit};
use crate::deadline::Deadline;
use crate::error::Error;

/// Dropping the connection also closes the channel. This blocks for at most a second.
pub(crate) struct DirectConnection {
    _connection: Connection,
    pub(crate) channel: Channel,
    pub(super) last_used: Instant,
}

impl DirectConnection {
    /// Connects to the broker at `endpoint`, or to another one if that is not reachable. `None` if
    /// no connection can be had. Blocks for as long as connecting to each broker may take.
    pub(super) fn open(brokers: &Brokers, endpoint: &Endpoint) -> Option<DirectConnection> {
        let connection = brokers.connect_near(endpoint).map_err(warn_once).ok()?;
        let limit = Limit::Until(Deadline::after(brokers.connect_timeout).at);
        let opened = connection.open_channel(limit, Arc::default(), |_, _| {});
        let explained = opened.map_err(|error| connection.explain(error, "open a channel"));
        let channel = explained.map_err(warn_once).ok()?;
        Some(DirectConnection { _connection: connection, channel, last_used: Instant::now() })
    }

    pub(super) fn works(&self) -> bool {
        self.channel.is_open() && self.channel.data_plane.ended().is_none()
    }

    /// Whether it has not been used for a while.
    pub(super) fn is_idle(&self) -> bool {
        const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
        self.last_used.elapsed() >= IDLE_TIMEOUT
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
