//! One attempt of a call: a request that is out, and how it is waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::QueueStatus;
use super::call::{Call, Outcome};
use super::pending::CallSlot;
use super::session::Session;
use crate::broker::Session as _;
use crate::error::Error;

/// A request that is out. Dropping it gives the attempt up.
pub(super) struct InFlight {
    pub(super) session: Arc<Session>,
    slot: Arc<CallSlot>,
    id: Uuid,
    /// How long signs of life may stay away, and when to look whether they do, if the caller wants
    /// any.
    patience: Duration,
    look_at: Option<Instant>,
}

/// What waiting for a call came to.
pub(super) enum Waited {
    Ended(Outcome),
    /// The request may be lost, for this reason, and may be sent again.
    MayBeLost(&'static str),
    TimedOut,
}

/// How long a call does not look for a reply to its earlier attempts.
pub(super) const EARLIER_REPLIES: Duration = Duration::from_millis(500);

impl InFlight {
    pub(super) fn new(
        session: &Arc<Session>,
        call: &Call,
        id: Uuid,
        slot: Arc<CallSlot>,
        earlier: usize,
    ) -> InFlight {
        const LEAST_BEFORE_RESENDING: Duration = Duration::from_secs(3);
        let mut patience = call.keep_alive.unwrap_or_default() * 3;
        if call.is_idempotent {
            // Each attempt is given twice as long: where requests wait long, few are sent twice.
            let factor = 1 << earlier.min(8);
            patience = patience.max(LEAST_BEFORE_RESENDING).saturating_mul(factor);
        }
        let look_at = call.keep_alive.map(|_| Instant::now() + patience);
        InFlight { session: Arc::clone(session), slot, id, patience, look_at }
    }

    /// Waits for the outcome, and reads the socket meanwhile if nobody else does. A reply to one
    /// of the `earlier` attempts is as good; those that have failed are dropped.
    pub(super) fn wait(
        &mut self,
        call: &Call,
        earlier: &mut Vec<InFlight>,
        until: Instant,
    ) -> Waited {
        loop {
            let next_reply = (!earlier.is_empty()).then(|| Instant::now() + EARLIER_REPLIES);
            let step = [self.look_at, next_reply].into_iter().flatten().fold(until, Instant::min);
            let was_left = || call.is_idempotent && self.session.is_retired();
            let has_ended = || self.session.dispatcher.ended.get().is_some();
            let is_ready = || self.slot.has_outcome() || was_left() || has_ended();
            self.session.connection.wait(&self.slot.waiter, step, is_ready);
            if let Some(outcome) = self.take_outcome(earlier) {
                return Waited::Ended(outcome);
            }
            if was_left() {
                return Waited::MayBeLost("no replies came through its connection");
            }
            match self.look_for_signs(call, earlier) {
                Some(waited) => return waited,
                None if until <= Instant::now() => return Waited::TimedOut,
                None => {}
            }
        }
    }

    /// The outcome of the call if it has come already: a reply to any attempt, or else what became
    /// of this one.
    pub(super) fn take_outcome(&self, earlier: &mut Vec<InFlight>) -> Option<Outcome> {
        let reply = take_reply(earlier).or_else(|| self.slot.take_outcome());
        reply.or_else(|| self.session.ended().map(Err))
    }

    /// When the time has come for it, tells whether signs of life stay away.
    ///
    /// A server that knows of them gives the first when it begins with the request. So where there
    /// was none, either the request still waits in its queue, or its server knows of no signs: the
    /// call goes on to its deadline, unless nobody serves the queue. Where there was one, the
    /// request may have gone back to the queue, and wait there. An idempotent request that waits in
    /// no queue and of which there was no sign may be lost.
    fn look_for_signs(&mut self, call: &Call, earlier: &[InFlight]) -> Option<Waited> {
        let last_sign = || earlier.iter().filter_map(|attempt| attempt.slot.last_sign()).max();
        let last_sign = || self.slot.last_sign().max(last_sign());
        let (now, patience) = (Instant::now(), self.patience);
        if now < self.look_at? {
            return None;
        }
        let seen = last_sign();
        if let Some(sign) = seen.filter(|sign| *sign + patience > now) {
            self.look_at = Some(sign + patience);
            return None;
        }
        // Under an alarm neither signs nor the broker's answer can come.
        if self.session.connection.blocked().is_some() {
            self.look_at = Some(now + patience);
            return None;
        }
        let found = self.session.inspect(&call.queue);
        let is_several = self.session.dispatcher.config.brokers.are_several();
        let (unserved, is_over) = match found {
            Ok(QueueStatus { consumers: 0, .. }) => (true, true),
            Ok(QueueStatus { messages, .. }) => {
                (false, messages == 0 && (seen.is_some() || call.is_idempotent))
            }
            Err(Error::Unroutable { .. }) => (false, false),
            Err(_) => (false, call.is_idempotent),
        };
        if !is_over || last_sign() != seen {
            self.look_at = Some(now + call.keep_alive?);
            return None;
        }
        self.session.suspect();
        // A broker that is cut off from the others knows of no consumers.
        if call.is_idempotent && (!unserved || is_several && earlier.is_empty()) {
            return Some(Waited::MayBeLost("its server gave no sign of life"));
        }
        let after = seen.map_or(patience, |sign| sign.elapsed());
        let queue = call.queue.to_string();
        Some(Waited::Ended(Err(Error::ServerSilent { queue, after, unserved })))
    }
}

/// The server's answer to one of these attempts. Those that failed otherwise are dropped.
pub(super) fn take_reply(attempts: &mut Vec<InFlight>) -> Option<Outcome> {
    let mut reply = None;
    attempts.retain(|attempt| match attempt.slot.take_outcome() {
        Some(outcome @ (Ok(_) | Err(Error::Remote { .. }))) => {
            reply = Some(outcome);
            false
        }
        Some(_) => false,
        None => attempt.session.ended().is_none(),
    });
    reply
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.session.dispatcher.pending.forget(self.id, &self.session.connection);
    }
}
