//! One connection of a client as its callers use it.
//!
//! The callers do the work of a call themselves: they publish, taking turns on one channel, and
//! read the replies in turns. What has to stay on one thread is in [`super::session_thread`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use uuid::Uuid;

use super::dispatcher::{Channels, Dispatcher};
use super::pending::{Call, NotRegistered, Outcome};
use super::{Config, lock};
use crate::broker::{CLOSING, DataPlane, Waiter, WriteError};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::wire::{self, RequestHead, Route};

/// What callers and the session thread share of one connection.
pub(crate) struct Session {
    pub(super) config: Arc<Config>,
    pub(super) data_plane: Arc<DataPlane>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) channels: Channels,
    pub(super) reply_queue: String,
    pub(super) began: Instant,
    /// What was found when the broker was last asked about the request queue.
    pub(super) inspected: Mutex<Option<Inspected>>,
    /// Disconnected once the session thread has closed the connection.
    pub(super) over: Receiver<()>,
}

/// What the session thread is asked to do.
pub(super) enum Order {
    /// Ask the broker about the request queue.
    Inspect(Sender<QueueStatus>),
    Close,
}

/// What the broker says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueStatus {
    pub(super) consumers: u32,
    pub(super) messages: u32,
}

/// The answer, or that there was none in time, and when.
#[derive(Clone, Copy)]
pub(super) struct Inspected {
    pub(super) at: Instant,
    pub(super) found: Option<QueueStatus>,
}

/// A call whose request is out; dropping it gives the call up.
pub(crate) struct InFlight {
    pub(crate) session: Arc<Session>,
    call: Arc<Call>,
    id: Uuid,
}

impl InFlight {
    /// Waits for the outcome, and reads the socket meanwhile if nobody else does.
    pub(crate) fn wait(&self, until: Instant) -> Option<Outcome> {
        if !self.call.has_outcome() {
            let has_outcome = || self.call.has_outcome();
            self.session.data_plane.wait(&self.call.waiter, until, has_outcome);
        }
        self.call.take_outcome()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Session { dispatcher, data_plane, .. } = &*self.session;
        if let Some(waiter) = dispatcher.pending.forget(self.id) {
            data_plane.wake(&waiter);
        }
        self.session.close_if_over();
    }
}

impl Session {
    /// Publishes a request. `None` if the session ended before the request was out: it was not
    /// executed, and another session may take it.
    ///
    /// Waits until `limit` for a broker that blocks, or for room among the calls in flight. The
    /// request carries the `deadline` of its caller.
    pub(crate) fn publish(
        self: &Arc<Session>,
        body: &[u8],
        message_id: Uuid,
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<Option<InFlight>> {
        let call = Arc::new(Call::default());
        let id = Uuid::new_v4();
        self.wait_while_blocked(&call.waiter, limit)?;
        if !self.register(id, &call, limit, deadline)? {
            return Ok(None);
        }
        let in_flight = InFlight { session: Arc::clone(self), call, id };
        let head = RequestHead {
            reply_to: &self.reply_queue,
            correlation_id: id,
            message_id,
            content_type: &self.config.options.content_type,
            app_id: &self.config.app_id,
            remaining: deadline.remaining(),
        };
        let route = Route {
            channel: self.channels.publishing,
            queue: &self.config.queue,
            mandatory: true,
            frame_max: self.data_plane.frame_max(),
        };
        let request = wire::encode_request(route, &head, body);
        match self.data_plane.write(route.channel, &request, limit.at) {
            Ok(()) => Ok(Some(in_flight)),
            Err(WriteError::TimedOut { begun }) => Err(self.not_taken(limit, begun)),
            Err(WriteError::ChannelClosed) => Ok(None),
            Err(WriteError::Disconnected) => {
                // Whoever reads is about to learn why.
                let soon = Instant::now() + CLOSING;
                self.data_plane.wait(&in_flight.call.waiter, soon, || false);
                self.data_plane.cut("the connection ended while a request was written");
                Ok(None)
            }
        }
    }

    /// False if the session takes no more calls.
    fn register(
        &self,
        id: Uuid,
        call: &Arc<Call>,
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<bool> {
        let pending = &self.dispatcher.pending;
        loop {
            match pending.register(id, call, deadline.at) {
                Ok(()) => return Ok(true),
                Err(NotRegistered::Ended) => return Ok(false),
                Err(NotRegistered::Full(_)) if limit.has_passed() => {
                    return Err(self.no_room(limit));
                }
                Err(NotRegistered::Full(until)) => {
                    pending.await_room(&call.waiter);
                    let until = until.min(limit.at);
                    self.data_plane.wait(&call.waiter, until, || pending.is_open());
                    if let Some(next) = pending.stop_awaiting_room(&call.waiter) {
                        self.data_plane.wake(&next);
                    }
                }
            }
        }
    }

    fn wait_while_blocked(&self, waiter: &Arc<Waiter>, deadline: Deadline) -> Result<()> {
        let blocked = || lock(&self.dispatcher.blocked).clone();
        if blocked().is_none() {
            return Ok(());
        }
        let may_go_on = || lock(&self.dispatcher.blocked).is_none() || self.ended().is_some();
        self.data_plane.wait(waiter, deadline.at, may_go_on);
        match blocked().filter(|_| self.ended().is_none()) {
            Some(reason) => Err(Error::Blocked { reason, after: deadline.timeout, sent: false }),
            None => Ok(()),
        }
    }

    /// Whether a call that was lost with this session may go out again: not if the broker rejected
    /// one of the requests, since that one would end every session after it too.
    pub(crate) fn may_send_again(&self) -> bool {
        let was_rejected = self.dispatcher.publisher_rejected.load(Ordering::Relaxed);
        self.config.options.idempotent && !was_rejected
    }

    pub(crate) fn ended(&self) -> Option<Error> {
        self.dispatcher.pending.ended()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.dispatcher.pending.len()
    }

    /// Closes the connection, in good order if the broker answers within a second. Blocks for at
    /// most two.
    pub(crate) fn close(&self) {
        self.abandon();
        if self.over.recv_timeout(CLOSING) == Err(RecvTimeoutError::Timeout) {
            self.data_plane.cut("the broker did not confirm the close");
            let _ = self.over.recv_timeout(CLOSING);
        }
    }

    /// Has the connection closed. Does not block.
    pub(crate) fn abandon(&self) {
        self.dispatcher.end(&self.data_plane, Error::Closed);
    }

    /// Has the connection closed if no call is left and none may begin.
    pub(super) fn close_if_over(&self) {
        if self.dispatcher.pending.are_over() {
            let _ = self.dispatcher.orders.send(Order::Close);
        }
    }
}
