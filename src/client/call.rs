//! One call: sent, waited for, and sent again where that is allowed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::reconnector::Reconnector;
use super::session::InFlight;
use crate::deadline::Deadline;
use crate::error::{Error, Result};

/// A call whose reply is still to come: what [`RpcClient::send`](super::RpcClient::send) returns.
///
/// Dropping it gives the call up: the request may still be executed, its reply is thrown away.
/// It keeps nothing of the client alive: once that is closed, waiting ends with
/// [`Error::Closed`].
#[must_use = "dropping it gives the call up"]
pub struct PendingReply {
    reconnector: Arc<Reconnector>,
    body: Vec<u8>,
    message_id: Uuid,
    deadline: Deadline,
    /// Why the connection was lost through which it was sent before, if it was.
    lost: Option<String>,
    state: CallState,
}

const ALREADY_DONE: &str =
    "this call is over: its reply or its error has been returned already; make another call";

enum CallState {
    /// To be sent, for the first time or again.
    Unsent,
    InFlight(InFlight),
    Done,
}

impl PendingReply {
    pub(crate) fn send(
        reconnector: &Arc<Reconnector>,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<PendingReply> {
        reconnector.config.counters.calls.fetch_add(1, Ordering::Relaxed);
        let mut call = PendingReply {
            reconnector: Arc::clone(reconnector),
            body,
            message_id: Uuid::new_v4(),
            deadline: Deadline::after(timeout),
            lost: None,
            state: CallState::Unsent,
        };
        call.send_until(call.deadline).inspect_err(|error| reconnector.count(error))?;
        Ok(call)
    }

    /// Waits for the reply until the call's deadline.
    ///
    /// # Errors
    /// See [`RpcClient::call`](super::RpcClient::call).
    pub fn wait(mut self) -> Result<Vec<u8>> {
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
        self.wait_until(Deadline::after(timeout).at)
    }

    /// The reply if it has come already. Does not block but for some 200 ms at the call's deadline,
    /// to ask the broker why there is none.
    ///
    /// # Errors
    /// As [`PendingReply::wait_timeout`].
    pub fn try_wait(&mut self) -> Result<Option<Vec<u8>>> {
        self.wait_until(Instant::now())
    }

    fn wait_until(&mut self, until: Instant) -> Result<Option<Vec<u8>>> {
        let ended = self.poll_until(until.min(self.deadline.at));
        if let Err(error) = &ended {
            self.reconnector.count(error);
        }
        if !matches!(ended, Ok(None)) {
            self.state = CallState::Done;
        }
        ended.map_err(|error| self.in_hindsight(error))
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

    fn poll_until(&mut self, until: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            let in_flight = match &self.state {
                CallState::Done => return Err(Error::Config(ALREADY_DONE.into())),
                CallState::InFlight(in_flight) => in_flight,
                CallState::Unsent => {
                    match self.send_until(Deadline { at: until, ..self.deadline }) {
                        Ok(()) => continue,
                        // Only this wait is over, not the call: it goes out in the next one.
                        Err(
                            Error::Unreachable { .. }
                            | Error::Blocked { .. }
                            | Error::TimedOut { .. },
                        ) if until < self.deadline.at && until <= Instant::now() => {
                            return Ok(None);
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            match in_flight.wait(until) {
                Some(Err(Error::ConnectionLost { reason }))
                    if in_flight.session.may_send_again() && !self.deadline.has_passed() =>
                {
                    log::info!("sending request {} again: {reason}", self.message_id);
                    self.lost = Some(reason);
                    self.state = CallState::Unsent;
                }
                Some(outcome) => return outcome.map(Some),
                None if until < self.deadline.at => return Ok(None),
                None => {
                    let error = in_flight.session.explain_silence(self.deadline);
                    // It may have come while the broker was asked.
                    return in_flight.wait(Instant::now()).unwrap_or(Err(error)).map(Some);
                }
            }
        }
    }

    /// Gets the request out until `limit`, through one session after the other if need be. The
    /// request always carries the deadline of the whole call.
    fn send_until(&mut self, limit: Deadline) -> Result<()> {
        while let CallState::Unsent = self.state {
            let session = self.reconnector.session(limit)?;
            if let Some(in_flight) =
                session.publish(&self.body, self.message_id, limit, self.deadline)?
            {
                self.state = CallState::InFlight(in_flight);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReply")
            .field("queue", &self.reconnector.config.queue)
            .field("message_id", &self.message_id)
            .finish_non_exhaustive()
    }
}
