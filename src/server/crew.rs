//! The workers' threads. They outlive connections: one that is busy while its connection is lost
//! finishes its request, finds that it cannot answer it, and takes its new channel then.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::Channel;
use crossbeam_channel::{Receiver, Sender, select, unbounded};

use super::Shared;
use super::worker::{Halt, Worker};
use crate::broker::{Endpoint, Line, Link};
use crate::error::{Error, Failure, Result};

pub(crate) struct Crew {
    /// Channels for whichever worker is free.
    channels: Sender<Assignment>,
    unassigned: Receiver<Assignment>,
    /// What the workers tell; disconnected once all of them have left.
    pub(super) news: Receiver<News>,
}

/// A channel to work on.
struct Assignment {
    session: u64,
    endpoint: Arc<Endpoint>,
    line: Line,
    channel: Channel,
}

pub(super) struct News {
    pub(super) session: u64,
    pub(super) event: Event,
}

pub(super) enum Event {
    Consuming,
    Halted { halt: Halt, after: Duration },
}

impl Crew {
    /// Starts the workers' threads, which wait for channels then. Without room for them all
    /// none stays.
    pub(crate) fn hire<H>(shared: &Arc<Shared>, handler: H) -> Result<Crew>
    where
        H: Fn(&[u8]) -> Result<Vec<u8>, Failure> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        let (channels, unassigned) = unbounded();
        let (newsroom, news) = unbounded();
        for _ in 0..shared.options.workers {
            let (shared, handler) = (Arc::clone(shared), Arc::clone(&handler));
            let (assignments, newsroom) = (unassigned.clone(), newsroom.clone());
            let work = move || work(&shared, &*handler, &assignments, &newsroom);
            thread::Builder::new().name("rpc-worker".into()).spawn(work).map_err(|error| {
                Error::Config(format!("no thread for a worker: {error}; ask for fewer workers"))
            })?;
        }
        Ok(Crew { channels, unassigned, news })
    }

    /// Opens a channel for a worker to take, and to tell of as of that session.
    pub(super) fn assign(&self, session: u64, link: &mut Link) -> Result<()> {
        let channel = open_channel(link)?;
        let endpoint = Arc::new(link.endpoint.clone());
        let assignment = Assignment { session, endpoint, line: link.line.clone(), channel };
        // It fails only if every worker has left, and then nobody needs it.
        let _ = self.channels.send(assignment);
        Ok(())
    }

    /// Nobody needs the channels any more that nobody has taken.
    pub(super) fn forget_assignments(&self) {
        self.unassigned.try_iter().for_each(drop);
    }
}

/// What a worker's thread does: one channel after the other, until told to stop.
fn work<H>(shared: &Shared, handler: &H, assignments: &Receiver<Assignment>, news: &Sender<News>)
where
    H: Fn(&[u8]) -> Result<Vec<u8>, Failure>,
{
    loop {
        let assignment = select! {
            recv(shared.stopper.signal()) -> _ => return,
            recv(assignments) -> assignment => assignment,
        };
        // Without a supervisor there are no further channels.
        let Ok(Assignment { session, endpoint, line, channel }) = assignment else { return };
        // News to a supervisor that has left is no news.
        let tell = |event| drop(news.send(News { session, event }));
        let began = Instant::now();
        let halt = match Worker::begin(shared, &endpoint, &line, &channel) {
            Ok(worker) => {
                tell(Event::Consuming);
                worker.serve(handler)
            }
            Err(halt) => halt,
        };
        drop(channel);
        if let Halt::Stopped = halt {
            return;
        }
        tell(Event::Halted { halt, after: began.elapsed() });
    }
}

pub(super) fn open_channel(link: &mut Link) -> Result<Channel> {
    let channel = link.connection.open_channel(None);
    channel.map_err(|error| link.endpoint.explain(&error, "open a channel"))
}
