//! One worker: one channel, one request at a time.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{Consumer, ConsumerOptions};

use super::Shared;
use super::counters::add;
use super::direct::{self, ReplyOutcome};
use super::inbox::ChannelEnd;
use super::keep_alive::KeepAlive;
use super::worker_pool::Assignment;
use crate::broker::{CLOSING, WriteError, explain, reason};
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result, Status};
use crate::frames::{self, Frames};
use crate::observation::Observation;
use crate::wire::{self, Reply, ReplyAddress, Request, Route};

/// Takes requests from the queue and answers them, on the thread that it was made on. Dropping
/// it gives back the requests that it holds and has not answered.
pub struct Worker<'a> {
    shared: &'a Arc<Shared>,
    assignment: &'a Assignment,
    channel_id: u16,
    consumer: Consumer<'a>,
}

/// What came of [`Worker::serve_one`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A request was taken and answered.
    Request,
    /// None came in time.
    Nothing,
    /// The server is to stop: no further request will be taken.
    Stopped,
}

/// Why a worker does not go on.
#[derive(Debug)]
pub(crate) enum StopReason {
    /// It was told to.
    Stopped,
    /// The broker closed its channel; the connection may still be good.
    Channel(Error),
    Connection(Error),
}

impl<'a> Worker<'a> {
    /// Begins to consume. Blocks until the broker answers, for at most the time that connecting
    /// may take, or until 5 s after an alarm that another worker's reply has met.
    pub(crate) fn begin(
        shared: &'a Arc<Shared>,
        assignment: &'a Assignment,
    ) -> Result<Worker<'a>, StopReason> {
        let Assignment { endpoint, data_plane, channel, .. } = assignment;
        let _limit = data_plane.time_limit_unless_blocked(shared.brokers.connect_timeout);
        let begun = channel.qos(0, shared.options.prefetch, false).and_then(|()| {
            channel.basic_consume(shared.queue.as_str(), ConsumerOptions::default())
        });
        match begun {
            Ok(consumer) => {
                Ok(Worker { shared, assignment, channel_id: channel.channel_id(), consumer })
            }
            Err(error) => {
                let explained =
                    explain(endpoint, data_plane, &error, "read from the request queue");
                Err(match error {
                    amiquip::Error::ServerClosedChannel { .. } => StopReason::Channel(explained),
                    _ => StopReason::Connection(explained),
                })
            }
        }
    }

    /// Waits for a request for at most `timeout`, and answers it. Blocks for as long as the handler
    /// takes, besides.
    ///
    /// The reply goes out before the acknowledgement, on one channel, so that the broker has the
    /// reply when it forgets the request. A worker that dies in between leaves the request to
    /// another.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the connection is lost.
    pub fn serve_one<H, R>(&self, handler: H, timeout: Duration) -> Result<Served>
    where
        H: FnOnce(&Request) -> Result<R, Failure>,
        R: Into<Reply>,
    {
        let served = self.next(Deadline::after(timeout)).and_then(|next| match next {
            Some((tag, request)) => self.answer(tag, &request, handler).map(|()| Served::Request),
            None => Ok(Served::Nothing),
        });
        match served {
            Ok(served) => Ok(served),
            Err(StopReason::Stopped) => Ok(Served::Stopped),
            Err(StopReason::Channel(error) | StopReason::Connection(error)) => Err(error),
        }
    }

    /// Serves until there is a reason not to.
    pub(crate) fn serve<H, R>(&self, handler: &H) -> StopReason
    where
        H: Fn(&Request) -> Result<R, Failure>,
        R: Into<Reply>,
    {
        let never = Deadline::after(Duration::MAX);
        loop {
            let served = match self.next(never) {
                Ok(Some((tag, request))) => self.answer(tag, &request, handler),
                Ok(None) => continue,
                Err(reason) => return reason,
            };
            if let Err(reason) = served {
                return reason;
            }
        }
    }

    /// The next request, with its delivery tag.
    fn next(&self, deadline: Deadline) -> Result<Option<(u64, Request)>, StopReason> {
        let Assignment { data_plane, inbox, .. } = self.assignment;
        let stop = &self.shared.stop;
        let is_ready = || inbox.is_ready() || stop.is_stopped();
        data_plane.wait(&inbox.waiter, deadline.at, is_ready);
        if stop.is_stopped() {
            return Err(StopReason::Stopped);
        }
        match inbox.take() {
            Err(end) => Err(self.channel_ended(end)),
            Ok(None) if data_plane.ended().is_some() => Err(self.connection_ended()),
            Ok(next) => Ok(next),
        }
    }

    fn answer<H, R>(&self, tag: u64, request: &Request, handler: H) -> Result<(), StopReason>
    where
        H: FnOnce(&Request) -> Result<R, Failure>,
        R: Into<Reply>,
    {
        let Shared { counters, queue, reply_limit, observer, .. } = &**self.shared;
        let Assignment { data_plane, .. } = self.assignment;
        let began = Instant::now();
        let properties = request.properties();
        let address = match wire::reply_address(&properties, queue) {
            Ok(address) => address,
            Err(why) => return self.reject(tag, request, why),
        };
        let name = RequestName(&address, request.trace_id());
        if request.redelivered() {
            add(&counters.redelivered);
            log::info!("{name} is redelivered: another worker may have begun with it before");
        }
        let in_progress = counters.begin();
        let signs = KeepAlive::begin(self.shared, request, &address, self.channel_id, data_plane);
        let outcome = reply_limit.apply(sendable(run(handler, request), data_plane.frame_max()));
        drop(signs);
        if let ReplyOutcome::Undeliverable = self.reply(&address, &outcome, tag)? {
            return self.reject(tag, request, "the broker fails on its reply_to");
        }
        drop(in_progress);
        // Replying may have taught the limit.
        let outcome = reply_limit.apply(outcome);
        let (status, count) = match &outcome {
            Ok(_) => ("OK", &counters.served),
            Err(failure) => (failure.status.name(), &counters.failed),
        };
        add(count);
        let time = began.elapsed();
        let bytes_in = request.body().len();
        let bytes_out =
            outcome.map_or_else(|failure| failure.message.len(), |reply| reply.body().len());
        log::debug!("{name}: {status}, {bytes_in} bytes in, {bytes_out} out, {time:?}");
        observer.observe(|| Observation { queue, status, time, bytes_in, bytes_out });
        Ok(())
    }

    /// Reply and acknowledgement go out together, in that order.
    fn reply(
        &self,
        address: &ReplyAddress<'_>,
        outcome: &Result<Reply, Failure>,
        delivery_tag: u64,
    ) -> Result<ReplyOutcome, StopReason> {
        let Shared { brokers, app_id, direct, reply_limit, .. } = &**self.shared;
        let id = address.correlation_id;
        let frames = if direct::is_direct(address.reply_to) {
            let send = |outcome| {
                let encode = |route: Route<'_>| wire::encode_reply(route, id, app_id, outcome);
                let sent = direct.send(brokers, reply_limit, address.reply_to, encode);
                sent.map_err(StopReason::Channel)
            };
            let sent = match send(outcome)? {
                ReplyOutcome::TooLarge => send(&reply_limit.apply(outcome.clone()))?,
                sent => sent,
            };
            if let ReplyOutcome::Undeliverable = sent {
                return Ok(sent);
            }
            Frames::from(Vec::new())
        } else {
            let route = Route {
                channel: self.channel_id,
                queue: address.reply_to,
                mandatory: true,
                frame_max: self.assignment.data_plane.frame_max(),
            };
            wire::encode_reply(route, id, app_id, outcome)
        };
        self.write(frames.then(|out| frames::ack(out, self.channel_id, delivery_tag)))?;
        Ok(ReplyOutcome::Sent)
    }

    /// Takes a request that cannot be answered off the queue, for good.
    fn reject(&self, tag: u64, request: &Request, why: &str) -> Result<(), StopReason> {
        add(&self.shared.counters.rejected);
        log::warn!("rejected a request of {} bytes: {why}", request.body().len());
        let mut frames = Vec::new();
        frames::reject(&mut frames, self.channel_id, tag);
        self.write(frames.into())
    }

    /// Blocks while the broker does not read. When it has been silent for two heartbeats, the
    /// connection is lost.
    fn write(&self, frames: Frames<'_>) -> Result<(), StopReason> {
        let Assignment { data_plane, inbox, .. } = self.assignment;
        let never = Deadline::after(Duration::MAX);
        match data_plane.write(self.channel_id, frames, never.at) {
            Ok(()) => Ok(()),
            Err(WriteError::ChannelClosed) => Err(match inbox.take() {
                Err(end) => self.channel_ended(end),
                Ok(_) => self.connection_ended(),
            }),
            Err(WriteError::Disconnected | WriteError::TimedOut { .. }) => {
                // The reading thread learns why.
                data_plane.wait(&inbox.waiter, Instant::now() + CLOSING, || false);
                Err(self.connection_ended())
            }
        }
    }

    fn channel_ended(&self, end: ChannelEnd) -> StopReason {
        let endpoint = &self.assignment.endpoint;
        StopReason::Channel(match end {
            // Replies take the permission to write to the default exchange.
            ChannelEnd::Closed(close) => endpoint.explain_close(&close, "answer requests"),
            ChannelEnd::Cancelled => endpoint.unreachable("the request queue was deleted"),
        })
    }

    fn connection_ended(&self) -> StopReason {
        let reason = self.assignment.data_plane.ended().unwrap_or("the connection is gone");
        StopReason::Connection(self.assignment.endpoint.unreachable(reason))
    }
}

impl Drop for Worker<'_> {
    /// Cancels the consumer, and has the broker give to others what this worker has not begun
    /// with. amiquip ends the connection when it has a message for a consumer that was dropped:
    /// everything up to the last message has to be received.
    fn drop(&mut self) {
        let Assignment { data_plane, inbox, .. } = self.assignment;
        let _limit = data_plane.time_limit(CLOSING);
        if let Err(error) = self.consumer.cancel() {
            log::debug!("a worker leaves: {}", reason(&error));
        }
        self.consumer.receiver().iter().for_each(drop);
        if let Some(last) = inbox.discard() {
            let mut frames = Vec::new();
            frames::nack(&mut frames, self.channel_id, last);
            // If it cannot be written, the broker gives them to others anyway.
            let _ = data_plane.write(self.channel_id, frames.into(), Instant::now() + CLOSING);
        }
    }
}

impl fmt::Debug for Worker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("queue", &self.shared.queue).finish_non_exhaustive()
    }
}

/// A handler's panic is its server's failure: the requester is told no more than that.
fn run<H, R>(handler: H, request: &Request) -> Result<Reply, Failure>
where
    H: FnOnce(&Request) -> Result<R, Failure>,
    R: Into<Reply>,
{
    let outcome = catch_unwind(AssertUnwindSafe(|| handler(request).map(R::into)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        log::error!("the handler panicked: {text}");
        Err(Failure::new(Status::Internal, "the server failed on this request"))
    })
}

/// A reply that AMQP has no room for is its server's failure too.
fn sendable(outcome: Result<Reply, Failure>, frame_max: usize) -> Result<Reply, Failure> {
    let reply = outcome?;
    match reply.check(frame_max) {
        Ok(()) => Ok(reply),
        Err(error) => {
            log::error!("a reply cannot be sent: {error}");
            Err(Failure::new(Status::Internal, format!("the reply cannot be sent: {error}")))
        }
    }
}

/// A request in the log: by its correlation id, and its trace id if it has one.
struct RequestName<'a>(&'a ReplyAddress<'a>, Option<&'a str>);

impl fmt::Display for RequestName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0.correlation_id.unwrap_or("without id"))?;
        self.1.map_or(Ok(()), |trace| write!(f, " (trace {trace})"))
    }
}
