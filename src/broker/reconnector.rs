//! Chooses the session that a program uses, and replaces a lost one.
//!
//! A session is a connection that is set up for its purpose. One thread at a time connects, for all
//! callers that need a session. Each caller waits until its own deadline.

mod state;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use self::state::Session;
use self::state::{Patience, State};
use super::brokers::Brokers;
use super::connection::Connection;
use super::ended::Ended;
use super::status::ConnectionStatus;
use super::try_order::TryOrder;
use crate::deadline::Deadline;
use crate::error::{Error, Result, rounded};
use crate::lock::lock;

pub(crate) struct Reconnector<S> {
    brokers: Brokers,
    open: Open<S>,
    state: Mutex<State<S>>,
    /// Notified when connecting succeeds or fails.
    changed: Condvar,
}

/// Sets up a connection. The flag is true if there was a session before.
type Open<S> = Box<dyn Fn(Connection, bool) -> Result<S> + Send + Sync>;

/// How long callers wait for a session that takes the place of another.
const REPLACING_TIMEOUT: Duration = Duration::from_millis(500);

impl<S: Session> Reconnector<S> {
    pub(crate) fn new(
        brokers: &Brokers,
        open: impl Fn(Connection, bool) -> Result<S> + Send + Sync + 'static,
    ) -> Arc<Reconnector<S>> {
        Arc::new(Reconnector {
            brokers: brokers.clone(),
            open: Box::new(open),
            state: Mutex::new(State::new(brokers.order())),
            changed: Condvar::new(),
        })
    }

    /// Makes the first session. Retries after any failure until [`Brokers::wait`] is over: a user
    /// or a permission may come later than the program. Tries at least once.
    pub(crate) fn first_session(self: &Arc<Self>, timeout: Duration) -> Result<Arc<S>> {
        let deadline = Deadline::after(self.brokers.first_connect_timeout().min(timeout));
        self.wait_for_session(deadline, Patience::Until(Deadline::after(self.brokers.wait)))
    }

    /// Returns the current session, or else a new one. Retries a failed attempt, with a longer
    /// delay each time, but returns a refusal at once.
    pub(crate) fn session(self: &Arc<Self>, deadline: Deadline) -> Result<Arc<S>> {
        self.wait_for_session(deadline, Patience::UntilRefused)
    }

    /// The same as [`Reconnector::session`], but retries after a refusal, too: it passes when
    /// somebody gives back the permission or the password.
    pub(crate) fn persistent_session(self: &Arc<Self>, deadline: Deadline) -> Result<Arc<S>> {
        self.wait_for_session(deadline, Patience::Always)
    }

    fn wait_for_session(
        self: &Arc<Self>,
        deadline: Deadline,
        patience: Patience,
    ) -> Result<Arc<S>> {
        let (mut began, mut state) = (None, lock(&self.state));
        loop {
            if state.notes.exist() {
                self.unlock(state);
                state = lock(&self.state);
            }
            let now = Instant::now();
            let began = *began.get_or_insert(now);
            let until = match (&state.session, state.connecting) {
                _ if state.is_closed => return Err(Error::Closed),
                (Some(session), replacing) => match session.ended() {
                    None => match replacing.map(|began| began + REPLACING_TIMEOUT) {
                        Some(end) if now < end && now < deadline.at => end.min(deadline.at),
                        _ => return Ok(Arc::clone(session)),
                    },
                    Some(reason) => {
                        let connection = session.connection();
                        let silent = connection.ended() == Some(&Ended::Silent);
                        let silent = silent.then(|| connection.endpoint.clone());
                        state.lost(&reason, silent.as_ref());
                        continue;
                    }
                },
                (None, Some(_)) => deadline.at,
                (None, None) => match &state.last_failure {
                    Some((failed, error))
                        if patience.ends_by(error)
                            && (*failed >= began || state.next_try > now) =>
                    {
                        return Err(error.clone());
                    }
                    _ if state.next_try <= now => {
                        state.patience = patience;
                        self.start_connecting(&mut state, deadline);
                        continue;
                    }
                    _ => deadline.at.min(state.next_try),
                },
            };
            if deadline.at <= now {
                return Err(self.timed_out(&state, deadline));
            }
            let waited = self.changed.wait_timeout(state, until - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Connects in a separate thread, because looking up a name takes as long as the system's
    /// resolver does. The thread continues for later callers after the caller has given up. If
    /// callers with short deadlines ended it, and the handshakes took longer, no attempt would ever
    /// succeed.
    fn start_connecting(self: &Arc<Self>, state: &mut State<S>, deadline: Deadline) {
        let deadline =
            Deadline::after(deadline.remaining().max(self.brokers.first_connect_timeout()));
        state.connecting = Some(Instant::now());
        let (this, is_reconnect) = (Arc::clone(self), state.had_session());
        let mut order = state.order.clone();
        let connect = move || {
            // A panic must not leave the callers waiting for this thread.
            let opened =
                catch_unwind(AssertUnwindSafe(|| this.open(&mut order, deadline, is_reconnect)));
            let panicked = |_| Err(this.brokers.unreachable("connecting panicked".into()));
            if let Some(session) = this.connected(order, opened.unwrap_or_else(panicked)) {
                log::debug!("connected to {}", session.connection().endpoint);
                session.finish_setup();
            }
        };
        if let Err(error) = thread::Builder::new().name("rpc-connect".into()).spawn(connect) {
            let reason = format!("there is no thread to connect in: {error}");
            state.failed(self.brokers.unreachable(reason));
        }
    }

    /// Connects to the first broker with which a session can be set up.
    fn open(&self, order: &mut TryOrder, deadline: Deadline, is_reconnect: bool) -> Result<S> {
        let set_up = |connection| (self.open)(connection, is_reconnect);
        self.brokers.connect(order, deadline, set_up).map_err(|error| match error {
            // The same settings have worked before. A file, for example, may be replaced just now.
            Error::Config(reason) if is_reconnect => self.brokers.unreachable(reason),
            error => error,
        })
    }

    /// Returns the new session, if callers may use it.
    fn connected(&self, order: TryOrder, opened: Result<S>) -> Option<Arc<S>> {
        let (mut new, mut replaced) = (None, None);
        let mut state = lock(&self.state);
        state.order = order;
        match opened {
            // Dropping the session closes it.
            _ if state.is_closed => {}
            Ok(session) => {
                let session = new.insert(Arc::new(session));
                state.connecting = None;
                state.connected_since = Some(Instant::now());
                state.last_failure = None;
                replaced = state.session.replace(Arc::clone(session));
            }
            Err(error) => state.failed(error),
        }
        self.changed.notify_all();
        self.unlock(state);
        replaced.iter().for_each(|session| session.retire());
        new
    }

    fn timed_out(&self, state: &State<S>, deadline: Deadline) -> Error {
        let reason = match &state.last_failure {
            Some((_, Error::Unreachable { reason, .. })) => reason,
            Some((_, refusal)) => return refusal.clone(),
            None => "no answer yet",
        };
        self.brokers.unreachable(format!("{reason} (tried for {})", rounded(deadline.timeout)))
    }

    /// Whether there was a session already.
    pub(crate) fn had_session(&self) -> bool {
        lock(&self.state).had_session()
    }

    /// Whether callers get this session.
    pub(crate) fn is_current(&self, session: &Arc<S>) -> bool {
        lock(&self.state).is_current(session)
    }

    /// Abandons `session` for this reason if it is the current one. The next call then connects
    /// again, and tries the same broker last.
    pub(crate) fn abandon(&self, session: &Arc<S>, reason: &Error) {
        let mut state = lock(&self.state);
        if state.is_current(session) && !state.is_closed {
            state.lost(reason, Some(&session.connection().endpoint));
        }
        self.unlock(state);
    }

    /// Releases the lock, and logs what was noted under it.
    fn unlock(&self, state: MutexGuard<'_, State<S>>) {
        let notes = state.notes.clone();
        drop(state);
        notes.log();
    }

    /// Connects to another broker, unless a thread already does. Its session takes the place of
    /// `session`. Until then, callers wait for [`REPLACING_TIMEOUT`] at most, and then go on with
    /// `session`: while a node of a cluster is frozen, the other nodes may not answer.
    pub(crate) fn replace(self: &Arc<Self>, session: &Arc<S>) {
        let mut state = lock(&self.state);
        let may_try = state.connecting.is_none() && state.next_try <= Instant::now();
        if may_try && state.is_current(session) && !state.is_closed {
            // Nobody waits for the outcome, so a failure is logged.
            state.patience = Patience::Always;
            state.order.move_to_end(&session.connection().endpoint);
            self.start_connecting(&mut state, Deadline::after(Duration::ZERO));
        }
        self.unlock(state);
    }

    /// The current session, or the last one if this is closed.
    pub(crate) fn present(&self) -> Option<Arc<S>> {
        lock(&self.state).session.clone()
    }

    /// Notes what kept a session's user from using it.
    pub(crate) fn note_error(&self, error: &Error) {
        lock(&self.state).last_error = Some(error.clone());
    }

    /// Blocks for no I/O.
    pub(crate) fn status(&self) -> ConnectionStatus {
        lock(&self.state).status()
    }

    /// Makes every later call of [`Reconnector::session`] fail. Returns the current session.
    pub(crate) fn close(&self) -> Option<Arc<S>> {
        let mut state = lock(&self.state);
        state.is_closed = true;
        let session = state.session.clone();
        drop(state);
        self.changed.notify_all();
        session
    }
}
