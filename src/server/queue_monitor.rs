//! Whether requests still come.
//!
//! RabbitMQ tells a consumer when its queue is deleted. But in a cluster that had lost a node a
//! while before, servers were seen (on 3.10) to be told nothing, and to wait for ever at a queue
//! that was gone; and a broker may lose its deliveries to a worker. So the queue is looked at every
//! few seconds, on a channel and in a thread of its own: the answer may take as long as a broker
//! under an alarm, or a silent network, has it take, and nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{io, thread};

use amiquip::Channel;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Shared;
use crate::broker::{DataPlane, closed_channel, reason};

/// How often the queue is looked at.
const EVERY: Duration = Duration::from_secs(4);
/// How long requests may wait for idle workers. A request that has just come takes less.
const CONFIRM_AFTER: Duration = Duration::from_millis(500);

/// Cuts the connection when requests no longer come through it, until this is dropped.
pub(crate) struct QueueMonitor {
    _dropped: Sender<()>,
}

impl QueueMonitor {
    pub(crate) fn start(
        shared: &Arc<Shared>,
        data_plane: &Arc<DataPlane>,
        channel: Channel,
    ) -> io::Result<QueueMonitor> {
        let (shared, data_plane) = (Arc::clone(shared), Arc::clone(data_plane));
        let (sender, dropped) = bounded::<()>(0);
        let watch = move || {
            if let Err(finding) = watch(&shared, &channel, &dropped) {
                data_plane.cut(&finding);
            }
        };
        thread::Builder::new().name("rpc-queue".into()).spawn(watch)?;
        Ok(QueueMonitor { _dropped: sender })
    }
}

/// Looks until it is told to stop, or until something is wrong.
fn watch(shared: &Shared, channel: &Channel, stop: &Receiver<()>) -> Result<(), String> {
    while stop.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        if !has_stalled(shared, channel, stop)? {
            continue;
        }
        // Another connection does not help where the broker has its reasons, such as a queue with
        // a single active consumer. So it is tried once for each request.
        let taken = shared.counters.taken();
        if shared.stalled_at.swap(taken, Ordering::Relaxed) != taken {
            let queue = &shared.queue;
            return Err(format!(
                "requests wait in {queue:?} and the broker gives the workers none"
            ));
        }
    }
    Ok(())
}

/// Whether requests wait, no worker has one, and none gets one.
fn has_stalled(shared: &Shared, channel: &Channel, stop: &Receiver<()>) -> Result<bool, String> {
    let taken = shared.counters.taken();
    let idle = || shared.counters.taken() == taken && shared.counters.read().in_progress == 0;
    let stays = || stop.recv_timeout(CONFIRM_AFTER) == Err(RecvTimeoutError::Timeout);
    Ok(waiting(shared, channel)? > 0
        && idle()
        && stays()
        && waiting(shared, channel)? > 0
        && idle())
}

/// How many requests wait in the queue; `Err` says what is wrong with it.
fn waiting(shared: &Shared, channel: &Channel) -> Result<u32, String> {
    let queue = &shared.queue;
    match channel.queue_declare_passive(queue.as_str()) {
        Ok(found) => Ok(found.declared_message_count().unwrap_or(0)),
        Err(error) => Err(match closed_channel(&error) {
            Some(close) if close.code == 404 => {
                format!("the queue {queue:?} was deleted without a word ({})", close.text)
            }
            _ => reason(&error),
        }),
    }
}
