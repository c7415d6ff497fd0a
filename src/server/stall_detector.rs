//! Whether requests still come to an idle worker.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use super::worker::Worker;
use crate::broker::CallError;
use crate::frames::Method;
use crate::lock::lock;

/// How often an idle worker looks whether requests still come.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// How long requests may wait for idle workers. A request that has just come takes less.
const CONFIRM_AFTER: Duration = Duration::from_millis(500);

impl Worker<'_> {
    /// Whether requests still come, if it is time to look.
    ///
    /// RabbitMQ tells a consumer when its queue is deleted. But in a cluster that had lost a node a
    /// while before, servers were seen (on 3.10) to be told nothing, and to wait for ever at a queue
    /// that was gone; and a broker may lose its deliveries to a worker.
    pub(super) fn look_for_requests(&self) {
        let Worker { session, inbox, .. } = self;
        let Shared { counters, stop, queue, stalled_at, .. } = &**self.shared;
        let now = Instant::now();
        let mut look_at = lock(&session.look_at);
        if now < *look_at {
            return;
        }
        *look_at = now + LOOK_EVERY;
        drop(look_at);
        // Under an alarm a broker may read nothing, and so answer nothing.
        if session.connection.blocked().is_some() {
            return;
        }
        let taken = counters.taken();
        let is_idle =
            || counters.taken() == taken && counters.read().in_progress == 0 && !inbox.is_ready();
        if self.waiting() == 0 || !is_idle() {
            return;
        }
        let is_ready = || inbox.is_ready() || stop.is_stopped();
        session.connection.wait(inbox.waiter(), now + CONFIRM_AFTER, is_ready);
        // Another connection does not help where the broker has its reasons, such as a queue with
        // a single active consumer. So it is tried once for each request.
        if is_idle()
            && self.waiting() > 0
            && is_idle()
            && stalled_at.swap(taken, Ordering::Relaxed) != taken
        {
            let text = format!("requests wait in {queue:?} and the broker gives the workers none");
            session.connection.cut(&text);
        }
    }

    /// How many requests wait in the queue. 0 if the broker does not say.
    fn waiting(&self) -> u32 {
        let queue = &self.shared.queue;
        match self.channel.queue(Method::FindQueue(queue), Instant::now() + LOOK_EVERY / 4) {
            Ok(found) => found.messages,
            // The other workers' consumers are gone as well, and nothing would tell them.
            Err(CallError::Closed(close)) if close.code == 404 => {
                let text = format!("the queue {queue:?} was deleted without a word ({close})");
                self.session.connection.cut(&text);
                0
            }
            Err(_) => 0,
        }
    }
}
