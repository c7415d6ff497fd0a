//! One worker: one channel, one request at a time.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use amiquip::{Consumer, ConsumerOptions};

use super::Shared;
use super::counters::add;
use super::direct::{self, ReplyOutcome};
use super::inbox::ChannelEnd;
use super::worker_pool::Assignment;
use crate::broker::{CLOSING, WriteError, reason};
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result, Status};
use crate::frames::{self, Delivery};
use crate::wire::{self, ReplyAddress, Route};

/// Takes requests from the queue and answers them, on the thread that it was made on. Dropping
/// it gives back the requests that it holds and has not answered.
pub struct Worker<'a> {
    shared: &'a Shared,
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
    /// may take.
    pub(crate) fn begin(
        shared: &'a Shared,
        assignment: &'a Assignment,
    ) -> Result<Worker<'a>, StopReason> {
        let Assignment { endpoint, data_plane, channel, .. } = assignment;
        let _limit = data_plane.time_limit(shared.brokers.connect_timeout);
        let begun = channel.qos(0, shared.options.prefetch, false).and_then(|()| {
            channel.basic_consume(shared.queue.as_str(), ConsumerOptions::default())
        });
        match begun {
            Ok(consumer) => {
                Ok(Worker { shared, assignment, channel_id: channel.channel_id(), consumer })
            }
            Err(error) => {
                let explained = endpoint.explain(&error, "read from the request queue");
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
    pub fn serve_one<H>(&self, handler: H, timeout: Duration) -> Result<Served>
    where
        H: FnOnce(&[u8]) -> Result<Vec<u8>, Failure>,
    {
        let served = self.next(Deadline::after(timeout)).and_then(|delivery| match delivery {
            Some(delivery) => self.answer(delivery, handler).map(|()| Served::Request),
            None => Ok(Served::Nothing),
        });
        match served {
            Ok(served) => Ok(served),
            Err(StopReason::Stopped) => Ok(Served::Stopped),
            Err(StopReason::Channel(error) | StopReason::Connection(error)) => Err(error),
        }
    }

    /// Serves until there is a reason not to.
    pub(crate) fn serve<H>(&self, handler: &H) -> StopReason
    where
        H: Fn(&[u8]) -> Result<Vec<u8>, Failure>,
    {
        let never = Deadline::after(Duration::MAX);
        loop {
            let delivery = match self.next(never) {
                Ok(Some(delivery)) => delivery,
                Ok(None) => continue,
                Err(reason) => return reason,
            };
            if let Err(reason) = self.answer(delivery, handler) {
                return reason;
            }
        }
    }

    fn next(&self, deadline: Deadline) -> Result<Option<Delivery>, StopReason> {
        let Assignment { data_plane, inbox, .. } = self.assignment;
        let stopper = &self.shared.stopper;
        let is_ready = || inbox.is_ready() || stopper.is_stopped();
        data_plane.wait(&inbox.waiter, deadline.at, is_ready);
        if stopper.is_stopped() {
            return Err(StopReason::Stopped);
        }
        match inbox.take() {
            Err(end) => Err(self.channel_ended(end)),
            Ok(None) if data_plane.ended().is_some() => Err(self.connection_ended()),
            Ok(delivery) => Ok(delivery),
        }
    }

    fn answer<H>(&self, delivery: Delivery, handler: H) -> Result<(), StopReason>
    where
        H: FnOnce(&[u8]) -> Result<Vec<u8>, Failure>,
    {
        let counters = &self.shared.counters;
        let began = Instant::now();
        if delivery.redelivered {
            add(&counters.redelivered);
            log::info!("a request comes again: whoever had it before may have begun with it");
        }
        let body = &delivery.message.body;
        let address = match wire::reply_address(&delivery.message.properties(), &self.shared.queue)
        {
            Ok(address) => address,
            Err(why) => return self.reject(&delivery, why),
        };
        let in_progress = counters.begin();
        let outcome = self.shared.reply_limit.apply(run(handler, body));
        let (status, count) = match &outcome {
            Ok(_) => ("OK", &counters.served),
            Err(failure) => (failure.status.name(), &counters.failed),
        };
        if let ReplyOutcome::Undeliverable = self.reply(&address, &outcome, delivery.tag)? {
            return self.reject(&delivery, "the broker fails on its reply_to");
        }
        drop(in_progress);
        add(count);
        log::debug!(
            "request {}: {status}, {} bytes in, {} out, {:?}",
            address.correlation_id.unwrap_or("without id"),
            body.len(),
            outcome.map_or_else(|failure| failure.message.len(), |body| body.len()),
            began.elapsed()
        );
        Ok(())
    }

    /// Reply and acknowledgement go out together, in that order.
    fn reply(
        &self,
        address: &ReplyAddress<'_>,
        outcome: &Result<Vec<u8>, Failure>,
        delivery_tag: u64,
    ) -> Result<ReplyOutcome, StopReason> {
        let Shared { brokers, app_id, direct, reply_limit, .. } = self.shared;
        let encode = |route: Route<'_>, outcome: &_| {
            wire::encode_reply(route, address.correlation_id, app_id, outcome)
        };
        let mut frames = Vec::new();
        if direct::is_direct(address.reply_to) {
            let send = |outcome| {
                direct
                    .send(brokers, reply_limit, address.reply_to, |route| encode(route, outcome))
                    .map_err(StopReason::Channel)
            };
            let sent = match send(outcome)? {
                ReplyOutcome::TooLarge => send(&reply_limit.apply(outcome.clone()))?,
                sent => sent,
            };
            if let ReplyOutcome::Undeliverable = sent {
                return Ok(sent);
            }
        } else {
            let route = Route {
                channel: self.channel_id,
                queue: address.reply_to,
                mandatory: true,
                frame_max: self.assignment.data_plane.frame_max(),
            };
            frames = encode(route, outcome);
        }
        frames::ack(&mut frames, self.channel_id, delivery_tag);
        self.write(&frames)?;
        Ok(ReplyOutcome::Sent)
    }

    /// Takes a request that cannot be answered off the queue, for good.
    fn reject(&self, delivery: &Delivery, why: &str) -> Result<(), StopReason> {
        add(&self.shared.counters.rejected);
        log::warn!("rejected a request of {} bytes: {why}", delivery.message.body.len());
        let mut frames = Vec::new();
        frames::reject(&mut frames, self.channel_id, delivery.tag);
        self.write(&frames)
    }

    /// Blocks while the broker does not read. When it has been silent for two heartbeats, the
    /// connection is lost.
    fn write(&self, frames: &[u8]) -> Result<(), StopReason> {
        let Assignment { data_plane, inbox, .. } = self.assignment;
        let never = Deadline::after(Duration::MAX);
        match data_plane.write(self.channel_id, frames, never.at) {
            Ok(()) => Ok(()),
            Err(WriteError::ChannelClosed) => Err(match inbox.take() {
                Err(end) => self.channel_ended(end),
                Ok(_) => self.connection_ended(),
            }),
            Err(WriteError::Disconnected | WriteError::TimedOut { .. }) => {
                // Whoever reads is about to learn why.
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
            let _ = data_plane.write(self.channel_id, &frames, Instant::now() + CLOSING);
        }
    }
}

impl fmt::Debug for Worker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("queue", &self.shared.queue).finish_non_exhaustive()
    }
}

/// A handler's panic is its server's failure: the requester is told no more than that.
fn run<H>(handler: H, request: &[u8]) -> Result<Vec<u8>, Failure>
where
    H: FnOnce(&[u8]) -> Result<Vec<u8>, Failure>,
{
    catch_unwind(AssertUnwindSafe(|| handler(request))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        log::error!("the handler panicked: {text}");
        Err(Failure::new(Status::Internal, "the server failed on this request"))
    })
}
