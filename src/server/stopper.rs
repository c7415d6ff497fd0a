//! Stopping a server from any thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::ServerCounters;
use super::shared::Shared;
use crate::lock::lock;

/// Stops a server and reads its counters, from any thread, while another thread is in
/// [`RpcServer::serve`](super::RpcServer::serve):
///
/// ```no_run
/// # use rabbitmq_rpc::{Brokers, Error, RpcServer, ServerOptions, fibonacci};
/// # let brokers = Brokers::parse("amqp://localhost")?;
/// let server = RpcServer::connect(brokers, "rpc_queue", ServerOptions::default())?;
/// let stopper = server.stopper();
/// let serving = std::thread::spawn(move || server.serve(fibonacci::answer));
/// // … the rest of the program, which may call that server …
/// println!("{} requests answered", stopper.counters().served);
/// stopper.stop();
/// serving.join().expect("serving does not panic")?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone)]
pub struct Stopper(pub(super) Arc<Shared>);

impl Stopper {
    /// Tells the server to stop. The server takes no further requests, answers those in progress,
    /// and returns the others to the queue. Then [`RpcServer::serve`](super::RpcServer::serve)
    /// returns. The server stays stopped: later calls of `serve` return at once. Does not block.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// The same as [`RpcServer::counters`](super::RpcServer::counters).
    pub fn counters(&self) -> ServerCounters {
        *lock(&self.0.counters)
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper").field("is_stopped", &self.0.stop.is_stopped()).finish()
    }
}

/// Whether a server is told to stop, and the signal to its threads.
pub(super) struct Stop {
    /// The first call of `stop` drops the sender. This disconnects the receiver, which wakes every
    /// thread that waits on it.
    running: Mutex<Option<Sender<()>>>,
    pub(super) signal: Receiver<()>,
    is_stopped: AtomicBool,
}

impl Stop {
    pub(super) fn new() -> Stop {
        let (sender, signal) = bounded(1);
        Stop { running: Mutex::new(Some(sender)), signal, is_stopped: AtomicBool::new(false) }
    }

    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        drop(lock(&self.running).take());
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }
}
