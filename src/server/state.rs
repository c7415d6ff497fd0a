//! The state that a server's threads share, and their connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::counters::ServerCounters;
use super::exchange;
use super::idle_checks::IdleChecks;
use super::log_limit::LogLimit;
use super::options::ServerOptions;
use super::outcomes::Outcomes;
use super::queue::{self, Declaration, REDECLARE_DELAY};
use super::session::ServerSession;
use crate::broker::{Brokers, Connection, DataPlane, Reconnector, program};
use crate::deadline::{Deadline, LONGEST_PAUSE, backoff};
use crate::error::Error;
use crate::frames::Event;
use crate::lock::lock;
use crate::observation::Observer;
use crate::wire;

/// The state that a server's threads share.
pub(crate) struct ServerState {
    pub(super) brokers: Brokers,
    pub(super) queue: String,
    pub(super) options: ServerOptions,
    pub(super) sessions: Arc<Reconnector<ServerSession>>,
    /// Without the requests in progress, which `outcomes` knows.
    pub(super) counters: Mutex<ServerCounters>,
    /// Whether a worker has consumed from the queue.
    pub(super) has_served: AtomicBool,
    /// Until when the first start is tried again.
    last_attempt: OnceLock<Deadline>,
    complaints: LogLimit,
    /// For lines about requests that nobody needs the answer to.
    pub(super) useless: LogLimit,
    /// When it began to serve. Not set for a server that only refuses requests.
    pub(super) serving_since: OnceLock<SystemTime>,
    /// The name that replies give as that of their program.
    pub(super) app_id: String,
    pub(super) outcomes: Outcomes,
    pub(super) idle_checks: Mutex<IdleChecks>,
    pub(super) observer: Observer,
    /// Called when a worker begins to consume for the first time.
    pub(super) on_ready: Mutex<Option<OnReady>>,
    pub(super) stop: Stop,
}

pub(crate) type OnReady = Box<dyn FnOnce() + Send>;

impl ServerState {
    /// Sessions are made when they are needed first.
    pub(super) fn new(
        brokers: Brokers,
        declaration: Declaration,
        options: ServerOptions,
    ) -> ServerState {
        let (queue, connect_timeout) = (declaration.queue.clone(), brokers.connect_timeout);
        let (exchange, key) = (options.exchange.clone(), options.binding_key.clone());
        let has_limit = options.max_waiting.is_some();
        let overflow = has_limit.then(|| Declaration::overflow(&queue, &options, &brokers));
        let sessions = Reconnector::new(&brokers, move |connection: Connection, is_reconnect| {
            let until = Deadline::after(connect_timeout).at;
            // The overflow queue must exist before the first request exceeds the limit. The server
            // does without it, so it leaves half of the time for the request queue.
            let half = Deadline::after(connect_timeout / 2).at;
            if let Some(overflow) = &overflow
                && let Err(error) = queue::ensure(&connection, overflow, half, None)
            {
                log::warn!("requests over the limit are not answered at present: {error}");
            }
            // It existed before, so it was deleted if it does not exist.
            let pause = is_reconnect.then_some(REDECLARE_DELAY);
            let refuses_newest = queue::ensure(&connection, &declaration, until, pause)?;
            if let Some(exchange) = &exchange {
                let key = key.as_ref().unwrap_or(&declaration.queue);
                exchange::ensure_bound(&connection, exchange, &declaration.queue, key, until)?;
            }
            Ok(ServerSession::new(connection, refuses_newest))
        });
        ServerState {
            queue,
            options,
            sessions,
            counters: Mutex::default(),
            has_served: AtomicBool::new(false),
            last_attempt: OnceLock::new(),
            complaints: LogLimit::new(1, Duration::from_secs(5)),
            useless: LogLimit::new(30, Duration::from_secs(10)),
            serving_since: OnceLock::new(),
            outcomes: Outcomes::default(),
            idle_checks: Mutex::default(),
            observer: Observer::default(),
            on_ready: Mutex::default(),
            stop: Stop::new(),
            app_id: program(),
            brokers,
        }
    }

    pub(super) fn counters(&self) -> ServerCounters {
        let in_progress = self.outcomes.in_progress().len() as u64;
        ServerCounters { in_progress, ..*lock(&self.counters) }
    }

    /// Whether the workers have begun nothing since this number of requests was `handled`.
    pub(super) fn is_idle_since(&self, handled: u64) -> bool {
        let now = self.counters();
        now.handled() == handled && now.in_progress == 0
    }

    /// Has all workers of a session go on with another one, after they have answered the requests
    /// that they have got. Their replies still go through this connection, and the last worker
    /// closes it.
    pub(super) fn abandon(&self, session: &Arc<ServerSession>, reason: &Error) {
        self.sessions.abandon(session, reason);
        let mut consumers = self.outcomes.consumers();
        consumers.retain(|(own, _)| Arc::ptr_eq(own, session));
        consumers.iter().for_each(|(_, inbox)| inbox.drain(Some(reason)));
        session.connection.wake_all();
    }

    /// Until when the first start is tried again, whatever the broker refuses.
    pub(super) fn last_attempt(&self) -> Deadline {
        *self.last_attempt.get_or_init(|| Deadline::after(self.brokers.wait))
    }

    /// Notes that a worker takes requests.
    pub(super) fn note_consuming(&self) {
        if !self.stop.is_stopped() {
            self.outcomes.note_consuming();
        }
    }

    /// Whether what the broker refuses may pass: a server that has served goes on.
    pub(super) fn keeps_trying(&self) -> bool {
        self.has_served.load(Ordering::Relaxed) || !self.last_attempt().has_passed()
    }

    /// Waits after something failed that may pass: longer each time, or until the server is
    /// stopped. Logs the error, but not for each of many workers.
    pub(super) fn pause(&self, failures: u32, error: &Error) {
        const FIRST: Duration = Duration::from_secs(1);
        self.sessions.note_error(error);
        self.complaints.log(log::Level::Error, format_args!("{error}; trying again"));
        let longest = match self.has_served.load(Ordering::Relaxed) {
            true => LONGEST_PAUSE,
            false => LONGEST_PAUSE.min(self.last_attempt().remaining()),
        };
        let _ = self.stop.signal.recv_timeout(backoff(failures, FIRST, longest));
    }

    /// Handles a message that the broker returned. Called by the reader.
    pub(super) fn on_return(&self, data_plane: &DataPlane, event: &Event) {
        match event {
            Event::Return { queue, message, .. } if wire::identify(message).1 => {
                self.outcomes.note_abandoned(queue, message);
            }
            Event::Return { reason, .. } => {
                lock(&self.counters).returned += 1;
                if let Some(omitted) = self.useless.allow() {
                    let text = format_args!(
                        "a reply came back: its requester is gone ({reason}){omitted}"
                    );
                    data_plane.note(log::Level::Info, text);
                }
            }
            _ => {}
        }
    }

    /// Closes the connections. Blocks for at most a second for each.
    pub(super) fn close(&self) {
        let sessions = self.outcomes.consumers().into_iter().map(|(session, _)| session);
        sessions.chain(self.sessions.present()).for_each(|session| session.connection.close());
    }

    /// Tells the workers to stop, and makes no new connection. The requests that no worker has
    /// begun return to the queue. Does not block.
    pub(super) fn stop(&self) {
        self.stop.stop(self.options.drain_timeout);
        self.sessions.close();
        for (session, inbox) in self.outcomes.consumers() {
            inbox.drain(None);
            session.connection.wake_all();
        }
    }
}

/// Whether a server is told to stop, and the signal to its threads.
pub(super) struct Stop {
    /// Until when the server waits for its workers then.
    until: OnceLock<Instant>,
    /// The first call of `stop` drops the sender. This disconnects the receiver, which wakes every
    /// thread that waits on it.
    running: Mutex<Option<Sender<()>>>,
    pub(super) signal: Receiver<()>,
}

impl Stop {
    fn new() -> Stop {
        let (sender, signal) = bounded(1);
        Stop { until: OnceLock::new(), running: Mutex::new(Some(sender)), signal }
    }

    fn stop(&self, drain_timeout: Duration) {
        self.until.get_or_init(|| Deadline::after(drain_timeout).at);
        drop(lock(&self.running).take());
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.until.get().is_some()
    }

    pub(super) fn until(&self) -> Instant {
        *self.until.get().expect("the server is told to stop")
    }
}
