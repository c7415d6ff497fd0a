//! Asks the broker about the request queue.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::broker::{CallError, Connection, Limit};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::Method;
use crate::lock::lock;

/// The broker's answers on one connection.
#[derive(Default)]
pub(super) struct QueueLooks {
    /// The last queue that the broker was asked about, the time, and the result.
    last: Mutex<Option<(String, Instant, Result<QueueStatus>)>>,
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

impl QueueLooks {
    /// The broker's answer about a queue. Callers that ask within a second share the answer, or the
    /// error that no answer came. Blocks for at most 200 ms.
    pub(super) fn inspect(&self, connection: &Connection, queue: &str) -> Result<QueueStatus> {
        const TIMEOUT: Duration = Duration::from_millis(200);
        const MAX_AGE: Duration = Duration::from_secs(1);
        let mut last = lock(&self.last);
        if let Some((name, at, found)) = &*last
            && at.elapsed() < MAX_AGE
            && (name == queue || matches!(found, Err(Error::TimedOut { .. })))
        {
            return found.clone();
        }
        let found = ask_about(connection, queue, Deadline::after(TIMEOUT));
        *last = Some((queue.to_string(), Instant::now(), found.clone()));
        found
    }
}

/// Asks the broker about a queue. Blocks until the deadline at most.
pub(super) fn ask_about(
    connection: &Connection,
    queue: &str,
    deadline: Deadline,
) -> Result<QueueStatus> {
    let asked = connection.ask(Method::FindQueue(queue), Limit::Until(deadline.at));
    asked.map(|found| QueueStatus { consumers: found.consumers, messages: found.messages }).map_err(
        |error| match error {
            CallError::Closed(close) if close.code == 404 => {
                Error::Unroutable { queue: queue.to_string() }
            }
            CallError::Unanswered(reason) => Error::TimedOut {
                what: format!("asking {} about a queue: {reason}", connection.endpoint),
                after: deadline.timeout,
                sent: false,
            },
            error => connection.explain(error, "ask about the request queue"),
        },
    )
}
