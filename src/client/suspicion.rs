//! Decides when to leave a connection that works, because no replies come through it.
//!
//! Requests may be lost on a connection that works. The first message of a channel to a quorum
//! queue waits for the queue's leader, for up to 65 s, and all later messages wait behind it. If a
//! message to a leader that stops is lost, the later ones wait for it. Without publisher confirms,
//! the client is not told (`rabbit_fifo_client.erl`). And from RabbitMQ 4.3 on, a node that is cut
//! off from its cluster goes on accepting requests that no server can get.

use std::time::{Duration, Instant};

use super::looks::QueueStatus;
use super::request::OutgoingRequest;
use crate::deadline::backoff;
use crate::error::{Error, Result};

/// How long no answer has come to any call when a session becomes suspect.
const SUSPECT_AFTER: Duration = Duration::from_secs(3);

/// Whether requests may be lost in one session.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Since when calls have waited without an answer to any of them.
    unanswered: Option<Instant>,
    /// Since when the broker has not answered a question about a queue.
    asked: Option<Instant>,
    is_suspect: bool,
    pub(super) has_answers: bool,
}

impl Suspicion {
    pub(super) fn note_call(&mut self) {
        self.unanswered.get_or_insert_with(Instant::now);
    }

    /// Notes that a message has come from a server. The calls that wait still may wait for long
    /// jobs, so their silence is no evidence until the next call.
    pub(super) fn note_answer(&mut self) {
        *self = Suspicion { has_answers: true, ..Suspicion::default() };
    }

    /// Notes a sign of life for a call in flight: its reply may be lost from now on.
    pub(super) fn note_sign_of_life(&mut self) {
        self.note_answer();
        self.note_call();
    }

    /// Notes what the broker says about the queue of a call that misses an answer. If its request
    /// may be lost, the session is suspect until an answer comes, unless one has come a short time
    /// ago. Requests that wait in the queue are overload. A broker that does not tell this user, or
    /// is far away, is no evidence. `silence` is how long nothing has arrived on the connection.
    /// Returns whether requests may be lost.
    pub(super) fn note_silence(
        &mut self,
        found: &Result<QueueStatus>,
        has_several_brokers: bool,
        silence: Duration,
    ) -> bool {
        let may_be_lost = match found {
            Ok(QueueStatus { consumers: 1.., messages }) => *messages == 0,
            found => is_unserved(found) && has_several_brokers,
        };
        self.is_suspect |=
            may_be_lost && self.unanswered.is_some_and(|since| since.elapsed() >= SUSPECT_AFTER);
        if matches!(found, Err(Error::TimedOut { .. }))
            && self.asked.is_none_or(|asked| silence < asked.elapsed())
        {
            self.asked = Some(Instant::now());
        }
        self.is_suspect
    }

    /// Notes that nobody serves a queue here that may be served elsewhere. This makes a session
    /// suspect through which no answer has come.
    pub(super) fn note_unserved(&mut self) {
        self.is_suspect |= !self.has_answers;
    }

    /// `silence` is how long nothing has arrived on the connection.
    pub(super) fn is_suspect(&self, silence: impl FnOnce() -> Duration) -> bool {
        /// An answer takes less time, however far away the broker is.
        const LONGEST_ANSWER: Duration = Duration::from_secs(2);
        let is_silent = |since| since >= LONGEST_ANSWER && silence() >= since;
        self.is_suspect || self.asked.map(|asked| asked.elapsed()).is_some_and(is_silent)
    }
}

/// When to replace the next suspect session. The interval doubles until an answer comes: if the
/// server is slow, or there is none, another connection does not help.
#[derive(Debug, Default)]
pub(super) struct Replacements {
    without_answer: u32,
    next: Option<Instant>,
}

impl Replacements {
    /// Whether a suspect session may be replaced now. `has_answers` tells whether it has had any.
    pub(super) fn begin(&mut self, has_answers: bool) -> bool {
        const LONGEST: Duration = Duration::from_secs(120);
        if has_answers {
            *self = Replacements::default();
        }
        if self.next.is_some_and(|next| Instant::now() < next) {
            return false;
        }
        self.without_answer += 1;
        let pause = backoff(self.without_answer, 2 * SUSPECT_AFTER, LONGEST);
        self.next = Some(Instant::now() + pause);
        true
    }
}

/// Whether the broker of this answer gives the queue's requests to nobody. Another broker may, if
/// this one is cut off.
pub(super) fn is_unserved(found: &Result<QueueStatus>) -> bool {
    matches!(
        found,
        Ok(QueueStatus { consumers: 0, .. })
            | Err(Error::Unroutable { .. } | Error::Unreachable { .. })
    )
}

/// How long the first attempt of a call waits for a sign of life. After this number of `earlier`
/// attempts, how long one of an idempotent call waits while nobody serves the queue.
pub(super) fn sign_timeout(request: &OutgoingRequest, earlier: usize) -> Duration {
    let timeout = request.keep_alive.map_or(SUSPECT_AFTER, |interval| interval * 3);
    match request.is_idempotent {
        true => timeout.max(SUSPECT_AFTER).saturating_mul(1 << earlier.min(8)),
        false => timeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspect_sessions_are_replaced_less_and_less_often() {
        let mut replacements = Replacements::default();
        assert!(replacements.begin(true) && !replacements.begin(false));
        let pause = |replacements: &mut Replacements| {
            replacements.next = Some(Instant::now());
            assert!(replacements.begin(false));
            replacements.next.unwrap().saturating_duration_since(Instant::now())
        };
        let pauses = [(); 6].map(|()| pause(&mut replacements));
        for (pause, least) in pauses.into_iter().zip([5, 11, 23, 47, 59, 59]) {
            assert!(pause > Duration::from_secs(least), "{pauses:?}");
        }
        assert!(replacements.begin(true), "an answer came through the last one");
    }

    #[test]
    fn reply_may_be_lost_after_a_sign_of_life() {
        let lost = Ok(QueueStatus { consumers: 1, messages: 0 });
        let may_lose =
            |suspicion: &mut Suspicion| suspicion.note_silence(&lost, false, Duration::ZERO);
        let mut suspicion = unanswered_for(2 * SUSPECT_AFTER);
        suspicion.note_sign_of_life();
        assert!(!may_lose(&mut suspicion), "the sign has just come");
        suspicion.unanswered = suspicion.unanswered.map(|since| since - SUSPECT_AFTER);
        assert!(may_lose(&mut suspicion));
    }

    #[test]
    fn call_that_times_out_soon_is_no_evidence_while_another_takes_long() {
        let mut suspicion = unanswered_for(2 * SUSPECT_AFTER);
        suspicion.note_answer();
        assert_eq!(suspicion.unanswered, None, "those that are left may be long jobs");
        suspicion.note_call();
        let lost = Ok(QueueStatus { consumers: 1, messages: 0 });
        assert!(!suspicion.note_silence(&lost, false, Duration::ZERO), "it has just begun");
    }

    #[test]
    fn overload_is_no_evidence_of_loss() {
        let found = |consumers, messages| Ok(QueueStatus { consumers, messages });
        let gone = Err(Error::Unroutable { queue: "q".into() });
        for (found, with_one, with_several) in [
            (found(1, 0), true, true),
            (found(1, 9), false, false),
            (found(0, 9), false, true),
            (gone, false, true),
            (Err(Error::Refused("it does not tell".into())), false, false),
        ] {
            let lost = [false, true].map(|several| {
                let mut suspicion = unanswered_for(SUSPECT_AFTER);
                suspicion.note_silence(&found, several, Duration::ZERO);
                suspicion.is_suspect(|| Duration::ZERO)
            });
            assert_eq!(lost, [with_one, with_several], "{found:?}");
        }
    }

    #[test]
    fn unanswered_question_is_evidence_only_on_a_silent_connection() {
        let (what, after) = ("no answer".into(), Duration::ZERO);
        let late = Err(Error::TimedOut { what, after, sent: false });
        let mut suspicion = unanswered_for(SUSPECT_AFTER);
        suspicion.note_silence(&late, true, Duration::from_secs(60));
        assert!(!suspicion.is_suspect(|| Duration::from_secs(60)), "the answer may come yet");
        let asked = suspicion.asked.map(|asked| asked - SUSPECT_AFTER);
        suspicion.asked = asked;
        assert!(!suspicion.is_suspect(|| SUSPECT_AFTER / 2), "something came after the question");
        assert!(suspicion.is_suspect(|| 2 * SUSPECT_AFTER));
        suspicion.note_silence(&late, true, 2 * SUSPECT_AFTER);
        assert_eq!(suspicion.asked, asked, "nothing has come since the first question");
        suspicion.note_silence(&late, true, SUSPECT_AFTER / 2);
        assert!(suspicion.asked > asked);
    }

    /// That of a session through which no answer has come for this time.
    fn unanswered_for(time: Duration) -> Suspicion {
        Suspicion { unanswered: Some(Instant::now() - time), ..Default::default() }
    }
}
