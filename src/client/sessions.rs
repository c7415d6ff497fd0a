//! Chooses the session for each call.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use super::extra_channels::ExtraChannels;
use super::local::LocalHandler;
use super::looks::QueueStatus;
use super::options::Config;
use super::session::Session;
use super::status::ClientStatus;
use super::suspicion::{Replacements, is_unserved};
use crate::broker::Reconnector;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::lock::lock;

/// The state that the clients on one connection share with their pending replies.
pub(super) struct Sessions {
    pub(super) config: Arc<Config>,
    reconnector: Arc<Reconnector<Session>>,
    replaced: Mutex<Replaced>,
    /// Answers the calls in place of any session.
    pub(super) local: Option<LocalHandler>,
}

#[derive(Default)]
struct Replaced {
    /// The previous session, which accepts no more calls but may have calls in flight; or the
    /// present one while it is replaced.
    retired: Weak<Session>,
    replacements: Replacements,
}

impl Sessions {
    /// Makes the first session. Blocks as [`RpcClient::connect`](super::RpcClient::connect) does.
    pub(super) fn open_first(config: Arc<Config>) -> Result<Sessions> {
        let (shared, extra_channels) = (Arc::clone(&config), ExtraChannels::default());
        let reconnector = Reconnector::new(&config.brokers, move |connection, is_reconnect| {
            let session = extra_channels.open_session(&shared, connection, is_reconnect)?;
            shared.counters.reconnects.fetch_add(is_reconnect.into(), Ordering::Relaxed);
            Ok(session)
        });
        // A thread that still connects would keep its session.
        let first = reconnector.first_session(config.options.timeout);
        first.inspect_err(|_| reconnector.close().iter().for_each(|session| session.close()))?;
        Ok(Sessions { config, reconnector, replaced: Mutex::default(), local: None })
    }

    /// Makes no session: the handler answers all calls.
    pub(super) fn local(config: Arc<Config>, handler: LocalHandler) -> Sessions {
        let reconnector = Reconnector::new(&config.brokers, |_, _| Err(Error::Closed));
        reconnector.close();
        Sessions { config, reconnector, replaced: Mutex::default(), local: Some(handler) }
    }

    /// A session that accepts calls. Blocks until the deadline at most.
    pub(super) fn session(&self, deadline: Deadline) -> Result<Arc<Session>> {
        let session = self.reconnector.session(deadline)?;
        let silence = || session.connection.silence();
        if !session.dispatcher.pending.lock().suspicion.is_suspect(silence) {
            return Ok(session);
        }
        self.replace(&session);
        self.reconnector.session(deadline)
    }

    /// Asks the broker about a queue, and another broker if nobody serves the queue there and no
    /// answers come through this one. Blocks until the deadline at most.
    pub(super) fn ask_about(&self, queue: &str, deadline: Deadline) -> Result<QueueStatus> {
        let session = self.session(deadline)?;
        let found = session.look(queue, false, deadline);
        if !self.config.brokers.are_several() || !is_unserved(&found) || deadline.has_passed() {
            return found;
        }
        session.dispatcher.pending.lock().suspicion.note_unserved();
        let next = self.session(deadline)?;
        if Arc::ptr_eq(&next, &session) { found } else { next.look(queue, false, deadline) }
    }

    /// Replaces a suspect session: its broker returns no replies, but the next one may. At most one
    /// retired session may have calls in flight, because each keeps a connection.
    fn replace(&self, session: &Arc<Session>) {
        let mut state = lock(&self.replaced);
        let before = state.retired.upgrade().filter(|before| !Arc::ptr_eq(before, session));
        if self.reconnector.is_current(session)
            && before.as_ref().is_none_or(|before| before.in_flight() == 0)
            && state.replacements.begin(session.dispatcher.pending.lock().suspicion.has_answers)
        {
            state.retired = Arc::downgrade(session);
            drop(state);
            // Only calls whose deadlines have passed are left there.
            before.iter().for_each(|before| before.connection.cut("no replies came through it"));
            self.reconnector.replace(session);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_use().map(|session| session.in_flight()).sum()
    }

    pub(super) fn status(&self) -> ClientStatus {
        let connection = self.reconnector.status();
        let oldest = |session: Arc<Session>| session.dispatcher.pending.lock().calls.oldest();
        let local = self.local.is_some().then(|| ("local".to_string(), Instant::now()));
        let (broker, connected_since) = connection.connected.or(local).unzip();
        ClientStatus {
            broker,
            connected_since,
            in_flight: self.in_flight(),
            oldest_since: self.in_use().filter_map(oldest).min(),
            last_error: connection.last_error,
        }
    }

    /// The sessions that may have calls in flight.
    fn in_use(&self) -> impl Iterator<Item = Arc<Session>> {
        let retired = lock(&self.replaced).retired.upgrade().filter(|session| session.is_retired());
        [self.reconnector.present(), retired].into_iter().flatten()
    }

    /// Ends the calls in flight with [`Error::Closed`](crate::Error::Closed), and accepts no more.
    pub(super) fn close(&self) {
        self.reconnector.close();
        // It may not know yet that it is retired.
        let retired = lock(&self.replaced).retired.upgrade();
        let present = self.reconnector.present();
        present.into_iter().chain(retired).for_each(|session| session.close());
    }
}
