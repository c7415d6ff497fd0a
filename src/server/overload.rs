//! Answers at once the requests that exceed the length limit of a queue.
//!
//! With [`ServerOptions::max_waiting`], the broker dead-letters each request that exceeds the limit
//! to an overflow queue ([Queue length limit](https://www.rabbitmq.com/docs/maxlength)). A second
//! server answers the requests there, through another connection, so that they cost callers and
//! workers nothing. A request is refused as not executed only if the queue is known to refuse the
//! newest requests, and if the request was dead-lettered this once only: a queue that drops its
//! head may drop one that a lost worker has executed, and an operator may move a request back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::options::ServerOptions;
use super::pool::{self, Handler};
use super::queue::Declaration;
use super::state::ServerState;
use crate::error::{Error, Failure, Result, Status};
use crate::lock::lock;
use crate::observation::Observation;
use crate::wire::{Death, Request};

/// Serves until the server is stopped. If the server has a limit, answers the requests in the
/// overflow queue meanwhile, in a thread that makes the connection too.
pub(crate) fn serve_and_refuse(state: &Arc<ServerState>, handler: Handler) -> Result<()> {
    let Some(limit) = state.options.max_waiting else {
        return pool::serve(state, handler);
    };
    let options = ServerOptions {
        prefetch: 64,
        drain_timeout: Duration::from_secs(1),
        queue_type: state.options.queue_type,
        disconnected_timeout: state.options.disconnected_timeout,
        render_failure: state.options.render_failure,
        ..ServerOptions::default()
    };
    let brokers = state.brokers.clone();
    let overflow = Declaration::overflow(&state.queue, &options, &brokers);
    let refuser = Arc::new(ServerState::new(brokers, overflow, options));
    // The main server decides whether a first start fails.
    refuser.has_served.store(true, Ordering::Relaxed);
    refuser.outcomes.note_replied();
    let (stopper, server) = (Arc::clone(&refuser), Arc::clone(state));
    let refuse = move || {
        let handler = Box::new(move |request: &Request| {
            let session = server.sessions.present();
            let refuses_newest = session.is_some_and(|session| session.refuses_newest);
            let failure = refuse(request, &server.queue, limit, refuses_newest);
            report(&server, request, &failure);
            Err(failure)
        });
        if let Err(error) = pool::serve(&refuser, handler) {
            log::error!("requests over the limit are no longer answered: {error}");
        }
    };
    let spawned = thread::Builder::new().name("rpc-overload".into()).spawn(refuse);
    let thread = spawned.map_err(|error| {
        Error::Config(format!("no thread to refuse requests in: {error}; set no max_waiting"))
    })?;
    let served = pool::serve(state, handler);
    stopper.stop();
    let refused = thread.join();
    debug_assert!(refused.is_ok(), "refusing requests does not panic");
    served
}

/// Requests that were dead-lettered for another reason arrive here too. The answer names the
/// reason.
fn refuse(request: &Request, queue: &str, limit: u32, refuses_newest: bool) -> Failure {
    let death = request.last_death();
    // The queue's arguments decide whether it refuses or drops: both are deaths for this reason.
    let refused = Some(Death { queue, reason: "maxlen", is_only: true });
    match death.as_ref().map(|death| death.reason) {
        Some("expired") => Failure::new(Status::DeadlineExceeded, "no worker was free in time"),
        Some("delivery_limit") => {
            Failure::new(Status::Internal, "every server that took the request was lost")
        }
        Some("rejected") => Failure::new(Status::Internal, "the reply could not be delivered"),
        _ if refuses_newest && death == refused => Failure::new(
            Status::ResourceExhausted,
            format!("{limit} requests wait already; this one was not executed: try again later"),
        ),
        _ => {
            let text = format!("{limit} requests wait already: try again later");
            Failure::new(Status::Unavailable, text)
        }
    }
}

/// Counts a refusal, and shows it to the hook of the server that serves the queue.
fn report(server: &ServerState, request: &Request, failure: &Failure) {
    lock(&server.counters).refused += 1;
    server.observer.observe(|| Observation {
        queue: &server.queue,
        method: request.method(),
        status: failure.status.name(),
        time: Duration::ZERO,
        bytes_in: request.body().len(),
        bytes_out: failure.message.len(),
    });
}
