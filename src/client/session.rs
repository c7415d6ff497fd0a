//! One connection of a client as its callers use it.
//!
//! The callers do the work of a call themselves: they publish, taking turns on one channel, and
//! read the replies in turns.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::attempt::InFlight;
use super::call::Call;
use super::dispatcher::{Dispatcher, PROBE};
use super::pending::CallSlot;
use super::{Config, QueueStatus};
use crate::broker::{self, Channel, Connection, Waiter, WriteError};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::Method;
use crate::wire::{self, Reply, RequestHead};

pub(super) struct Session {
    /// The first to be dropped: with it the channels are closed.
    pub(super) connection: Connection,
    pub(super) dispatcher: Arc<Dispatcher>,
    publishing: Channel,
    _consuming: Channel,
    reply_queue: String,
    /// The queue that the broker was last asked about, when, and what was found.
    pub(super) inspected: Mutex<Option<(String, Instant, Result<QueueStatus>)>>,
}

/// How long nothing may come back before a call that gets no reply makes the session suspect.
const SILENCE: Duration = Duration::from_secs(3);

impl Session {
    /// Makes a reply queue and consumes from it, in as long as connecting may take. `again` says
    /// that there was a session before.
    pub(super) fn open(
        config: &Arc<Config>,
        connection: Connection,
        again: bool,
    ) -> Result<Session> {
        if again && config.brokers.are_several() {
            await_consumers(&connection, &config.queue);
        }
        let until = Deadline::after(config.brokers.connect_timeout).at;
        let dispatcher = Arc::new(Dispatcher::new(config));
        let (publisher, consumer) = (Arc::clone(&dispatcher), Arc::clone(&dispatcher));
        let failed = |doing| move |error| (error, doing);
        let opened = (|| {
            let publishing = connection
                .open_channel(until, move |plane, event| publisher.on_publishing(plane, event))
                .map_err(failed("open a channel"))?;
            let consuming = connection
                .open_channel(until, move |plane, event| consumer.on_consuming(plane, event))
                .map_err(failed("open a channel"))?;
            let queue = consuming.queue(Method::DeclareReplyQueue, until);
            let queue = queue.map_err(failed("declare a reply queue"))?.name;
            let consume = Method::Consume { queue: &queue, no_ack: true };
            consuming.call(consume, until).map_err(failed("read from its reply queue"))?;
            Ok((publishing, consuming, queue))
        })();
        let (publishing, _consuming, reply_queue) =
            opened.map_err(|(error, doing)| connection.explain(error, doing))?;
        wire::check_length("reply queue's name", &reply_queue)?;

        let (id, empty) = (PROBE.to_string(), Ok(Reply::default()));
        let route = publishing.route(&reply_queue, false);
        let probe = wire::encode_reply(route, Some(&id), &config.app_id, &empty);
        // If it cannot be written, the first call learns why.
        let _ = publishing.write(probe, until);
        log::info!("ready to call {:?} through {}", config.queue, connection.endpoint);
        let inspected = Mutex::default();
        Ok(Session { connection, dispatcher, publishing, _consuming, reply_queue, inspected })
    }

    /// Publishes a request. `None` if the session ended before the request was out: it was not
    /// executed, and another session may take it.
    ///
    /// Waits until `limit` for a broker that blocks, or for room among the calls in flight. The
    /// request carries the `deadline` of its caller.
    pub(super) fn publish(
        self: &Arc<Session>,
        call: &Call,
        earlier: &[InFlight],
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<Option<InFlight>> {
        call.headers.check_size(self.connection.frame_max())?;
        let (slot, id) = (Arc::<CallSlot>::default(), Uuid::new_v4());
        self.wait_while_blocked(&slot.waiter, limit)?;
        if !self.register(id, &slot, limit, deadline, !earlier.is_empty())? {
            return Ok(None);
        }
        let in_flight = InFlight::new(self, call, id, slot, earlier.len());
        let Config { options, app_id, .. } = &*self.dispatcher.config;
        let head = RequestHead {
            reply_to: &self.reply_queue,
            correlation_id: id,
            message_id: &call.message_id,
            content_type: call.content_type.as_ref().unwrap_or(&options.content_type),
            app_id,
            headers: &call.headers,
            keep_alive: call.keep_alive,
            remaining: deadline.remaining(),
        };
        let route = self.publishing.route(&call.queue, true);
        let request = wire::encode_request(route, &head, &call.body);
        match self.publishing.write(request, limit.at) {
            Ok(()) => Ok(Some(in_flight)),
            // The rest goes out before anything else.
            Err(WriteError::TimedOut { begun: true }) if limit.at < deadline.at => {
                Ok(Some(in_flight))
            }
            Err(WriteError::TimedOut { begun }) => Err(self.not_taken(limit, begun)),
            Err(WriteError::ChannelClosed | WriteError::Disconnected) => Ok(None),
        }
    }

    /// False if the session takes no more calls.
    fn register(
        &self,
        id: Uuid,
        slot: &Arc<CallSlot>,
        limit: Deadline,
        deadline: Deadline,
        is_again: bool,
    ) -> Result<bool> {
        let pending = &self.dispatcher.pending;
        let is_over = || self.takes_no_more_calls();
        while !is_over() {
            let registered = pending.register(id, slot, deadline.at, is_again);
            let Err(next_end) = registered else { return Ok(true) };
            if limit.has_passed() {
                return Err(self.no_room(limit));
            }
            pending.await_room(&slot.waiter);
            let has_room = || pending.has_room() || is_over();
            self.connection.wait(&slot.waiter, next_end.min(limit.at), has_room);
            pending.stop_awaiting_room(&slot.waiter, &self.connection);
        }
        Ok(false)
    }

    fn wait_while_blocked(&self, waiter: &Arc<Waiter>, deadline: Deadline) -> Result<()> {
        if self.connection.blocked().is_none() {
            return Ok(());
        }
        let is_over = || self.takes_no_more_calls();
        let may_go_on = || self.connection.blocked().is_none() || is_over();
        self.connection.wait(waiter, deadline.at, may_go_on);
        match self.connection.blocked() {
            Some(reason) if !is_over() => {
                Err(Error::Blocked { reason, after: deadline.timeout, sent: false })
            }
            _ => Ok(()),
        }
    }

    fn takes_no_more_calls(&self) -> bool {
        broker::Session::ended(self).is_some() || self.is_retired()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.dispatcher.is_retired.load(Ordering::Relaxed)
    }

    /// Takes no more calls. Those in flight that are idempotent are sent again elsewhere, and may
    /// still be answered here. The connection ends with the last of them.
    pub(super) fn retire(&self) {
        let endpoint = &self.connection.endpoint;
        log::info!("no replies through {endpoint}: the next calls connect anew");
        self.dispatcher.is_retired.store(true, Ordering::Relaxed);
        self.connection.wake_all();
    }

    /// Ends the calls in flight, and closes the connection: in good order if the broker answers
    /// within a second. Blocks for at most two.
    pub(super) fn close(&self) {
        let _ = self.dispatcher.ended.set(Error::Closed);
        self.connection.wake_all();
        self.connection.close();
    }

    /// Whether requests may be lost here: calls have timed out, and still nothing has come back.
    pub(super) fn is_suspect(&self) -> bool {
        self.dispatcher.pending.are_suspect()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.dispatcher.pending.len()
    }

    /// Notes that a call got no reply.
    pub(super) fn suspect(&self) {
        self.dispatcher.pending.suspect_after(SILENCE);
    }
}

impl broker::Session for Session {
    fn ended(&self) -> Option<Error> {
        self.dispatcher.ended.get().cloned().or_else(|| {
            let reason = self.connection.ended()?.to_string();
            Some(Error::ConnectionLost { reason })
        })
    }
}

/// A retired session ends with its last call, which must not wait for the broker.
impl Drop for Session {
    fn drop(&mut self) {
        if self.is_retired() {
            self.connection.cut("no replies came through it");
        }
    }
}

/// Waits until the request queue tells of consumers; without any it goes on after a while.
///
/// When a node of a cluster is lost, its quorum queues are without a leader for a while, and tell
/// of no consumers. The first message that a channel publishes to such a queue waits for a leader
/// that may never answer, for up to 65 s, with all behind it (RabbitMQ's `rabbit_fifo_client.erl`).
/// Clients that reconnected and published at once were seen to lose every request of that
/// session. The broker has no event for a leader's coming, hence the asking.
fn await_consumers(connection: &Connection, queue: &str) {
    const LONGEST: Duration = Duration::from_secs(3);
    const STEP: Duration = Duration::from_millis(50);
    let until = Instant::now() + LONGEST;
    let Ok(channel) = connection.open_channel(until, |_, _| {}) else { return };
    while let Ok(found) = channel.queue(Method::FindQueue(queue), until)
        && found.consumers == 0
        && Instant::now() < until
    {
        thread::sleep(STEP);
    }
}
