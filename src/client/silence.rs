//! Errors for calls that got no reply, or could not be sent, in time.

use std::time::{Duration, Instant};

use super::QueueStatus;
use super::session::Session;
use crate::broker::{CallError, Limit, Session as _};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::Method;
use crate::lock::lock;

impl Session {
    /// The error for a call that was sent and got no reply by its deadline. Asks the broker about
    /// the queue, for at most 200 ms.
    ///
    /// If nothing has come back for long, this makes the session suspect, because requests may be
    /// lost on a connection that works. The first message of a channel to a quorum queue waits for
    /// the queue's leader, for up to 65 s, and all later messages wait behind it. If a message to a
    /// leader that stops is lost, the later ones wait for it. Without publisher confirms, the
    /// client is not told (`rabbit_fifo_client.erl`).
    pub(super) fn explain_silence(&self, queue: &str, deadline: Deadline) -> Error {
        let after = deadline.timeout;
        if let Some(reason) = self.connection.blocked() {
            return Error::Blocked { reason, after, sent: true };
        }
        let mut what = format!("no reply from queue {queue:?}");
        let found = self.inspect(queue);
        if let Ok(QueueStatus { consumers, messages }) = found {
            let advice = match consumers {
                0 => "start a server",
                _ => "allow more time, or start more servers",
            };
            what += &format!(" (consumers: {consumers}, waiting requests: {messages}); {advice}");
        }
        // If the queue has no consumers, another session would get no replies either.
        if found.map_or(true, |status| status.consumers > 0) {
            self.dispatcher.pending.suspect();
        }
        Error::TimedOut { what, after, sent: true }
    }

    /// The broker's answer about a queue. Callers that ask within a second share the answer, or the
    /// error that no answer came. Blocks for at most 200 ms.
    pub(super) fn inspect(&self, queue: &str) -> Result<QueueStatus> {
        const TIMEOUT: Duration = Duration::from_millis(200);
        const MAX_AGE: Duration = Duration::from_secs(1);
        let mut inspected = lock(&self.inspected);
        if let Some((name, at, found)) = &*inspected
            && at.elapsed() < MAX_AGE
            && (name == queue || matches!(found, Err(Error::TimedOut { .. })))
        {
            return found.clone();
        }
        let found = self.ask_about(queue, Deadline::after(TIMEOUT));
        *inspected = Some((queue.to_string(), Instant::now(), found.clone()));
        found
    }

    /// Asks the broker about a queue. Blocks until the deadline at most.
    pub(super) fn ask_about(&self, queue: &str, deadline: Deadline) -> Result<QueueStatus> {
        let asked = self.connection.ask(Method::FindQueue(queue), Limit::Until(deadline.at));
        asked
            .map(|found| QueueStatus { consumers: found.consumers, messages: found.messages })
            .map_err(|error| match error {
                CallError::Closed(close) if close.code == 404 => {
                    Error::Unroutable { queue: queue.to_string() }
                }
                CallError::Unanswered(reason) => self.ended().unwrap_or(Error::TimedOut {
                    what: format!("asking {} about a queue: {reason}", self.connection.endpoint),
                    after: deadline.timeout,
                    sent: false,
                }),
                error => self.connection.explain(error, "ask about the request queue"),
            })
    }

    /// The error for a request that the broker did not read, or not completely, before the
    /// deadline.
    pub(super) fn write_timed_out(&self, deadline: Deadline, begun: bool) -> Error {
        let (after, sent) = (deadline.timeout, begun);
        match self.connection.blocked() {
            Some(reason) => Error::Blocked { reason, after, sent },
            None => {
                let what = format!("the broker at {} does not read", self.connection.endpoint);
                Error::TimedOut { what, after, sent }
            }
        }
    }

    pub(super) fn limit_reached(&self, deadline: Deadline) -> Error {
        let limit = self.dispatcher.config.options.max_in_flight;
        Error::TimedOut {
            what: format!(
                "no room for the request: {limit} calls are in flight already; raise max_in_flight"
            ),
            after: deadline.timeout,
            sent: false,
        }
    }
}
