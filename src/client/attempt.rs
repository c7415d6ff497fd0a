//! One attempt of a call: a request in flight, and the wait for its reply.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dispatcher::Dispatcher;
use super::in_flight::CallSlot;
use super::looks::QueueStatus;
use super::publishing::OwnChannel;
use super::request::{Outcome, OutgoingRequest, too_late};
use super::session::{DIRECT_REPLY_TO, Session};
use super::suspicion::{is_unserved, sign_timeout};
use crate::broker::{Session as _, WriteError};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::wire::Reply;

/// A request in flight. Dropping it abandons the attempt.
pub(super) struct InFlight {
    pub(super) session: Arc<Session>,
    slot: Arc<CallSlot>,
    /// The channel on which only this request is in flight, if there is such a channel.
    own: Option<OwnChannel>,
    sent: Instant,
    /// How long to wait for a sign of life, and when to check next: if the caller wants signs of
    /// life, or if there are other brokers to look for a server at. The next attempt goes on from
    /// here: perhaps it is sent only because the connection was replaced.
    sign_timeout: Duration,
    next_check: Option<Instant>,
    /// When to ask about the queue, so that at the deadline the answer is there.
    ask_at: Option<Instant>,
}

/// The interval at which a call checks for replies to its earlier attempts.
pub(super) const EARLIER_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// A request whose caller gives up earlier is not sent: the broker would drop it.
const SHORTEST_EXPIRATION: Duration = Duration::from_millis(1);
/// How long a call waits for what the broker says about its queue.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(200);
/// How long before its deadline a call asks about its queue. At the deadline, the broker drops the
/// request, and a queue in which requests have waited looks like one from which they were lost.
const ASK_EARLIER: Duration = Duration::from_millis(250);

impl InFlight {
    /// Publishes a request. `None` if the session or its channel ended before the whole request was
    /// written: it was not executed, and may be sent by another session, or in another way.
    ///
    /// Blocks while the broker takes no messages or does not read, and while no in-flight slot or
    /// number for a channel is free, but not beyond `limit`. The request carries the `deadline` of
    /// its caller, and is not sent once that has passed. `earlier` are the attempts before it.
    pub(super) fn publish(
        session: Arc<Session>,
        request: &OutgoingRequest,
        earlier: &[InFlight],
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<Option<InFlight>> {
        request.headers.check_size(session.connection.frame_max())?;
        let replies_directly = session.dispatcher.reply_queue.get().is_none();
        let slot = CallSlot::new(deadline.at, replies_directly, request.on_progress.is_some());
        let first_timeout = sign_timeout(request, 0);
        let sign_timeout = earlier.last().map_or(first_timeout, |last| last.sign_timeout);
        let ask_at = deadline.at.checked_sub(ASK_EARLIER).filter(|at| *at > Instant::now());
        let (own, sent, next_check) = (None, Instant::now(), None);
        let mut attempt = InFlight { session, slot, own, sent, sign_timeout, next_check, ask_at };
        let InFlight { session, slot, .. } = &attempt;
        let Session { connection, dispatcher, publishing, looks, .. } = &**session;
        let Dispatcher { config, pending, .. } = &**dispatcher;
        // Once there is a reply queue, a channel without direct replies may take the place of the
        // first one.
        let is_late = || replies_directly && dispatcher.reply_queue.get().is_some();
        let is_over = || session.takes_no_more_calls() || is_late();
        if connection.blocked().is_some() {
            let is_ready = || connection.blocked().is_none() || is_over();
            connection.wait(&slot.waiter, limit.at, is_ready);
            session.blocked(limit, false).filter(|_| !is_over()).map_or(Ok(()), Err)?;
        }
        if !pending.register(slot, !earlier.is_empty(), limit, connection, is_over)? {
            return Ok(None);
        }
        let remaining = deadline.remaining();
        if remaining < SHORTEST_EXPIRATION {
            return Err(too_late(deadline));
        }
        let reply_queue = dispatcher.reply_queue.get().filter(|_| !replies_directly);
        let reply_to = reply_queue.map_or(DIRECT_REPLY_TO, String::as_str);
        let head = request.head(config, &connection.endpoint.user, reply_to, slot.id, remaining);
        // Direct replies come through the publishing channel, so requests share it.
        let has_own = request.may_be_refused(config) && !replies_directly && looks.is_some();
        let own = has_own.then(|| publishing.take_own(slot.id, limit.at)).flatten();
        match publishing.write(request, &head, slot, own.as_ref(), limit) {
            Ok(()) => {}
            // The rest of the request is written before anything else.
            Err(WriteError::TimedOut { begun: true }) if limit.at < deadline.at => {}
            Err(WriteError::TimedOut { begun }) => {
                let what = format!("the broker at {} does not read", connection.endpoint);
                let late = Error::TimedOut { what, after: limit.timeout, sent: begun };
                return Err(session.blocked(limit, begun).unwrap_or(late));
            }
            Err(WriteError::ChannelClosed | WriteError::Disconnected) => return Ok(None),
        }
        let checks = request.keep_alive.is_some() || config.brokers.are_several();
        attempt.own = own;
        attempt.sent = Instant::now();
        let soonest = checks.then(|| attempt.sent + first_timeout);
        attempt.next_check = earlier.last().and_then(|last| last.next_check).max(soonest);
        Ok(Some(attempt))
    }

    /// Waits for the outcome, and reads the socket while no other thread does. A reply to one of
    /// the `earlier` attempts is an outcome as well. Earlier attempts that have failed are dropped.
    /// `None` if there is no outcome by then.
    pub(super) fn wait(
        &mut self,
        request: &OutgoingRequest,
        earlier: &mut Vec<InFlight>,
        until: Instant,
    ) -> Option<Outcome> {
        loop {
            let next_reply = (!earlier.is_empty()).then(|| Instant::now() + EARLIER_CHECK_INTERVAL);
            let step = [self.next_check, next_reply, self.ask_at]
                .into_iter()
                .flatten()
                .fold(until, Instant::min);
            let must_resend = || request.is_idempotent && self.session.is_retired();
            let has_ended = || self.session.dispatcher.ended.get().is_some();
            let is_ready = || self.slot.has_news() || must_resend() || has_ended();
            self.session.connection.wait(&self.slot.waiter, step, is_ready);
            let told_earlier =
                earlier.iter().rev().find_map(|attempt| attempt.slot.progress().told.take());
            let outcome = self.take_outcome(earlier);
            // The server tells its progress before it sends the reply.
            let told = self.slot.progress().told.take().or(told_earlier);
            if let (Some(text), Some(show)) = (told, &request.on_progress) {
                show(&text);
            }
            if outcome.is_some() {
                return outcome;
            }
            if must_resend() {
                return Some(Outcome::MayBeLost("no replies came through its connection".into()));
            }
            if self.ask_at.take_if(|at| *at <= Instant::now()).is_some() {
                let at_once = Deadline::after(Duration::ZERO);
                let _ = self.session.look(&request.queue.name, true, at_once);
            }
            let silent = self.check_signs_of_life(request, earlier);
            // A reply may have come while the broker was asked.
            let outcome = silent.map(|silent| self.take_outcome(earlier).unwrap_or(silent));
            if outcome.is_some() || until <= Instant::now() {
                return outcome;
            }
        }
    }

    /// The outcome of the call, if it has come: a reply to any attempt, or else the outcome of this
    /// attempt.
    pub(super) fn take_outcome(&self, earlier: &mut Vec<InFlight>) -> Option<Outcome> {
        // In this order: a reply that came before the end counts.
        let ended = self.session.ended();
        let reply =
            take_reply(earlier).map(Outcome::Ended).or_else(|| self.slot.progress().outcome.take());
        reply.or(ended.map(|ended| match ended {
            Error::ConnectionLost { reason } => Outcome::Lost(reason),
            error => Outcome::Ended(Err(error)),
        }))
    }

    /// Returns an outcome if it is time to check, and no sign of life has come for too long.
    fn check_signs_of_life(
        &mut self,
        request: &OutgoingRequest,
        earlier: &[InFlight],
    ) -> Option<Outcome> {
        let (now, timeout) = (Instant::now(), self.sign_timeout);
        if now < self.next_check? {
            return None;
        }
        let sign = |attempt: &InFlight| attempt.slot.progress().last_sign;
        let last_sign = |this: &_| earlier.iter().chain([this]).filter_map(sign).max();
        let seen = last_sign(self);
        // During an alarm, neither signs of life nor the broker's answer can arrive.
        let alarm = || self.session.connection.blocked().map(|_| now + timeout);
        let next = seen.map(|sign| sign + timeout).filter(|next| *next > now);
        if let Some(next) = next.or_else(alarm) {
            self.next_check = Some(next);
            return None;
        }
        let found = self.session.look(&request.queue.name, true, Deadline::after(ANSWER_TIMEOUT));
        // One may have come while the broker was asked.
        let is_silent = last_sign(self) == seen;
        let judge = || self.judge_silence(request, &found, seen, earlier.len());
        let silence = seen.unwrap_or(self.sent).elapsed();
        let patience = sign_timeout(request, earlier.len()).saturating_sub(silence);
        let outcome = if is_silent { judge() } else { None };
        // A worker may have taken the request and begin late: it is to be sent only a few times.
        let doubled = timeout.saturating_mul(2);
        let (pause, next_timeout) = match request.keep_alive {
            _ if outcome.is_some() => (doubled, doubled),
            Some(interval) if patience.is_zero() => (interval, timeout),
            Some(interval) => (interval.min(patience), timeout),
            None => (timeout, doubled),
        };
        self.next_check = Some(now + pause);
        self.sign_timeout = next_timeout;
        outcome
    }

    /// The outcome, if there is one, by what the broker says about the queue. No sign of life has
    /// come, or none since the last one that was `seen`.
    ///
    /// A server that supports signs of life sends the first one when it starts with the request. If
    /// none came, either the request still waits in its queue, or its server does not support them.
    /// The call then goes on until its deadline, unless the queue has no consumers. If one came,
    /// the request may have been returned to the queue, and wait there. An idempotent request may
    /// be lost if no sign of it comes and no request waits in the queue. If the caller wants no
    /// signs of life, only another broker may know more, if nobody serves the queue at this one.
    fn judge_silence(
        &self,
        request: &OutgoingRequest,
        found: &Result<QueueStatus>,
        seen: Option<Instant>,
        earlier: usize,
    ) -> Option<Outcome> {
        let unserved = is_unserved(found);
        let is_over = match found {
            _ if request.keep_alive.is_none() => unserved,
            Ok(QueueStatus { consumers: 0, .. }) => true,
            Ok(QueueStatus { messages: 0, .. }) => seen.is_some() || request.is_idempotent,
            // No answer is not evidence: the broker may be far away, or may not tell this user.
            Ok(_) | Err(_) => false,
        };
        if !is_over {
            return None;
        }
        let may_be_lost = self.session.note_silence(found) || request.keep_alive.is_some();
        // A broker that is cut off from the rest of its cluster knows of no consumers.
        let has_several_brokers = self.session.dispatcher.config.brokers.are_several();
        let may_help = !unserved || has_several_brokers && earlier == 0;
        if may_be_lost && may_help && request.is_idempotent {
            return Some(Outcome::MayBeLost("its server gave no sign of life".into()));
        }
        request.keep_alive?;
        let after = seen.unwrap_or(self.sent).elapsed();
        let queue = request.queue.name.clone();
        let silent = Outcome::Ended(Err(Error::ServerSilent { queue, after, unserved }));
        Some(silent).filter(|_| after >= sign_timeout(request, earlier))
    }

    /// The error for a call that was sent and got no reply by its deadline. Asks the broker about
    /// the queue, unless its answer is there already.
    ///
    /// If nothing has come back for long, this makes the session suspect.
    pub(super) fn explain_silence(&self, queue: &str, deadline: Deadline) -> Error {
        if let Some(blocked) = self.session.blocked(deadline, true) {
            return blocked;
        }
        let mut what = format!("no reply from queue {queue:?}");
        let found = self.session.look(queue, true, Deadline::after(ANSWER_TIMEOUT));
        if let Ok(QueueStatus { consumers, messages }) = found {
            let advice = match consumers {
                0 => "start a server",
                _ => "allow more time, or start more servers",
            };
            what += &format!(" (consumers: {consumers}, waiting requests: {messages}); {advice}");
        }
        self.session.note_silence(&found);
        Error::TimedOut { what, after: deadline.timeout, sent: true }
    }
}

/// The server's answer to one of these attempts. Attempts that failed otherwise are dropped.
pub(super) fn take_reply(attempts: &mut Vec<InFlight>) -> Option<Result<Reply>> {
    let mut reply = None;
    attempts.retain(|attempt| {
        let is_alive = attempt.session.ended().is_none();
        match attempt.slot.progress().outcome.take() {
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
        let Session { connection, dispatcher, publishing, .. } = &*self.session;
        if self.slot.is_settled() {
            if let Some(own) = self.own.take() {
                publishing.give_back(own);
            }
        } else {
            dispatcher.pending.forget(self.slot.id, connection);
        }
    }
}
