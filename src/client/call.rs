//! One call: sent, waited for, and sent again where that is allowed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::link::Link;
use super::session::Flight;
use crate::deadline::Deadline;
use crate::error::{Error, Result};

/// A call whose reply is still to come: what [`RpcClient::send`](super::RpcClient::send) returns.
///
/// Dropping it gives the call up: the request may still be executed, its reply is thrown away.
/// It keeps nothing of the client alive: once that is closed, waiting ends with
/// [`Error::Closed`].
#[must_use = "dropping it gives the call up"]
pub struct PendingReply {
    link: Arc<Link>,
    body: Vec<u8>,
    message_id: Uuid,
    deadline: Deadline,
    /// Why the connection was lost through which it was sent before, if it was.
    lost: Option<String>,
    stage: Stage,
}

enum Stage {
    /// To be sent, for the first time or again.
    Grounded,
    Flying(Flight),
    Over,
}

impl PendingReply {
    pub(crate) fn send(link: &Arc<Link>, body: Vec<u8>, timeout: Duration) -> Result<PendingReply> {
        link.config.counters.calls.fetch_add(1, Ordering::Relaxed);
        let mut call = PendingReply {
            link: Arc::clone(link),
            body,
            message_id: Uuid::new_v4(),
            deadline: Deadline::after(timeout),
            lost: None,
            stage: Stage::Grounded,
        };
        call.depart(call.deadline).inspect_err(|error| link.count(error))?;
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
    /// See [`RpcClient::call`](super::RpcClient::call); [`Error::Closed`] if the call was over.
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
            self.link.count(error);
        }
        if !matches!(ended, Ok(None)) {
            self.stage = Stage::Over;
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
            let flight = match &self.stage {
                Stage::Over => return Err(Error::Closed),
                Stage::Flying(flight) => flight,
                Stage::Grounded => {
                    match self.depart(Deadline { at: until, ..self.deadline }) {
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
            match flight.session.poll(&flight.outcome, until) {
                Some(Err(Error::ConnectionLost { reason }))
                    if flight.session.may_send_again() && !self.deadline.has_passed() =>
                {
                    log::info!("sending request {} again: {reason}", self.message_id);
                    self.lost = Some(reason);
                    self.stage = Stage::Grounded;
                }
                Some(outcome) => return outcome.map(Some),
                None if until < self.deadline.at => return Ok(None),
                None => {
                    let error = flight.session.explain_silence(self.deadline);
                    // It may have come while the broker was asked.
                    return flight.outcome.try_recv().unwrap_or(Err(error)).map(Some);
                }
            }
        }
    }

    /// Gets the request out until `limit`, through one session after the other if need be. The
    /// request always carries the deadline of the whole call.
    fn depart(&mut self, limit: Deadline) -> Result<()> {
        while let Stage::Grounded = self.stage {
            let session = self.link.session(limit)?;
            if let Some(flight) =
                session.publish(&self.body, self.message_id, limit, self.deadline)?
            {
                self.stage = Stage::Flying(flight);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReply")
            .field("queue", &self.link.config.queue)
            .field("message_id", &self.message_id)
            .finish_non_exhaustive()
    }
}
