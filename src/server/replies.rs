//! Sends replies by [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to), over separate
//! connections.
//!
//! Such a `reply_to` names a process of the broker, and a requester can write any name there. If
//! the broker cannot find the process, or its node is down, RabbitMQ up to 3.x fails and closes the
//! connection that published the reply, with INTERNAL_ERROR. If that were the connection that
//! receives requests, the broker would redeliver all of them, and the same request would close the
//! next connection as well.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::limit::ReplyLimit;
use crate::broker::{Brokers, CallError, Channel, Connection, Endpoint, Limit, WriteError};
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result};
use crate::frames::{Frames, Method, Route};
use crate::lock::lock;
use crate::wire::{self, Reply, ReplyAddress};

/// Sends the replies of all workers.
pub(crate) struct Replies {
    brokers: Brokers,
    app_id: String,
    pub(super) limit: ReplyLimit,
    /// The connections for direct replies that no worker uses at present. There are at most as many
    /// for each broker as workers have sent direct replies at the same time.
    idle: Mutex<Vec<Direct>>,
}

/// Dropping the connection also closes the channel.
struct Direct {
    /// The broker of the workers that may use this connection. The connection is to that broker, or
    /// to another one if that broker was not reachable.
    endpoint: Endpoint,
    _connection: Connection,
    channel: Channel,
    last_used: Instant,
}

/// The result of sending a reply.
pub(crate) enum ReplyOutcome {
    Sent,
    /// The broker failed on the address of the reply.
    Undeliverable,
    /// The broker refused the reply because of a size limit that was not known before.
    TooLarge,
}

pub(crate) fn is_direct(reply_to: &str) -> bool {
    reply_to.starts_with("amq.rabbitmq.reply-to.")
}

impl Replies {
    pub(super) fn new(brokers: &Brokers, app_id: &str) -> Replies {
        Replies {
            brokers: brokers.clone(),
            app_id: app_id.to_string(),
            limit: ReplyLimit(usize::MAX.into()),
            idle: Mutex::default(),
        }
    }

    /// Encodes a reply.
    pub(super) fn encode<'a>(
        &self,
        route: Route<'_>,
        address: &ReplyAddress<'_>,
        outcome: &'a Result<Reply, Failure>,
    ) -> Frames<'a> {
        wire::encode_reply(route, address.correlation_id, &self.app_id, outcome)
    }

    /// Publishes a reply and waits until the broker has handled it. Makes a connection first if
    /// none is idle for workers of the broker at `endpoint`: those for others may lead to a frozen
    /// broker. Writing and waiting for the answer each block for at most the time that
    /// connecting to one broker may take; waiting for the answer blocks for longer during an alarm.
    pub(crate) fn send_direct(
        &self,
        endpoint: &Endpoint,
        address: &ReplyAddress<'_>,
        outcome: &Result<Reply, Failure>,
    ) -> Result<ReplyOutcome> {
        let mut idle = lock(&self.idle);
        idle.retain(|direct| direct.channel.data_plane.ended().is_none());
        let found = idle.iter().rposition(|direct| direct.endpoint == *endpoint);
        let direct = found.map(|index| idle.swap_remove(index));
        drop(idle);
        let connect = || {
            // Ordinary replies still go through the server's own connection.
            connect(&self.brokers, endpoint).map_err(|error| match error {
                Error::Unreachable { .. } => error,
                error => endpoint.unreachable(format!("no connection for direct replies: {error}")),
            })
        };
        let mut direct = direct.map_or_else(connect, Ok)?;
        let channel = &direct.channel;
        let limit = self.brokers.connect_timeout;
        // Not mandatory: the address is not a queue, so the broker would return the reply even
        // after it has delivered it.
        let route = channel.route(address.reply_to, false);
        let frames = self.encode(route, address, outcome);
        let written = channel.write(frames, Deadline::after(limit).at);
        if let Err(WriteError::TimedOut { .. }) = written {
            return Err(channel.data_plane.endpoint.unreachable("it does not read a direct reply"));
        }
        // The broker's answer to the next method shows whether it accepted the reply.
        match channel.call(Method::Prefetch(0), Limit::ExtendedByAlarm(limit)) {
            Ok(_) => {
                direct.last_used = Instant::now();
                lock(&self.idle).push(direct);
                Ok(ReplyOutcome::Sent)
            }
            Err(CallError::Closed(close)) if close.code == 541 => Ok(ReplyOutcome::Undeliverable),
            Err(CallError::Closed(close)) if self.limit.learn(&close) => Ok(ReplyOutcome::TooLarge),
            Err(error) => Err(channel.data_plane.explain(error, "answer requests")),
        }
    }

    /// Closes a connection that has not been used for a while. Blocks for at most a second.
    pub(crate) fn close_unused(&self) {
        const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
        let is_unused = |direct: &mut Direct| direct.last_used.elapsed() >= IDLE_TIMEOUT;
        let unused = lock(&self.idle).extract_if(.., is_unused).next();
        drop(unused);
    }

    /// Closes all connections. Blocks for at most a second for each.
    pub(crate) fn close(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        drop(idle);
    }
}

fn connect(brokers: &Brokers, endpoint: &Endpoint) -> Result<Direct> {
    let connection = brokers.connect_near(endpoint)?;
    let limit = Limit::Until(Deadline::after(brokers.connect_timeout).at);
    match connection.open_channel(limit, Arc::default(), |_, _| {}) {
        Ok(channel) => Ok(Direct {
            endpoint: endpoint.clone(),
            _connection: connection,
            channel,
            last_used: Instant::now(),
        }),
        Err(error) => Err(connection.explain(error, "open a channel")),
    }
}
