//! One connection of a client, with its channels and its reply queue.
//!
//! Callers do the work of a call themselves: they publish, and read the replies in turns.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::dispatcher::Dispatcher;
use super::looks::{QueueLooks, QueueStatus, no_channel};
use super::options::Config;
use super::publishing::Publishing;
use crate::broker::{self, CallError, Channel, Connection, Limit, Session as _};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::{Answer, DeclaredQueue, Method};
use crate::wire;

pub(super) struct Session {
    /// Dropped first, which also closes the channels.
    pub(super) connection: Connection,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) publishing: Publishing,
    consuming: Channel,
    /// `None` if the session opens no channels that it can do without.
    pub(super) looks: Option<Arc<QueueLooks>>,
}

/// How long to wait for the consumers of the request queue after a reconnection.
const CONSUMERS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for the reply queue before direct reply-to takes its place.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pseudo-queue of [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to).
pub(super) const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

impl Session {
    /// Declares a reply queue and consumes from it, or receives replies directly for now. Blocks
    /// for at most the time that connecting may take, for up to 3 s more after a reconnection to a
    /// cluster, and for a second. `is_reconnect` means that there was a session before;
    /// `has_extras`, that it may open channels that it can do without.
    ///
    /// While a node of a cluster is frozen, the other nodes declare no queue until they count it as
    /// down (`net_ticktime`, a minute by default). Direct reply-to needs no queue, so it takes the
    /// place of a reply queue that the broker does not declare within a second.
    pub(super) fn open(
        config: &Arc<Config>,
        connection: Connection,
        is_reconnect: bool,
        has_extras: bool,
    ) -> Result<Session> {
        let awaits_consumers = is_reconnect && config.brokers.are_several();
        let extra = if awaits_consumers { CONSUMERS_TIMEOUT } else { Duration::ZERO };
        let until = Deadline::after(config.brokers.connect_timeout.saturating_add(extra)).at;
        let limit = Limit::Until(until);
        let dispatcher = Arc::new(Dispatcher::new(config));
        let consumer = Arc::clone(&dispatcher);
        let data_plane = &*connection;
        let failed = |doing| move |error| data_plane.explain(error, doing);
        let publishing = connection
            .open_channel(limit, Arc::default(), dispatcher.handle_publishing())
            .map_err(failed("open a channel"))?;
        let consuming = connection
            .open_channel(limit, Arc::default(), move |plane, event| {
                consumer.on_consuming(plane, event)
            })
            .map_err(failed("open a channel"))?;
        // The broker handles this before what follows, and answers that if it allows the channel.
        let looks = has_extras.then(|| QueueLooks::open(&connection));
        consuming.send(Method::DeclareReplyQueue);
        let soon = Deadline::after(DECLARE_TIMEOUT.min(config.brokers.connect_timeout / 2)).at;
        if let Some(looks) = looks.as_ref().filter(|_| awaits_consumers) {
            looks.await_consumers(&config.queue, CONSUMERS_TIMEOUT);
        }
        let declared = consuming.answer(Limit::Until(soon)).and_then(Answer::queue);
        let publishing = Publishing::new(&dispatcher, publishing);
        let session = Session { connection, dispatcher, publishing, consuming, looks };
        match declared {
            Err(CallError::Unanswered(_)) if session.connection.ended().is_none() => {
                let consume =
                    Method::Consume { queue: DIRECT_REPLY_TO, no_ack: true, arguments: &[] };
                let consumed = session.publishing.channel().call(consume, limit);
                consumed.map_err(|error| session.connection.explain(error, "receive replies"))?;
            }
            declared => session.use_reply_queue(declared, limit)?,
        }
        Ok(session)
    }

    /// Consumes from the reply queue, uses it for all later calls, and publishes a probe.
    fn use_reply_queue(
        &self,
        declared: Result<DeclaredQueue, CallError>,
        limit: Limit,
    ) -> Result<()> {
        let failed = |doing| move |error| self.connection.explain(error, doing);
        let reply_queue = declared.map_err(failed("declare a reply queue"))?.name;
        let consume = Method::Consume { queue: &reply_queue, no_ack: true, arguments: &[] };
        let consumed = self.consuming.call(consume, limit);
        consumed.map_err(failed("read from its reply queue"))?;
        wire::check_length("reply queue's name", &reply_queue)?;
        let reply_queue = self.dispatcher.reply_queue.get_or_init(|| reply_queue);
        // The user may lack the permission to write to the default exchange otherwise.
        if self.dispatcher.config.options.exchange.is_none() {
            self.publishing.probe(reply_queue);
        }
        Ok(())
    }

    /// Number of calls in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.dispatcher.pending.count(&self.connection)
    }

    /// The error for a call that ends while the broker takes no messages.
    pub(super) fn blocked(&self, deadline: Deadline, sent: bool) -> Option<Error> {
        let reason = self.connection.blocked()?;
        Some(Error::Blocked { reason, after: deadline.timeout, sent })
    }

    pub(super) fn takes_no_more_calls(&self) -> bool {
        self.ended().is_some() || self.is_retired()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.dispatcher.is_retired.load(Ordering::Relaxed)
    }

    /// See [`Suspicion::note_silence`](super::suspicion::Suspicion::note_silence).
    pub(super) fn note_silence(&self, found: &Result<QueueStatus>) -> bool {
        let has_several_brokers = self.dispatcher.config.brokers.are_several();
        let suspicion = &mut self.dispatcher.pending.lock().suspicion;
        suspicion.note_silence(found, has_several_brokers, self.connection.silence())
    }

    /// See [`QueueLooks::ask`]. Blocks until the deadline at most.
    pub(super) fn look(
        &self,
        queue: &str,
        shares: bool,
        deadline: Deadline,
    ) -> Result<QueueStatus> {
        let found = match &self.looks {
            Some(looks) => looks.ask(queue, shares, deadline),
            None => Err(no_channel()),
        };
        // The reason why the session has ended is a better error than that no answer came.
        found.map_err(|error| match error {
            Error::TimedOut { .. } | Error::Refused(_) => self.ended().unwrap_or(error),
            error => error,
        })
    }

    /// Ends the calls in flight and closes the connection: orderly if the broker answers within a
    /// second. Blocks for at most two seconds.
    pub(super) fn close(&self) {
        let _ = self.dispatcher.ended.set(Error::Closed);
        self.connection.wake_all();
        self.connection.close();
    }
}

impl broker::Session for Session {
    fn connection(&self) -> &Connection {
        &self.connection
    }

    fn ended(&self) -> Option<Error> {
        self.dispatcher.ended.get().cloned().or_else(|| {
            let reason = self.connection.ended()?.to_string();
            Some(Error::ConnectionLost { reason })
        })
    }

    /// Waits for the reply queue, unless the broker has declared it already. The wait ends with the
    /// connection, or when the session retires.
    fn finish_setup(&self) {
        let (queue, endpoint) = (&self.dispatcher.config.queue, &self.connection.endpoint);
        log::info!("ready to call {queue:?} through {endpoint}");
        if self.dispatcher.reply_queue.get().is_none() {
            log::info!("no reply queue yet: replies come by direct reply-to");
            let never = Limit::Until(Deadline::after(Duration::MAX).at);
            let declared = self.consuming.answer(never).and_then(Answer::queue);
            match self.use_reply_queue(declared, never) {
                Ok(()) => log::info!("the reply queue is there"),
                Err(error) => log::debug!("replies came by direct reply-to alone: {error}"),
            }
        }
    }

    /// Accepts no more calls. Idempotent calls in flight are sent again in another session, but may
    /// still get their replies here. The connection ends with the last call.
    fn retire(&self) {
        let endpoint = &self.connection.endpoint;
        log::info!("no replies through {endpoint}: the next calls go through another connection");
        self.dispatcher.is_retired.store(true, Ordering::Relaxed);
        if self.dispatcher.reply_queue.get().is_none() {
            self.consuming.close();
        }
        self.connection.wake_all();
    }
}

/// A retired session ends with its last call. That call must not wait for the broker, so the
/// connection is cut.
impl Drop for Session {
    fn drop(&mut self) {
        if self.is_retired() {
            self.connection.cut("no replies came through it");
        }
    }
}
