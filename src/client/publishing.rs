//! The channels by which the requests of one session leave.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::dispatcher::Dispatcher;
use super::in_flight::CallSlot;
use super::own_channels::OwnChannels;
use super::pending::PROBE;
use super::request::OutgoingRequest;
use crate::broker::{CallError, Channel, Connection, WriteError};
use crate::deadline::Deadline;
use crate::lock::lock;
use crate::wire::{self, Reply, RequestHead};

/// How long writing [`PROBE`] may take. The broker may not read yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Publishing {
    dispatcher: Arc<Dispatcher>,
    /// Shared by most requests. Another one takes its place if the broker closes it because of a
    /// request.
    shared: Mutex<Arc<Channel>>,
    own: OwnChannels,
}

impl Publishing {
    pub(super) fn new(dispatcher: &Arc<Dispatcher>, channel: Channel) -> Publishing {
        Publishing {
            dispatcher: Arc::clone(dispatcher),
            shared: Mutex::new(Arc::new(channel)),
            own: OwnChannels::default(),
        }
    }

    /// The channel that most requests share.
    pub(super) fn channel(&self) -> Arc<Channel> {
        Arc::clone(&lock(&self.shared))
    }

    /// Publishes [`PROBE`] to the reply queue. If that fails, the first call reports why.
    pub(super) fn probe(&self, reply_queue: &str) {
        let Dispatcher { pending, config, .. } = &*self.dispatcher;
        let (id, empty) = (PROBE.to_string(), Ok(Reply::default()));
        let channel = self.channel();
        let route = channel.route(reply_queue, false);
        let probe = wire::encode_reply(route, Some(id.as_bytes()), &config.app_id, &empty);
        let until = Deadline::after(PROBE_TIMEOUT).at;
        let note = || _ = pending.lock().order.write(PROBE, 0);
        let _ = channel.write_noting(probe, until, note);
    }

    /// Writes a request: on its own channel if it has one, else on the shared one.
    pub(super) fn write(
        &self,
        connection: &Connection,
        request: &OutgoingRequest,
        head: &RequestHead<'_>,
        slot: &CallSlot,
        limit: Deadline,
    ) -> Result<(), WriteError> {
        let encode = |channel: &Channel| {
            let route = channel.route_through(request.exchange(), request.routing_key());
            wire::encode_request(route, head, &request.body)
        };
        let own = lock(&slot.own).as_ref().map(|own| Arc::clone(&own.channel));
        if let Some(own) = own {
            return own.write(encode(&own), limit.at);
        }
        /// How often to try again while a channel that is closed keeps its number.
        const INTERVAL: Duration = Duration::from_millis(10);
        let note = || self.dispatcher.pending.note_written(slot, request.body.len());
        loop {
            let shared = self.channel();
            let written = shared.write_noting(encode(&shared), limit.at, note);
            if written != Err(WriteError::ChannelClosed) || connection.ended().is_some() {
                return written;
            }
            if !self.replace(&shared, connection) {
                if limit.has_passed() {
                    return Err(WriteError::TimedOut { begun: false });
                }
                connection.wait(&slot.waiter, limit.at.min(Instant::now() + INTERVAL), || false);
            }
        }
    }

    /// Gives a request that the broker may refuse a channel of its own, if there is a number for
    /// one.
    pub(super) fn take_own_channel(
        &self,
        connection: &Connection,
        slot: &CallSlot,
        limit: Deadline,
    ) {
        let dispatcher = Arc::clone(&self.dispatcher);
        let on_event = move |id, plane: &_, event| dispatcher.on_own_channel(id, plane, event);
        *lock(&slot.own) = self.own.take(connection, slot.id, limit.at, on_event).ok();
    }

    /// Takes back the request's own channel, if the broker is known to have handled the request.
    pub(super) fn give_back(&self, slot: &CallSlot) {
        if let Some(own) = lock(&slot.own).take().filter(|_| slot.is_settled()) {
            self.own.give_back(own);
        }
    }

    /// Opens another shared channel, unless another caller has done so. False if no number is free
    /// yet. Does not block: other callers need the lock.
    fn replace(&self, closed: &Arc<Channel>, connection: &Connection) -> bool {
        let mut shared = lock(&self.shared);
        if Arc::ptr_eq(&shared, closed) {
            match connection.begin_channel(Instant::now(), self.dispatcher.begin_publishing()) {
                Ok(opened) => *shared = Arc::new(opened),
                Err(CallError::NoChannel(_)) => {
                    connection.cut("it has no channel left for requests")
                }
                Err(_) => return false,
            }
        }
        true
    }
}
