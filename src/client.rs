//! The client: calls from many threads over one connection, made anew when it is lost.

mod attempt;
mod call;
mod call_builder;
mod dispatcher;
mod pending;
mod session;
mod sessions;
mod silence;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use self::call::PendingReply;
pub use self::call_builder::CallBuilder;
use self::sessions::Sessions;
use crate::broker::{Brokers, program};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::observation::{Observation, Observer};
use crate::wire;

/// A client of the servers on one request queue. Bytes go in, bytes come out.
///
/// It is `Send` and `Sync`: any number of threads may call through one client, and share its
/// connection. It has three threads of its own while it is connected, two of which are amiquip's.
///
/// ```no_run
/// use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
///
/// let brokers = Brokers::parse("amqp://localhost")?;
/// let client = RpcClient::connect(brokers, "rpc_queue", ClientOptions::default())?;
/// assert_eq!(client.call("7")?, b"13");
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
pub struct RpcClient {
    shared: Arc<Shared>,
    queue: Arc<str>,
}

/// What the clients on one connection share. The last of them closes it.
struct Shared(Arc<Sessions>);

/// What the broker says of a queue: see [`RpcClient::queue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStatus {
    /// How many workers take requests from it.
    pub consumers: u32,
    /// How many requests wait in it that no worker has.
    pub messages: u32,
}

/// How a client calls.
///
/// ```
/// use std::time::Duration;
/// use rabbitmq_rpc::ClientOptions;
///
/// let options = ClientOptions {
///     timeout: Duration::from_secs(5),
///     idempotent: true, // The handler may run twice for one call.
///     ..Default::default()
/// };
/// # assert!(options.keep_alive.is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long a call may take that names no timeout of its own: 30 s unless set. It covers
    /// everything: connecting, waiting for room or for a blocked broker, and the reply.
    /// `Duration::MAX` waits for ever.
    pub timeout: Duration,
    /// How many calls may be in flight at once: 1,024 unless set. One more waits for room.
    pub max_in_flight: usize,
    /// Whether a request may be executed twice. If so, a call that is lost with its connection
    /// is sent again until its deadline, under a new correlation id and the same `message_id`. So
    /// is one whose request may be lost on a connection that is well: when other calls have left
    /// that connection since nothing came back, or when no sign of life comes
    /// ([`ClientOptions::keep_alive`]). It is not sent again when the broker closed the channel
    /// over one of the requests, such as one that is larger than its `max_message_size`.
    pub idempotent: bool,
    /// The requests' `content_type`: `application/octet-stream` unless set.
    pub content_type: String,
    /// How often the server is to give a sign of life while it works on a request: never unless
    /// set, and then at least 100 ms and at most a day. When it gave one and none follows for three
    /// intervals, or when nobody serves the queue, the call ends with [`Error::ServerSilent`]. A
    /// server that knows nothing of this, such as one of tutorial six, gives none, and the call has
    /// its deadline.
    ///
    /// An idempotent request is sent again instead, when there is no sign of it for three
    /// intervals, but at least 3 s, and none waits in the queue: first after that time, then after
    /// twice as long, and so on. The first reply to any of the attempts counts.
    pub keep_alive: Option<Duration>,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            timeout: Duration::from_secs(30),
            max_in_flight: 1024,
            idempotent: false,
            content_type: "application/octet-stream".into(),
            keep_alive: None,
        }
    }
}

impl RpcClient {
    /// Connects to the first broker that takes the connection and makes a reply queue there.
    ///
    /// Blocks for at most [`Brokers::connect_timeout`] for each broker, names looked up included,
    /// and once more to set up the reply queue, or for [`Brokers::wait`] if that is longer; but no
    /// longer than [`ClientOptions::timeout`]. What is lost later is made anew by the next call.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if no broker takes the connection, [`Error::Refused`] if one
    /// refuses the user, [`Error::Config`] if the TLS files cannot be used.
    pub fn connect(brokers: Brokers, queue: &str, options: ClientOptions) -> Result<RpcClient> {
        wire::check_queue(queue)?;
        wire::check_length("content type", &options.content_type)?;
        if options.max_in_flight == 0 {
            return Err(Error::Config("max_in_flight is at least 1".into()));
        }
        wire::check_keep_alive(options.keep_alive)?;
        let config = Arc::new(Config {
            brokers,
            queue: queue.to_string(),
            options,
            app_id: program(),
            counters: Counters::default(),
            observer: Observer::default(),
        });
        let shared = Shared(Arc::new(Sessions::open_first(config)?));
        Ok(RpcClient { shared: Arc::new(shared), queue: queue.into() })
    }

    /// A client of the servers on another queue, through the same connection and reply queue, with
    /// the same options, counters and limit of calls in flight. Does not block.
    ///
    /// # Errors
    /// [`Error::Config`] if there can be no queue of that name.
    pub fn for_queue(&self, queue: &str) -> Result<RpcClient> {
        wire::check_queue(queue)?;
        Ok(RpcClient { shared: Arc::clone(&self.shared), queue: queue.into() })
    }

    /// Sends a request and waits for its reply, for at most [`ClientOptions::timeout`].
    ///
    /// # Errors
    /// Every variant of [`Error`] except
    /// [`Error::QueueRefused`] and [`Error::BadReply`];
    /// [`Error::may_have_executed`] tells whether it is safe to try again.
    pub fn call(&self, body: impl Into<Vec<u8>>) -> Result<Vec<u8>> {
        self.send(body)?.wait()
    }

    /// As [`RpcClient::call`], with a timeout of its own.
    ///
    /// # Errors
    /// As [`RpcClient::call`].
    pub fn call_timeout(&self, body: impl Into<Vec<u8>>, timeout: Duration) -> Result<Vec<u8>> {
        self.send_timeout(body, timeout)?.wait()
    }

    /// Sends a request and returns at once, so that several calls can be in flight. Blocks only
    /// while there is no connection, no room, or the broker is blocked, and no longer than
    /// [`ClientOptions::timeout`], which also is the call's deadline.
    ///
    /// # Errors
    /// As [`RpcClient::call`]. The request may have been executed only if the broker stopped
    /// reading in the middle of it.
    pub fn send(&self, body: impl Into<Vec<u8>>) -> Result<PendingReply> {
        self.request(body).send()
    }

    /// As [`RpcClient::send`], with a timeout of its own.
    ///
    /// # Errors
    /// As [`RpcClient::send`].
    pub fn send_timeout(
        &self,
        body: impl Into<Vec<u8>>,
        timeout: Duration,
    ) -> Result<PendingReply> {
        self.request(body).timeout(timeout).send()
    }

    /// A call with options of its own.
    pub fn request(&self, body: impl Into<Vec<u8>>) -> CallBuilder<'_> {
        CallBuilder::new(self, body.into())
    }

    /// Asks the broker who serves the queue, and how many requests wait there. Blocks for at most
    /// [`ClientOptions::timeout`].
    ///
    /// # Errors
    /// [`Error::Unroutable`] if there is no such queue; otherwise as [`RpcClient::call`].
    ///
    /// ```no_run
    /// # use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
    /// # let brokers = Brokers::parse("amqp://localhost")?;
    /// # let client = RpcClient::connect(brokers, "upper_case", ClientOptions::default())?;
    /// let queue = client.queue()?;
    /// println!("{} workers serve it, and {} requests wait", queue.consumers, queue.messages);
    /// # Ok::<(), rabbitmq_rpc::Error>(())
    /// ```
    pub fn queue(&self) -> Result<QueueStatus> {
        let deadline = Deadline::after(self.config().options.timeout);
        self.sessions().session(deadline)?.ask_about(&self.queue, deadline)
    }

    /// Calls `hook` after each call of this client, and of those made from it, on the thread that
    /// learns the outcome. It should not block. There is one hook: the first that is set.
    pub fn on_call(&self, hook: impl Fn(&Observation<'_>) + Send + Sync + 'static) {
        self.config().observer.set(hook);
    }

    /// What has happened so far.
    pub fn counters(&self) -> ClientCounters {
        let in_flight = self.sessions().in_flight();
        let counters = &self.config().counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ClientCounters {
            calls: read(&counters.calls),
            replies: read(&counters.replies),
            late: read(&counters.late),
            timed_out: read(&counters.timed_out),
            reconnects: read(&counters.reconnects),
            in_flight,
        }
    }

    /// Closes the connection, unless another client made by [`RpcClient::for_queue`] still uses it;
    /// calls that are in flight end with [`Error::Closed`]. Blocks for at most two seconds, also if
    /// the broker does not answer. Dropping the client does the same.
    pub fn close(self) {
        drop(self);
    }

    fn sessions(&self) -> &Arc<Sessions> {
        &self.shared.0
    }

    fn config(&self) -> &Config {
        &self.sessions().config
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for RpcClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcClient")
            .field("brokers", &self.config().brokers)
            .field("queue", &self.queue)
            .field("options", &self.config().options)
            .finish_non_exhaustive()
    }
}

/// What a client has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientCounters {
    /// Calls begun.
    pub calls: u64,
    /// Replies, good or error, that went to their caller.
    pub replies: u64,
    /// Replies thrown away: too late, twice, or to no request of ours.
    pub late: u64,
    /// Calls that ended with [`Error::TimedOut`] or
    /// [`Error::Blocked`].
    pub timed_out: u64,
    /// Connections made after the first.
    pub reconnects: u64,
    /// Requests that are out and without an outcome at present.
    pub in_flight: usize,
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    replies: AtomicU64,
    late: AtomicU64,
    timed_out: AtomicU64,
    reconnects: AtomicU64,
}

/// What stays the same from session to session.
struct Config {
    brokers: Brokers,
    /// The queue that the client was made for: others may have other queues.
    queue: String,
    options: ClientOptions,
    app_id: String,
    counters: Counters,
    observer: Observer,
}
