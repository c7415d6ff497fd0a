//! The state that a server's threads share, and their connection.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::direct::DirectReplies;
use super::keep_alive::KeepAlive;
use super::limit::ReplyLimit;
use super::stall_detector::LastStall;
use super::stopper::Stop;
use super::{ServerCounters, ServerOptions, overload, queue};
use crate::broker::{Brokers, Connection, Limit, Reconnector, Session, program};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::observation::Observer;

/// The state that a server's threads share.
pub(crate) struct Shared {
    pub(super) brokers: Brokers,
    pub(super) queue: String,
    pub(super) options: ServerOptions,
    pub(super) sessions: Arc<Reconnector<ServerSession>>,
    pub(super) app_id: String,
    pub(super) counters: Mutex<ServerCounters>,
    pub(super) direct: DirectReplies,
    pub(super) reply_limit: ReplyLimit,
    pub(super) last_stall: Mutex<LastStall>,
    pub(super) keep_alive: KeepAlive,
    pub(super) observer: Observer,
    pub(super) stop: Stop,
}

/// A connection to a broker that has the request queue.
pub(crate) struct ServerSession {
    pub(super) connection: Connection,
    /// When an idle worker checks for a stall next.
    pub(super) next_check: Mutex<Instant>,
}

impl Session for ServerSession {
    fn connection(&self) -> &Connection {
        &self.connection
    }

    fn ended(&self) -> Option<Error> {
        self.connection.ended().map(|reason| self.connection.endpoint.unreachable(reason))
    }
}

impl Shared {
    /// Sessions are made when they are needed first.
    pub(super) fn new(brokers: Brokers, queue: &str, options: ServerOptions) -> Shared {
        let (queue, ensured, declared_as) = (queue.to_string(), queue.to_string(), options.clone());
        let connect_timeout = brokers.connect_timeout;
        let sessions = Reconnector::new(&brokers, move |connection: Connection, is_reconnect| {
            let limit = Limit::Until(Deadline::after(connect_timeout).at);
            if declared_as.max_waiting.is_some() {
                // The overflow queue must exist before the first request exceeds the limit.
                let overflow = overload::overflow_queue(&ensured);
                queue::ensure(&connection, &overflow, &ServerOptions::default(), limit, false)?;
            }
            queue::ensure(&connection, &ensured, &declared_as, limit, is_reconnect)?;
            Ok(ServerSession { connection, next_check: Mutex::new(Instant::now()) })
        });
        Shared {
            brokers,
            queue,
            options,
            sessions,
            app_id: program(),
            counters: Mutex::default(),
            direct: DirectReplies::default(),
            reply_limit: ReplyLimit(usize::MAX.into()),
            last_stall: Mutex::default(),
            keep_alive: KeepAlive::default(),
            observer: Observer::default(),
            stop: Stop::new(),
        }
    }

    /// Closes the connections. Blocks for at most a second for each.
    pub(super) fn close(&self) {
        if let Some(session) = self.sessions.present() {
            session.connection.close();
        }
        self.direct.close();
    }

    /// Tells the workers to stop, and makes no new connection. Does not block.
    pub(super) fn stop(&self) {
        self.stop.stop();
        if let Some(session) = self.sessions.close() {
            session.connection.wake_all();
        }
    }
}
