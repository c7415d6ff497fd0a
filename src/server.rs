//! The server: workers on one connection, which is replaced when it is lost.

mod consumer;
mod counters;
mod direct;
mod elsewhere;
mod exchange;
mod finished;
mod idle_checks;
mod inbox;
mod keep_alive;
mod log_limit;
mod options;
mod outcomes;
mod overload;
mod own_methods;
mod pool;
mod queue;
mod session;
mod state;
mod status;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use self::counters::ServerCounters;
pub use self::options::{QueueType, ServerOptions};
use self::queue::{Declaration, overflow_queue};
use self::state::ServerState;
pub use self::status::ServerStatus;
pub use self::worker::{Served, Worker};
use crate::broker::Brokers;
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result};
use crate::lock::lock;
use crate::observation::Observation;
use crate::wire::{self, Reply, Request};

/// A server of one request queue. Requests and replies are bytes. Dropping it closes its
/// connections.
///
/// ```no_run
/// use rabbitmq_rpc::{Brokers, Request, RpcServer, ServerOptions};
///
/// let brokers = Brokers::parse("amqp://localhost")?;
/// let server = RpcServer::connect(brokers, "upper_case", ServerOptions::default())?;
/// server.serve(|request: &Request| Ok(request.body().to_ascii_uppercase()))?;
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
pub struct RpcServer {
    state: Arc<ServerState>,
}

impl RpcServer {
    /// Checks the options and the queue's name, and connects to nothing: [`RpcServer::serve`] then
    /// does. Until that, [`RpcServer::stopper`] can end the connecting.
    ///
    /// # Errors
    /// [`Error::Config`] if the options or the queue's name cannot be used.
    pub fn new(brokers: Brokers, queue: &str, options: ServerOptions) -> Result<RpcServer> {
        options.check()?;
        wire::check_queue(queue)?;
        if options.max_waiting.is_some() {
            wire::check_length("name of the overflow queue", &overflow_queue(queue))?;
        }
        let declaration = Declaration::new(queue, &options, &brokers);
        let state = Arc::new(ServerState::new(brokers, declaration, options));
        Ok(RpcServer { state })
    }

    /// The same as [`RpcServer::new`]; then connects to the first broker that accepts the
    /// connection, and declares the queue if it does not exist.
    ///
    /// Blocks for at most [`Brokers::connect_timeout`] for each broker, including looking up its
    /// name, and once more for the queue; or for [`Brokers::wait`] if that is longer.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if no broker accepts the connection, [`Error::Refused`] if one
    /// refuses the user, [`Error::QueueRefused`] if it refuses the queue, [`Error::Config`] if the
    /// options, the queue's name or the TLS files cannot be used.
    pub fn connect(brokers: Brokers, queue: &str, options: ServerOptions) -> Result<RpcServer> {
        let server = RpcServer::new(brokers, queue, options)?;
        server.ensure_connected()?;
        Ok(server)
    }

    /// Makes the first connection, unless there was one. A lost one is not made again here.
    fn ensure_connected(&self) -> Result<()> {
        self.state.last_attempt();
        match self.state.sessions.had_session() {
            true => Ok(()),
            false => self.state.sessions.first_session(Duration::MAX).map(drop),
        }
    }

    /// Calls `notice` once, when [`RpcServer::serve`] starts to take requests for the first time.
    pub fn on_ready(self, notice: impl FnOnce() + Send + 'static) -> RpcServer {
        *lock(&self.state.on_ready) = Some(Box::new(notice));
        self
    }

    /// Serves until it is stopped. Connects first, as [`RpcServer::connect`] does, unless that was
    /// called. Reconnects when a connection is lost. After each failed attempt it waits longer:
    /// 25 ms to 3 s, or at most half a second if no broker accepts a TCP connection. It has
    /// [`ServerOptions::workers`] threads of its own, three for the connection, and
    /// [a few more at times](crate#threads). Every 4 s, or 2 s after the server was busy, and every
    /// second in the first 8 s after a worker began, an idle worker asks the broker whether the
    /// queue exists and whether requests wait in it. A classic queue that was deleted is declared
    /// again at once, a quorum queue after half a second.
    ///
    /// A handler gets a request at least once. It gets a request twice if the server process or its
    /// connection is lost before the broker has the acknowledgement
    /// ([Reliability](https://www.rabbitmq.com/docs/reliability)). If the handler panics, the
    /// requester gets `INTERNAL`, and the worker continues.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if requests were still in progress at the end of the drain timeout, or
    /// if it is not known whether the broker has the last replies. The threads of requests in
    /// progress continue, and the broker gives the requests to another server. The errors of
    /// [`RpcServer::connect`] if the server was not connected before. [`Error::Refused`],
    /// [`Error::QueueRefused`] and [`Error::Config`] if no retry can help; the server is then
    /// stopped.
    pub fn serve<H, R>(&self, handler: H) -> Result<()>
    where
        H: Fn(&Request) -> Result<R, Failure> + Send + Sync + 'static,
        R: Into<Reply>,
    {
        let handler = move |request: &Request| handler(request).map(R::into);
        match self.ensure_connected() {
            Err(Error::Closed) => return Ok(()),
            connected => connected?,
        }
        let _ = self.state.serving_since.set(SystemTime::now());
        overload::serve_and_refuse(&self.state, Box::new(handler))
    }

    /// Runs `work` on this thread with a single worker, for a loop of your own around
    /// [`Worker::serve_one`]. The worker ends when its connection is lost.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rabbitmq_rpc::{Brokers, RpcServer, Served, ServerOptions, fibonacci};
    /// # let brokers = Brokers::parse("amqp://localhost")?;
    /// let server = RpcServer::connect(brokers, "rpc_queue", ServerOptions::default())?;
    /// let minute = Duration::from_secs(60);
    /// server.with_worker(|worker| {
    ///     while worker.serve_one(fibonacci::answer, minute)? == Served::Request {}
    ///     Ok(()) // No request for a minute, or the server is told to stop.
    /// })?;
    /// # Ok::<(), rabbitmq_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`RpcServer::connect`], and the errors that `work` returns. [`Error::Closed`] if the
    /// server was stopped.
    pub fn with_worker<T>(&self, work: impl FnOnce(&Worker<'_>) -> Result<T>) -> Result<T> {
        self.ensure_connected()?;
        let deadline = Deadline::after(self.state.brokers.first_connect_timeout());
        let _ = self.state.serving_since.set(SystemTime::now());
        Worker::with(&self.state, deadline, |worker| work(&worker))?
    }

    /// Calls `hook` after each request, on the worker's thread. The hook should not block. Only the
    /// first hook that is set is used.
    pub fn on_request(&self, hook: impl Fn(&Observation<'_>) + Send + Sync + 'static) {
        self.state.observer.set(hook);
    }

    /// Returns a handle that stops the server, and reads its status and counters, from any
    /// thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.state))
    }

    /// The counters of this server.
    pub fn counters(&self) -> ServerCounters {
        self.state.counters()
    }
}

/// Stops the server, and closes its connections.
impl Drop for RpcServer {
    fn drop(&mut self) {
        self.state.stop();
        self.state.close();
        // It may hold a handle of this server, which would keep the state for ever.
        let never_ready = lock(&self.state.on_ready).take();
        drop(never_ready);
    }
}

impl fmt::Debug for RpcServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcServer")
            .field("brokers", &self.state.brokers)
            .field("queue", &self.state.queue)
            .field("options", &self.state.options)
            .finish_non_exhaustive()
    }
}

/// Stops a server, and reads its status and counters, from any thread, while another thread is in
/// [`RpcServer::serve`]:
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
pub struct Stopper(pub(super) Arc<ServerState>);

impl Stopper {
    /// Tells the server to stop, also while it connects. Does not block. The server takes no
    /// further requests, and returns to the queue at once those that no handler has begun, and
    /// those that still arrive; if their queue was deleted, it answers them. It answers the
    /// requests in progress, and waits until the broker has their replies. Then, or after
    /// [`ServerOptions::drain_timeout`], [`RpcServer::serve`] returns. The server stays stopped:
    /// later calls of `serve` return at once.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// How the server is at present. Cheap enough for a probe each second, and never blocks for
    /// the broker.
    ///
    /// ```no_run
    /// # use rabbitmq_rpc::{Brokers, RpcServer, ServerOptions};
    /// # let brokers = Brokers::parse("amqp://localhost")?;
    /// # let server = RpcServer::new(brokers, "rpc_queue", ServerOptions::default())?;
    /// let status = server.stopper().status();
    /// if !status.is_ready() {
    ///     println!("{status}"); // 0 of 1 workers take requests, not connected; …
    /// }
    /// # Ok::<(), rabbitmq_rpc::Error>(())
    /// ```
    pub fn status(&self) -> ServerStatus {
        ServerStatus::of(&self.0)
    }

    /// The same as [`RpcServer::counters`].
    pub fn counters(&self) -> ServerCounters {
        self.0.counters()
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper").field("is_stopped", &self.0.stop.is_stopped()).finish()
    }
}
