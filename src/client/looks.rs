//! Asks the broker about request queues, on a channel that is used for nothing else.
//!
//! A question is a passive declaration. The broker answers the questions in order. If a queue does
//! not exist, or the user may not ask about it, the broker closes the channel in place of an
//! answer, and ignores the questions behind that one. Those who wait for them ask again, on another
//! channel.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use std::{mem, thread};

use log::Level;

use crate::broker::{Channel, DataPlane, Waiter};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::{Answer, Close, Event, Method};
use crate::lock::lock;

/// The questions of one session.
pub(super) struct QueueLooks {
    data_plane: Arc<DataPlane>,
    state: Mutex<State>,
}

/// The broker's answer about a queue: see [`RpcClient::queue`](super::RpcClient::queue).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStatus {
    /// The number of workers that consume from the queue.
    pub consumers: u32,
    /// The number of requests that wait in the queue. Requests that a worker has received do not
    /// count.
    pub messages: u32,
}

#[derive(Default)]
struct State {
    /// `None` until it is used, and after the broker has closed it.
    channel: Option<Channel>,
    /// The questions that have no answer yet, in the order in which they were sent.
    asked: VecDeque<Arc<Question>>,
    /// The latest question about each queue.
    latest: HashMap<String, Arc<Question>>,
    /// Whether a refusal has been logged.
    has_warned: bool,
}

#[derive(Default)]
struct Question {
    queue: String,
    answer: OnceLock<Answered>,
    waiters: Mutex<Vec<Arc<Waiter>>>,
}

/// When the broker answered, and what. `None` if it ignored the question.
type Answered = Option<(Instant, Result<QueueStatus>)>;

impl QueueLooks {
    /// Opens the channel, without waiting for the broker.
    pub(super) fn open(data_plane: &Arc<DataPlane>) -> Arc<QueueLooks> {
        let (data_plane, state) = (Arc::clone(data_plane), Mutex::default());
        let looks = Arc::new(QueueLooks { data_plane, state });
        let channel = looks.begin_channel().ok();
        lock(&looks.state).channel = channel;
        looks
    }

    fn begin_channel(self: &Arc<Self>) -> Result<Channel> {
        // The channel is this one's own, so neither would ever be dropped.
        let this = Arc::downgrade(self);
        let handler = move |data_plane: &DataPlane, event| {
            if let Some(this) = this.upgrade() {
                this.handle(data_plane, event);
            }
        };
        self.data_plane.begin_channel(Instant::now(), handler).map_err(|_| no_channel())
    }

    /// The broker's answer about a queue, if one comes by the deadline. Whoever `shares` takes also
    /// the answer to the question of another caller, one that the broker gave within the last
    /// second, or its refusal within the last hour.
    pub(super) fn ask(
        self: &Arc<Self>,
        queue: &str,
        shares: bool,
        deadline: Deadline,
    ) -> Result<QueueStatus> {
        let (data_plane, waiter) = (&self.data_plane, Arc::default());
        loop {
            let question = self.question(queue, shares)?;
            question.add(&waiter);
            data_plane.wait(&waiter, deadline.at, || question.answer.get().is_some());
            question.remove(&waiter);
            match question.answer.get() {
                Some(Some((_, answer))) => return answer.clone(),
                _ if deadline.has_passed() || data_plane.ended().is_some() => {
                    let what = format!("{} does not answer a question", data_plane.endpoint);
                    return Err(Error::TimedOut { what, after: deadline.timeout, sent: false });
                }
                _ => {}
            }
        }
    }

    /// Asks, unless there is a question to share.
    fn question(self: &Arc<Self>, queue: &str, shares: bool) -> Result<Arc<Question>> {
        let State { channel, asked, latest, .. } = &mut *lock(&self.state);
        latest.retain(|_, question| question.is_good());
        if let Some(question) = latest.get(queue).filter(|_| shares) {
            return Ok(Arc::clone(question));
        }
        if channel.is_none() {
            *channel = Some(self.begin_channel()?);
        }
        if let Some(channel) = channel {
            channel.send(Method::FindQueue(queue));
        }
        let question = Arc::new(Question { queue: queue.to_string(), ..Question::default() });
        asked.push_back(Arc::clone(&question));
        latest.insert(queue.to_string(), Arc::clone(&question));
        Ok(question)
    }

    /// Waits until the request queue has consumers, but at most for this time.
    ///
    /// When a cluster loses a node, the quorum queues that were led there have no leader for a
    /// while, and report no consumers. The first message that a channel publishes to such a queue
    /// waits for a leader, which may never answer, for up to 65 s. All later messages of the
    /// channel wait behind it (RabbitMQ's `rabbit_fifo_client.erl`). In tests, clients that
    /// reconnected and published at once lost every request of that session. The broker reports no
    /// event when there is a leader, so this polls.
    pub(super) fn await_consumers(self: &Arc<Self>, queue: &str, timeout: Duration) {
        const STEP: Duration = Duration::from_millis(50);
        let limit = Deadline::after(timeout);
        while let Ok(found) = self.ask(queue, false, limit)
            && found.consumers == 0
            && !limit.has_passed()
        {
            thread::sleep(STEP);
        }
    }

    /// Handles an event on the channel. Called by the reader.
    fn handle(&self, data_plane: &DataPlane, event: Event) {
        let mut state = lock(&self.state);
        let (answer, ignored) = match event {
            Event::Answer(Answer::Queue(found)) => {
                let (consumers, messages) = (found.consumers, found.messages);
                (Ok(QueueStatus { consumers, messages }), VecDeque::new())
            }
            Event::Closed(close) => {
                state.channel = None;
                let Some(refused) = state.asked.front() else { return };
                let error = refused.error(data_plane, &close);
                (Err(error), state.asked.split_off(1))
            }
            _ => return,
        };
        let Some(question) = state.asked.pop_front() else { return };
        let is_refusal = matches!(answer, Err(Error::Refused(_)));
        let warns = is_refusal && !mem::replace(&mut state.has_warned, true);
        drop(state);
        if let (Err(error), true) = (&answer, warns) {
            let text =
                format_args!("{error}; until then, errors do not say whether a server is there");
            data_plane.note(Level::Warn, text);
        }
        question.settle(data_plane, Some((Instant::now(), answer)));
        ignored.iter().for_each(|question| question.settle(data_plane, None));
    }
}

/// The error of whoever has no channel to ask on.
pub(super) fn no_channel() -> Error {
    let text = "the broker allows this user, or this connection, no channel to ask about a queue \
                with: allow three for each client";
    Error::Refused(text.into())
}

impl Question {
    /// Whether it has no answer yet, or one that is not too old. Each question that the broker
    /// refuses is an error in its log.
    fn is_good(&self) -> bool {
        match self.answer.get() {
            None => true,
            Some(None) => false,
            Some(Some((at, Err(Error::Refused(_))))) => at.elapsed() < Duration::from_secs(3600),
            Some(Some((at, _))) => at.elapsed() < Duration::from_secs(1),
        }
    }

    /// Adds whoever is to be woken by the answer, unless it is there already.
    fn add(&self, waiter: &Arc<Waiter>) {
        let mut waiters = lock(&self.waiters);
        if self.answer.get().is_none() {
            waiters.push(Arc::clone(waiter));
        }
    }

    fn remove(&self, waiter: &Arc<Waiter>) {
        lock(&self.waiters).retain(|other| !Arc::ptr_eq(other, waiter));
    }

    fn settle(&self, data_plane: &DataPlane, answer: Answered) {
        let _ = self.answer.set(answer);
        let waiters = mem::take(&mut *lock(&self.waiters));
        waiters.iter().for_each(|waiter| data_plane.notify(waiter));
    }

    fn error(&self, data_plane: &DataPlane, close: &Close) -> Error {
        let (queue, endpoint) = (&self.queue, &data_plane.endpoint);
        match endpoint.explain_close(close, "ask about the request queue") {
            Error::Refused(_) => Error::Refused(format!(
                "{endpoint} does not tell user {:?} about queue {queue:?}: {} (any permission on \
                 the queue is enough, such as write; rabbitmqctl set_permissions)",
                endpoint.user, close.text
            )),
            _ if close.code == 404 && close.text.starts_with("NOT_FOUND - no ") => {
                Error::Unroutable { queue: queue.clone() }
            }
            error => error,
        }
    }
}
