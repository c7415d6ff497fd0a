//! What a session says of a call at its deadline, and what that tells about the session.

use std::time::Duration;

use crossbeam_channel::bounded;

use super::lock;
use super::session::{Order, Session};
use crate::deadline::Deadline;
use crate::error::Error;

/// How long to ask the broker about a queue from which no reply came.
const INSPECTING: Duration = Duration::from_millis(200);
/// How long nothing may come back before a call that times out makes the session suspect.
const SILENCE: Duration = Duration::from_secs(3);

impl Session {
    /// Why there is no outcome at the deadline, though the request went out.
    ///
    /// If nothing has come back for long, the session takes no more calls, and the next ones get
    /// another: requests may be lost on a connection that is well. A channel's first message to
    /// a quorum queue waits for the queue's leader, for up to 65 s, and holds back all behind it;
    /// if one is lost on its way to a leader that dies, those behind it wait for that one. Without
    /// confirms nobody is told (`rabbit_fifo_client.erl`).
    pub(crate) fn explain_silence(&self, deadline: Deadline) -> Error {
        let after = deadline.timeout;
        if let Some(reason) = lock(&self.blocked).clone() {
            return Error::Blocked { reason, after, sent: true };
        }
        let mut what = format!("no reply from queue {:?}", self.config.queue);
        let (sender, answer) = bounded(1);
        let asked = self.orders.try_send(Order::Inspect(sender));
        let found = asked.ok().and_then(|()| answer.recv_timeout(INSPECTING).ok());
        if let Some((consumers, messages)) = found {
            what += &format!(" ({consumers} consumers, {messages} messages waiting)");
        }
        let error = Error::TimedOut { what, after, sent: true };
        // Where nobody serves, another session would hear nothing either.
        let is_served = found.is_none_or(|(consumers, _)| consumers > 0);
        if is_served && self.pending.silence() >= SILENCE && self.ended().is_none() {
            log::info!("no replies through {}: the next calls connect anew", self.endpoint);
            self.pending.retire(error.clone());
        }
        error
    }

    /// The broker did not read the request until the deadline, or not all of it.
    pub(super) fn not_taken(&self, deadline: Deadline, begun: bool) -> Error {
        let (after, sent) = (deadline.timeout, begun);
        match lock(&self.blocked).clone() {
            Some(reason) => Error::Blocked { reason, after, sent },
            None => {
                let what = format!("the broker at {} does not read", self.endpoint);
                Error::TimedOut { what, after, sent }
            }
        }
    }

    pub(super) fn no_room(&self, deadline: Deadline) -> Error {
        let limit = self.config.options.max_in_flight;
        Error::TimedOut {
            what: format!("no room for the request: {limit} calls are in flight already"),
            after: deadline.timeout,
            sent: false,
        }
    }
}
