//! The workers' threads. They outlive connections: if a connection is lost while its worker is
//! busy, the worker finishes its request, cannot send the reply, and continues on the next
//! connection.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select, unbounded};

use super::consumer::Consumer;
use super::state::ServerState;
use super::worker::{Served, Worker};
use crate::broker::Session;
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result};
use crate::lock::lock;
use crate::wire::{Reply, Request};

pub(crate) type Handler = Box<dyn Fn(&Request) -> Result<Reply, Failure> + Send + Sync>;

/// Serves until the server is stopped, or until a worker gets an error that no retry can help.
pub(crate) fn serve(state: &Arc<ServerState>, handler: Handler) -> Result<()> {
    let options = &state.options;
    let (queue, workers, prefetch) = (&state.queue, options.workers, options.prefetch);
    if options.delivery_limit.is_some() && prefetch != 1 {
        log::warn!(
            "a stop returns prefetched requests, which RabbitMQ before 4.3 counts against the \
             delivery limit of {queue:?}: a prefetch of 1 avoids that"
        );
    }
    if let Some(session) = state.sessions.present() {
        session.connection.check_channels(workers, "take requests")?;
    }
    log::info!("serving queue {queue:?} (workers: {workers}, prefetch: {prefetch})");
    let handler = Arc::new(handler);
    let (report, reports) = unbounded();
    // No worker starts until all threads exist, so a failure to start one leaves no worker running.
    let (all_spawned, start) = bounded::<()>(0);
    for _ in 0..workers {
        let (held, handler) = (Arc::clone(state), Arc::clone(&handler));
        let (report, start) = (report.clone(), start.clone());
        let work = move || {
            let _ = start.recv();
            let work = AssertUnwindSafe(|| work(&held, &handler));
            let worked = catch_unwind(work).unwrap_or_else(|_| {
                let text = "a hook given to on_ready or on_request panicked; standard error has \
                            its message";
                Err(Error::Config(text.into()))
            });
            // Sending fails only if the supervisor has returned. The report is then not needed.
            let _ = report.send(worked);
        };
        if let Err(error) = thread::Builder::new().name("rpc-worker".into()).spawn(work) {
            state.stop();
            let text = format!("no thread for a worker: {error}; ask for fewer workers");
            return Err(Error::Config(text));
        }
    }
    drop((all_spawned, report));
    let first = select! {
        recv(state.stop.signal) -> _ => None,
        recv(reports) -> report => report.ok(),
    };
    state.stop();
    drain(state, first, &reports)
}

/// Works on one connection after another, until the server is stopped. `Err` if no retry can help.
fn work(state: &Arc<ServerState>, handler: &Handler) -> Result<()> {
    let never = Deadline::after(Duration::MAX);
    while !state.stop.is_stopped() {
        match Worker::with(state, never, |worker| serve_with(worker, handler)) {
            Err(Error::Closed) => break,
            served => served??,
        }
    }
    Ok(())
}

/// Serves for as long as the worker's channel works, or until the server is stopped. `Err` if no
/// retry can help.
fn serve_with(worker: Worker<'_>, handler: &Handler) -> Result<()> {
    /// A worker whose channel ends earlier than this counts as failed.
    const MIN_LIFETIME: Duration = Duration::from_secs(1);
    let (state, session) = (worker.consumer.state, worker.consumer.session);
    state.has_served.store(true, Ordering::Relaxed);
    let on_ready = lock(&state.on_ready).take();
    on_ready.into_iter().for_each(|on_ready| on_ready());
    let served = serve_all(&worker, handler);
    let lifetime = worker.consumer.inbox.began.elapsed();
    worker.consumer.confirm();
    drop(worker);
    match served {
        Err(Error::Unreachable { .. })
            if session.ended().is_some() || !state.sessions.is_current(session) => {}
        Err(error @ Error::Unreachable { .. }) => match lifetime < MIN_LIFETIME {
            true => state.abandon(session, &error),
            false => log::warn!("{error}; going on with another channel"),
        },
        Err(error) if state.outcomes.has_replied() => state.pause(1, &error),
        served => return served,
    }
    Ok(())
}

/// Serves until the server is told to stop, or the channel or the connection has ended.
fn serve_all(worker: &Worker<'_>, handler: &Handler) -> Result<()> {
    let Consumer { state, .. } = &worker.consumer;
    loop {
        match worker.serve_one(handler, Duration::MAX) {
            Ok(Served::Stopped) => return Ok(()),
            Ok(_) => {}
            // Only this reply could not be sent: its request is in the queue again.
            Err(error @ Error::Unreachable { .. }) if worker.consumer.ended().is_none() => {
                state.pause(1, &error);
                state.note_consuming();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the workers have answered their requests, the broker has the replies and the workers
/// have ended. Then closes the connections.
fn drain(
    state: &ServerState,
    first: Option<Result<()>>,
    reports: &Receiver<Result<()>>,
) -> Result<()> {
    /// How long to wait for workers that execute no request. Such a worker waits for a silent
    /// broker.
    const IDLE_TIMEOUT: Duration = Duration::from_millis(500);
    let until = state.stop.until();
    log::info!("stopping; requests in progress: {}", state.counters().in_progress);
    let mut failure = first.and_then(Result::err);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match reports.recv_timeout(IDLE_TIMEOUT.min(left)) {
            Ok(report) => failure = failure.or(report.err()),
            Err(RecvTimeoutError::Timeout)
                if state.outcomes.workers_are_busy() && !left.is_zero() => {}
            // All have ended, or none has anything left to do, or there is no more time.
            Err(_) => break,
        }
    }
    let counters = state.counters();
    let unproved = state.outcomes.unproved();
    state.close();
    log::info!("stopped: {counters:?}");
    let in_progress = counters.in_progress;
    let what = match (in_progress, unproved) {
        (0, 0) => return failure.map_or(Ok(()), Err),
        (0, _) => {
            "the broker has not said that it has the last replies; it gives their requests to \
             another server if it has not"
                .to_string()
        }
        _ => format!(
            "requests still in progress: {in_progress}; the broker gives them to another server"
        ),
    };
    let after = state.options.drain_timeout;
    Err(failure.unwrap_or(Error::TimedOut { what, after, sent: true }))
}
