//! Whether requests still come.
//!
//! RabbitMQ tells a consumer when its queue is deleted. But in a cluster that had lost a node a
//! while before, servers were seen (on 3.10) to be told nothing, and to wait for ever at a queue
//! that was gone. So the queue is looked at every few seconds, on a channel and in a thread of
//! its own: the answer may take as long as a broker under an alarm, or a silent network, has it
//! take, and nobody waits for it.

use std::io;
use std::thread;
use std::time::Duration;

use amiquip::Channel;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::ServerCounters;

const EVERY: Duration = Duration::from_secs(5);

/// What was seen of the queue, from time to time. Dropping it ends the watch.
pub(crate) struct Watch {
    /// How many messages wait in the queue, or why that cannot be told; after that nothing more.
    pub(crate) looks: Receiver<Result<u32, amiquip::Error>>,
    _on: Sender<()>,
}

impl Watch {
    pub(crate) fn start(channel: Channel, queue: String) -> io::Result<Watch> {
        let (on, off) = bounded::<()>(0);
        let (report, looks) = bounded(1);
        let watch = move || {
            while off.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let seen = channel.queue_declare_passive(queue.as_str());
                let seen = seen.map(|queue| queue.declared_message_count().unwrap_or(0));
                let is_over = seen.is_err();
                if report.send(seen).is_err() || is_over {
                    break;
                }
            }
        };
        thread::Builder::new().name("rpc-watch".into()).spawn(watch)?;
        Ok(Watch { looks, _on: on })
    }
}

/// Tells from what is seen whether the workers are left out: requests wait, no worker has one,
/// and none gets one until the next look. A queue that was deleted and made again by another has
/// no consumers of ours.
#[derive(Default)]
pub(crate) struct Starvation {
    /// How many requests had been taken when some waited and no worker had one.
    idle_at: Option<u64>,
    /// The same, when setting up anew was tried last. It does not help where the broker has its
    /// reasons, such as a queue with a single active consumer, and then is not tried again.
    mended_at: Option<u64>,
}

impl Starvation {
    pub(crate) fn shows(&mut self, waiting: u32, counters: ServerCounters) -> bool {
        let ServerCounters { served, failed, rejected, in_progress, .. } = counters;
        let idle_at = (waiting > 0 && in_progress == 0).then_some(served + failed + rejected);
        let still = idle_at.is_some() && idle_at == self.idle_at && idle_at != self.mended_at;
        self.idle_at = idle_at;
        if still {
            self.mended_at = idle_at;
        }
        still
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_starve_who_get_nothing_twice_while_requests_wait() {
        let mut starvation = Starvation::default();
        let counters = |served, in_progress| ServerCounters {
            served,
            in_progress,
            ..ServerCounters::default()
        };
        assert!(!starvation.shows(3, counters(7, 0)), "that may be over in a moment");
        assert!(!starvation.shows(3, counters(8, 0)), "one was taken");
        assert!(!starvation.shows(3, counters(8, 1)), "one is worked on");
        assert!(!starvation.shows(3, counters(8, 0)));
        assert!(!starvation.shows(0, counters(8, 0)), "none waits");
        assert!(!starvation.shows(3, counters(8, 0)));
        assert!(starvation.shows(3, counters(8, 0)));
        assert!(!starvation.shows(3, counters(8, 0)), "it did not help");
        assert!(!starvation.shows(3, counters(9, 0)));
        assert!(starvation.shows(3, counters(9, 0)), "it had helped");
    }
}
