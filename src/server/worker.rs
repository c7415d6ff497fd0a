//! One worker: one channel, one request at a time.

mod cancelled;
mod execute;
mod sender;
mod stall;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::execute::{RequestName, execute};
use self::sender::{Sender, Sent, settle, too_slow};
use self::stall::StallDetector;
use super::finished::{Known, Outcome};
use super::inbox::Inbox;
use super::outcomes::{Begun, Ledger};
use super::own_methods;
use super::queue;
use super::replies::NotSent;
use super::state::{ServerSession, ServerState};
use crate::broker::{Channel, DataPlane, Limit, Session};
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result};
use crate::frames;
use crate::lock::lock;
use crate::wire::{self, Reply, Request};

/// Takes requests from the queue and answers them, on the thread that it was made on. When it is
/// dropped, the broker returns its unanswered requests to the queue.
pub struct Worker<'a> {
    /// Makes the type `!Sync`: one thread at a time may use it.
    not_sync: PhantomData<Cell<()>>,
    pub(super) state: &'a Arc<ServerState>,
    pub(super) session: &'a Arc<ServerSession>,
    pub(super) channel: Arc<Channel>,
    pub(super) inbox: Arc<Inbox>,
    ledger: Arc<Ledger>,
    stall_detector: StallDetector<'a>,
}

/// The result of [`Worker::serve_one`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A request was answered or rejected.
    Request,
    /// No request arrived in time.
    Nothing,
    /// The server was told to stop. It takes no further requests.
    Stopped,
}

impl<'a> Worker<'a> {
    /// Starts to consume from the queue. Blocks until the broker has answered: for each answer, for
    /// at most the time that connecting may take, except during an alarm.
    ///
    /// If the broker does not let it consume, all workers leave the connection. A queue that is
    /// gone is declared on the next one: RabbitMQ 4 closes a connection that declares a queue which
    /// is not deleted completely, and another worker may still be executing a request.
    pub(crate) fn begin(
        state: &'a Arc<ServerState>,
        session: &'a Arc<ServerSession>,
    ) -> Result<Worker<'a>> {
        let connection = &session.connection;
        // During an alarm, the broker does not read a connection on which another worker has
        // replied.
        let limit = Limit::ExtendedByAlarm(state.brokers.connect_timeout);
        let inbox = state.inbox(session);
        let ledger = state.outcomes.ledger(&inbox);
        let (receiver, held) = (Arc::clone(&inbox), Arc::clone(state));
        let on_event = move |plane: &DataPlane, event| {
            held.on_return(plane, &event);
            receiver.on_event(plane, event);
        };
        let consume = || {
            let channel = connection.open_channel(limit, Arc::clone(&inbox.waiter), on_event)?;
            queue::consume(&channel, &state.queue, state.options.prefetch, limit)?;
            Ok(Arc::new(channel))
        };
        let channel = consume().map_err(|error| {
            let doing = "read from the request queue";
            let error = queue::explain(connection, &state.queue, error, doing);
            if let Error::Unreachable { .. } = error {
                state.leave(session, &error);
            }
            error
        })?;
        inbox.set_channel(&channel);
        log::info!("taking requests from {:?} on {}", state.queue, connection.endpoint);
        let stall_detector = StallDetector::new(state, session, &inbox);
        let not_sync = PhantomData;
        Ok(Worker { not_sync, state, session, channel, inbox, ledger, stall_detector })
    }

    /// Waits for a request for at most `timeout`, and answers it. Also blocks for as long as the
    /// handler runs, while the broker does not read, and for a direct reply until a connection is
    /// open and the broker has accepted the reply.
    ///
    /// The reply is written before the acknowledgement, so that the broker has the reply when it
    /// deletes the request. Both are written on one channel. A large reply is written on a channel
    /// of its own, and the request is acknowledged after the broker has accepted the reply. If a
    /// worker is lost before the acknowledgement, another worker gets the request. If it is one of
    /// this server, it sends the same reply.
    ///
    /// # Errors
    /// [`Error::Unreachable`](crate::Error::Unreachable) if the connection or the channel is lost,
    /// or the queue was deleted, and [`Error::Refused`](crate::Error::Refused) if the user may not
    /// publish replies. If only one reply could not be sent, its request is in the queue again, and
    /// the next call serves the next request.
    pub fn serve_one<H, R>(&self, handler: H, timeout: Duration) -> Result<Served>
    where
        H: FnOnce(&Request) -> Result<R, Failure>,
        R: Into<Reply>,
    {
        match self.next(Deadline::after(timeout))? {
            Some(request) => {
                let handler = |request: &Request| {
                    let own = own_methods::answer(request, self.state);
                    own.unwrap_or_else(|| handler(request).map(R::into))
                };
                self.answer(Arc::new(request), handler).map(|()| Served::Request)
            }
            None if self.state.stop.is_stopped() => Ok(Served::Stopped),
            None => Ok(Served::Nothing),
        }
    }

    /// Waits for the next request. `None` if the deadline has passed or the server is told to stop.
    fn next(&self, deadline: Deadline) -> Result<Option<Request>> {
        let Worker { session, inbox, .. } = self;
        let stop = &self.state.stop;
        let is_ready = || inbox.is_ready() || stop.is_stopped();
        loop {
            let next_check = *lock(&session.next_check);
            session.connection.wait(&inbox.waiter, deadline.at.min(next_check), is_ready);
            if inbox.is_cancelled() {
                cancelled::find_out(&self.state.queue, session, inbox);
            }
            if stop.is_stopped() && !inbox.has_last_requests() {
                return Ok(None);
            }
            if let Some(reason) = session.ended() {
                return Err(reason);
            }
            match inbox.take()? {
                None if !deadline.has_passed() => {
                    self.stall_detector.check(&self.channel, &self.ledger);
                    // During an alarm, the broker does not answer a close.
                    if session.connection.blocked().is_none() {
                        self.state.replies.direct.close_unused();
                    }
                }
                next => return Ok(next),
            }
        }
    }

    /// The number of replies that were written and that the broker may not have.
    pub(super) fn unproved(&self) -> usize {
        self.ledger.unproved()
    }

    /// See [`sender::confirm`].
    pub(super) fn confirm(&self, until: Instant) -> usize {
        sender::confirm(self.state, &self.channel, &self.ledger, until)
    }

    fn answer(
        &self,
        request: Arc<Request>,
        handler: impl FnOnce(&Request) -> Outcome,
    ) -> Result<()> {
        let Worker { state, session, channel, inbox, ledger, .. } = self;
        let ServerState { counters, queue, outcomes, stop, options, .. } = &***state;
        let properties = request.properties();
        let address = match wire::reply_address(&properties, queue) {
            Ok(address) => address,
            Err(why) => return self.reject(&request, why),
        };
        if request.redelivered() {
            lock(counters).redelivered += 1;
            let name = RequestName(&address, &request);
            log::info!("{name} is redelivered: a worker may have begun with it before");
        }
        let is_over = || inbox.is_over() || stop.is_stopped() || session.ended().is_some();
        let begun = outcomes.begin(ledger, &request, options.prefetch, is_over);
        if let Begun::GivenUp = begun {
            return inbox.ended().map_or(Ok(()), Err);
        }
        let has_expired = || request.has_expired() && matches!(begun, Begun::Execute);
        if has_expired() {
            return self.expire(request);
        }
        let mut sender = Sender::new(state, session, channel, inbox, &request, address);
        // Making a connection for the reply takes its time.
        if has_expired() {
            drop(sender);
            return self.expire(request);
        }
        lock(counters).in_progress += 1;
        let began = Instant::now();
        let (known, answered) = match begun {
            Begun::Known(Known::Settled) => {
                let ack = frames::ack(channel.number, request.delivery.tag);
                (Known::Settled, sender.write(ack.into()))
            }
            Begun::Known(Known::Finished { outcome, lost_connections }) => {
                self.reply(&mut sender, &request, began, outcome, Some(lost_connections))
            }
            Begun::TooSlow => self.reply(&mut sender, &request, began, Err(too_slow()), None),
            Begun::Execute | Begun::GivenUp => {
                let signs = state.keep_alive.begin(&request, &address, channel);
                let outcome = execute(handler, &request, session.connection.frame_max());
                drop(signs);
                self.reply(&mut sender, &request, began, outcome, None)
            }
        };
        lock(counters).in_progress -= 1;
        drop(sender);
        let tag = request.delivery.tag;
        session.connection.recycle(outcomes.finish(ledger, request, known, answered.is_ok()));
        answered.inspect_err(|_| {
            channel.send_unanswered(&frames::give_back(channel.number, tag));
            // A stop must not claim that this request is answered.
            if stop.is_stopped() {
                state.unconfirmed.fetch_add(1, Ordering::SeqCst);
            }
        })
    }

    /// Sends the reply. `lost_connections` is how many connections ended when it was sent before.
    /// Returns what is known if the request comes back.
    fn reply(
        &self,
        sender: &mut Sender<'_>,
        request: &Request,
        began: Instant,
        mut outcome: Outcome,
        lost_connections: Option<u32>,
    ) -> (Known, Result<()>) {
        /// How many connections one reply may cost.
        const MOST_LOST_CONNECTIONS: u32 = 2;
        let lost = lost_connections.unwrap_or(0);
        if lost >= MOST_LOST_CONNECTIONS {
            let why = "the broker closes the connection on which its reply is sent";
            return (Known::Settled, self.reject(request, why));
        }
        let sent = sender.send(request.delivery.tag, &mut outcome, lost_connections.is_some());
        let keep = |outcome, lost_connections| Known::Finished { outcome, lost_connections };
        match sent {
            Ok(Sent::Written) => {
                sender.report(began, &outcome);
                (keep(outcome, lost), Ok(()))
            }
            Ok(Sent::Taken) => {
                sender.report(began, &outcome);
                self.state.outcomes.note_replied();
                (Known::Settled, Ok(()))
            }
            Err(NotSent::Lost { error, by_broker }) => {
                (keep(outcome, lost + u32::from(by_broker)), Err(error))
            }
            Err(NotSent::Refused(close)) => {
                let why = format!("the broker refuses even a short reply: {close}");
                (Known::Settled, self.reject(request, &why))
            }
            Err(NotSent::Undeliverable) => {
                (Known::Settled, self.reject(request, "the broker fails on its reply_to"))
            }
        }
    }

    /// Removes a request from the queue whose requester no longer waits.
    fn expire(&self, request: Arc<Request>) -> Result<()> {
        lock(&self.state.counters).expired += 1;
        let line = format_args!("a request expired while it waited for a worker");
        self.state.useless.log(log::Level::Info, line);
        let ack = frames::ack(self.channel.number, request.delivery.tag);
        let settled = settle(&self.channel, ack);
        self.state.outcomes.finish(&self.ledger, request, Known::Settled, settled.is_ok());
        settled
    }

    /// Removes a request that cannot be answered from the queue.
    fn reject(&self, request: &Request, why: &str) -> Result<()> {
        lock(&self.state.counters).rejected += 1;
        let line = format_args!("rejected a request of {} bytes: {why}", request.body().len());
        self.state.useless.log(log::Level::Warn, line);
        settle(&self.channel, frames::reject(self.channel.number, request.delivery.tag))
    }
}

/// Keeps the replies that the broker may not have.
impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.state.outcomes.retire(&self.ledger);
    }
}

impl fmt::Debug for Worker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("queue", &self.state.queue).finish_non_exhaustive()
    }
}
