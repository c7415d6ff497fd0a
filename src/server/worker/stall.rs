//! Detects that an idle worker no longer gets the requests that wait in the queue.

use std::time::{Duration, Instant};

use crate::broker::Limit;
use crate::frames::{Answer, Method};
use crate::lock::lock;
use crate::server::consumer::Consumer;
use crate::server::elsewhere;
use crate::server::idle_checks::{CHECK_INTERVAL, EARLY};
use crate::server::state::ServerState;

/// How long requests must wait for idle workers to count as stalled. A request that has just
/// arrived waits for less.
const CONFIRM_AFTER: Duration = Duration::from_millis(500);

/// Checks for a stall, if it is time to. If there is one, all workers of this connection leave
/// it, and the server connects to another broker.
///
/// RabbitMQ notifies a consumer when its queue is deleted. But in a cluster that had lost a
/// node some time before, RabbitMQ 3.10 did not notify some servers, which then waited forever
/// at a queue that did not exist any more. A broker may also lose its deliveries to a worker.
/// A quorum queue delivers through its member on the consumer's node. If that member does not
/// run, that node's consumers get nothing, while those of another node do. If no requests wait, an
/// idle server sometimes [looks elsewhere](elsewhere).
pub(super) fn check(consumer: &Consumer<'_>) {
    let Consumer { state, session, inbox, .. } = consumer;
    let ServerState { stop, queue, idle_checks, .. } = &***state;
    let now = Instant::now();
    let mut next_check = lock(&session.next_check);
    if now < *next_check {
        return;
    }
    let is_early = inbox.began.elapsed() < EARLY;
    let handled = state.counters().handled();
    *next_check = now + lock(idle_checks).note(handled, is_early);
    drop(next_check);
    // During an alarm, a broker may not read from the connection, so it does not answer either.
    if session.connection.blocked().is_some() {
        return;
    }
    let is_idle = || state.is_idle_since(handled) && !inbox.is_ready();
    let waits = waiting(consumer) > 0;
    if !is_idle() {
        return;
    }
    if !waits {
        if state.brokers.are_several() && !is_early && lock(idle_checks).look_is_due() {
            elsewhere::look(state, session, handled);
        }
        return;
    }
    let is_ready = || inbox.is_ready() || stop.is_stopped();
    session.connection.wait(&inbox.waiter, now + CONFIRM_AFTER, is_ready);
    if is_idle()
        && waiting(consumer) > 0
        && is_idle()
        && lock(idle_checks).reconnect_is_due(inbox.began.elapsed())
    {
        let text = format!("requests wait in {queue:?} and the broker gives the workers none");
        state.abandon(session, &session.connection.endpoint.unreachable(text));
    }
}

/// The number of requests that wait in the queue; 0 if the broker does not answer, or if this
/// worker gets a request before it does. If there is no such queue, the channel ends, and the
/// worker finds out when it begins anew.
fn waiting(consumer: &Consumer<'_>) -> u32 {
    let Consumer { state, session, channel, inbox, .. } = consumer;
    let now = Instant::now();
    channel.send(Method::FindQueue(&state.queue));
    let is_over = || channel.is_answered() || inbox.is_ready() || state.stop.is_stopped();
    session.connection.wait(&inbox.waiter, now + CHECK_INTERVAL / 4, is_over);
    match channel.answer(Limit::Until(now)).and_then(Answer::queue) {
        Ok(found) => {
            state.outcomes.all_proved(inbox);
            found.messages
        }
        Err(_) => {
            channel.skip_answer();
            0
        }
    }
}
