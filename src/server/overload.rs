//! Answers at once the requests that exceed the length limit of a queue.
//!
//! With [`ServerOptions::max_waiting`], the broker dead-letters each request that exceeds the limit
//! to an overflow queue ([Queue length limit](https://www.rabbitmq.com/docs/maxlength)). A second
//! server answers the requests there, through another connection, so that they cost callers and
//! workers nothing.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::shared::Shared;
use super::{RpcServer, ServerOptions, Stopper};
use crate::error::{Error, Failure, Result, Status};
use crate::wire::Request;

/// Answers the requests in the overflow queue until it is dropped.
pub(crate) struct Refuser {
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

/// The name of the queue to which the broker dead-letters the requests that exceed the limit.
pub(crate) fn overflow_queue(queue: &str) -> String {
    format!("{queue}.overflow")
}

impl Refuser {
    /// Starts a refuser if the server has a limit. It connects in a thread of its own.
    pub(crate) fn start(shared: &Shared) -> Result<Option<Refuser>> {
        let Some(limit) = shared.options.max_waiting else { return Ok(None) };
        let drain_timeout = Duration::from_secs(1);
        let options = ServerOptions { prefetch: 64, drain_timeout, ..ServerOptions::default() };
        let queue = overflow_queue(&shared.queue);
        let server = RpcServer::unconnected(shared.brokers.clone(), &queue, options)?;
        let stopper = server.stopper();
        let refuse = move || {
            if let Err(error) = server.serve(move |request: &Request| refuse(request, limit)) {
                log::error!("requests over the limit are no longer answered: {error}");
            }
        };
        let spawned = thread::Builder::new().name("rpc-overload".into()).spawn(refuse);
        let thread = spawned.map_err(|error| {
            Error::Config(format!("no thread to refuse requests in: {error}; set no max_waiting"))
        })?;
        Ok(Some(Refuser { stopper, thread: Some(thread) }))
    }
}

impl Drop for Refuser {
    fn drop(&mut self) {
        self.stopper.stop();
        let refused = self.thread.take().map(JoinHandle::join);
        debug_assert!(matches!(refused, Some(Ok(()))), "refusing requests does not panic");
    }
}

/// Requests that were dead-lettered for another reason arrive here too. The answer names the
/// reason.
fn refuse(request: &Request, limit: u32) -> Result<&'static str, Failure> {
    Err(match request.header("x-first-death-reason") {
        Some("expired") => Failure::new(Status::DeadlineExceeded, "no worker was free in time"),
        Some("delivery_limit") => {
            Failure::new(Status::Internal, "every server that took the request was lost")
        }
        _ => Failure::new(
            Status::ResourceExhausted,
            format!("{limit} requests wait already; this one was not executed: try again later"),
        ),
    })
}
