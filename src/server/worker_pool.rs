//! The workers' threads. They outlive connections: one that is busy while its connection is lost
//! finishes its request, finds that it cannot answer it, and takes its new channel then.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::Channel;
use crossbeam_channel::{Receiver, Sender, select, unbounded};

use super::Shared;
use super::inbox::Inbox;
use super::worker::{StopReason, Worker};
use crate::broker::{CLOSING, DataPlane, Endpoint};
use crate::error::{Error, Failure, Result};
use crate::wire::{Reply, Request};

pub(crate) struct WorkerPool {
    /// Channels for the next free worker.
    assign: Sender<Assignment>,
    unassigned: Receiver<Assignment>,
    /// What the workers report, and who else has the other end.
    pub(super) events: Receiver<WorkerEvent>,
    pub(super) report: Sender<WorkerEvent>,
}

/// A channel to work on.
pub(crate) struct Assignment {
    pub(super) session: u64,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) data_plane: Arc<DataPlane>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) channel: Channel,
}

pub(crate) struct WorkerEvent {
    pub(super) session: u64,
    pub(super) event: SessionEvent,
}

pub(crate) enum SessionEvent {
    Consuming,
    /// A worker can do no more on its channel.
    Stopped {
        reason: StopReason,
        after: Duration,
    },
    /// A worker was told to stop, and its thread ends.
    Left,
    ConnectionEnded,
}

impl WorkerPool {
    /// Starts the workers' threads, which then wait for channels. If there cannot be as many,
    /// none stays.
    pub(crate) fn spawn<H, R>(shared: &Arc<Shared>, handler: H) -> Result<WorkerPool>
    where
        H: Fn(&Request) -> Result<R, Failure> + Send + Sync + 'static,
        R: Into<Reply>,
    {
        let handler = Arc::new(handler);
        let (assign, unassigned) = unbounded();
        let (report, events) = unbounded();
        for _ in 0..shared.options.workers {
            let (shared, handler) = (Arc::clone(shared), Arc::clone(&handler));
            let (assignments, report) = (unassigned.clone(), report.clone());
            let work = move || work(&shared, &*handler, &assignments, &report);
            thread::Builder::new().name("rpc-worker".into()).spawn(work).map_err(|error| {
                Error::Config(format!("no thread for a worker: {error}; ask for fewer workers"))
            })?;
        }
        Ok(WorkerPool { assign, unassigned, events, report })
    }

    /// Has a worker take this channel.
    pub(super) fn assign(&self, assignment: Assignment) {
        // It fails only if every worker has left, and then nobody needs it.
        let _ = self.assign.send(assignment);
    }

    /// Drops the channels that no worker has taken.
    pub(super) fn drop_assignments(&self) {
        self.unassigned.try_iter().for_each(drop);
    }
}

/// What a worker's thread does: one channel after the other, until told to stop.
fn work<H, R>(
    shared: &Arc<Shared>,
    handler: &H,
    assignments: &Receiver<Assignment>,
    report: &Sender<WorkerEvent>,
) where
    H: Fn(&Request) -> Result<R, Failure>,
    R: Into<Reply>,
{
    // Without a supervisor nobody needs the report.
    let report = |session, event| drop(report.send(WorkerEvent { session, event }));
    loop {
        let assignment = select! {
            recv(shared.stop.signal()) -> _ => None,
            recv(assignments) -> assignment => assignment.ok(),
        };
        let Some(assignment) = assignment else { return report(0, SessionEvent::Left) };
        let (session, began) = (assignment.session, Instant::now());
        let reason = match Worker::begin(shared, &assignment) {
            Ok(worker) => {
                report(session, SessionEvent::Consuming);
                worker.serve(handler)
            }
            Err(reason) => reason,
        };
        let Assignment { data_plane, channel, .. } = assignment;
        let limit = data_plane.time_limit(CLOSING);
        drop(channel);
        drop(limit);
        match reason {
            StopReason::Stopped => return report(session, SessionEvent::Left),
            reason => report(session, SessionEvent::Stopped { reason, after: began.elapsed() }),
        }
    }
}
