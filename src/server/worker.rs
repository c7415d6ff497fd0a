//! One worker: one channel, one request at a time.

mod stall;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::stall::StallDetector;
use super::inbox::Inbox;
use super::own_methods;
use super::replies::{ReplyOutcome, is_direct};
use super::state::{ServerSession, ServerState};
use crate::broker::{Channel, DataPlane, Limit, Session};
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result, Status};
use crate::frames::{self, Event, Frames, Method};
use crate::lock::lock;
use crate::observation::Observation;
use crate::wire::{self, Reply, ReplyAddress, Request};

/// Takes requests from the queue and answers them, on the thread that it was made on. When it is
/// dropped, the broker returns its unanswered requests to the queue.
pub struct Worker<'a> {
    /// Makes the type `!Sync`: one thread at a time may use it.
    not_sync: PhantomData<Cell<()>>,
    pub(super) state: &'a Arc<ServerState>,
    pub(super) session: &'a Arc<ServerSession>,
    pub(super) channel: Arc<Channel>,
    pub(super) inbox: Arc<Inbox>,
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
    /// If the broker does not let it consume, all workers leave the connection, and may begin again
    /// with the next one. If the queue is gone, it is declared on a new connection: RabbitMQ 4
    /// closes a connection that declares a queue which is not deleted completely (INTERNAL_ERROR),
    /// and another worker may still be executing a request.
    pub(crate) fn begin(
        state: &'a Arc<ServerState>,
        session: &'a Arc<ServerSession>,
    ) -> Result<Worker<'a>> {
        let connection = &session.connection;
        // During an alarm, the broker does not read a connection on which another worker has
        // replied.
        let limit = Limit::ExtendedByAlarm(state.brokers.connect_timeout);
        let inbox = state.inbox(session);
        let (receiver, held) = (Arc::clone(&inbox), Arc::clone(state));
        let on_event = move |plane: &DataPlane, event| {
            match &event {
                Event::Return { queue, message, .. } if wire::is_sign_of_life(message) => {
                    held.keep_alive.sign_returned(queue, message);
                }
                Event::Return { reason, .. } => {
                    lock(&held.counters).returned += 1;
                    log::info!("a reply came back: its requester is gone ({reason})");
                }
                Event::Closed(close) => drop(held.replies.limit.learn(close)),
                _ => {}
            }
            receiver.on_event(plane, event);
        };
        let consume = || {
            let channel = connection.open_channel(limit, Arc::clone(&inbox.waiter), on_event)?;
            channel.call(Method::Prefetch(state.options.prefetch), limit)?;
            channel.call(Method::Consume { queue: &state.queue, no_ack: false }, limit)?;
            Ok(Arc::new(channel))
        };
        let channel = consume().map_err(|error| {
            let error = connection.explain(error, "read from the request queue");
            if let Error::Unreachable { .. } = error {
                state.leave(session, &error);
            }
            error
        })?;
        log::info!("taking requests from {:?} on {}", state.queue, connection.endpoint);
        let stall_detector = StallDetector::new(state, session, &inbox);
        Ok(Worker { not_sync: PhantomData, state, session, channel, inbox, stall_detector })
    }

    /// Waits for a request for at most `timeout`, and answers it. Also blocks for as long as the
    /// handler runs, while the broker does not read, and for a direct reply until a connection is
    /// open and the broker has accepted the reply.
    ///
    /// The reply is written before the acknowledgement, so that the broker has the reply when it
    /// deletes the request. Both are written on one channel. A direct reply is written on another
    /// connection, and the request is acknowledged after the broker has accepted the reply. If a
    /// worker is lost before the acknowledgement, another worker gets the request.
    ///
    /// # Errors
    /// [`Error::Unreachable`](crate::Error::Unreachable) if the connection is lost or the queue was
    /// deleted, or if no connection for a direct reply could be made.
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
                let answered = self.answer(&request, handler);
                self.session.connection.recycle(request.delivery.message.body);
                answered.map(|()| Served::Request)
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
            if stop.is_stopped() && !inbox.has_last_requests() {
                return Ok(None);
            }
            if let Some(reason) = session.ended() {
                return Err(reason);
            }
            match inbox.take()? {
                None if !deadline.has_passed() => {
                    self.stall_detector.check(&self.channel);
                    // During an alarm, the broker does not answer a close.
                    if session.connection.blocked().is_none() {
                        self.state.replies.close_unused();
                    }
                }
                next => return Ok(next),
            }
        }
    }

    fn answer(
        &self,
        request: &Request,
        handler: impl FnOnce(&Request) -> Result<Reply, Failure>,
    ) -> Result<()> {
        let ServerState { counters, queue, replies, keep_alive, observer, .. } = &**self.state;
        let began = Instant::now();
        let properties = request.properties();
        let address = match wire::reply_address(&properties, queue) {
            Ok(address) => address,
            Err(why) => return self.reject(request, why),
        };
        let name =
            RequestName { address: &address, method: request.method(), trace: request.trace_id() };
        if request.redelivered() {
            lock(counters).redelivered += 1;
            log::info!("{name} is redelivered: another worker may have begun with it before");
        }
        lock(counters).in_progress += 1;
        let signs = keep_alive.begin(request, &address, &self.channel);
        let frame_max = self.session.connection.frame_max();
        let outcome = run(handler, request).and_then(|reply| sendable(reply, frame_max));
        let outcome = replies.limit.apply(outcome);
        drop(signs);
        let replied = self.reply(request, &address, &outcome);
        lock(counters).in_progress -= 1;
        if let ReplyOutcome::Undeliverable = replied? {
            return self.reject(request, "the broker fails on its reply_to");
        }
        // Sending the reply may have revealed the size limit.
        let outcome = replies.limit.apply(outcome);
        match outcome {
            Ok(_) => lock(counters).served += 1,
            Err(_) => lock(counters).failed += 1,
        }
        let (status, bytes_out) = match &outcome {
            Ok(reply) => ("OK", reply.body().len()),
            Err(failure) => (failure.status.name(), failure.message.len()),
        };
        let (time, bytes_in) = (began.elapsed(), request.body().len());
        log::debug!("{name}: {status}, {bytes_in} bytes in, {bytes_out} out, {time:?}");
        let method = request.method();
        observer.observe(|| Observation { queue, method, status, time, bytes_in, bytes_out });
        Ok(())
    }

    /// Writes the reply and the acknowledgement together, in that order.
    fn reply(
        &self,
        request: &Request,
        address: &ReplyAddress<'_>,
        outcome: &Result<Reply, Failure>,
    ) -> Result<ReplyOutcome> {
        let replies = &self.state.replies;
        let frames = if is_direct(address.reply_to) {
            let endpoint = &self.session.connection.endpoint;
            let mut sent = replies.send_direct(endpoint, address, outcome)?;
            if let ReplyOutcome::TooLarge = sent {
                let failure = replies.limit.apply(outcome.clone());
                sent = replies.send_direct(endpoint, address, &failure)?;
            }
            if let ReplyOutcome::Undeliverable = sent {
                return Ok(sent);
            }
            Frames::from(Vec::new())
        } else {
            let route = self.channel.route(address.reply_to, true);
            replies.encode(route, address, outcome)
        };
        self.write(frames.followed_by(&frames::ack(self.channel.number, request.delivery.tag)))?;
        Ok(ReplyOutcome::Sent)
    }

    /// Removes a request that cannot be answered from the queue.
    fn reject(&self, request: &Request, why: &str) -> Result<()> {
        lock(&self.state.counters).rejected += 1;
        log::warn!("rejected a request of {} bytes: {why}", request.body().len());
        self.write(frames::reject(self.channel.number, request.delivery.tag).into())
    }

    /// Blocks while the broker does not read. If the broker is silent for two heartbeats, the
    /// connection is lost.
    fn write(&self, frames: Frames<'_>) -> Result<()> {
        let never = Deadline::after(Duration::MAX);
        self.channel.write(frames, never.at).map_err(|_| {
            let reason = self.inbox.take().err().or_else(|| self.session.ended());
            let endpoint = &self.session.connection.endpoint;
            reason.unwrap_or_else(|| endpoint.unreachable("the connection is gone"))
        })
    }
}

impl fmt::Debug for Worker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("queue", &self.state.queue).finish_non_exhaustive()
    }
}

/// Runs the handler. If it panics, the requester gets `INTERNAL`, without the text of the panic.
fn run(
    handler: impl FnOnce(&Request) -> Result<Reply, Failure>,
    request: &Request,
) -> Result<Reply, Failure> {
    catch_unwind(AssertUnwindSafe(|| handler(request))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        log::error!("the handler panicked: {text}");
        Err(Failure::new(Status::Internal, "the server failed on this request"))
    })
}

/// Replaces a reply that AMQP cannot carry by the failure `INTERNAL`.
fn sendable(reply: Reply, frame_max: usize) -> Result<Reply, Failure> {
    reply.check(frame_max).map(|()| reply).map_err(|error| {
        log::error!("a reply cannot be sent: {error}");
        Failure::new(Status::Internal, format!("the reply cannot be sent: {error}"))
    })
}

/// Formats a request for the log: its correlation id, and its method and trace id if it has them.
struct RequestName<'a> {
    address: &'a ReplyAddress<'a>,
    method: Option<&'a str>,
    trace: Option<&'a str>,
}

impl fmt::Display for RequestName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.address.correlation_id.unwrap_or(b"without id");
        write!(f, "request {}", id.escape_ascii())?;
        self.method.map_or(Ok(()), |method| write!(f, " to {method:?}"))?;
        self.trace.map_or(Ok(()), |trace| write!(f, " (trace {trace})"))
    }
}
