//! Detects that an idle worker no longer gets the requests that wait in the queue.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use super::worker::Worker;
use crate::broker::CallError;
use crate::frames::Method;
use crate::lock::lock;

/// The interval at which an idle worker checks for a stall.
const CHECK_INTERVAL: Duration = Duration::from_secs(4);
/// How long requests must wait for idle workers to count as stalled. A request that has just
/// arrived waits for less.
const CONFIRM_AFTER: Duration = Duration::from_millis(500);

impl Worker<'_> {
    /// Checks for a stall, if it is time to, and cuts the connection if there is one.
    ///
    /// RabbitMQ notifies a consumer when its queue is deleted. But in a cluster that had lost a
    /// node some time before, RabbitMQ 3.10 did not notify some servers, which then waited forever
    /// at a queue that did not exist any more. A broker may also lose its deliveries to a worker.
    pub(super) fn check_for_stall(&self) {
        let Worker { session, inbox, .. } = self;
        let Shared { counters, stop, queue, handled_at_stall, .. } = &**self.shared;
        let now = Instant::now();
        let mut next_check = lock(&session.next_check);
        if now < *next_check {
            return;
        }
        *next_check = now + CHECK_INTERVAL;
        drop(next_check);
        // During an alarm, a broker may not read from the connection, so it does not answer either.
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
        // The broker may have a reason that another connection does not change, such as a queue
        // with a single active consumer. So the connection is cut at most once until a worker
        // handles a request.
        if is_idle()
            && self.waiting() > 0
            && is_idle()
            && handled_at_stall.swap(taken, Ordering::Relaxed) != taken
        {
            let text = format!("requests wait in {queue:?} and the broker gives the workers none");
            session.connection.cut(&text);
        }
    }

    /// The number of requests that wait in the queue; 0 if the broker does not answer.
    fn waiting(&self) -> u32 {
        let queue = &self.shared.queue;
        match self.channel.queue(Method::FindQueue(queue), Instant::now() + CHECK_INTERVAL / 4) {
            Ok(found) => found.messages,
            // The other workers have lost their consumers too, and are not notified. So the
            // connection is cut.
            Err(CallError::Closed(close)) if close.code == 404 => {
                let text = format!("the queue {queue:?} was deleted without a word ({close})");
                self.session.connection.cut(&text);
                0
            }
            Err(_) => 0,
        }
    }
}
