//! What one worker consumes through: a channel, and what it has got, begun and finished there.

use std::cell::{Ref, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::direct::DirectConnection;
use super::idle_checks::EARLY_CHECK_INTERVAL;
use super::inbox::Inbox;
use super::queue;
use super::session::ServerSession;
use super::state::ServerState;
use crate::broker::{Channel, DataPlane, Limit, Session};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::{Frames, Method, reject};
use crate::lock::lock;
use crate::wire::Request;

/// When it is dropped, the broker returns its unanswered requests to the queue.
pub(crate) struct Consumer<'a> {
    pub(super) state: &'a Arc<ServerState>,
    pub(super) session: &'a Arc<ServerSession>,
    pub(super) channel: Arc<Channel>,
    pub(super) inbox: Arc<Inbox>,
    /// The worker's connection for direct replies, if it has needed one lately.
    direct: RefCell<Option<DirectConnection>>,
}

impl<'a> Consumer<'a> {
    /// Starts to consume from the queue. Blocks until the broker has answered: for each answer, for
    /// at most the time that connecting may take, except during an alarm.
    ///
    /// If the broker cannot let it consume, all workers abandon the connection. A queue that is
    /// gone is declared on the next one: RabbitMQ 4 closes a connection that declares a queue which
    /// is not deleted completely, and another worker may still be executing a request.
    pub(super) fn begin(
        state: &'a Arc<ServerState>,
        session: &'a Arc<ServerSession>,
    ) -> Result<Consumer<'a>> {
        let connection = &session.connection;
        // During an alarm, the broker does not read a connection on which another worker has
        // replied.
        let limit = Limit::ExtendedByAlarm(state.brokers.connect_timeout);
        let inbox = Arc::new(Inbox::new(state.options.prefetch));
        let (receiver, held) = (Arc::clone(&inbox), Arc::clone(state));
        let on_event = move |plane: &DataPlane, event| {
            held.on_return(plane, &event);
            receiver.on_event(plane, event);
        };
        let consume = || {
            let channel = connection.open_channel(limit, Arc::clone(&inbox.waiter), on_event)?;
            queue::consume(&channel, &state.queue, state.options.prefetch, limit)?;
            Ok(Arc::new(channel))
        };
        let channel = consume().map_err(|error| {
            let doing = "read from the request queue";
            let error = queue::explain(connection, &state.queue, error, doing);
            match error {
                Error::Unreachable { .. } => state.abandon(session, &error),
                // Another login may have the permission: RabbitMQ before 4.2.6 lets a connection
                // live on whose token has expired. Workers that consume are not concerned.
                Error::Refused(_) => state.sessions.abandon(session, &error),
                _ => {}
            }
            error
        })?;
        inbox.set_channel(&channel);
        state.outcomes.add(Arc::downgrade(session), &inbox);
        state.note_consuming();
        let mut next_check = lock(&session.next_check);
        *next_check = (*next_check).min(Instant::now() + EARLY_CHECK_INTERVAL);
        drop(next_check);
        // If the others have abandoned the session meanwhile, they did not end this inbox.
        if !state.sessions.is_current(session) {
            inbox.drain(Some(&connection.endpoint.unreachable("the connection was abandoned")));
        }
        log::info!("taking requests from {:?} on {}", state.queue, connection.endpoint);
        Ok(Consumer { state, session, channel, inbox, direct: RefCell::default() })
    }

    /// The worker's connection for direct replies. Makes it if there is none that works; there is
    /// none if none can be had, or if the time in which the server stops is over. Blocks for as
    /// long as connecting may take.
    pub(super) fn connect_direct(&self) -> Ref<'_, Option<DirectConnection>> {
        let mut direct = self.direct.borrow_mut();
        *direct = direct.take().filter(DirectConnection::works);
        let stop = &self.state.stop;
        match &mut *direct {
            Some(direct) => direct.last_used = Instant::now(),
            None if stop.is_stopped() && stop.until() <= Instant::now() => {}
            none => {
                let endpoint = &self.session.connection.endpoint;
                *none = DirectConnection::open(&self.state.brokers, endpoint);
            }
        }
        drop(direct);
        self.direct.borrow()
    }

    /// Closes the connection for direct replies if it has not been used for a while. Blocks for at
    /// most a second.
    pub(super) fn close_idle_direct(&self) {
        drop(self.direct.borrow_mut().take_if(|direct| direct.is_idle()));
    }

    /// The reason why no more requests come.
    pub(super) fn ended(&self) -> Option<Error> {
        self.session.ended().or_else(|| self.inbox.ended())
    }

    /// Writes frames on the channel. Blocks while the broker does not read. If the broker is silent
    /// for two heartbeats, the connection is lost.
    pub(super) fn write<'f>(&self, frames: impl Into<Frames<'f>>) -> Result<()> {
        let never = Deadline::after(Duration::MAX);
        self.channel.write(frames.into(), never.at).map_err(|_| {
            let endpoint = &self.session.connection.endpoint;
            self.ended().unwrap_or_else(|| endpoint.unreachable("the connection is gone"))
        })
    }

    /// Removes a request that cannot be answered from the queue.
    pub(super) fn reject(&self, request: &Request, why: &str) -> Result<()> {
        lock(&self.state.counters).rejected += 1;
        let line = format_args!("rejected a request of {} bytes: {why}", request.body().len());
        self.state.useless.log(log::Level::Warn, line);
        self.settle(reject(self.channel.number, request.delivery.tag))
    }

    /// Writes that a request is done, unless the broker has taken it back: it is then settled when
    /// it is delivered again. RabbitMQ 4.3 takes a late acknowledgement for a sign that the
    /// consumer works, and delivers the next request to it, although it has cancelled it.
    pub(super) fn settle(&self, settlement: Vec<u8>) -> Result<()> {
        match self.inbox.is_withdrawn() {
            true => Ok(()),
            false => self.write(settlement),
        }
    }

    /// Waits until the broker has taken the replies that were written on the channel, if that still
    /// works: for at most the time that connecting may take, or half a second if the session was
    /// abandoned, since its broker may be silent and the next one waits for this worker. If the
    /// server is told to stop, even meanwhile, waits for as long as a stop may take.
    pub(super) fn confirm(&self) {
        const ABANDONED_TIMEOUT: Duration = Duration::from_millis(500);
        let Consumer { state, session, channel, inbox, .. } = self;
        let ServerState { sessions, outcomes, options, stop, brokers, .. } = &***state;
        if outcomes.unproved_of(inbox) == 0 {
            return;
        }
        let timeout = match sessions.is_current(session) {
            true => brokers.connect_timeout,
            false => brokers.connect_timeout.min(ABANDONED_TIMEOUT),
        };
        channel.send(Method::Prefetch(options.prefetch));
        let is_over = || channel.is_answered() || stop.is_stopped();
        session.connection.wait(&inbox.waiter, Deadline::after(timeout).at, is_over);
        let until = if stop.is_stopped() { stop.until() } else { Instant::now() };
        // The broker handles the frames of a channel in order, so any answer is a proof.
        if channel.answer(Limit::Until(until)).is_ok() {
            outcomes.all_proved(inbox);
        }
    }
}

/// Keeps the replies that the broker may not have.
impl Drop for Consumer<'_> {
    fn drop(&mut self) {
        self.state.outcomes.remove(&self.inbox);
    }
}
