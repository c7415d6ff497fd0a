//! Keeps the workers in channels: connects, assigns each worker a channel, replaces what is lost,
//! and waits for the workers when the server is to stop.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, select};

use super::inbox::Inboxes;
use super::queue_monitor::QueueMonitor;
use super::worker::{StopReason, Worker};
use super::worker_pool::{Assignment, SessionEvent, WorkerEvent, WorkerPool};
use super::{ServerOptions, Shared, queue};
use crate::broker::{Connection, NoConnection};
use crate::deadline::{Deadline, backoff};
use crate::error::{Error, Result};

/// What lasted less has failed, rather than been lost.
const STEADY: Duration = Duration::from_secs(1);

/// How long to wait after a first try that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    workers: WorkerPool,
    /// Counts connections, to tell the events of an earlier one.
    session: u64,
    /// The workers whose threads have ended.
    left: usize,
    on_ready: Option<Box<dyn FnOnce() + Send>>,
}

/// How work on one connection ended.
enum SessionEnd {
    ToldToStop,
    ConnectionLost,
    Failed(Error),
}

impl Supervisor {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        workers: WorkerPool,
        on_ready: Option<Box<dyn FnOnce() + Send>>,
    ) -> Supervisor {
        Supervisor { shared: Arc::clone(shared), workers, session: 0, left: 0, on_ready }
    }

    /// Serves on that connection if there is one, and on another whenever one is lost.
    pub(crate) fn serve(mut self, first: Option<Connection>) -> Result<()> {
        let ServerOptions { workers, prefetch, .. } = &self.shared.options;
        let queue = &self.shared.queue;
        log::info!("serving queue {queue:?} (workers: {workers}, prefetch: {prefetch})");
        let mut connected = first.map(Ok);
        let mut broker = 0;
        let mut tries = 0;
        while !self.shared.stop.is_stopped() {
            let began = Instant::now();
            let mut longest = Duration::from_secs(5);
            let error = match connected.take().or_else(|| self.connect_unless_stopped(broker)) {
                Some(Ok(mut connection)) => {
                    let end = self.serve_on(&mut connection);
                    if let SessionEnd::ToldToStop = end {
                        return self.drain(connection);
                    }
                    // A broker that takes the login but not the work is the last to be tried
                    // again; one that was lost is the first.
                    let failed = matches!(end, SessionEnd::Failed(_))
                        || connection.data_plane.exceeded_time_limit();
                    broker = connection.index + usize::from(failed);
                    self.abandon(connection, end)
                }
                Some(Err(failed)) => {
                    if failed.nobody_listens {
                        longest = Duration::from_millis(500);
                    }
                    failed.error
                }
                None => break,
            };
            if !matches!(error, Error::Unreachable { .. }) {
                return Err(error);
            }
            tries = if began.elapsed() < STEADY { tries + 1 } else { 1 };
            let wait = backoff(tries, FIRST_PAUSE, longest);
            log::warn!("{error}; trying again in {wait:.1?}");
            let _ = self.shared.stop.signal().recv_timeout(wait);
        }
        Ok(())
    }

    fn connect_unless_stopped(&self, broker: usize) -> Option<Result<Connection, NoConnection>> {
        let never = Deadline::after(Duration::MAX);
        select! {
            recv(self.shared.brokers.connect_in_thread(broker, never)) -> done => done.ok(),
            recv(self.shared.stop.signal()) -> _ => None,
        }
    }

    fn serve_on(&mut self, connection: &mut Connection) -> SessionEnd {
        self.session += 1;
        let (inboxes, _monitor) = match self.set_up(connection) {
            Ok(set_up) => set_up,
            Err(_) if self.shared.stop.is_stopped() => return SessionEnd::ToldToStop,
            Err(error) => return SessionEnd::Failed(error),
        };
        loop {
            let end = select! {
                recv(self.shared.stop.signal()) -> _ => Some(SessionEnd::ToldToStop),
                recv(self.workers.events) -> event => match event {
                    Ok(event) => self.take(event, connection, &inboxes),
                    Err(_) => Some(SessionEnd::ToldToStop),
                },
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Makes sure of the queue, and has a channel ready for every worker, and one to look at the
    /// queue on.
    fn set_up(&self, connection: &mut Connection) -> Result<(Arc<Inboxes>, QueueMonitor)> {
        let data_plane = Arc::clone(&connection.data_plane);
        let events = Some(self.workers.report.clone());
        let inboxes = Inboxes::attach(&self.shared, &data_plane, self.session, events);
        let _limit = data_plane.time_limit(self.shared.brokers.connect_timeout);
        self.shared.stop.attach(&data_plane);
        queue::ensure(connection, &self.shared)?;
        let workers = 0..self.shared.options.workers;
        let assignments: Vec<_> =
            workers.map(|_| self.assignment(connection, &inboxes)).collect::<Result<_>>()?;
        let monitor = monitor(&self.shared, connection)?;
        // Only now: under an alarm the broker answers nothing once there has been a reply.
        assignments.into_iter().for_each(|assignment| self.workers.assign(assignment));
        Ok((inboxes, monitor))
    }

    fn assignment(&self, connection: &mut Connection, inboxes: &Inboxes) -> Result<Assignment> {
        assignment(self.session, connection, inboxes)
    }

    fn take(
        &mut self,
        WorkerEvent { session, event }: WorkerEvent,
        connection: &mut Connection,
        inboxes: &Inboxes,
    ) -> Option<SessionEnd> {
        match event {
            SessionEvent::Left => {
                self.left += 1;
                None
            }
            _ if session != self.session => None,
            SessionEvent::Consuming => {
                let queue = &self.shared.queue;
                log::info!("taking requests from {queue:?} on {}", connection.endpoint);
                if let Some(on_ready) = self.on_ready.take() {
                    on_ready();
                }
                None
            }
            SessionEvent::ConnectionEnded
            | SessionEvent::Stopped { reason: StopReason::Connection(_), .. } => {
                Some(SessionEnd::ConnectionLost)
            }
            SessionEvent::Stopped {
                reason: StopReason::Channel(error @ Error::Unreachable { .. }),
                after,
            } if after >= STEADY => {
                log::warn!("{error}; going on with another channel");
                let data_plane = Arc::clone(&connection.data_plane);
                let _limit = data_plane.time_limit(self.shared.brokers.connect_timeout);
                let assigned = queue::ensure(connection, &self.shared)
                    .and_then(|()| self.assignment(connection, inboxes));
                match assigned {
                    Ok(assignment) => {
                        self.workers.assign(assignment);
                        None
                    }
                    Err(error) => Some(SessionEnd::Failed(error)),
                }
            }
            SessionEvent::Stopped { reason: StopReason::Channel(error), .. } => {
                Some(SessionEnd::Failed(error))
            }
            SessionEvent::Stopped { reason: StopReason::Stopped, .. } => None,
        }
    }

    /// Ends a connection that is lost or of no use. Returns why.
    fn abandon(&self, connection: Connection, end: SessionEnd) -> Error {
        let endpoint = connection.endpoint.clone();
        if let SessionEnd::Failed(error) = &end {
            connection.data_plane.cut(&error.to_string());
        }
        let reason = connection.close();
        // The cause that ended this connection may have ended those as well.
        self.shared.direct.close();
        self.workers.drop_assignments();
        match end {
            SessionEnd::Failed(error) => error,
            _ => endpoint.unreachable(reason),
        }
    }

    /// Waits for the workers, which leave as soon as they have answered.
    fn drain(mut self, connection: Connection) -> Result<()> {
        let ServerOptions { workers, drain_timeout: limit, .. } = self.shared.options;
        let deadline = Deadline::after(limit);
        let counters = &self.shared.counters;
        log::info!("stopping; requests in progress: {}", counters.read().in_progress);
        while self.left < workers {
            match self.workers.events.recv_deadline(deadline.at) {
                Ok(WorkerEvent { event: SessionEvent::Left, .. }) => self.left += 1,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        // Without any in progress there is only a broker that does not answer.
        let in_progress = counters.read().in_progress;
        let is_drained = self.left == workers || in_progress == 0;
        if self.left < workers {
            connection.data_plane.cut("the server stops with requests in progress");
        }
        drop(connection);
        self.shared.direct.close();
        log::info!("stopped: {:?}", counters.read());
        match is_drained {
            true => Ok(()),
            false => Err(Error::TimedOut {
                what: format!(
                    "requests still in progress: {in_progress}; the broker gives them to another \
                     server"
                ),
                after: limit,
                sent: true,
            }),
        }
    }
}

/// Opens a channel for a worker. Set a time limit before.
fn assignment(session: u64, connection: &mut Connection, inboxes: &Inboxes) -> Result<Assignment> {
    let channel = connection.open_channel();
    let channel = channel.map_err(|error| connection.explain(&error, "open a channel"))?;
    Ok(Assignment {
        session,
        endpoint: Arc::new(connection.endpoint.clone()),
        data_plane: Arc::clone(&connection.data_plane),
        inbox: inboxes.open(channel.channel_id()),
        channel,
    })
}

/// Opens a channel to look at the queue on, and does so. Set a time limit before.
fn monitor(shared: &Arc<Shared>, connection: &mut Connection) -> Result<QueueMonitor> {
    let channel = connection.open_channel();
    let channel = channel.map_err(|error| connection.explain(&error, "open a channel"))?;
    QueueMonitor::start(shared, &connection.data_plane, channel).map_err(|error| {
        connection.endpoint.unreachable(format!("no thread to look at the queue in: {error}"))
    })
}

/// Makes a server's first connection, and makes sure of the queue. Tries for
/// [`Brokers::wait`](crate::Brokers::wait), and at least once.
pub(crate) fn connect(shared: &Shared) -> Result<Connection> {
    let Shared { brokers, .. } = shared;
    let deadline = Deadline::after(brokers.first_limit());
    let gives_up = Deadline::after(brokers.wait);
    let (mut tries, mut broker) = (0, 0);
    loop {
        tries += 1;
        let connected = brokers.connect_in_thread(broker, deadline).recv_deadline(deadline.at);
        let connected = match connected {
            Ok(connected) => connected.map_err(Error::from),
            Err(_) => {
                let reason = format!("no answer yet (tried for {:?})", deadline.timeout);
                Err(Error::Unreachable { brokers: brokers.to_string(), reason })
            }
        };
        let ready = connected.and_then(|mut connection| {
            broker = connection.index + 1;
            queue::ensure(&mut connection, shared)?;
            Ok(connection)
        });
        let pause = backoff(tries, FIRST_PAUSE, Duration::from_millis(500));
        match ready {
            Err(error @ Error::Unreachable { .. }) if pause < gives_up.remaining() => {
                log::info!("{error}; trying again in {pause:.1?}");
                thread::sleep(pause);
            }
            ready => return ready,
        }
    }
}

/// Lends a worker on that connection to `work`, and closes the connection after it.
pub(crate) fn lend_a_worker<T>(
    shared: &Arc<Shared>,
    mut connection: Connection,
    work: impl FnOnce(&Worker<'_>) -> Result<T>,
) -> Result<T> {
    let data_plane = Arc::clone(&connection.data_plane);
    let inboxes = Inboxes::attach(shared, &data_plane, 0, None);
    let limit = data_plane.time_limit(shared.brokers.connect_timeout);
    shared.stop.attach(&data_plane);
    queue::ensure(&mut connection, shared)?;
    let assignment = assignment(0, &mut connection, &inboxes)?;
    let _monitor = monitor(shared, &mut connection)?;
    drop(limit);
    let worker = Worker::begin(shared, &assignment).map_err(|reason| match reason {
        StopReason::Channel(error) | StopReason::Connection(error) => error,
        StopReason::Stopped => Error::Closed,
    })?;
    let done = work(&worker);
    drop(worker);
    drop(connection);
    shared.direct.close();
    done
}
