//! What a session says of a call at its deadline, and what that tells about the session.

use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::lock;
use super::session::{Inspected, Order, QueueStatus, Session};
use crate::deadline::Deadline;
use crate::error::Error;

/// How long to ask the broker about a queue from which no reply came.
const INSPECTING: Duration = Duration::from_millis(200);
/// How long its answer holds for other calls that time out.
const INSPECTED_LATELY: Duration = Duration::from_secs(1);
/// How long nothing may come back before a call that times out makes the session suspect.
const SILENCE: Duration = Duration::from_secs(3);

impl Session {
    /// Why there is no outcome at the deadline, although the request went out. Asks the broker
    /// about the queue, for at most 200 ms.
    ///
    /// If nothing has come back for long, the session becomes suspect: requests may be lost on a
    /// connection that is well. A channel's first message to a quorum queue waits for the queue's
    /// leader, for up to 65 s, and holds back all behind it; if one is lost on its way to a leader
    /// that dies, those behind it wait for that one. Without confirms nobody is told
    /// (`rabbit_fifo_client.erl`).
    pub(crate) fn explain_silence(&self, deadline: Deadline) -> Error {
        let after = deadline.timeout;
        if let Some(reason) = lock(&self.dispatcher.blocked).clone() {
            return Error::Blocked { reason, after, sent: true };
        }
        let mut what = format!("no reply from queue {:?}", self.config.queue);
        let found = self.inspect();
        if let Some(QueueStatus { consumers, messages }) = found {
            let advice = match consumers {
                0 => "start a server",
                _ => "allow more time, or start more servers",
            };
            what += &format!(" ({consumers} consumers, {messages} messages waiting); {advice}");
        }
        // Where nobody serves, another session would hear nothing either.
        if found.is_none_or(|status| status.consumers > 0) {
            self.dispatcher.pending.suspect_after(SILENCE);
        }
        Error::TimedOut { what, after, sent: true }
    }

    /// What the broker says of the request queue. Callers that ask at the same time share the
    /// answer.
    fn inspect(&self) -> Option<QueueStatus> {
        let mut inspected = lock(&self.inspected);
        match *inspected {
            Some(Inspected { at, found }) if at.elapsed() < INSPECTED_LATELY => found,
            _ => {
                let (sender, answer) = bounded(1);
                let is_sent = self.dispatcher.orders.send(Order::Inspect(sender)).is_ok();
                let found = is_sent.then(|| answer.recv_timeout(INSPECTING).ok()).flatten();
                *inspected = Some(Inspected { at: Instant::now(), found });
                found
            }
        }
    }

    /// Whether requests may be lost here: calls have timed out, and still nothing has come back.
    pub(crate) fn is_suspect(&self) -> bool {
        self.dispatcher.pending.are_suspect()
    }

    /// Takes no more calls, and closes the connection once those in flight have ended.
    pub(crate) fn retire(&self) {
        log::info!("no replies through {}: the next calls connect anew", self.dispatcher.endpoint);
        let reason = "no replies came through it".into();
        let waiting = self.dispatcher.pending.retire(Error::ConnectionLost { reason });
        waiting.iter().for_each(|waiter| self.data_plane.wake(waiter));
        self.close_if_over();
    }

    /// The broker did not read the request until the deadline, or not all of it.
    pub(super) fn not_taken(&self, deadline: Deadline, begun: bool) -> Error {
        let (after, sent) = (deadline.timeout, begun);
        match lock(&self.dispatcher.blocked).clone() {
            Some(reason) => Error::Blocked { reason, after, sent },
            None => {
                let what = format!("the broker at {} does not read", self.dispatcher.endpoint);
                Error::TimedOut { what, after, sent }
            }
        }
    }

    pub(super) fn no_room(&self, deadline: Deadline) -> Error {
        let limit = self.config.options.max_in_flight;
        Error::TimedOut {
            what: format!(
                "no room for the request: {limit} calls are in flight already; raise max_in_flight"
            ),
            after: deadline.timeout,
            sent: false,
        }
    }
}
