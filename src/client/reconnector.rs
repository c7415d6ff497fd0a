//! Which session the calls go through, and how there comes to be another.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::session::Session;
use super::{Config, lock, session_thread};
use crate::deadline::{Deadline, backoff};
use crate::error::{Error, Result};

/// What makes the sessions of a client, shared with its pending replies and with the thread that
/// connects.
pub(crate) struct Reconnector {
    pub(super) config: Arc<Config>,
    state: Mutex<State>,
    /// Notified whenever connecting has ended, one way or the other.
    changed: Condvar,
}

struct State {
    phase: Phase,
    /// The session before, that takes no more calls and may have some in flight.
    retired: Weak<Session>,
    /// The place in the list of the broker to begin with: the one that was good last.
    broker: usize,
    was_up: bool,
    /// Counts failed tries: who waits tells by it whether one has failed meanwhile.
    failures: u64,
    last_failure: Option<Error>,
    /// Tries that failed in a row, and when the next may be made.
    in_a_row: u32,
    next_try: Instant,
}

enum Phase {
    Down,
    /// A thread is at it.
    Connecting,
    Up(Arc<Session>),
    Closed,
}

impl Reconnector {
    pub(super) fn new(config: Config) -> Reconnector {
        let state = State {
            phase: Phase::Down,
            retired: Weak::new(),
            broker: 0,
            was_up: false,
            failures: 0,
            last_failure: None,
            in_a_row: 0,
            next_try: Instant::now(),
        };
        Reconnector { config: Arc::new(config), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A first session, or what kept the only try from making one, unless more are wanted.
    pub(super) fn first_session(self: &Arc<Reconnector>) -> Result<Arc<Session>> {
        let Config { brokers, options, .. } = &*self.config;
        let deadline = Deadline::after(brokers.first_limit().min(options.timeout));
        match brokers.wait.is_zero() {
            true => self.session_unless(deadline, |_| true),
            false => self.session(deadline),
        }
    }

    /// The session there is, or else a new one. One caller at a time has a thread connect; all
    /// of them wait until their own deadlines. A failed try is followed by another, a little
    /// later each time, unless it cannot help.
    pub(super) fn session(self: &Arc<Reconnector>, deadline: Deadline) -> Result<Arc<Session>> {
        self.session_unless(deadline, |failure| !matches!(failure, Error::Unreachable { .. }))
    }

    fn session_unless(
        self: &Arc<Reconnector>,
        deadline: Deadline,
        is_final: impl Fn(&Error) -> bool,
    ) -> Result<Arc<Session>> {
        let mut state = lock(&self.state);
        let failures_before = state.failures;
        loop {
            state.put_away_a_suspect_session();
            state.put_away_an_ended_session();
            let now = Instant::now();
            let until = match &state.phase {
                Phase::Up(session) => return Ok(Arc::clone(session)),
                Phase::Closed => return Err(Error::Closed),
                Phase::Connecting => deadline.at,
                Phase::Down => {
                    let failed = state.failures > failures_before;
                    match state.last_failure.as_ref().filter(|failure| is_final(failure)) {
                        Some(failure) if failed => return Err(failure.clone()),
                        _ if state.next_try <= now => {
                            self.begin_to_connect(&mut state, deadline);
                            continue;
                        }
                        _ => deadline.at.min(state.next_try),
                    }
                }
            };
            if deadline.at <= now {
                return Err(self.not_in_time(&state, deadline));
            }
            let waited = self.changed.wait_timeout(state, until - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The thread that connects goes on when the caller has left, for those who come next: if
    /// callers who wait for less than the handshakes take cut it short, none would ever succeed.
    fn begin_to_connect(self: &Arc<Reconnector>, state: &mut State, deadline: Deadline) {
        const LEAST: Duration = Duration::from_secs(1);
        let deadline = Deadline::after(deadline.remaining().max(LEAST));
        state.phase = Phase::Connecting;
        let reconnector = Arc::clone(self);
        let report = move |broker, result| reconnector.connected(broker, result);
        let config = Arc::clone(&self.config);
        let started = session_thread::start(config, state.broker, state.was_up, deadline, report);
        if let Err(error) = started {
            let brokers = self.config.brokers.to_string();
            let reason = format!("there is no thread to connect in: {error}");
            state.failed(Error::Unreachable { brokers, reason });
        }
    }

    /// What came of connecting, told by the thread that did it.
    fn connected(&self, broker: usize, result: Result<Arc<Session>>) {
        let mut state = lock(&self.state);
        state.broker = broker;
        match (&state.phase, result) {
            (Phase::Closed, Ok(session)) => session.abandon(),
            (Phase::Closed, Err(_)) => {}
            (_, Ok(session)) => {
                if std::mem::replace(&mut state.was_up, true) {
                    self.config.counters.reconnects.fetch_add(1, Ordering::Relaxed);
                }
                state.phase = Phase::Up(session);
            }
            (_, Err(error)) => state.failed(error),
        }
        drop(state);
        self.changed.notify_all();
    }

    fn not_in_time(&self, state: &State, deadline: Deadline) -> Error {
        let reason = match &state.last_failure {
            Some(Error::Unreachable { reason, .. }) if state.in_a_row > 0 => reason.clone(),
            _ => "no answer yet".into(),
        };
        let reason = format!("{reason} (tried for {:?})", deadline.timeout);
        Error::Unreachable { brokers: self.config.brokers.to_string(), reason }
    }

    /// Ends everything: callers that wait for a session or for a reply get [`Error::Closed`].
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        let phase = std::mem::replace(&mut state.phase, Phase::Closed);
        let retired = state.retired.upgrade();
        drop(state);
        self.changed.notify_all();
        if let Some(session) = retired {
            session.abandon();
        }
        if let Phase::Up(session) = phase {
            session.close();
        }
    }

    /// Number of calls in flight.
    pub(super) fn in_flight(&self) -> usize {
        let state = lock(&self.state);
        let retired = state.retired.upgrade().map_or(0, |session| session.in_flight());
        match &state.phase {
            Phase::Up(session) => session.in_flight() + retired,
            _ => retired,
        }
    }
}

impl State {
    /// One session at a time may be retired: each keeps its connection and its calls in flight.
    fn put_away_a_suspect_session(&mut self) {
        let Phase::Up(session) = &self.phase else { return };
        if session.is_suspect() && self.retired.strong_count() == 0 {
            session.retire();
            self.retired = Arc::downgrade(session);
            // No replies come through this broker; they may through the next.
            self.broker += 1;
        }
    }

    /// A session that ended soon after it began counts like a failure to connect: a broker that
    /// throws everybody out is left alone for a while.
    fn put_away_an_ended_session(&mut self) {
        const SOON: Duration = Duration::from_secs(1);
        let Phase::Up(session) = &self.phase else { return };
        if session.ended().is_none() {
            return;
        }
        let soon = session.began.elapsed() < SOON;
        self.phase = Phase::Down;
        match soon {
            true => self.wait_before_the_next_try(),
            false => {
                self.in_a_row = 0;
                self.next_try = Instant::now();
            }
        }
    }

    fn failed(&mut self, error: Error) {
        log::info!("{error}");
        self.phase = Phase::Down;
        self.failures += 1;
        self.last_failure = Some(error);
        self.wait_before_the_next_try();
    }

    fn wait_before_the_next_try(&mut self) {
        const FIRST: Duration = Duration::from_millis(50);
        const MOST: Duration = Duration::from_secs(2);
        self.in_a_row += 1;
        self.next_try = Instant::now() + backoff(self.in_a_row, FIRST, MOST);
    }
}
