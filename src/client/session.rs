//! One connection of a client, with its channels and its reply queue.
//!
//! Callers do the work of a call themselves: they publish on one channel, one at a time, and read
//! the replies in turns.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use super::dispatcher::Dispatcher;
use super::in_flight::CallSlot;
use super::looks::{Freshness, QueueLooks, QueueStatus};
use super::options::Config;
use super::own_channels::OwnChannels;

use super::pending::PROBE;
use super::request::OutgoingRequest;
use crate::broker::{self, CallError, Channel, Connection, Limit, Waiter, WriteError};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::{Answer, DeclaredQueue, Method};
use crate::lock::lock;
use crate::wire::{self, Reply, RequestHead};

pub(super) struct Session {
    /// Dropped first, which also closes the channels.
    pub(super) connection: Connection,
    pub(super) dispatcher: Arc<Dispatcher>,
    /// Another one takes its place if the broker closes it because of a request.
    publishing: Mutex<Arc<Channel>>,
    consuming: Channel,
    /// Unset until the broker has declared it. Until then, replies come by direct reply-to.
    reply_queue: OnceLock<String>,
    looks: Arc<QueueLooks>,
    own_channels: OwnChannels,
}

/// How long to wait for the consumers of the request queue after a reconnection.
const CONSUMERS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for the reply queue before direct reply-to takes its place.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long writing [`PROBE`] may take. The broker may not read yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// A request whose caller gives up earlier is not sent: the broker would drop it.
const SHORTEST_EXPIRATION: Duration = Duration::from_millis(1);
/// The pseudo-queue of [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to).
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

impl Session {
    /// Declares a reply queue and consumes from it, or receives replies directly for now. Blocks
    /// for at most the time that connecting may take, for up to 3 s more after a reconnection to a
    /// cluster, and for [`PROBE_TIMEOUT`]. `is_reconnect` means that there was a session before.
    ///
    /// While a node of a cluster is frozen, the other nodes declare no queue until they count it as
    /// down (`net_ticktime`, a minute by default). Direct reply-to needs no queue, so it takes the
    /// place of a reply queue that the broker does not declare within a second.
    pub(super) fn open(
        config: &Arc<Config>,
        connection: Connection,
        is_reconnect: bool,
    ) -> Result<Session> {
        let awaits_consumers = is_reconnect && config.brokers.are_several();
        let extra = if awaits_consumers { CONSUMERS_TIMEOUT } else { Duration::ZERO };
        let until = Deadline::after(config.brokers.connect_timeout.saturating_add(extra)).at;
        let limit = Limit::Until(until);
        let dispatcher = Arc::new(Dispatcher::new(config));
        let (publisher, consumer) = (Arc::clone(&dispatcher), Arc::clone(&dispatcher));
        let first = dispatcher.pending.begin_channel();
        let data_plane = &*connection;
        let failed = |doing| move |error| data_plane.explain(error, doing);
        let publishing = connection
            .open_channel(limit, Arc::default(), move |plane, event| {
                publisher.on_publishing(first, plane, event)
            })
            .map_err(failed("open a channel"))?;
        let consuming = connection
            .open_channel(limit, Arc::default(), move |plane, event| {
                consumer.on_consuming(plane, event)
            })
            .map_err(failed("open a channel"))?;
        let looks = QueueLooks::new(config.allows_looks.load(Ordering::Relaxed));
        // The broker handles this before what follows, and answers that if it allows the channel.
        looks.open(&connection);
        consuming.send(Method::DeclareReplyQueue);
        let soon = Deadline::after(DECLARE_TIMEOUT.min(config.brokers.connect_timeout / 2)).at;
        if awaits_consumers {
            await_consumers(&looks, &connection, &config.queue);
        }
        let declared = consuming.answer(Limit::Until(soon)).and_then(Answer::queue);
        let reply_queue = OnceLock::new();
        let publishing = Mutex::new(Arc::new(publishing));
        let own_channels = OwnChannels::default();
        let session = Session {
            connection,
            dispatcher,
            publishing,
            consuming,
            reply_queue,
            looks,
            own_channels,
        };
        match declared {
            Err(CallError::Unanswered(_)) if session.connection.ended().is_none() => {
                let consume = Method::Consume { queue: DIRECT_REPLY_TO, no_ack: true };
                let consumed = session.publishing().call(consume, limit);
                consumed.map_err(|error| session.connection.explain(error, "receive replies"))?;
                session.dispatcher.replies_directly.store(true, Ordering::Relaxed);
                log::info!("no reply queue yet: replies come by direct reply-to");
            }
            declared => session.use_reply_queue(declared, limit)?,
        }
        log::info!("ready to call {:?} through {}", config.queue, session.connection.endpoint);
        Ok(session)
    }

    /// Consumes from the reply queue, uses it for all later calls, and publishes [`PROBE`].
    fn use_reply_queue(
        &self,
        declared: Result<DeclaredQueue, CallError>,
        limit: Limit,
    ) -> Result<()> {
        let failed = |doing| move |error| self.connection.explain(error, doing);
        let reply_queue = declared.map_err(failed("declare a reply queue"))?.name;
        let consume = Method::Consume { queue: &reply_queue, no_ack: true };
        let consumed = self.consuming.call(consume, limit);
        consumed.map_err(failed("read from its reply queue"))?;
        wire::check_length("reply queue's name", &reply_queue)?;
        let reply_queue = self.reply_queue.get_or_init(|| reply_queue);
        let (id, empty) = (PROBE.to_string(), Ok(Reply::default()));
        let (publishing, pending) = (self.publishing(), &self.dispatcher.pending);
        let route = publishing.route(reply_queue, false);
        let probe =
            wire::encode_reply(route, Some(id.as_bytes()), &self.dispatcher.config.app_id, &empty);
        let until = Deadline::after(PROBE_TIMEOUT).at;
        // If writing fails, the first call reports why.
        let _ = publishing.write_noting(probe, until, || pending.note_probe(false));
        Ok(())
    }

    /// Publishes a request. `None` if the session ended before the whole request was written: it
    /// was not executed, and another session may send it.
    ///
    /// Blocks while the broker is blocked or no in-flight slot is free, but not beyond `limit`. The
    /// request carries the `deadline` of its caller, and is not sent once that has passed.
    pub(super) fn publish(
        &self,
        request: &OutgoingRequest,
        is_resend: bool,
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<Option<Arc<CallSlot>>> {
        request.headers.check_size(self.connection.frame_max())?;
        let slot = CallSlot::new(deadline.at);
        self.wait_while_blocked(&slot.waiter, limit)?;
        if !self.register(&slot, limit, is_resend)? {
            return Ok(None);
        }
        let remaining = deadline.remaining();
        if remaining < SHORTEST_EXPIRATION {
            self.forget(&slot);
            return Err(too_late(deadline));
        }
        let reply_to = self.reply_queue.get().map_or(DIRECT_REPLY_TO, String::as_str);
        let user_id = self.config().options.identify.then_some(&*self.connection.endpoint.user);
        let head = request.head(self.config(), reply_to, slot.id, remaining);
        let head = RequestHead { user_id, ..head };
        let note = || self.dispatcher.pending.note_written(&slot, request.body.len());
        self.take_own_channel(request, &slot, limit);
        let own = lock(&slot.own).as_ref().map(|own| Arc::clone(&own.channel));
        let written = loop {
            let publishing = own.clone().unwrap_or_else(|| self.publishing());
            let route = publishing.route_through(request.exchange(), request.routing_key());
            let frames = wire::encode_request(route, &head, &request.body);
            let written = match own {
                Some(_) => publishing.write(frames, limit.at),
                None => publishing.write_noting(frames, limit.at, note),
            };
            if own.is_some()
                || written != Err(WriteError::ChannelClosed)
                || self.takes_no_more_calls()
            {
                break written;
            }
            self.replace_publishing(&publishing, limit);
        };
        let result = match written {
            Ok(()) => return Ok(Some(slot)),
            // The rest of the request is written before anything else.
            Err(WriteError::TimedOut { begun: true }) if limit.at < deadline.at => {
                return Ok(Some(slot));
            }
            Err(WriteError::TimedOut { begun }) => Err(self.write_timed_out(limit, begun)),
            Err(WriteError::ChannelClosed | WriteError::Disconnected) => Ok(None),
        };
        self.dispatcher.pending.withdraw(&slot);
        self.forget(&slot);
        result
    }

    /// Gives a request that the broker may refuse a channel of its own, if there is a number for one.
    /// Direct replies come through the channel of the requests, so they share one.
    fn take_own_channel(&self, request: &OutgoingRequest, slot: &CallSlot, limit: Deadline) {
        let may_be_refused = request.exchange.is_some() || self.config().options.identify;
        if may_be_refused && self.reply_queue.get().is_some() {
            let dispatcher = Arc::clone(&self.dispatcher);
            let on_event = move |id, plane: &_, event| dispatcher.on_own_channel(id, plane, event);
            let own = self.own_channels.take(&self.connection, slot.id, limit.at, on_event);
            *lock(&slot.own) = own.ok();
        }
    }

    fn config(&self) -> &Config {
        &self.dispatcher.config
    }

    fn publishing(&self) -> Arc<Channel> {
        Arc::clone(&lock(&self.publishing))
    }

    /// Opens another publishing channel, unless another caller has done so.
    fn replace_publishing(&self, closed: &Arc<Channel>, limit: Deadline) {
        let mut publishing = lock(&self.publishing);
        if Arc::ptr_eq(&publishing, closed) {
            let dispatcher = Arc::clone(&self.dispatcher);
            let channel = dispatcher.pending.begin_channel();
            let handler = move |plane: &_, event| dispatcher.on_publishing(channel, plane, event);
            match self.connection.begin_channel(limit.at, handler) {
                Ok(opened) => *publishing = Arc::new(opened),
                Err(_) => self.connection.cut("it has no channel left for requests"),
            }
        }
    }

    /// Number of calls in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.dispatcher.pending.len(&self.connection)
    }

    /// Removes a call that no thread waits for any more.
    pub(super) fn forget(&self, slot: &CallSlot) {
        if let Some(own) = lock(&slot.own).take().filter(|_| slot.is_settled()) {
            self.own_channels.give_back(own);
        }
        self.dispatcher.pending.forget(slot.id, &self.connection);
    }

    /// Waits for an in-flight slot. False if the session accepts no more calls.
    fn register(&self, slot: &Arc<CallSlot>, limit: Deadline, is_resend: bool) -> Result<bool> {
        let pending = &self.dispatcher.pending;
        pending.enter(slot, is_resend, &self.connection);
        let is_over = || self.takes_no_more_calls();
        let is_ready = || slot.is_admitted() || is_over();
        while !is_ready() {
            if limit.has_passed() {
                self.forget(slot);
                return Err(self.limit_reached(limit));
            }
            let next = pending.hand_over(&self.connection).unwrap_or(limit.at);
            self.connection.wait(&slot.waiter, next.min(limit.at), is_ready);
        }
        if is_over() {
            self.forget(slot);
            return Ok(false);
        }
        Ok(true)
    }

    fn wait_while_blocked(&self, waiter: &Arc<Waiter>, deadline: Deadline) -> Result<()> {
        if self.connection.blocked().is_none() {
            return Ok(());
        }
        let is_over = || self.takes_no_more_calls();
        let is_unblocked = || self.connection.blocked().is_none() || is_over();
        self.connection.wait(waiter, deadline.at, is_unblocked);
        match self.connection.blocked() {
            Some(reason) if !is_over() => {
                Err(Error::Blocked { reason, after: deadline.timeout, sent: false })
            }
            _ => Ok(()),
        }
    }

    /// The error for a request that the broker did not read, or not completely, before the
    /// deadline.
    fn write_timed_out(&self, deadline: Deadline, begun: bool) -> Error {
        let (after, sent) = (deadline.timeout, begun);
        match self.connection.blocked() {
            Some(reason) => Error::Blocked { reason, after, sent },
            None => {
                let what = format!("the broker at {} does not read", self.connection.endpoint);
                Error::TimedOut { what, after, sent }
            }
        }
    }

    fn limit_reached(&self, deadline: Deadline) -> Error {
        let limit = self.dispatcher.config.options.max_in_flight;
        Error::TimedOut {
            what: format!(
                "no room for the request: {limit} calls are in flight already; raise max_in_flight"
            ),
            after: deadline.timeout,
            sent: false,
        }
    }

    fn takes_no_more_calls(&self) -> bool {
        broker::Session::ended(self).is_some() || self.is_retired()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.dispatcher.is_retired.load(Ordering::Relaxed)
    }

    /// What the broker knows about a queue at present, to tell why no reply comes. Blocks for at
    /// most 200 ms, however many callers ask.
    pub(super) fn inspect(&self, queue: &str) -> Result<QueueStatus> {
        const TIMEOUT: Duration = Duration::from_millis(200);
        self.look(queue, Freshness::Recent, Deadline::after(TIMEOUT))
    }

    /// Asks the broker about a queue. Blocks until the deadline at most.
    pub(super) fn ask_about(&self, queue: &str, deadline: Deadline) -> Result<QueueStatus> {
        self.look(queue, Freshness::New, deadline)
    }

    fn look(&self, queue: &str, freshness: Freshness, deadline: Deadline) -> Result<QueueStatus> {
        let found = self.looks.ask(&self.connection, queue, freshness, deadline);
        found.map_err(|error| self.or_ended(error))
    }

    /// The reason why the session has ended is a better error than that no answer came.
    fn or_ended(&self, error: Error) -> Error {
        match error {
            Error::TimedOut { .. } => broker::Session::ended(self).unwrap_or(error),
            error => error,
        }
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
        if self.reply_queue.get().is_none() {
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
        if self.reply_queue.get().is_none() {
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

/// The error for a call whose time was up before it was sent.
pub(super) fn too_late(deadline: Deadline) -> Error {
    let what = "the time was up before the request could be sent".into();
    Error::TimedOut { what, after: deadline.timeout, sent: false }
}

/// Waits until the request queue has consumers, but at most for [`CONSUMERS_TIMEOUT`].
///
/// When a cluster loses a node, the quorum queues that were led there have no leader for a while,
/// and report no consumers. The first message that a channel publishes to such a queue waits for a
/// leader, which may never answer, for up to 65 s. All later messages of the channel wait behind it
/// (RabbitMQ's `rabbit_fifo_client.erl`). In tests, clients that reconnected and published at once
/// lost every request of that session. The broker reports no event when there is a leader, so this
/// polls.
fn await_consumers(looks: &Arc<QueueLooks>, connection: &Connection, queue: &str) {
    const STEP: Duration = Duration::from_millis(50);
    let limit = Deadline::after(CONSUMERS_TIMEOUT);
    while let Ok(found) = looks.ask(connection, queue, Freshness::New, limit)
        && found.consumers == 0
        && !limit.has_passed()
    {
        thread::sleep(STEP);
    }
}
