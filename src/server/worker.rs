//! One worker: one channel, one request at a time.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use amiquip::{Channel, Consumer, ConsumerMessage, ConsumerOptions, Delivery, Return};
use crossbeam_channel::{Receiver, TryRecvError, select};

use super::Shared;
use super::counters::add;
use super::direct::{self, Fate};
use crate::broker::{Endpoint, Line, reason};
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result, Status};
use crate::frames;
use crate::wire::{self, ReplyAddress, Way};

/// Takes requests from the queue and answers them, on the thread that it was made on. Dropping
/// it gives back the requests that it holds and has not answered.
pub struct Worker<'a> {
    shared: &'a Shared,
    endpoint: &'a Endpoint,
    line: &'a Line,
    channel: &'a Channel,
    channel_id: u16,
    consumer: Consumer<'a>,
    returns: Receiver<Return>,
}

/// Why a worker does not go on.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It was told to.
    Stopped,
    /// The broker closed its channel; the connection may still be good.
    Channel(Error),
    Connection(Error),
}

impl<'a> Worker<'a> {
    /// Begins to consume. Blocks until the broker answers.
    pub(crate) fn begin(
        shared: &'a Shared,
        endpoint: &'a Endpoint,
        line: &'a Line,
        channel: &'a Channel,
    ) -> Result<Worker<'a>, Halt> {
        let refused = |error| Halt::after(&error, endpoint, READ);
        channel.qos(0, shared.options.prefetch, false).map_err(refused)?;
        let returns = channel.listen_for_returns().map_err(refused)?;
        let consumer = channel.basic_consume(shared.queue.as_str(), ConsumerOptions::default());
        let consumer = consumer.map_err(refused)?;
        let channel_id = channel.channel_id();
        Ok(Worker { shared, endpoint, line, channel, channel_id, consumer, returns })
    }

    /// Waits for a request for at most `timeout`, and answers it. False if none came, or if the
    /// server is to stop. Blocks for as long as the handler takes, besides.
    ///
    /// The reply goes out before the acknowledgement, on one channel, so that the broker has the
    /// reply when it forgets the request. Whoever dies in between leaves the request to another.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the connection is lost.
    pub fn serve_one<H>(&self, handler: H, timeout: Duration) -> Result<bool>
    where
        H: FnOnce(&[u8]) -> Result<Vec<u8>, Failure>,
    {
        match self.next(Deadline::after(timeout)).and_then(|delivery| match delivery {
            Some(delivery) => self.answer(delivery, handler).map(|()| true),
            None => Ok(false),
        }) {
            Ok(served) => Ok(served),
            Err(Halt::Stopped) => Ok(false),
            Err(Halt::Channel(error) | Halt::Connection(error)) => Err(error),
        }
    }

    /// Serves until there is a reason not to.
    pub(crate) fn serve<H>(&self, handler: &H) -> Halt
    where
        H: Fn(&[u8]) -> Result<Vec<u8>, Failure>,
    {
        let for_ever = Deadline::after(Duration::MAX);
        loop {
            let delivery = match self.next(for_ever) {
                Ok(Some(delivery)) => delivery,
                Ok(None) => continue,
                Err(halt) => return halt,
            };
            if let Err(halt) = self.answer(delivery, handler) {
                return halt;
            }
        }
    }

    fn next(&self, deadline: Deadline) -> Result<Option<Delivery>, Halt> {
        let stop = &self.shared.stopper;
        loop {
            if stop.is_stopped() {
                return Err(Halt::Stopped);
            }
            select! {
                recv(self.consumer.receiver()) -> message => return match message {
                    Ok(ConsumerMessage::Delivery(delivery)) => Ok(Some(delivery)),
                    Ok(other) => Err(self.halt_by(&other)),
                    Err(_) => Err(Halt::Connection(self.endpoint.unreachable("it is gone"))),
                },
                recv(self.returns) -> returned => match returned {
                    Ok(returned) => self.note_return(&returned.reply_text),
                    Err(_) => return Err(self.halt_of_the_channel()),
                },
                recv(stop.signal()) -> _ => return Err(Halt::Stopped),
                default(deadline.remaining()) => return Ok(None),
            }
        }
    }

    fn answer<H>(&self, delivery: Delivery, handler: H) -> Result<(), Halt>
    where
        H: FnOnce(&[u8]) -> Result<Vec<u8>, Failure>,
    {
        let counters = &self.shared.counters;
        let began = Instant::now();
        if delivery.redelivered {
            add(&counters.redelivered);
            log::info!("a request comes again: whoever had it before may have begun with it");
        }
        let address = match wire::reply_address(&delivery.properties, &self.shared.queue) {
            Ok(address) => address,
            Err(why) => return self.reject(delivery, why),
        };
        let in_progress = counters.begin();
        let outcome = self.shared.reply_limit.apply(run(handler, &delivery.body));
        let (status, count) = match &outcome {
            Ok(_) => ("OK", &counters.served),
            Err(failure) => (failure.status.name(), &counters.failed),
        };
        if let Fate::Undeliverable = self.reply(&address, &outcome, delivery.delivery_tag())? {
            return self.reject(delivery, "the broker fails on its reply_to");
        }
        drop(in_progress);
        add(count);
        log::debug!(
            "request {}: {status}, {} bytes in, {} out, {:?}",
            address.correlation_id.as_deref().unwrap_or("without id"),
            delivery.body.len(),
            outcome.map_or_else(|failure| failure.message.len(), |body| body.len()),
            began.elapsed()
        );
        Ok(())
    }

    /// Reply and acknowledgement go out together, in that order.
    fn reply(
        &self,
        address: &ReplyAddress,
        outcome: &Result<Vec<u8>, Failure>,
        delivery_tag: u64,
    ) -> Result<Fate, Halt> {
        // What the broker gets on a channel that it has closed ends the whole connection.
        self.note_returns()?;
        let Shared { brokers, app_id, direct, .. } = self.shared;
        let encode = |way: Way<'_>| {
            wire::encode_reply(way, address.correlation_id.as_deref(), app_id, outcome)
        };
        let mut frames = Vec::new();
        if direct::is_direct(&address.reply_to) {
            match direct.send(brokers, &address.reply_to, encode).map_err(Halt::Channel)? {
                Fate::Sent => {}
                Fate::Undeliverable => return Ok(Fate::Undeliverable),
            }
        } else {
            frames = encode(Way {
                channel: self.channel_id,
                queue: &address.reply_to,
                mandatory: true,
                frame_max: self.line.frame_max(),
            });
        }
        frames::ack(&mut frames, self.channel_id, delivery_tag);
        // A broker that does not read is lost by its heartbeat; then the line is cut.
        let for_ever = Deadline::after(Duration::MAX);
        match self.line.write(&frames, for_ever.at) {
            Ok(()) => Ok(Fate::Sent),
            Err(_) => Err(Halt::Connection(self.endpoint.unreachable("the connection is gone"))),
        }
    }

    /// Takes note of the replies that have come back, unless the broker has closed the channel.
    fn note_returns(&self) -> Result<(), Halt> {
        loop {
            match self.returns.try_recv() {
                Ok(returned) => self.note_return(&returned.reply_text),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(self.halt_of_the_channel()),
            }
        }
    }

    /// Takes a request that cannot be answered off the queue, for good.
    fn reject(&self, delivery: Delivery, why: &str) -> Result<(), Halt> {
        add(&self.shared.counters.rejected);
        log::warn!("rejected a request of {} bytes: {why}", delivery.body.len());
        let rejected = self.consumer.reject(delivery, false);
        rejected.map_err(|error| Halt::after(&error, self.endpoint, READ))
    }

    fn note_return(&self, why: &str) {
        add(&self.shared.counters.returned);
        log::info!("a reply came back: its requester is gone ({why})");
    }

    /// The broker closed the channel; whatever is tried on it tells why.
    fn halt_of_the_channel(&self) -> Halt {
        match self.channel.listen_for_returns() {
            Err(error) => self.halt_after(&error),
            Ok(_) => Halt::Channel(self.endpoint.unreachable("the channel is gone")),
        }
    }

    /// After a message to the consumer that is no delivery.
    fn halt_by(&self, message: &ConsumerMessage) -> Halt {
        let unreachable = |reason| self.endpoint.unreachable(reason);
        match message {
            ConsumerMessage::ServerCancelled => {
                Halt::Channel(unreachable("the request queue was deleted"))
            }
            ConsumerMessage::ServerClosedChannel(error)
            | ConsumerMessage::ServerClosedConnection(error) => self.halt_after(error),
            _ => Halt::Connection(unreachable("the connection was closed")),
        }
    }

    fn halt_after(&self, error: &amiquip::Error) -> Halt {
        self.shared.reply_limit.learn(error);
        Halt::after(error, self.endpoint, ANSWER)
    }
}

impl Drop for Worker<'_> {
    /// amiquip takes the whole connection down when it has a message for a consumer that is
    /// gone. So: cancel, then take everything up to the last message.
    fn drop(&mut self) {
        if let Err(error) = self.consumer.cancel() {
            log::debug!("a worker leaves: {}", reason(&error));
        }
        for message in self.consumer.receiver() {
            if let ConsumerMessage::Delivery(delivery) = message {
                let _ = self.consumer.nack(delivery, true);
            }
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

impl Halt {
    /// After an error of the channel, while it was `doing` that.
    fn after(error: &amiquip::Error, endpoint: &Endpoint, doing: &str) -> Halt {
        let explained = endpoint.explain(error, doing);
        match error {
            amiquip::Error::ServerClosedChannel { .. } => Halt::Channel(explained),
            _ => Halt::Connection(explained),
        }
    }
}

const READ: &str = "read from the request queue";
/// Takes the permission to write to the default exchange.
const ANSWER: &str = "answer requests";
