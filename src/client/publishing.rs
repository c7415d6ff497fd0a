//! The channels by which the requests of one session leave.
//!
//! The broker closes a channel when it refuses a message. A request that the broker may refuse,
//! because of its exchange or its `user_id`, leaves by a channel of its own: a refusal then
//! concerns this request for certain, and no other.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::dispatcher::Dispatcher;
use super::in_flight::CallSlot;
use super::pending::PROBE;
use super::request::OutgoingRequest;
use crate::broker::{CallError, Channel, DataPlane, WriteError};
use crate::deadline::Deadline;
use crate::lock::lock;
use crate::wire::{self, Reply, RequestHead};

/// How long writing [`PROBE`] may take. The broker may not read yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Publishing {
    data_plane: Arc<DataPlane>,
    dispatcher: Arc<Dispatcher>,
    /// Shared by most requests. Another one takes its place if the broker closes it because of a
    /// request.
    shared: Mutex<Arc<Channel>>,
    /// Those on which nothing is in flight at present.
    idle: Mutex<Vec<OwnChannel>>,
}

/// A channel on which one request at a time is in flight. Dropping it closes the channel.
pub(super) struct OwnChannel {
    channel: Channel,
    request: Arc<Mutex<Uuid>>,
}

impl Publishing {
    pub(super) fn new(dispatcher: &Arc<Dispatcher>, channel: Channel) -> Publishing {
        Publishing {
            data_plane: Arc::clone(&channel.data_plane),
            dispatcher: Arc::clone(dispatcher),
            shared: Mutex::new(Arc::new(channel)),
            idle: Mutex::default(),
        }
    }

    /// Publishes [`PROBE`] to the reply queue. If that fails, the first call reports why.
    pub(super) fn probe(&self, reply_queue: &str) {
        let Dispatcher { pending, config, .. } = &*self.dispatcher;
        let (id, empty) = (PROBE.to_string(), Ok(Reply::default()));
        let channel = self.channel();
        let route = channel.route(reply_queue, false);
        let probe = wire::encode_reply(route, Some(id.as_bytes()), &config.app_id, &empty);
        let until = Deadline::after(PROBE_TIMEOUT).at;
        let note = || _ = pending.lock().order.write(PROBE, 0, true);
        let _ = channel.write_noting(probe, until, note);
    }

    /// Writes a request: on its own channel if it has one, else on the shared one. If that is
    /// closed before the request has begun, it may be written again.
    pub(super) fn write(
        &self,
        request: &OutgoingRequest,
        head: &RequestHead<'_>,
        slot: &CallSlot,
        own: Option<&OwnChannel>,
        limit: Deadline,
    ) -> Result<(), WriteError> {
        let encode = |channel: &Channel| {
            let exchange = request.exchange.as_deref().unwrap_or_default();
            let key = request.routing_key.as_deref().unwrap_or(&request.queue.name);
            let route = channel.route_through(exchange, key);
            wire::encode_request(route, head, &request.body)
        };
        if let Some(OwnChannel { channel, .. }) = own {
            return channel.write(encode(channel), limit.at);
        }
        let shared = self.channel();
        let note = || {
            let (size, to_default) = (request.body.len(), request.exchange.is_none());
            self.dispatcher.pending.note_written(slot, size, to_default);
        };
        let written = shared.write_noting(encode(&shared), limit.at, note);
        if written == Err(WriteError::ChannelClosed) {
            /// A channel that is closed may keep the only number for a moment.
            const PAUSE: Duration = Duration::from_millis(10);
            self.data_plane.wait(&slot.waiter, limit.at.min(Instant::now() + PAUSE), || false);
        }
        written
    }

    /// The channel that most requests share. If it is closed, opens another one, unless no number
    /// is free yet. Does not block: other callers need the lock.
    pub(super) fn channel(&self) -> Arc<Channel> {
        let mut shared = lock(&self.shared);
        // A request on the next channel must not be taken for one on this channel.
        if !shared.is_open() && self.dispatcher.pending.lock().order.is_refused {
            let handler = self.dispatcher.handle_publishing();
            match self.data_plane.begin_channel(Instant::now(), handler) {
                Ok(opened) => {
                    *shared = Arc::new(opened);
                    self.dispatcher.pending.lock().order.is_refused = false;
                }
                Err(CallError::NoChannel(_)) => {
                    self.data_plane.cut("it has no channel left for requests")
                }
                Err(_) => {}
            }
        }
        Arc::clone(&shared)
    }

    /// A channel for the request with this correlation id alone, if there is a number for one.
    /// Blocks only while the connection has no free number, and not beyond `until`.
    pub(super) fn take_own(&self, id: Uuid, until: Instant) -> Option<OwnChannel> {
        if let Some(own) = lock(&self.idle).pop() {
            *lock(&own.request) = id;
            return Some(own);
        }
        let request = Arc::new(Mutex::new(id));
        let (present, dispatcher) = (Arc::clone(&request), Arc::clone(&self.dispatcher));
        let on_event = move |plane: &DataPlane, event| {
            let id = *lock(&present);
            dispatcher.on_own_channel(id, plane, event);
        };
        let channel = self.data_plane.begin_channel(until, on_event).ok()?;
        Some(OwnChannel { channel, request })
    }

    /// Keeps a channel for the next request. The broker has accepted the request that was in flight
    /// on it, or returned it.
    pub(super) fn give_back(&self, own: OwnChannel) {
        const MAX_IDLE: usize = 64;
        let mut idle = lock(&self.idle);
        if own.channel.is_open() && idle.len() < MAX_IDLE {
            idle.push(own);
        }
    }
}
