//! What a session says of a call at its deadline, and what that tells about the session.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::session::{Inspected, Order, Session};
use super::{QueueStatus, lock};
use crate::deadline::Deadline;
use crate::error::{Error, Result};

/// How long to ask the broker about a queue from which no reply came.
const INSPECTING: Duration = Duration::from_millis(200);
/// How long its answer holds for other calls that time out.
const INSPECTED_LATELY: Duration = Duration::from_secs(1);
/// How long nothing may come back before a call that gets no reply makes the session suspect.
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
    pub(crate) fn explain_silence(&self, queue: &str, deadline: Deadline) -> Error {
        let after = deadline.timeout;
        if let Some(reason) = lock(&self.dispatcher.blocked).clone() {
            return Error::Blocked { reason, after, sent: true };
        }
        let mut what = format!("no reply from queue {queue:?}");
        let found = self.inspect(queue);
        if let Ok(QueueStatus { consumers, messages }) = found {
            let advice = match consumers {
                0 => "start a server",
                _ => "allow more time, or start more servers",
            };
            what += &format!(" ({consumers} consumers, {messages} messages waiting); {advice}");
        }
        // Where nobody serves, another session would hear nothing either.
        if found.map_or(true, |status| status.consumers > 0) {
            self.suspect();
        }
        Error::TimedOut { what, after, sent: true }
    }

    /// What the broker says of a queue. Callers that ask within a second share the answer. Blocks
    /// for at most 200 ms.
    pub(super) fn inspect(&self, queue: &str) -> Result<QueueStatus> {
        let mut inspected = lock(&self.inspected);
        match inspected.get(queue) {
            Some(Inspected { at, found }) if at.elapsed() < INSPECTED_LATELY => found.clone(),
            _ => {
                let found = self.ask_about(queue, Deadline::after(INSPECTING));
                let lately = Inspected { at: Instant::now(), found: found.clone() };
                inspected.insert(queue.to_string(), lately);
                found
            }
        }
    }

    /// What the broker says of a queue now. Blocks until the deadline at most.
    pub(crate) fn ask_about(&self, queue: &str, deadline: Deadline) -> Result<QueueStatus> {
        let (answer, answered) = bounded(1);
        let order = Order::Inspect { queue: queue.to_string(), answer };
        let _ = self.dispatcher.orders.send(order);
        answered.recv_deadline(deadline.at).unwrap_or_else(|_| {
            Err(self.ended().unwrap_or_else(|| Error::TimedOut {
                what: format!("no answer from {} about a queue", self.dispatcher.endpoint),
                after: deadline.timeout,
                sent: false,
            }))
        })
    }

    /// Notes that a call got no reply.
    pub(super) fn suspect(&self) {
        self.dispatcher.pending.suspect_after(SILENCE);
    }

    /// Whether requests may be lost here: calls have timed out, and still nothing has come back.
    pub(crate) fn is_suspect(&self) -> bool {
        self.dispatcher.pending.are_suspect()
    }

    /// Takes no more calls, and closes the connection once those in flight have ended. Those of
    /// them that are idempotent are sent again elsewhere, and may still be answered here.
    pub(crate) fn retire(&self) {
        log::info!("no replies through {}: the next calls connect anew", self.dispatcher.endpoint);
        let reason = "no replies came through it".into();
        self.dispatcher.pending.retire(Error::ConnectionLost { reason });
        self.dispatcher.is_retired.store(true, Ordering::Relaxed);
        self.data_plane.wake_all();
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
