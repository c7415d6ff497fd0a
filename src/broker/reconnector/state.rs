//! Which session a program uses, and when and where it tries to connect next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;

use crate::broker::connection::Connection;
use crate::broker::notes::Notes;
use crate::broker::status::ConnectionStatus;
use crate::broker::try_order::TryOrder;
use crate::broker::url::Endpoint;
use crate::deadline::{Deadline, LONGEST_PAUSE, backoff};
use crate::error::Error;

/// The longest delays before an attempt to connect, where they are shorter than [`LONGEST_PAUSE`].
/// Without a TCP connection, an early attempt puts no load on a broker.
const MOST_WITHOUT_TCP: Duration = Duration::from_millis(500);
const MOST_AT_START: Duration = Duration::from_secs(2);

pub(crate) trait Session: Send + Sync + 'static {
    fn connection(&self) -> &Connection;

    /// The reason why the session is no longer usable; `None` while it is.
    fn ended(&self) -> Option<Error>;

    /// Called once callers may use the session. Blocks only the thread that connected.
    fn finish_setup(&self) {}

    /// Called when another session has taken its place ([`Reconnector::replace`]).
    fn retire(&self) {}
}

pub(super) struct State<S> {
    /// The session that callers get. The last one stays after the close, for the callers that have
    /// to finish on it.
    pub(super) session: Option<Arc<S>>,
    /// When a thread began to connect, if one does.
    pub(super) connecting: Option<Instant>,
    pub(super) is_closed: bool,
    /// The broker that worked last comes first, unless it was silent or did not work well.
    pub(super) order: TryOrder,
    /// When the current or the last session began; `None` if there was none yet.
    pub(super) connected_since: Option<Instant>,
    /// The last attempt that failed since the last session began, and when it failed.
    pub(super) last_failure: Option<(Instant, Error)>,
    /// The last failure, or the reason for which the last session was lost.
    pub(super) last_error: Option<Error>,
    /// That of the caller for whom a thread connects.
    pub(super) patience: Patience,
    /// The number of consecutive failed attempts, and the earliest time of the next attempt.
    pub(super) consecutive_failures: u32,
    pub(super) next_try: Instant,
    /// What to log when the lock is released.
    pub(super) notes: Notes,
}

/// How long a caller waits for a session although attempts fail.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// While further attempts may begin.
    Until(Deadline),
    /// While the brokers cannot be reached.
    UntilRefused,
    Always,
}

impl Patience {
    /// Whether this failure of an attempt is final for the caller.
    pub(super) fn ends_by(self, failure: &Error) -> bool {
        match self {
            Patience::Until(last_attempt) => last_attempt.has_passed(),
            Patience::UntilRefused => is_refusal(failure),
            Patience::Always => false,
        }
    }
}

/// Whether somebody has to change something before an attempt can succeed.
fn is_refusal(failure: &Error) -> bool {
    !matches!(failure, Error::Unreachable { .. })
}

impl<S: Session> State<S> {
    pub(super) fn new(order: TryOrder) -> State<S> {
        State {
            session: None,
            connecting: None,
            is_closed: false,
            order,
            connected_since: None,
            last_failure: None,
            last_error: None,
            patience: Patience::Always,
            consecutive_failures: 0,
            next_try: Instant::now(),
            notes: Notes::default(),
        }
    }

    pub(super) fn had_session(&self) -> bool {
        self.connected_since.is_some()
    }

    pub(super) fn status(&self) -> ConnectionStatus {
        let ended = self.session.as_ref().and_then(|session| session.ended());
        let open = self.session.as_ref().filter(|_| ended.is_none());
        let broker = open.map(|session| session.connection().endpoint.to_string());
        ConnectionStatus {
            connected: broker.zip(self.connected_since),
            last_error: ended.or_else(|| self.last_error.clone()),
        }
    }

    /// Whether callers get this session.
    pub(super) fn is_current(&self, session: &Arc<S>) -> bool {
        self.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session))
    }

    /// Notes that the session was lost. If it ended soon after it began, this counts as a failure
    /// to connect, so that a broker that ends all its connections is not reconnected to at once.
    /// `broker` is its broker, if that is to be tried last: connecting to a frozen broker takes the
    /// whole time limit.
    pub(super) fn lost(&mut self, reason: &Error, broker: Option<&Endpoint>) {
        const MIN_LIFETIME: Duration = Duration::from_secs(1);
        const STABLE_LIFETIME: Duration = Duration::from_secs(10);
        let lasted = self.connected_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.last_error = Some(reason.clone());
        self.session = None;
        if lasted >= STABLE_LIFETIME {
            // The others are in the order of their last failures, which is out of date by now.
            self.order.shuffle_others();
        }
        if let Some(broker) = broker {
            self.order.move_to_end(broker);
        }
        // The error's own text is for a call that was in flight.
        let reason = match reason {
            Error::ConnectionLost { reason } => format!("the connection was lost: {reason}"),
            error => error.to_string(),
        };
        if lasted < MIN_LIFETIME {
            let wait = self.delay_next_try(LONGEST_PAUSE);
            let text = format_args!("{reason}; trying again in {wait:.1?}");
            return self.notes.add(Level::Warn, text);
        }
        self.notes.add(Level::Warn, format_args!("{reason}; trying again at once"));
        self.consecutive_failures = 0;
        self.next_try = Instant::now();
    }

    pub(super) fn failed(&mut self, error: Error) {
        self.connecting = None;
        // A program that has worked with these settings keeps trying, whatever the broker says.
        let most = match (self.order.retry_early, self.had_session()) {
            (true, _) => MOST_WITHOUT_TCP,
            (false, false) => MOST_AT_START,
            (false, true) => LONGEST_PAUSE,
        };
        let wait = self.delay_next_try(most);
        let level = if is_refusal(&error) { Level::Error } else { Level::Warn };
        // A caller that does not try again gets the error itself.
        if !self.patience.ends_by(&error) {
            self.notes.add(level, format_args!("{error}; trying again in {wait:.1?}"));
        }
        self.last_error = Some(error.clone());
        self.last_failure = Some((Instant::now(), error));
    }

    fn delay_next_try(&mut self, most: Duration) -> Duration {
        const FIRST: Duration = Duration::from_millis(50);
        self.consecutive_failures += 1;
        let wait = backoff(self.consecutive_failures, FIRST, most);
        self.next_try = Instant::now() + wait;
        wait
    }
}
