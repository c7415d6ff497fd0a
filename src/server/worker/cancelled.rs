//! Why the broker cancelled a consumer.
//!
//! It does when the queue is deleted: then no other worker gets the requests that have arrived, so
//! this one answers them. RabbitMQ 4.3 also does so after a consumer timeout, and gives the
//! requests to other workers.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::broker::{CallError, Limit};
use crate::frames::Method;
use crate::server::consumer::Consumer;
use crate::server::inbox::Withdrawal;
use crate::server::queue::is_missing;

/// Finds out why the consumer was cancelled. Blocks for at most 5.5 s.
pub(super) fn find_out(consumer: &Consumer<'_>) {
    /// How long RabbitMQ may take to delete a queue, and does not answer meanwhile.
    const LONGEST_DELETION: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(500);
    let Consumer { state, session, inbox, .. } = consumer;
    let connection = &session.connection;
    let limit = Limit::Until(Instant::now() + LONGEST_DELETION);
    let is_gone = || {
        let found = connection.ask(Method::FindQueue(&state.queue), limit);
        matches!(found, Err(CallError::Closed(close)) if is_missing(&close))
    };
    // If another worker has found it deleted, it may exist again by now.
    let deleted = &session.queue_is_deleted;
    let deleted_now =
        connection.version() < Some((4, 3, 0)) || deleted.load(Ordering::Relaxed) || is_gone() || {
            // The broker cancels the consumers before the queue is gone.
            connection.wait(&inbox.waiter, Instant::now() + PAUSE, || false);
            is_gone()
        };
    deleted.fetch_or(deleted_now, Ordering::Relaxed);
    let (how, why) = match deleted_now {
        true => (Withdrawal::QueueDeleted, "the request queue was deleted"),
        false => (
            Withdrawal::TimedOut,
            "the broker cancelled the consumer, as it does when a request takes longer than \
             its consumer_timeout",
        ),
    };
    inbox.withdraw(how, connection.endpoint.unreachable(why));
}
