//! Which session a program uses, and when and where it tries to connect next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::try_order::TryOrder;
use crate::deadline::backoff;
use crate::error::Error;

pub(super) struct State<S> {
    pub(super) phase: Phase<S>,
    /// The broker that worked last comes first, unless it was silent or did not work well.
    pub(super) order: TryOrder,
    pub(super) had_session: bool,
    /// The number of failed attempts. A waiting caller compares it to detect that an attempt failed
    /// while it waited.
    pub(super) failures: u64,
    pub(super) last_failure: Option<Error>,
    /// The number of consecutive failed attempts, and the earliest time of the next attempt.
    pub(super) consecutive_failures: u32,
    pub(super) next_try: Instant,
}

pub(super) enum Phase<S> {
    Down,
    /// A thread is connecting.
    Connecting,
    Up {
        session: Arc<S>,
        since: Instant,
        /// When a thread began to connect for a session that takes the place of this one.
        replacing: Option<Instant>,
    },
    /// With the last session, for the callers that have to finish on it.
    Closed(Option<Arc<S>>),
}

impl<S> State<S> {
    pub(super) fn new(order: TryOrder) -> State<S> {
        State {
            phase: Phase::Down,
            order,
            had_session: false,
            failures: 0,
            last_failure: None,
            consecutive_failures: 0,
            next_try: Instant::now(),
        }
    }

    /// The current session, or the last one if the reconnector is closed.
    pub(super) fn session(&self) -> Option<Arc<S>> {
        match &self.phase {
            Phase::Up { session, .. } => Some(Arc::clone(session)),
            Phase::Closed(session) => session.clone(),
            Phase::Down | Phase::Connecting => None,
        }
    }

    /// Notes that a session was lost. If it ended soon after it began, this counts as a failure to
    /// connect, so that a broker that ends all its connections is not reconnected to at once.
    /// `broker` is the index of its broker, if that is to be tried last: connecting to a frozen
    /// broker takes the whole time limit.
    pub(super) fn lost(&mut self, reason: &Error, lasted: Duration, broker: Option<usize>) {
        const MIN_LIFETIME: Duration = Duration::from_secs(1);
        const STABLE_LIFETIME: Duration = Duration::from_secs(10);
        self.phase = match self.phase {
            Phase::Up { replacing: Some(_), .. } => Phase::Connecting,
            _ => Phase::Down,
        };
        if lasted >= STABLE_LIFETIME {
            // The others are in the order of their last failures, which is out of date by now.
            self.order.shuffle_others();
        }
        broker.into_iter().for_each(|broker| self.order.move_to_end(broker));
        // The error's own text is for a call that was in flight.
        let reason = match reason {
            Error::ConnectionLost { reason } => format!("the connection was lost: {reason}"),
            error => error.to_string(),
        };
        if lasted < MIN_LIFETIME {
            let wait = self.delay_next_try(true);
            return log::warn!("{reason}; trying again in {wait:.1?}");
        }
        log::warn!("{reason}; trying again at once");
        self.consecutive_failures = 0;
        self.next_try = Instant::now();
    }

    pub(super) fn failed(&mut self, error: Error, has_tcp_connection: bool) {
        match &mut self.phase {
            Phase::Up { replacing, .. } => *replacing = None,
            phase => *phase = Phase::Down,
        }
        let wait = self.delay_next_try(has_tcp_connection);
        match &error {
            Error::Unreachable { .. } => log::warn!("{error}; trying again in {wait:.1?}"),
            _ => log::warn!("{error}"),
        }
        self.failures += 1;
        self.last_failure = Some(error);
    }

    fn delay_next_try(&mut self, has_tcp_connection: bool) -> Duration {
        const FIRST: Duration = Duration::from_millis(50);
        let most = Duration::from_millis(if has_tcp_connection { 3000 } else { 500 });
        self.consecutive_failures += 1;
        let wait = backoff(self.consecutive_failures, FIRST, most);
        self.next_try = Instant::now() + wait;
        wait
    }
}
