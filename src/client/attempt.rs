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
    queue: Arc<str>,
    is_idempotent: bool,
    signs: Option<SignsOfLife>,
}

/// What a caller awaits who has asked for signs of life.
struct SignsOfLife {
    interval: Duration,
    /// How long they may stay away.
    patience: Duration,
    /// When to look whether they stay away.
    look_at: Instant,
}

/// What waiting for a call came to.
pub(super) enum Waited {
    Ended(Outcome),
    /// The request may be lost, for this reason, and may be sent again.
    MayBeLost(&'static str),
    TimedOut,
}

/// Signs of life stay away.
struct Silent {
    error: Error,
    /// Whether sending the request again cannot help, or is not allowed.
    is_final: bool,
}

impl InFlight {
    pub(super) fn new(
        session: &Arc<Session>,
        call: &Call,
        id: Uuid,
        slot: Arc<CallSlot>,
    ) -> InFlight {
        let signs = call.keep_alive.map(|interval| {
            let patience = interval * 3;
            SignsOfLife { interval, patience, look_at: Instant::now() + patience }
        });
        InFlight {
            session: Arc::clone(session),
            slot,
            id,
            queue: Arc::clone(&call.queue),
            is_idempotent: call.is_idempotent,
            signs,
        }
    }

    /// Waits for the outcome, and reads the socket meanwhile if nobody else does. A reply to one
    /// of the `earlier` attempts is as good; those that have failed are dropped.
    pub(super) fn wait(&mut self, earlier: &mut Vec<InFlight>, until: Instant) -> Waited {
        loop {
            let look_at = self.signs.as_ref().map(|signs| signs.look_at);
            let step = look_at.map_or(until, |look_at| look_at.min(until));
            let has_outcome = |attempt: &InFlight| attempt.slot.has_outcome();
            let is_over = || has_outcome(self) || earlier.iter().any(has_outcome);
            if !is_over() {
                let ended = &self.session.dispatcher.ended;
                let is_ready = || is_over() || self.was_left() || ended.get().is_some();
                self.session.connection.wait(&self.slot.waiter, step, is_ready);
            }
            if let Some(outcome) = self.take_outcome(earlier) {
                return Waited::Ended(outcome);
            }
            if self.was_left() {
                return Waited::MayBeLost("no replies came through its connection");
            }
            match self.look_for_signs(earlier) {
                Some(silent) if silent.is_final => return Waited::Ended(Err(silent.error)),
                Some(_) => return Waited::MayBeLost("its server gave no sign of life"),
                None if until <= Instant::now() => return Waited::TimedOut,
                None => {}
            }
        }
    }

    /// The outcome of the call if it has come already: a reply to any attempt, or else what became
    /// of this one.
    pub(super) fn take_outcome(&self, earlier: &mut Vec<InFlight>) -> Option<Outcome> {
        let reply = self.slot.take_outcome().or_else(|| take_reply(earlier));
        reply.or_else(|| self.session.ended().map(Err))
    }

    /// Whether other calls have left this session for another, and this one may follow.
    fn was_left(&self) -> bool {
        self.is_idempotent && self.session.is_retired()
    }

    /// The next attempt: its caller waits for this one there too.
    pub(super) fn follow(&mut self, earlier: &[InFlight]) {
        const LEAST: Duration = Duration::from_secs(3);
        for attempt in earlier {
            attempt.slot.caller_waits_at(&self.session.connection);
        }
        if let Some(signs) = self.signs.as_mut().filter(|_| self.is_idempotent) {
            // Each attempt is given twice as long: where requests wait long, few are sent twice.
            let factor = 1 << earlier.len().min(8);
            signs.patience = signs.patience.max(LEAST).saturating_mul(factor);
            signs.look_at = Instant::now() + signs.patience;
        }
    }

    /// When the time has come for it, tells whether signs of life stay away.
    ///
    /// A server that knows of them gives the first when it begins with the request. So where there
    /// was none, either the request still waits in its queue, or its server knows of no signs: the
    /// call goes on to its deadline, unless nobody serves the queue. Where there was one, the
    /// request may have gone back to the queue, and wait there. An idempotent request that waits in
    /// no queue and of which there was no sign may be lost.
    fn look_for_signs(&mut self, earlier: &[InFlight]) -> Option<Silent> {
        let last_sign = || earlier.iter().filter_map(|attempt| attempt.slot.last_sign()).max();
        let last_sign = || self.slot.last_sign().max(last_sign());
        let SignsOfLife { interval, patience, look_at } = self.signs.as_ref()?;
        let (now, patience) = (Instant::now(), *patience);
        if now < *look_at {
            return None;
        }
        let seen = last_sign();
        if let Some(sign) = seen.filter(|sign| *sign + patience > now) {
            self.signs.as_mut()?.look_at = sign + patience;
            return None;
        }
        let next = now + *interval;
        let found = self.session.inspect(&self.queue);
        let is_several = self.session.dispatcher.config.brokers.are_several();
        let (unserved, is_over) = match found {
            Ok(QueueStatus { consumers: 0, .. }) => (true, true),
            Ok(QueueStatus { messages, .. }) => {
                (false, messages == 0 && (seen.is_some() || self.is_idempotent))
            }
            Err(Error::Unroutable { .. }) => (false, false),
            Err(_) => (false, self.is_idempotent),
        };
        if !is_over || last_sign() != seen {
            self.signs.as_mut()?.look_at = next;
            return None;
        }
        self.session.suspect();
        // A broker that is cut off from the others knows of no consumers.
        let is_final = !self.is_idempotent || unserved && (!is_several || !earlier.is_empty());
        let after = seen.map_or(patience, |sign| sign.elapsed());
        let error = Error::ServerSilent { queue: self.queue.to_string(), after, unserved };
        Some(Silent { error, is_final })
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
