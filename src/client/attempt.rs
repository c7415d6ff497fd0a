//! One attempt of a call: a request in flight, and the wait for its reply.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dispatcher::Dispatcher;
use super::in_flight::CallSlot;
use super::looks::QueueStatus;
use super::request::{Outcome, OutgoingRequest};
use super::session::Session;
use super::suspicion::{SUSPECT_AFTER, is_unserved};
use crate::broker::Session as _;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::wire::Reply;

/// A request in flight. Dropping it abandons the attempt.
pub(super) struct InFlight {
    pub(super) session: Arc<Session>,
    pub(super) slot: Arc<CallSlot>,
    /// How long to wait for a sign of life, and when to check next: if the caller wants signs of
    /// life, or if there are other brokers to look for a server at.
    sign_timeout: Duration,
    next_check: Option<Instant>,
}

/// The result of a wait.
pub(super) enum Waited {
    Ended(Outcome),
    /// The request may be lost, for this reason, and may be sent again.
    MayBeLost(&'static str),
    /// Another session may get replies, and this one has not for long.
    Suspect,
    TimedOut,
}

/// The interval at which a call checks for replies to its earlier attempts.
pub(super) const EARLIER_CHECK_INTERVAL: Duration = Duration::from_millis(500);

impl InFlight {
    pub(super) fn new(
        session: Arc<Session>,
        slot: Arc<CallSlot>,
        request: &OutgoingRequest,
        earlier: usize,
    ) -> InFlight {
        const MIN_RESEND_DELAY: Duration = Duration::from_secs(3);
        let mut sign_timeout = request.keep_alive.unwrap_or_default() * 3;
        if request.is_idempotent {
            // Each attempt waits twice as long as the one before, so that few requests are sent
            // twice if requests wait long in the queue.
            let factor = 1 << earlier.min(8);
            sign_timeout = sign_timeout.max(MIN_RESEND_DELAY).saturating_mul(factor);
        }
        let has_several_brokers = session.dispatcher.config.brokers.are_several();
        if request.keep_alive.is_none() {
            sign_timeout = SUSPECT_AFTER;
        }
        let checks = request.keep_alive.is_some() || has_several_brokers;
        let next_check = checks.then(|| Instant::now() + sign_timeout);
        InFlight { session, slot, sign_timeout, next_check }
    }

    /// Waits for the outcome, and reads the socket while no other thread does. A reply to one of
    /// the `earlier` attempts is an outcome as well. Earlier attempts that have failed are dropped.
    pub(super) fn wait(
        &mut self,
        request: &OutgoingRequest,
        earlier: &mut Vec<InFlight>,
        until: Instant,
    ) -> Waited {
        loop {
            let next_reply = (!earlier.is_empty()).then(|| Instant::now() + EARLIER_CHECK_INTERVAL);
            let step =
                [self.next_check, next_reply].into_iter().flatten().fold(until, Instant::min);
            let must_resend = || request.is_idempotent && self.session.is_retired();
            let has_ended = || self.session.dispatcher.ended.get().is_some();
            let is_ready =
                || self.slot.has_outcome() || self.slot.has_told() || must_resend() || has_ended();
            self.session.connection.wait(&self.slot.waiter, step, is_ready);
            let told_earlier = earlier.iter().rev().find_map(|attempt| attempt.slot.take_told());
            let outcome = self.take_outcome(earlier);
            // The server tells its progress before it sends the reply.
            let told = self.slot.take_told().or(told_earlier);
            if let (Some(text), Some(show)) = (told, &request.on_progress) {
                show(&text);
            }
            if let Some(outcome) = outcome {
                return Waited::Ended(outcome);
            }
            if must_resend() {
                return Waited::MayBeLost("no replies came through its connection");
            }
            match self.check_signs_of_life(request, earlier) {
                Some(waited) => return waited,
                None if until <= Instant::now() => return Waited::TimedOut,
                None => {}
            }
        }
    }

    /// The outcome of the call, if it has come: a reply to any attempt, or else the outcome of this
    /// attempt.
    pub(super) fn take_outcome(&self, earlier: &mut Vec<InFlight>) -> Option<Outcome> {
        // In this order: a reply that came before the end counts.
        let ended = self.session.ended();
        let reply = take_reply(earlier).map(Outcome::Ended).or_else(|| self.slot.take_outcome());
        reply.or(ended.map(|ended| match ended {
            Error::ConnectionLost { reason } => Outcome::Lost(reason),
            error => Outcome::Ended(Err(error)),
        }))
    }

    /// Checks for signs of life, if it is time to. Returns a result if none has come for too long.
    ///
    /// A server that supports signs of life sends the first one when it starts with the request. If
    /// none came, either the request still waits in its queue, or its server does not support them.
    /// The call then goes on until its deadline, unless the queue has no consumers. If one came,
    /// the request may have been returned to the queue, and wait there. An idempotent request may
    /// be lost if no sign of it comes and no request waits in the queue.
    fn check_signs_of_life(
        &mut self,
        request: &OutgoingRequest,
        earlier: &[InFlight],
    ) -> Option<Waited> {
        let last_sign = || earlier.iter().filter_map(|attempt| attempt.slot.last_sign()).max();
        let last_sign = || self.slot.last_sign().max(last_sign());
        let (now, sign_timeout) = (Instant::now(), self.sign_timeout);
        if now < self.next_check? {
            return None;
        }
        let seen = last_sign();
        if let Some(sign) = seen.filter(|sign| *sign + sign_timeout > now) {
            self.next_check = Some(sign + sign_timeout);
            return None;
        }
        // During an alarm, neither signs of life nor the broker's answer can arrive.
        if self.session.connection.blocked().is_some() {
            self.next_check = Some(now + sign_timeout);
            return None;
        }
        let found = self.session.inspect(&request.queue.name);
        let pending = &self.session.dispatcher.pending;
        if request.keep_alive.is_none() {
            self.sign_timeout *= 2;
            self.next_check = Some(now + self.sign_timeout);
            return (is_unserved(&found) && pending.lock().suspicion.note_loss())
                .then_some(Waited::Suspect);
        }
        let has_several_brokers = self.session.dispatcher.config.brokers.are_several();
        let (unserved, is_over) = match found {
            Ok(QueueStatus { consumers: 0, .. }) => (true, true),
            Ok(QueueStatus { messages, .. }) => {
                (false, messages == 0 && (seen.is_some() || request.is_idempotent))
            }
            // No answer is not evidence: the broker may be far away, or may not tell this user.
            Err(_) => (false, false),
        };
        if !is_over || last_sign() != seen {
            self.next_check = Some(now + request.keep_alive?);
            return None;
        }
        pending.lock().suspicion.note_loss();
        // A broker that is cut off from the rest of its cluster knows of no consumers.
        if request.is_idempotent && (!unserved || has_several_brokers && earlier.is_empty()) {
            return Some(Waited::MayBeLost("its server gave no sign of life"));
        }
        let after = seen.map_or(sign_timeout, |sign| sign.elapsed());
        let queue = request.queue.name.clone();
        let silent = Error::ServerSilent { queue, after, unserved };
        Some(Waited::Ended(Outcome::Ended(Err(silent))))
    }

    /// The error for a call that was sent and got no reply by its deadline. Asks the broker about
    /// the queue, for at most 200 ms.
    ///
    /// If nothing has come back for long, this makes the session suspect.
    pub(super) fn explain_silence(&self, queue: &str, deadline: Deadline) -> Error {
        if let Some(blocked) = self.session.blocked(deadline, true) {
            return blocked;
        }
        let mut what = format!("no reply from queue {queue:?}");
        let found = self.session.inspect(queue);
        if let Ok(QueueStatus { consumers, messages }) = found {
            let advice = match consumers {
                0 => "start a server",
                _ => "allow more time, or start more servers",
            };
            what += &format!(" (consumers: {consumers}, waiting requests: {messages}); {advice}");
        }
        let Dispatcher { config, pending, .. } = &*self.session.dispatcher;
        let silence = self.session.connection.silence();
        let suspicion = &mut pending.lock().suspicion;
        suspicion.note_timeout(&found, config.brokers.are_several(), silence);
        Error::TimedOut { what, after: deadline.timeout, sent: true }
    }
}

/// The server's answer to one of these attempts. Attempts that failed otherwise are dropped.
pub(super) fn take_reply(attempts: &mut Vec<InFlight>) -> Option<Result<Reply>> {
    let mut reply = None;
    attempts.retain(|attempt| {
        let is_alive = attempt.session.ended().is_none();
        match attempt.slot.take_outcome() {
            Some(Outcome::Ended(outcome @ (Ok(_) | Err(Error::Remote { .. })))) => {
                reply = Some(outcome);
                false
            }
            Some(_) => false,
            None => is_alive,
        }
    });
    reply
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.session.forget(&self.slot);
    }
}
