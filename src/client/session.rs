//! One connection of a client as its callers use it: its reply queue and its pending calls.
//!
//! The callers do the work of a call themselves: they publish, taking turns on one channel, and
//! poll the replies together. Whoever takes a reply that belongs to another caller hands it over.
//! What has to stay on one thread is the keeper's ([`super::keeper`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use amiquip::{ConsumerMessage, Return};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};
use uuid::Uuid;

use super::pending::{Outcome, PendingCalls, Registered};
use super::{Config, lock};
use crate::broker::{Endpoint, Line, Unwritten, reason};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::wire::{self, RequestHead, Way};

/// How long closing in good order may take before the connection is cut.
pub(super) const CLOSING: Duration = Duration::from_secs(1);

/// What callers and keeper share of one connection.
pub(crate) struct Session {
    pub(super) config: Arc<Config>,
    pub(super) endpoint: Endpoint,
    pub(super) line: Line,
    pub(super) began: Instant,
    pub(super) reply_queue: String,
    /// The id of the channel that requests go out on.
    pub(super) publisher: u16,
    pub(super) pending: PendingCalls,
    pub(super) deliveries: Receiver<ConsumerMessage>,
    /// The turn to poll the deliveries: in here while nobody has it.
    pub(super) turn: (Sender<()>, Receiver<()>),
    /// Whether the broker closed the publishing channel: it took offence at a request.
    pub(super) offended: AtomicBool,
    /// Whether the broker is known to take messages from us: [`PROBE`] has come back.
    pub(super) proved: AtomicBool,
    /// The broker's reason for taking none at present.
    pub(super) blocked: Mutex<Option<String>>,
    pub(super) unblocked: Condvar,
    pub(super) orders: Sender<Order>,
    /// Disconnected once the keeper is through.
    pub(super) over: Receiver<()>,
}

/// The correlation id of the message that every session begins with: to its own reply queue, to
/// learn before the first request whether the broker takes messages from us. Without permission
/// it closes the channel; under a resource alarm it says that it blocks.
pub(super) const PROBE: Uuid = Uuid::nil();

/// What the keeper is asked to do.
pub(super) enum Order {
    /// Tell how many consumers the request queue has, and how many messages wait there.
    Inspect(Sender<(u32, u32)>),
    Close,
}

/// A request on its way; dropping it gives the call up.
pub(crate) struct Flight {
    pub(crate) session: Arc<Session>,
    pub(crate) outcome: Receiver<Outcome>,
    id: Uuid,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.session.pending.forget(self.id) {
            self.session.order_to_close();
        }
    }
}

impl Session {
    /// Publishes a request and returns where its outcome will be. `None` if the session ended
    /// before the request was out: it was not executed, and another session may take it.
    ///
    /// Waits until `limit` for a broker that blocks, or for room among the calls in flight. The
    /// request carries the `deadline` of its caller.
    pub(crate) fn publish(
        self: &Arc<Session>,
        body: &[u8],
        message_id: Uuid,
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<Option<Flight>> {
        self.hand_out_what_came();
        self.wait_while_blocked(limit)?;
        let id = Uuid::new_v4();
        let outcome = loop {
            match self.pending.register(id) {
                Registered::Waiting(outcome) => break outcome,
                Registered::Ended => return Ok(None),
                Registered::Full => {
                    let room = self.poll(self.pending.room(), limit.at);
                    room.ok_or_else(|| self.no_room(limit))?;
                }
            }
        };
        let flight = Flight { session: Arc::clone(self), outcome, id };
        let head = RequestHead {
            reply_to: &self.reply_queue,
            correlation_id: id,
            message_id,
            content_type: &self.config.options.content_type,
            app_id: &self.config.app_id,
            remaining: deadline.remaining(),
        };
        let way = Way {
            channel: self.publisher,
            queue: &self.config.queue,
            mandatory: true,
            frame_max: self.line.frame_max(),
        };
        let request = wire::encode_request(way, &head, body);
        match self.line.write(&request, limit.at) {
            Ok(()) => Ok(Some(flight)),
            Err(Unwritten::Late { begun }) => Err(self.not_taken(limit, begun)),
            Err(Unwritten::Gone) => {
                self.end_with_the_connection();
                Ok(None)
            }
        }
    }

    /// Waits until `wanted` has something. One of those who wait polls the reply queue, for all
    /// of them; whoever has what it wanted leaves that to the next. Were all of them to poll,
    /// most replies would wake somebody up who then has to wake up their owner.
    pub(crate) fn poll<T>(&self, wanted: &Receiver<T>, until: Instant) -> Option<T> {
        let (hand_on, turn) = &self.turn;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.hand_out_what_came();
            return wanted.try_recv().ok();
        }
        select! {
            recv(wanted) -> got => got.ok(),
            recv(turn) -> _ => {
                let got = self.poll_for_all(wanted, until);
                // There is one turn, and room for it.
                let _ = hand_on.try_send(());
                got
            }
            default(left) => None,
        }
    }

    /// Hands every reply that comes to its call until `wanted` has something.
    fn poll_for_all<T>(&self, wanted: &Receiver<T>, until: Instant) -> Option<T> {
        loop {
            // A flood of replies to others must not keep anybody past the deadline.
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return wanted.try_recv().ok();
            }
            select! {
                recv(wanted) -> got => return got.ok(),
                recv(self.deliveries) -> message => match message {
                    Ok(message) => self.route(message),
                    Err(_) => return wanted.recv_deadline(until).ok(),
                },
                default(left) => return None,
            }
        }
    }

    /// Whether a call that was lost with this session may go out again: not where one of the
    /// requests is what ended it, since that one would end every session after it too.
    pub(crate) fn may_send_again(&self) -> bool {
        self.config.options.idempotent && !self.offended.load(Ordering::Relaxed)
    }

    pub(crate) fn ended(&self) -> Option<Error> {
        self.pending.ended()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Closes the connection, in good order if the broker answers within a second.
    pub(crate) fn close(&self) {
        self.pending.end(Error::Closed);
        self.wake_the_blocked();
        let ordered = self.orders.send_timeout(Order::Close, CLOSING).is_ok();
        if !ordered || self.over.recv_timeout(CLOSING) == Err(RecvTimeoutError::Timeout) {
            self.line.cut();
            let _ = self.over.recv_timeout(CLOSING);
        }
    }

    /// Closes the connection as soon as the keeper gets to it. Does not wait.
    pub(crate) fn abandon(&self) {
        self.pending.end(Error::Closed);
        self.order_to_close();
    }

    pub(super) fn order_to_close(&self) {
        // If there is an order already, the keeper looks whether to end when it is done with it.
        let _ = self.orders.try_send(Order::Close);
    }

    /// Replies to calls that were given up come while nobody polls.
    pub(super) fn hand_out_what_came(&self) {
        self.deliveries.try_iter().for_each(|message| self.route(message));
    }

    fn wait_while_blocked(&self, deadline: Deadline) -> Result<()> {
        let mut blocked = lock(&self.blocked);
        while let Some(reason) = &*blocked {
            if self.ended().is_some() {
                return Ok(());
            }
            if deadline.has_passed() {
                let reason = reason.clone();
                return Err(Error::Blocked { reason, after: deadline.timeout, sent: false });
            }
            let waited = self.unblocked.wait_timeout(blocked, deadline.remaining());
            blocked = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Lets those who wait for a blocked broker look again. Whoever has just looked, and holds the
    /// lock, is waiting once the lock is free.
    pub(super) fn wake_the_blocked(&self) {
        drop(lock(&self.blocked));
        self.unblocked.notify_all();
    }

    fn route(&self, message: ConsumerMessage) {
        let counters = &self.config.counters;
        match message {
            ConsumerMessage::Delivery(delivery) => {
                let id = wire::correlation_id(&delivery.properties);
                if id == Some(PROBE) {
                    return self.proved.store(true, Ordering::Relaxed);
                }
                let reply = |id| {
                    let outcome = wire::decode_reply(&delivery.properties, delivery.body);
                    self.pending.settle(id, outcome)
                };
                match id.is_some_and(reply) {
                    true => counters.replies.fetch_add(1, Ordering::Relaxed),
                    false => counters.late.fetch_add(1, Ordering::Relaxed),
                };
            }
            ConsumerMessage::ServerCancelled => self.end("the reply queue was deleted".into()),
            ConsumerMessage::ServerClosedChannel(error)
            | ConsumerMessage::ServerClosedConnection(error) => self.end(reason(&error)),
            ConsumerMessage::ClientCancelled
            | ConsumerMessage::ClientClosedChannel
            | ConsumerMessage::ClientClosedConnection => self.pending.end(Error::Closed),
        }
    }

    /// The broker gave a request back: there is no queue of that name.
    pub(super) fn route_return(&self, returned: &Return) {
        if let Some(id) = wire::correlation_id(&returned.properties) {
            let queue = self.config.queue.clone();
            self.pending.settle(id, Err(Error::Unroutable { queue }));
        }
    }

    /// The connection is gone. Why is what the keeper is about to find out.
    fn end_with_the_connection(&self) {
        let _ = self.over.recv_timeout(CLOSING);
        self.end("the connection ended without a word".into());
    }

    /// Ends the session and with it the connection.
    pub(super) fn end(&self, reason: String) {
        self.pending.end(Error::ConnectionLost { reason });
        self.line.cut();
    }
}
