//! Detects that an idle worker no longer gets the requests that wait in the queue.

use std::time::{Duration, Instant};

use super::shared::Shared;
use super::worker::Worker;
use crate::broker::{CallError, Limit};
use crate::frames::{Answer, Method};
use crate::lock::lock;

/// The interval at which an idle worker checks for a stall.
const CHECK_INTERVAL: Duration = Duration::from_secs(4);
/// The interval in the first seconds after a worker began to consume. RabbitMQ 4 was seen to accept
/// a consumer on a queue that it was about to delete, and not to notify that consumer. Deleting a
/// queue takes RabbitMQ up to 5 s.
pub(super) const EARLY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
const EARLY: Duration = Duration::from_secs(8);
/// How long requests must wait for idle workers to count as stalled. A request that has just
/// arrived waits for less.
const CONFIRM_AFTER: Duration = Duration::from_millis(500);

/// The last stall of a server.
#[derive(Default)]
pub(crate) struct LastStall {
    /// The number of requests that had been handled at that time.
    handled: u64,
    /// How often the server has connected anew since a worker last handled a request.
    reconnects: u32,
    next: Option<Instant>,
}

impl LastStall {
    /// Whether to connect anew for a stall.
    ///
    /// The broker may have a reason that another connection does not change, such as a queue with a
    /// single active consumer. So the interval between two attempts doubles until a worker handles a
    /// request.
    fn is_due(&mut self, handled: u64) -> bool {
        const MAX_DOUBLINGS: u32 = 8;
        let now = Instant::now();
        if self.handled != handled {
            *self = LastStall { handled, ..LastStall::default() };
        }
        let is_due = self.next.is_none_or(|next| next <= now);
        if is_due {
            self.next = Some(now + CHECK_INTERVAL * (2 << self.reconnects.min(MAX_DOUBLINGS)));
            self.reconnects += 1;
        }
        is_due
    }
}

impl Worker<'_> {
    /// Checks for a stall, if it is time to. If there is one, all workers of this connection leave
    /// it, and the server connects to another broker.
    ///
    /// RabbitMQ notifies a consumer when its queue is deleted. But in a cluster that had lost a
    /// node some time before, RabbitMQ 3.10 did not notify some servers, which then waited forever
    /// at a queue that did not exist any more. A broker may also lose its deliveries to a worker.
    /// A quorum queue delivers through its member on the consumer's node. If that member does not
    /// run, that node's consumers get nothing, while those of another node do.
    pub(super) fn check_for_stall(&self) {
        let Worker { session, inbox, .. } = self;
        let Shared { counters, stop, queue, last_stall, .. } = &**self.shared;
        let now = Instant::now();
        let mut next_check = lock(&session.next_check);
        if now < *next_check {
            return;
        }
        let is_early = inbox.began.elapsed() < EARLY;
        *next_check = now + if is_early { EARLY_CHECK_INTERVAL } else { CHECK_INTERVAL };
        drop(next_check);
        // During an alarm, a broker may not read from the connection, so it does not answer either.
        if session.connection.blocked().is_some() {
            return;
        }
        let taken = lock(counters).taken();
        let is_idle = || {
            let now = *lock(counters);
            now.taken() == taken && now.in_progress == 0 && !inbox.is_ready()
        };
        if self.waiting() == 0 || !is_idle() {
            return;
        }
        let is_ready = || inbox.is_ready() || stop.is_stopped();
        session.connection.wait(&inbox.waiter, now + CONFIRM_AFTER, is_ready);
        if is_idle() && self.waiting() > 0 && is_idle() && lock(last_stall).is_due(taken) {
            let text = format!("requests wait in {queue:?} and the broker gives the workers none");
            self.shared.leave(session, &session.connection.endpoint.unreachable(text));
        }
    }

    /// The number of requests that wait in the queue; 0 if the broker does not answer, or if this
    /// worker gets a request before it does. If there is no such queue, all workers leave the
    /// connection, because the broker did not notify the others either.
    fn waiting(&self) -> u32 {
        let Worker { shared, session, channel, inbox, .. } = self;
        let now = Instant::now();
        channel.send(Method::FindQueue(&shared.queue));
        let is_over = || channel.is_answered() || inbox.is_ready() || shared.stop.is_stopped();
        session.connection.wait(&inbox.waiter, now + CHECK_INTERVAL / 4, is_over);
        match channel.answer(Limit::Until(now)).and_then(Answer::queue) {
            Ok(found) => found.messages,
            Err(CallError::Closed(close)) if close.code == 404 => {
                if let Err(reason) = inbox.take() {
                    shared.leave(session, &reason);
                }
                0
            }
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_server_connects_anew_after_longer_and_longer_intervals() {
        let mut last = LastStall::default();
        assert!(last.is_due(7));
        assert!(!last.is_due(7), "the interval has not passed");
        let interval = |last: &LastStall| last.next.unwrap() - Instant::now();
        let first = interval(&last);
        last.next = Some(Instant::now());
        assert!(last.is_due(7));
        assert!(interval(&last) > 3 * first / 2, "{:?} after {first:?}", interval(&last));
        assert!(last.is_due(8), "a worker has handled a request");
        assert!(interval(&last) <= first + CHECK_INTERVAL);
        last.reconnects = u32::MAX - 1;
        last.next = None;
        assert!(last.is_due(8));
    }
}
