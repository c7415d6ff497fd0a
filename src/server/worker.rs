//! One worker: one channel, one request at a time.

mod cancelled;
mod execute;
mod reply_sender;
mod stall;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::execute::{RequestName, execute};
use self::reply_sender::ReplySender;
use super::consumer::Consumer;
use super::finished::{Known, Outcome};
use super::inbox::Withdrawal;
use super::keep_alive::with_signs_of_life;
use super::outcomes::Begun;
use super::own_methods;
use super::state::ServerState;
use crate::broker::Session;
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result, Status};
use crate::frames;
use crate::lock::lock;
use crate::wire::{self, Reply, Request};

/// Takes requests from the queue and answers them, on the thread that it was made on. When it is
/// dropped, the broker returns its unanswered requests to the queue.
// The consumer's cell makes the type `!Sync`: one thread at a time may use it.
pub struct Worker<'a> {
    pub(super) consumer: Consumer<'a>,
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

impl Worker<'_> {
    /// Begins to consume on the server's connection, and does this work. Until the deadline, tries
    /// again after an error that may pass. Waits longer after each refusal.
    pub(crate) fn with<T>(
        state: &Arc<ServerState>,
        deadline: Deadline,
        work: impl FnOnce(Worker<'_>) -> T,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            let session = state.sessions.persistent_session(deadline)?;
            match Consumer::begin(state, &session) {
                Ok(consumer) => return Ok(work(Worker { consumer })),
                Err(error) if deadline.has_passed() => return Err(error),
                Err(Error::Unreachable { .. }) => {}
                Err(error) if state.keeps_trying() => {
                    failures += 1;
                    state.pause(failures, &error);
                }
                Err(error) => return Err(error),
            }
        }
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
    /// publish replies. The broker refuses a small reply after this has returned: the next call
    /// then fails. If only one reply could not be sent, its request is in the queue again, and the
    /// next call serves the next request.
    pub fn serve_one<H, R>(&self, handler: H, timeout: Duration) -> Result<Served>
    where
        H: FnOnce(&Request) -> Result<R, Failure>,
        R: Into<Reply>,
    {
        match self.next(Deadline::after(timeout))? {
            Some(request) => {
                let handler = |request: &Request| {
                    let own = own_methods::answer(request, self.consumer.state);
                    own.unwrap_or_else(|| handler(request).map(R::into))
                };
                self.answer(Arc::new(request), handler).map(|()| Served::Request)
            }
            None if self.consumer.state.stop.is_stopped() => Ok(Served::Stopped),
            None => Ok(Served::Nothing),
        }
    }

    /// Waits for the next request. `None` if the deadline has passed or the server is told to stop.
    fn next(&self, deadline: Deadline) -> Result<Option<Request>> {
        let Consumer { state, session, inbox, .. } = &self.consumer;
        let stop = &state.stop;
        let is_ready = || inbox.is_ready() || stop.is_stopped();
        loop {
            let next_check = *lock(&session.next_check);
            session.connection.wait(&inbox.waiter, deadline.at.min(next_check), is_ready);
            if inbox.withdrawal() == Some(Withdrawal::Cancelled) {
                cancelled::find_out(&self.consumer);
            }
            if stop.is_stopped() && !inbox.may_have_last_requests() {
                return Ok(None);
            }
            if let Some(reason) = session.ended() {
                return Err(reason);
            }
            match inbox.take()? {
                None if !deadline.has_passed() => {
                    stall::check(&self.consumer);
                    // During an alarm, the broker does not answer a close.
                    if session.connection.blocked().is_none() {
                        self.consumer.close_idle_direct();
                    }
                }
                next => return Ok(next),
            }
        }
    }

    fn answer(
        &self,
        request: Arc<Request>,
        handler: impl FnOnce(&Request) -> Outcome,
    ) -> Result<()> {
        let Consumer { state, session, channel, inbox, .. } = &self.consumer;
        let ServerState { queue, outcomes, stop, .. } = &***state;
        let properties = request.properties();
        let address = match wire::reply_address(&properties, queue) {
            Ok(address) => address,
            Err(why) => return self.consumer.reject(&request, why),
        };
        if request.redelivered() {
            lock(&state.counters).redelivered += 1;
            let name = RequestName(&address, &request);
            log::info!("{name} is redelivered: a worker may have begun with it before");
        }
        let is_over = || inbox.is_over() || stop.is_stopped() || session.ended().is_some();
        let Some(begun) = outcomes.begin(inbox, &request, is_over) else {
            return self.consumer.ended().map_or(Ok(()), Err);
        };
        let began = Instant::now();
        let (outcome, lost_connections) = match begun {
            Begun::Known(Known::Settled) => return self.settle_unanswered(&request),
            Begun::Known(Known::Finished { outcome, lost_connections }) => {
                (outcome, Some(lost_connections))
            }
            Begun::TooSlow => (Err(too_slow()), None),
            Begun::Execute if request.has_expired() => return self.expire(&request),
            Begun::Execute => {
                let execute = || execute(handler, &request, session.connection.frame_max());
                let app_id = &state.app_id;
                (with_signs_of_life(&request, &address, channel, app_id, execute), None)
            }
        };
        let sender = ReplySender::new(&self.consumer, &request, address);
        let (known, answered) = sender.reply(began, outcome, lost_connections);
        let tag = request.delivery.tag;
        outcomes.finish(inbox, known, answered.is_ok());
        if let Some(request) = Arc::into_inner(request) {
            session.connection.recycle(request.delivery.message.body);
        }
        answered.inspect_err(|_| {
            let _ = self.consumer.settle(frames::give_back(channel.number, tag));
        })
    }

    /// Removes a request from the queue whose requester no longer waits.
    fn expire(&self, request: &Request) -> Result<()> {
        let state = self.consumer.state;
        lock(&state.counters).expired += 1;
        let line = format_args!("a request expired while it waited for a worker");
        state.useless.log(log::Level::Info, line);
        self.settle_unanswered(request)
    }

    /// Acknowledges a request that needs no reply.
    fn settle_unanswered(&self, request: &Request) -> Result<()> {
        let Consumer { state, channel, inbox, .. } = &self.consumer;
        let settled = self.consumer.settle(frames::ack(channel.number, request.delivery.tag));
        state.outcomes.finish(inbox, Known::Settled, settled.is_ok());
        settled
    }
}

/// The failure of a request that has cost several workers their channels.
fn too_slow() -> Failure {
    Failure::new(
        Status::Internal,
        "the request takes longer than the broker waits for an acknowledgement: raise its \
         consumer_timeout, or make the request smaller",
    )
}

impl fmt::Debug for Worker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("queue", &self.consumer.state.queue).finish_non_exhaustive()
    }
}
