//! Keeps the workers in channels: connects, hands each worker a channel, replaces what is lost,
//! and waits for the workers when the server is to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::ConnectionBlockedNotification;
use crossbeam_channel::{Receiver, RecvTimeoutError, select};

use super::crew::{Crew, Event, News, open_channel};
use super::watch::{Starvation, Watch};
use super::worker::{Halt, Worker};
use super::{ServerOptions, Shared, queue};
use crate::broker::{Link, reason};
use crate::deadline::{Deadline, backoff};
use crate::error::{Error, Result};

/// How long closing in good order may take before the connection is cut.
const CLOSING: Duration = Duration::from_secs(1);
/// What lasted less has failed, rather than been lost.
const STEADY: Duration = Duration::from_secs(1);

pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    crew: Crew,
    /// Counts connections, to tell news of an earlier one.
    session: u64,
    starvation: Starvation,
    on_ready: Option<Box<dyn FnOnce() + Send>>,
}

/// How work on one connection ended.
enum End {
    ToldToStop,
    /// The connection is gone; closing it tells why.
    Gone,
    Failed(Error),
}

impl Supervisor {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        crew: Crew,
        on_ready: Option<Box<dyn FnOnce() + Send>>,
    ) -> Supervisor {
        let (shared, starvation) = (Arc::clone(shared), Starvation::default());
        Supervisor { shared, crew, session: 0, starvation, on_ready }
    }

    /// Serves on that connection if there is one, and on another whenever one is lost.
    pub(crate) fn serve(mut self, first: Option<Link>) -> Result<()> {
        let ServerOptions { workers, prefetch, .. } = &self.shared.options;
        let queue = &self.shared.queue;
        log::info!("serving queue {queue:?} (workers: {workers}, prefetch: {prefetch})");
        let mut link = first;
        let mut broker = 0;
        let mut tries = 0;
        while !self.shared.stopper.is_stopped() {
            let began = Instant::now();
            let mut most = Duration::from_secs(5);
            let connected = match link.take() {
                Some(link) => Ok(link),
                None => self.shared.brokers.connect(broker, Deadline::after(Duration::MAX)),
            };
            let error = match connected {
                Ok(mut link) => {
                    let end = self.serve_on(&mut link);
                    if let End::ToldToStop = end {
                        return self.drain(link);
                    }
                    // A broker that takes the login but not the work is the last to be tried
                    // again; one that was lost is the first.
                    broker = link.index + usize::from(matches!(end, End::Failed(_)));
                    self.abandon(link, end)
                }
                Err(no_link) => {
                    if no_link.nobody_listens {
                        most = Duration::from_millis(500);
                    }
                    no_link.error
                }
            };
            if !matches!(error, Error::Unreachable { .. }) {
                return Err(error);
            }
            tries = if began.elapsed() < STEADY { tries + 1 } else { 1 };
            let wait = backoff(tries, Duration::from_millis(100), most);
            log::warn!("{error}; trying again in {wait:.1?}");
            let _ = self.shared.stopper.signal().recv_timeout(wait);
        }
        Ok(())
    }

    fn serve_on(&mut self, link: &mut Link) -> End {
        self.session += 1;
        let (notices, watch) = match self.staff(link) {
            Ok(staffed) => staffed,
            Err(error) => return End::Failed(error),
        };
        loop {
            let end = select! {
                recv(self.shared.stopper.signal()) -> _ => Some(End::ToldToStop),
                recv(self.crew.news) -> news => match news {
                    Ok(News { session, event }) if session == self.session => {
                        self.take(event, link)
                    }
                    Ok(_) => None,
                    // Every worker has left, as they do when told to stop.
                    Err(_) => Some(End::ToldToStop),
                },
                recv(notices) -> notice => match notice {
                    Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                        log::warn!("the broker takes no replies at present: {reason}");
                        None
                    }
                    Ok(ConnectionBlockedNotification::Unblocked) => {
                        log::info!("the broker takes replies again");
                        None
                    }
                    Err(_) => Some(End::Gone),
                },
                recv(watch.looks) -> seen => match seen {
                    Ok(seen) => self.judge(seen, link),
                    Err(_) => Some(End::Gone),
                },
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Makes sure of the queue, has a channel ready for every worker, and one to watch on.
    fn staff(&self, link: &mut Link) -> Result<(Receiver<ConnectionBlockedNotification>, Watch)> {
        let _fuse = link.line.fuse(self.shared.brokers.connect_timeout);
        // First of all: the notice may come with the first reply of a worker, and amiquip drops
        // what comes before somebody listens.
        let notices = link.connection.listen_for_connection_blocked();
        let notices =
            notices.map_err(|error| link.endpoint.explain(&error, "listen for resource alarms"))?;
        queue::ensure(link, &self.shared)?;
        for _ in 0..self.shared.options.workers {
            self.crew.assign(self.session, link)?;
        }
        let watch = Watch::start(open_channel(link)?, self.shared.queue.clone());
        let watch = watch.map_err(|error| {
            link.endpoint.unreachable(format!("no thread to watch the queue in: {error}"))
        })?;
        Ok((notices, watch))
    }

    /// Whether there is still work to be had here, by what was seen of the queue.
    fn judge(&mut self, seen: Result<u32, amiquip::Error>, link: &Link) -> Option<End> {
        let queue = &self.shared.queue;
        match seen {
            Ok(waiting) => {
                let starve = self.starvation.shows(waiting, self.shared.counters.read());
                let error =
                    || format!("requests wait in {queue:?} and the broker gives the workers none");
                starve.then(|| End::Failed(link.endpoint.unreachable(error())))
            }
            Err(amiquip::Error::ServerClosedChannel { code: 404, message, .. }) => {
                let error = format!("the queue {queue:?} went without a word ({message})");
                Some(End::Failed(link.endpoint.unreachable(error)))
            }
            Err(error) => {
                log::debug!("watching the queue: {}", reason(&error));
                Some(End::Gone)
            }
        }
    }

    fn take(&mut self, event: Event, link: &mut Link) -> Option<End> {
        match event {
            Event::Consuming => {
                log::info!("taking requests from {:?} on {}", self.shared.queue, link.endpoint);
                if let Some(on_ready) = self.on_ready.take() {
                    on_ready();
                }
                None
            }
            Event::Halted { halt: Halt::Stopped, .. } => None,
            Event::Halted { halt: Halt::Connection(_), .. } => Some(End::Gone),
            Event::Halted { halt: Halt::Channel(error @ Error::Unreachable { .. }), after }
                if after >= STEADY =>
            {
                log::warn!("{error}; going on with another channel");
                let _fuse = link.line.fuse(self.shared.brokers.connect_timeout);
                queue::ensure(link, &self.shared)
                    .and_then(|()| self.crew.assign(self.session, link))
                    .err()
                    .map(End::Failed)
            }
            Event::Halted { halt: Halt::Channel(error), .. } => Some(End::Failed(error)),
        }
    }

    /// Ends a connection that is lost or of no use. Returns why.
    fn abandon(&self, link: Link, end: End) -> Error {
        let error = match end {
            End::Failed(error) => {
                link.line.cut();
                drop(link.connection);
                error
            }
            End::Gone | End::ToldToStop => {
                let _fuse = link.line.fuse(CLOSING);
                let reason = link.connection.close().err().map(|error| reason(&error));
                link.endpoint.unreachable(reason.unwrap_or_else(|| "it was closed".into()))
            }
        };
        // Whatever ended this connection may have ended that one as well.
        self.shared.direct.close(CLOSING);
        self.crew.forget_assignments();
        error
    }

    /// Waits for the workers, which leave as soon as they have answered.
    fn drain(self, link: Link) -> Result<()> {
        let limit = self.shared.options.drain_timeout;
        let deadline = Deadline::after(limit);
        let counters = &self.shared.counters;
        log::info!("stopping; requests in progress: {}", counters.read().in_progress);
        let left = loop {
            match self.crew.news.recv_deadline(deadline.at) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) => break Some(counters.read().in_progress),
            }
        };
        match left {
            None => link.close(CLOSING),
            Some(_) => link.line.cut(),
        }
        self.shared.direct.close(CLOSING);
        log::info!("stopped: {:?}", counters.read());
        // Without any in progress there is only a broker that does not answer.
        left.filter(|left| *left > 0).map_or(Ok(()), |left| {
            Err(Error::TimedOut {
                what: format!(
                    "requests still in progress: {left}; the broker gives them to another server"
                ),
                after: limit,
                sent: true,
            })
        })
    }
}

/// Lends a worker on that connection to `work`, and closes the connection after it.
pub(crate) fn lend_a_worker<T>(
    shared: &Shared,
    mut link: Link,
    work: impl FnOnce(&Worker<'_>) -> Result<T>,
) -> Result<T> {
    let fuse = link.line.fuse(shared.brokers.connect_timeout);
    queue::ensure(&mut link, shared)?;
    let (endpoint, line) = (link.endpoint.clone(), link.line.clone());
    let channel = open_channel(&mut link)?;
    let worker = Worker::begin(shared, &endpoint, &line, &channel).map_err(|halt| match halt {
        Halt::Channel(error) | Halt::Connection(error) => error,
        Halt::Stopped => Error::Closed,
    })?;
    drop(fuse);
    let done = work(&worker);
    let fuse = link.line.fuse(CLOSING);
    drop(worker);
    drop(channel);
    drop(fuse);
    link.close(CLOSING);
    shared.direct.close(CLOSING);
    done
}
