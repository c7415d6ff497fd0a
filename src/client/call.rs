//! One call: sends it, waits for its reply, and sends it again if that is allowed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fmt, mem, thread};

use super::attempt::{EARLIER_CHECK_INTERVAL, InFlight, take_reply};
use super::local;
use super::request::{Outcome, OutgoingRequest, too_late};
use super::sessions::Sessions;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::observation::Observation;
use crate::wire::Reply;

/// A call whose reply has not come yet, as [`RpcClient::send`](super::RpcClient::send) returns it.
/// What it waits for, `T`, is the reply's body, unless the call decodes it.
///
/// Dropping it abandons the call: the request may still be executed, and its reply is discarded. It
/// does not keep the client's connection open. Once the client is closed, waiting ends with
/// [`Error::Closed`].
///
/// ```no_run
/// use std::time::Duration;
/// # use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
/// # let brokers = Brokers::parse("amqp://localhost")?;
/// # let client = RpcClient::connect(brokers, "upper_case", ClientOptions::default())?;
///
/// let mut pending = client.send("hello")?;
/// let reply = loop {
///     match pending.wait_timeout(Duration::from_secs(1))? {
///         Some(reply) => break reply,
///         None => println!("still waiting"),
///     }
/// };
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
#[must_use = "dropping it gives the call up"]
pub struct PendingReply<T = Vec<u8>> {
    sessions: Arc<Sessions>,
    request: OutgoingRequest,
    decode: fn(Reply) -> Result<T>,
    began: Instant,
    deadline: Deadline,
    /// `None` while the request is to be sent, for the first time or again.
    in_flight: Option<InFlight>,
    /// The outcome of a call that a local handler has answered.
    local: Option<Result<Reply>>,
    /// Whether the reply or the error has been returned.
    is_over: bool,
    /// Earlier attempts, which may still get a reply.
    earlier: Vec<InFlight>,
    /// Why an earlier attempt may have been executed; `None` if none can have been.
    lost: Option<String>,
    /// When to send it again, if its queue does not exist any more.
    send_at: Instant,
}

/// How long an idempotent call waits for a server to declare its queue again before it sends the
/// request again. If less than twice this time is left, the call ends.
const QUEUE_GONE_DELAY: Duration = Duration::from_millis(200);

const ALREADY_DONE: &str =
    "this call is over: its reply or its error has been returned already; make another call";

impl<T> PendingReply<T> {
    pub(super) fn send(
        sessions: &Arc<Sessions>,
        request: OutgoingRequest,
        timeout: Duration,
        decode: fn(Reply) -> Result<T>,
    ) -> Result<PendingReply<T>> {
        sessions.config.counters.calls.fetch_add(1, Ordering::Relaxed);
        let mut pending = PendingReply {
            sessions: Arc::clone(sessions),
            request,
            decode,
            began: Instant::now(),
            deadline: Deadline::after(timeout),
            in_flight: None,
            local: None,
            is_over: false,
            earlier: Vec::new(),
            lost: None,
            send_at: Instant::now(),
        };
        let sent = pending.send_until(pending.deadline);
        sent.inspect_err(|error| pending.ended(Err(error)))?;
        Ok(pending)
    }

    /// Waits for the reply until the call's deadline, and decodes it.
    ///
    /// # Errors
    /// See [`RpcClient::call`](super::RpcClient::call); [`Error::BadReply`] if it cannot be
    /// decoded.
    pub fn wait(self) -> Result<T> {
        let decode = self.decode;
        self.wait_reply().and_then(decode)
    }

    /// Waits for the reply until the call's deadline.
    ///
    /// # Errors
    /// See [`RpcClient::call`](super::RpcClient::call).
    pub fn wait_reply(mut self) -> Result<Reply> {
        let reply = self.wait_until(self.deadline.at)?;
        Ok(reply.expect("at its deadline a call has ended"))
    }

    /// Waits for the reply for at most `timeout`, but not beyond the call's deadline. Returns
    /// `None` if no reply has come by then; you may wait again. The call is over after a reply or
    /// an error.
    ///
    /// # Errors
    /// See [`PendingReply::wait`]; [`Error::Config`] if the call was over before.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<T>> {
        self.wait_until(Deadline::after(timeout).at)?.map(self.decode).transpose()
    }

    /// The reply, if it has come. Blocks only while it asks the broker about the queue, for some
    /// 200 ms: at the call's deadline, or if no sign of life comes in time; with several brokers,
    /// also from 3 s on without a reply, less and less often.
    ///
    /// # Errors
    /// As [`PendingReply::wait_timeout`].
    pub fn try_wait(&mut self) -> Result<Option<T>> {
        self.wait_timeout(Duration::ZERO)
    }

    fn wait_until(&mut self, until: Instant) -> Result<Option<Reply>> {
        if self.is_over {
            return Err(Error::Config(ALREADY_DONE.into()));
        }
        let outcome = self.poll_until(until.min(self.deadline.at));
        let outcome = outcome.map_err(|error| self.include_earlier_attempts(error));
        if let Some(ended) = outcome.as_ref().map(Option::as_ref).transpose() {
            self.ended(ended);
            self.is_over = true;
            if let Some(in_flight) = self.in_flight.take() {
                in_flight.session.connection.recycle(mem::take(&mut self.request.body));
            }
            self.earlier.clear();
        }
        outcome
    }

    /// If the call was sent before, an earlier attempt may have been executed. An error that rules
    /// this out for the last attempt is replaced by one that does not.
    fn include_earlier_attempts(&self, error: Error) -> Error {
        match &self.lost {
            Some(lost) if !error.may_have_executed() => {
                Error::ConnectionLost { reason: format!("{lost}; then {error}") }
            }
            _ => error,
        }
    }

    fn poll_until(&mut self, until: Instant) -> Result<Option<Reply>> {
        if let Some(outcome) = self.local.take() {
            return outcome.map(Some);
        }
        loop {
            let Some(in_flight) = &mut self.in_flight else {
                if let Some(outcome) = take_reply(&mut self.earlier) {
                    return outcome.map(Some);
                }
                thread::sleep(self.send_at.min(until).saturating_duration_since(Instant::now()));
                if until < self.send_at {
                    return Ok(None);
                }
                let step = match self.earlier.is_empty() {
                    true => until,
                    false => until.min(Instant::now() + EARLIER_CHECK_INTERVAL),
                };
                match self.send_until(Deadline { at: step, ..self.deadline }) {
                    Ok(()) => continue,
                    // Only this wait has ended, not the call. The next wait sends the request.
                    Err(
                        Error::Unreachable { .. } | Error::Blocked { .. } | Error::TimedOut { .. },
                    ) if step < self.deadline.at && step <= Instant::now() => match step < until {
                        true => continue,
                        false => return Ok(None),
                    },
                    Err(error) => return Err(error),
                }
            };
            let may_resend = self.request.is_idempotent && !self.deadline.has_passed();
            match in_flight.wait(&self.request, &mut self.earlier, until) {
                // Its reply may still come, unless its connection has ended.
                Some(Outcome::Lost(reason) | Outcome::MayBeLost(reason)) if may_resend => {
                    log::info!("sending request {:?} again: {reason}", self.request.message_id);
                    self.lost = Some(reason);
                    self.earlier.extend(self.in_flight.take());
                }
                Some(Outcome::Lost(reason)) => return Err(Error::ConnectionLost { reason }),
                Some(Outcome::Ignored) => self.in_flight = None,
                // The queue existed before, so a server will declare it again.
                Some(Outcome::Ended(Err(Error::Unroutable { .. })))
                    if may_resend
                        && (self.lost.is_some()
                            || self.request.queue.is_served.get().is_some())
                        && self.deadline.remaining() > 2 * QUEUE_GONE_DELAY =>
                {
                    self.in_flight = None;
                    self.send_at = self.deadline.at.min(Instant::now() + QUEUE_GONE_DELAY);
                }
                Some(Outcome::Ended(outcome)) => return outcome.map(Some),
                None if until < self.deadline.at => return Ok(None),
                // Too late to send it again.
                Some(Outcome::MayBeLost(_)) | None => {
                    let queue = &self.request.queue.name;
                    let error = in_flight.explain_silence(queue, self.deadline);
                    // The outcome may have arrived while the broker was asked.
                    return match in_flight.take_outcome(&mut self.earlier) {
                        Some(Outcome::Ended(outcome)) => outcome.map(Some),
                        Some(Outcome::Ignored) => Err(too_late(self.deadline)),
                        Some(Outcome::Lost(_) | Outcome::MayBeLost(_)) | None => Err(error),
                    };
                }
            }
        }
    }

    /// Sends the request until `limit`, through several sessions if necessary. The request always
    /// carries the deadline of the whole call.
    fn send_until(&mut self, limit: Deadline) -> Result<()> {
        let mut until = self.deadline;
        while self.in_flight.is_none() {
            if until.has_passed() {
                return Err(too_late(self.deadline));
            }
            if let Some(handler) = &self.sessions.local {
                let config = &self.sessions.config;
                self.local = Some(local::answer(handler, &self.request, config, self.deadline));
                return Ok(());
            }
            let session = self.sessions.session(limit)?;
            self.in_flight =
                InFlight::publish(session, &self.request, &self.earlier, limit, self.deadline)?;
            // Even if the time is up already, one session is tried.
            until = limit;
        }
        Ok(())
    }

    fn ended(&self, outcome: Result<&Reply, &Error>) {
        let config = &self.sessions.config;
        if let Ok(_) | Err(Error::Remote(_)) = outcome {
            let _ = self.request.queue.is_served.set(());
        }
        if let Err(Error::TimedOut { .. } | Error::Blocked { .. }) = outcome {
            config.counters.timed_out.fetch_add(1, Ordering::Relaxed);
        }
        config.observer.observe(|| Observation {
            queue: &self.request.queue.name,
            method: self.request.method.as_deref(),
            status: outcome.map_or_else(Error::kind, |_| "OK"),
            time: self.began.elapsed(),
            bytes_in: outcome.map_or(0, |reply| reply.body().len()),
            bytes_out: self.request.body.len(),
        });
    }
}

impl<T> fmt::Debug for PendingReply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReply")
            .field("queue", &self.request.queue.name)
            .field("message_id", &self.request.message_id)
            .finish_non_exhaustive()
    }
}
