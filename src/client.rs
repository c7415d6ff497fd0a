//! The client: calls from many threads over one connection, which is replaced when it is lost.

mod attempt;
mod call;
mod call_builder;
mod counters;
mod dispatcher;
mod extra_channels;
mod in_flight;
mod local;
mod looks;
mod options;
mod pending;
mod publishing;
mod request;
mod session;
mod sessions;
mod status;
mod suspicion;
mod write_order;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::call::PendingReply;
pub use self::call_builder::CallBuilder;
pub use self::counters::ClientCounters;
pub use self::looks::QueueStatus;
pub use self::options::ClientOptions;
use self::options::Config;
use self::request::RequestQueue;
use self::sessions::Sessions;
pub use self::status::ClientStatus;
use crate::broker::Brokers;
use crate::deadline::Deadline;
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Failure, Result, ensure};
use crate::observation::Observation;
use crate::wire::{self, Reply, Request};

/// A client of the servers on one request queue. Requests and replies are bytes.
///
/// It is `Send` and `Sync`. Any number of threads may call through one client, and share its
/// connection. While it is connected, it has three threads of its own, two of which are amiquip's,
/// and three more while a suspect connection is replaced.
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
    queue: Arc<RequestQueue>,
}

/// The state that the clients on one connection share. Dropping the last client closes the
/// connection.
struct Shared(Arc<Sessions>);

impl RpcClient {
    /// Connects to the first broker that accepts the connection, and declares a reply queue there.
    /// If the broker declares none within a second (or within half the connect timeout, if that is
    /// shorter), replies come by direct reply-to until it does.
    ///
    /// Blocks for at most [`Brokers::connect_timeout`] for each broker, including looking up its
    /// name, and once more to set up the reply queue; or for [`Brokers::wait`] if that is longer.
    /// Never blocks for longer than [`ClientOptions::timeout`]. If the connection is lost later,
    /// the next call connects again.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if no broker accepts the connection, [`Error::Refused`] if one
    /// refuses the user, [`Error::Config`] if an option, the queue's name or the TLS files cannot
    /// be used.
    pub fn connect(brokers: Brokers, queue: &str, options: ClientOptions) -> Result<RpcClient> {
        wire::check_queue(queue)?;
        wire::check_length("content type", &options.content_type)?;
        options.exchange.as_deref().map_or(Ok(()), wire::check_exchange)?;
        if options.identify {
            brokers.users().try_for_each(|user| wire::check_length("user's name", user))?;
        }
        ensure(options.max_in_flight > 0, || "max_in_flight is at least 1".into())?;
        wire::check_keep_alive(options.keep_alive)?;
        let config = Config::new(brokers, queue, options);
        let shared = Shared(Arc::new(Sessions::open_first(config)?));
        Ok(RpcClient { shared: Arc::new(shared), queue: RequestQueue::new(queue) })
    }

    /// A client without a broker, for tests of what calls it: the handler answers each call, before
    /// it is sent, on the thread of the caller. Deadlines, errors, counters and hooks are those of
    /// any client. If the handler panics, so does the caller.
    ///
    /// ```
    /// use rabbitmq_rpc::{Methods, RpcClient};
    ///
    /// let client = RpcClient::local(Methods::new().on("price.get", |_| Ok("12")));
    /// assert_eq!(client.request("bolts").method("price.get").call()?, b"12");
    /// assert_eq!(client.call("bolts").unwrap_err().kind(), "UNIMPLEMENTED");
    /// # Ok::<(), rabbitmq_rpc::Error>(())
    /// ```
    pub fn local<H, R>(handler: H) -> RpcClient
    where
        H: Fn(&Request) -> Result<R, Failure> + Send + Sync + 'static,
        R: Into<Reply>,
    {
        let brokers = Brokers::parse("amqp://local").expect("this URL is valid");
        let config = Config::new(brokers, "local", ClientOptions::default());
        let handler = Box::new(move |request: &Request| handler(request).map(R::into));
        let shared = Shared(Arc::new(Sessions::local(config, handler)));
        RpcClient { shared: Arc::new(shared), queue: RequestQueue::new("local") }
    }

    /// A client of the servers on another queue. It shares the connection, the reply queue, the
    /// options, the counters and the limit of calls in flight. Does not block.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is not valid for a queue.
    pub fn for_queue(&self, queue: &str) -> Result<RpcClient> {
        wire::check_queue(queue)?;
        Ok(RpcClient { shared: Arc::clone(&self.shared), queue: RequestQueue::new(queue) })
    }

    /// Sends a request and waits for its reply, for at most [`ClientOptions::timeout`].
    ///
    /// # Errors
    /// Every variant of [`Error`] except [`Error::QueueRefused`] and [`Error::BadReply`].
    /// [`Error::may_have_executed`] tells whether it is safe to try again.
    pub fn call(&self, body: impl Into<Vec<u8>>) -> Result<Vec<u8>> {
        self.send(body)?.wait()
    }

    /// The same as [`RpcClient::call`], with a timeout of its own.
    ///
    /// # Errors
    /// As [`RpcClient::call`].
    pub fn call_timeout(&self, body: impl Into<Vec<u8>>, timeout: Duration) -> Result<Vec<u8>> {
        self.send_timeout(body, timeout)?.wait()
    }

    /// Sends a request and returns without waiting for its reply, so that several calls can be in
    /// flight. Blocks only while there is no connection or no in-flight slot, or while the broker
    /// does not read, and for at most [`ClientOptions::timeout`]. This timeout also is the time
    /// limit of the whole call, from here to the reply.
    ///
    /// # Errors
    /// As [`RpcClient::call`]. The request may have been executed only if the broker stopped
    /// reading in the middle of it.
    pub fn send(&self, body: impl Into<Vec<u8>>) -> Result<PendingReply> {
        self.request(body).send()
    }

    /// The same as [`RpcClient::send`], with a timeout of its own.
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

    /// Starts a call with options of its own.
    pub fn request(&self, body: impl Into<Vec<u8>>) -> CallBuilder<'_> {
        self.try_request(Ok(body.into()))
    }

    /// As [`RpcClient::request`]. If there is no body, the call ends with this error.
    pub(crate) fn try_request(&self, body: Result<Vec<u8>>) -> CallBuilder<'_> {
        CallBuilder::new(self.sessions(), &self.queue, body)
    }

    /// The same client once more.
    #[cfg(feature = "json")]
    pub(crate) fn share(&self) -> RpcClient {
        RpcClient { shared: Arc::clone(&self.shared), queue: Arc::clone(&self.queue) }
    }

    /// Asks the broker how many consumers the queue has, and how many requests wait in it. If there
    /// are none, or no queue, and no answers to calls come through this broker, the next one is
    /// asked if the client has several: the first may be cut off from the others. Blocks for at
    /// most [`ClientOptions::timeout`].
    ///
    /// # Errors
    /// [`Error::Unroutable`] if the queue does not exist; otherwise as [`RpcClient::call`].
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
        self.queue_timeout(self.config().options.timeout)
    }

    /// The same as [`RpcClient::queue`], with a timeout of its own.
    ///
    /// # Errors
    /// As [`RpcClient::queue`].
    pub fn queue_timeout(&self, timeout: Duration) -> Result<QueueStatus> {
        if self.sessions().local.is_some() {
            return Ok(QueueStatus { consumers: 1, messages: 0 });
        }
        self.sessions().ask_about(&self.queue.name, Deadline::after(timeout))
    }

    /// Calls `hook` after each call of this client and of the clients made from it, on the thread
    /// that gets the outcome. The hook should not block. Only the first hook that is set is used.
    pub fn on_call(&self, hook: impl Fn(&Observation<'_>) + Send + Sync + 'static) {
        self.config().observer.set(hook);
    }

    /// The counters of this client, and of all clients that share its connection.
    pub fn counters(&self) -> ClientCounters {
        self.config().counters.read(self.sessions().in_flight())
    }

    /// How this client, and all clients that share its connection, are at present. Cheap enough for
    /// a probe each second, and never blocks for the broker.
    pub fn status(&self) -> ClientStatus {
        self.sessions().status()
    }

    /// Closes the connection, unless another client made by [`RpcClient::for_queue`] still uses it.
    /// Calls in flight end with [`Error::Closed`]. Blocks for at most two seconds, even if the
    /// broker does not answer. Dropping the client does the same.
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
            .field("queue", &self.queue.name)
            .field("options", &self.config().options)
            .finish_non_exhaustive()
    }
}
