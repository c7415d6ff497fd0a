//! One call: sent, waited for, and sent again where that is allowed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::reconnector::Reconnector;
use super::session::InFlight;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::observation::Observation;
use crate::wire::{Headers, Reply};

/// What is sent, and how.
pub(super) struct Call {
    pub(super) queue: Arc<str>,
    pub(super) body: Vec<u8>,
    /// A random UUID unless the caller gave one.
    pub(super) message_id: String,
    /// In place of the client's.
    pub(super) content_type: Option<String>,
    pub(super) headers: Headers,
    pub(super) keep_alive: Option<Duration>,
    pub(super) is_idempotent: bool,
}

/// What came back for a call.
pub(super) type Outcome = Result<Reply>;

/// A call whose reply is still to come: what [`RpcClient::send`](super::RpcClient::send) returns.
///
/// Dropping it gives the call up: the request may still be executed, its reply is thrown away.
/// It keeps nothing of the client alive: once that is closed, waiting ends with
/// [`Error::Closed`].
#[must_use = "dropping it gives the call up"]
pub struct PendingReply {
    reconnector: Arc<Reconnector>,
    call: Call,
    began: Instant,
    deadline: Deadline,
    /// Why the connection was lost through which it was sent before, if it was.
    lost: Option<String>,
    state: CallState,
}

enum CallState {
    /// To be sent, for the first time or again.
    Unsent,
    InFlight(InFlight),
    Done,
}

const ALREADY_DONE: &str =
    "this call is over: its reply or its error has been returned already; make another call";

impl PendingReply {
    pub(super) fn send(
        reconnector: &Arc<Reconnector>,
        call: Call,
        timeout: Duration,
    ) -> Result<PendingReply> {
        reconnector.config.counters.calls.fetch_add(1, Ordering::Relaxed);
        let mut pending = PendingReply {
            reconnector: Arc::clone(reconnector),
            call,
            began: Instant::now(),
            deadline: Deadline::after(timeout),
            lost: None,
            state: CallState::Unsent,
        };
        let sent = pending.send_until(pending.deadline);
        sent.inspect_err(|error| pending.ended(Err(error)))?;
        Ok(pending)
    }

    /// Waits for the body of the reply until the call's deadline.
    ///
    /// # Errors
    /// See [`RpcClient::call`](super::RpcClient::call).
    pub fn wait(self) -> Result<Vec<u8>> {
        self.wait_reply().map(Reply::into_body)
    }

    /// Waits for the reply until the call's deadline.
    ///
    /// # Errors
    /// See [`RpcClient::call`](super::RpcClient::call).
    pub fn wait_reply(mut self) -> Result<Reply> {
        let reply = self.wait_until(self.deadline.at)?;
        Ok(reply.expect("at its deadline a call has ended"))
    }

    /// Waits for the reply for at most `timeout`, and no longer than until the call's deadline.
    /// `None` if it has not come by then; it may then be waited for again. After a reply or an
    /// error the call is over.
    ///
    /// # Errors
    /// See [`RpcClient::call`](super::RpcClient::call); [`Error::Config`] if the call was over.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        Ok(self.wait_until(Deadline::after(timeout).at)?.map(Reply::into_body))
    }

    /// The reply if it has come already. Does not block but for some 200 ms at the call's deadline,
    /// to ask the broker why there is none.
    ///
    /// # Errors
    /// As [`PendingReply::wait_timeout`].
    pub fn try_wait(&mut self) -> Result<Option<Vec<u8>>> {
        self.wait_timeout(Duration::ZERO)
    }

    fn wait_until(&mut self, until: Instant) -> Result<Option<Reply>> {
        if let CallState::Done = self.state {
            return Err(Error::Config(ALREADY_DONE.into()));
        }
        let outcome = self.poll_until(until.min(self.deadline.at));
        let outcome = outcome.map_err(|error| self.in_hindsight(error));
        if let Some(ended) = outcome.as_ref().map(Option::as_ref).transpose() {
            self.ended(ended);
            self.state = CallState::Done;
        }
        outcome
    }

    /// A call that was sent before may have been executed then, whatever became of it now.
    fn in_hindsight(&self, error: Error) -> Error {
        match &self.lost {
            Some(lost) if !error.may_have_executed() => {
                Error::ConnectionLost { reason: format!("{lost}; then {error}") }
            }
            _ => error,
        }
    }

    fn poll_until(&mut self, until: Instant) -> Result<Option<Reply>> {
        loop {
            let CallState::InFlight(in_flight) = &mut self.state else {
                match self.send_until(Deadline { at: until, ..self.deadline }) {
                    Ok(()) => continue,
                    // Only this wait is over, not the call: it goes out in the next one.
                    Err(
                        Error::Unreachable { .. } | Error::Blocked { .. } | Error::TimedOut { .. },
                    ) if until < self.deadline.at && until <= Instant::now() => return Ok(None),
                    Err(error) => return Err(error),
                }
            };
            match in_flight.wait(until) {
                Some(Err(Error::ConnectionLost { reason }))
                    if self.call.is_idempotent
                        && !in_flight.session.rejected_a_request()
                        && !self.deadline.has_passed() =>
                {
                    log::info!("sending request {} again: {reason}", self.call.message_id);
                    self.lost = Some(reason);
                    self.state = CallState::Unsent;
                }
                Some(outcome) => return outcome.map(Some),
                None if until < self.deadline.at => return Ok(None),
                None => {
                    let session = &in_flight.session;
                    let error = session.explain_silence(&self.call.queue, self.deadline);
                    // It may have come while the broker was asked.
                    return in_flight.take_outcome().unwrap_or(Err(error)).map(Some);
                }
            }
        }
    }

    /// Gets the request out until `limit`, through one session after the other if need be. The
    /// request always carries the deadline of the whole call.
    fn send_until(&mut self, limit: Deadline) -> Result<()> {
        while let CallState::Unsent = self.state {
            if self.deadline.has_passed() {
                let what = "the time was up before the request could be sent".into();
                return Err(Error::TimedOut { what, after: self.deadline.timeout, sent: false });
            }
            let session = self.reconnector.session(limit)?;
            if let Some(in_flight) = session.publish(&self.call, limit, self.deadline)? {
                self.state = CallState::InFlight(in_flight);
            }
        }
        Ok(())
    }

    fn ended(&self, outcome: Result<&Reply, &Error>) {
        let config = &self.reconnector.config;
        if let Err(Error::TimedOut { .. } | Error::Blocked { .. }) = outcome {
            config.counters.timed_out.fetch_add(1, Ordering::Relaxed);
        }
        config.observer.observe(|| Observation {
            queue: &self.call.queue,
            status: outcome.map_or_else(Error::kind, |_| "OK"),
            time: self.began.elapsed(),
            bytes_in: outcome.map_or(0, |reply| reply.body().len()),
            bytes_out: self.call.body.len(),
        });
    }
}

impl fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReply")
            .field("queue", &self.call.queue)
            .field("message_id", &self.call.message_id)
            .finish_non_exhaustive()
    }
}
