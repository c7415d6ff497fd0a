//! Answers at once the requests that exceed the length limit of a queue.
//!
//! With [`ServerOptions::max_waiting`], the broker dead-letters each request that exceeds the limit
//! to an overflow queue ([Queue length limit](https://www.rabbitmq.com/docs/maxlength)). A second
//! server answers the requests there, through another connection, so that they cost callers and
//! workers nothing.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::options::ServerOptions;
use super::pool::{self, Handler, OnReady};
use super::queue::{Declaration, overflow_queue};
use super::state::ServerState;
use crate::error::{Error, Failure, Result, Status};
use crate::wire::{Reply, Request};

/// Serves until the server is stopped. If the server has a limit, answers the requests in the
/// overflow queue meanwhile, in a thread that makes the connection too.
pub(crate) fn serve_and_refuse(
    state: &Arc<ServerState>,
    handler: Handler,
    on_ready: Option<OnReady>,
) -> Result<()> {
    let Some(limit) = state.options.max_waiting else {
        return pool::serve(state, handler, on_ready);
    };
    let drain_timeout = Duration::from_secs(1);
    let render_failure = state.options.render_failure;
    let options =
        ServerOptions { prefetch: 64, drain_timeout, render_failure, ..ServerOptions::default() };
    let queue = overflow_queue(&state.queue);
    let (brokers, overflow) = (state.brokers.clone(), Declaration::overflow());
    let refuser = Arc::new(ServerState::new(brokers, &queue, overflow, options));
    let stopper = Arc::clone(&refuser);
    let refuse = move || {
        let handler = Box::new(move |request: &Request| refuse(request, limit));
        if let Err(error) = pool::serve(&refuser, handler, None) {
            log::error!("requests over the limit are no longer answered: {error}");
        }
    };
    let spawned = thread::Builder::new().name("rpc-overload".into()).spawn(refuse);
    let thread = spawned.map_err(|error| {
        Error::Config(format!("no thread to refuse requests in: {error}; set no max_waiting"))
    })?;
    let served = pool::serve(state, handler, on_ready);
    stopper.stop();
    let refused = thread.join();
    debug_assert!(refused.is_ok(), "refusing requests does not panic");
    served
}

/// Requests that were dead-lettered for another reason arrive here too. The answer names the
/// reason.
fn refuse(request: &Request, limit: u32) -> Result<Reply, Failure> {
    Err(match request.header("x-first-death-reason") {
        Some("expired") => Failure::new(Status::DeadlineExceeded, "no worker was free in time"),
        Some("delivery_limit") => {
            Failure::new(Status::Internal, "every server that took the request was lost")
        }
        Some("rejected") => Failure::new(Status::Internal, "the reply could not be delivered"),
        _ => Failure::new(
            Status::ResourceExhausted,
            format!("{limit} requests wait already; this one was not executed: try again later"),
        ),
    })
}
