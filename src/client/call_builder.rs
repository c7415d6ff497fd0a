//! The options of one call.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::call::PendingReply;
use super::request::{OutgoingRequest, RequestQueue};
use super::sessions::Sessions;
use crate::error::Result;
use crate::wire::{self, Headers, Reply, Request};

/// A call with options of its own, before it is sent.
/// [`RpcClient::request`](super::RpcClient::request) returns it.
///
/// ```no_run
/// # use std::time::Duration;
/// # use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
/// # let brokers = Brokers::parse("amqp://localhost")?;
/// # let client = RpcClient::connect(brokers, "orders", ClientOptions::default())?;
/// let reply = client
///     .request(r#"{"item": "bolts"}"#)
///     .content_type("application/json")
///     .header("tenant", "7")
///     .message_id("order-17")
///     .idempotent(true)
///     .timeout(Duration::from_secs(5))
///     .call()?;
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
#[must_use = "it does nothing until it is sent"]
pub struct CallBuilder<'a, T = Vec<u8>> {
    sessions: &'a Arc<Sessions>,
    /// The error is the reason why there is no body.
    body: Result<Vec<u8>>,
    request: OutgoingRequest,
    timeout: Duration,
    decode: fn(Reply) -> Result<T>,
}

impl<'a> CallBuilder<'a> {
    pub(super) fn new(
        sessions: &'a Arc<Sessions>,
        queue: &Arc<RequestQueue>,
        body: Result<Vec<u8>>,
    ) -> CallBuilder<'a> {
        let options = &sessions.config.options;
        let request = OutgoingRequest {
            queue: Arc::clone(queue),
            body: Vec::new(),
            message_id: String::new(),
            method: None,
            exchange: options.exchange.clone(),
            routing_key: None,
            content_type: None,
            headers: Headers::default(),
            keep_alive: options.keep_alive,
            is_idempotent: options.idempotent,
            on_progress: None,
        };
        let decode = |reply: Reply| Ok(reply.into_body());
        CallBuilder { sessions, body, request, timeout: options.timeout, decode }
    }
}

impl<'a, T> CallBuilder<'a, T> {
    /// The same call, whose reply is decoded in another way.
    pub(crate) fn decoded_by<U>(self, decode: fn(Reply) -> Result<U>) -> CallBuilder<'a, U> {
        let CallBuilder { sessions, body, request, timeout, .. } = self;
        CallBuilder { sessions, body, request, timeout, decode }
    }

    /// The time limit of the call. Overrides
    /// [`ClientOptions::timeout`](super::ClientOptions::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The name of the method to call: the `type` of the AMQP message.
    pub fn method(mut self, name: impl Into<String>) -> Self {
        self.request.method = Some(name.into());
        self
    }

    /// The exchange to publish to. Overrides
    /// [`ClientOptions::exchange`](super::ClientOptions::exchange).
    pub fn exchange(mut self, name: impl Into<String>) -> Self {
        self.request.exchange = Some(name.into());
        self
    }

    /// The routing key, which is the queue's name by default: for topic and consistent-hash
    /// exchanges.
    pub fn routing_key(mut self, key: impl Into<String>) -> Self {
        self.request.routing_key = Some(key.into());
        self
    }

    /// Adds a header. Names that begin with `rpc-` are reserved for this crate.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.request.headers.append(name, value);
        self
    }

    /// Sets the id of the request, which is random by default. Use the same id if the program makes
    /// the same request again later.
    pub fn message_id(mut self, id: impl Into<String>) -> Self {
        self.request.message_id = id.into();
        self
    }

    /// Whether the request may be executed twice. Overrides
    /// [`ClientOptions::idempotent`](super::ClientOptions::idempotent).
    pub fn idempotent(mut self, is_idempotent: bool) -> Self {
        self.request.is_idempotent = is_idempotent;
        self
    }

    /// The media type of the body. Overrides
    /// [`ClientOptions::content_type`](super::ClientOptions::content_type).
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.request.content_type = Some(content_type.into());
        self
    }

    /// The interval at which the server sends a sign of life. Overrides
    /// [`ClientOptions::keep_alive`](super::ClientOptions::keep_alive).
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.request.keep_alive = Some(interval);
        self
    }

    /// Asks the server to tell how far it is, and calls `show` with each text that the handler
    /// gives [`Request::progress`], on the thread that waits for the reply. If several texts have
    /// come since that thread last waited, only with the last one. The last text of all comes
    /// before the reply. A server of another kind sends none.
    pub fn on_progress(mut self, show: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.request.on_progress = Some(Box::new(show));
        self
    }

    /// For a call that a handler makes while it works on `request`. The time limit is reduced to
    /// the time that is left until the request's deadline. The call belongs to the request's trace:
    /// the headers `traceparent`, `tracestate` and `baggage` of [W3C Trace
    /// Context](https://www.w3.org/TR/trace-context/) are copied unchanged.
    ///
    /// A handler that calls its own queue occupies a worker while it waits for another. Such calls
    /// can occupy all workers, and then wait for each other until their deadlines.
    pub fn within(mut self, request: &Request) -> Self {
        if let Some(remaining) = request.remaining() {
            self.timeout = self.timeout.min(remaining);
        }
        let trace: &[&str] = match request.trace_id() {
            Some(_) => &[wire::TRACEPARENT, wire::TRACESTATE, wire::BAGGAGE],
            None => &[wire::BAGGAGE],
        };
        for name in trace {
            if let Some(value) = request.header(name) {
                self.request.headers.append(name, value);
            }
        }
        self
    }

    /// Sends the request, waits for its reply and decodes it: to the body, unless a function of
    /// another type is called.
    ///
    /// # Errors
    /// As [`PendingReply::wait`].
    pub fn call(self) -> Result<T> {
        self.send()?.wait()
    }

    /// Sends the request and waits for its reply.
    ///
    /// # Errors
    /// As [`RpcClient::call`](super::RpcClient::call).
    pub fn reply(self) -> Result<Reply> {
        self.send()?.wait_reply()
    }

    /// Sends the request and returns without waiting for its reply, as
    /// [`RpcClient::send`](super::RpcClient::send) does.
    ///
    /// # Errors
    /// As [`RpcClient::send`](super::RpcClient::send).
    pub fn send(self) -> Result<PendingReply<T>> {
        let CallBuilder { sessions, body, mut request, timeout, decode } = self;
        request.body = body?;
        if request.message_id.is_empty() {
            request.message_id = Uuid::new_v4().to_string();
        }
        wire::check_length("message id", &request.message_id)?;
        request.exchange.as_deref().map_or(Ok(()), wire::check_exchange)?;
        wire::check_length("routing key", request.routing_key.as_deref().unwrap_or_default())?;
        wire::check_length("method's name", request.method.as_deref().unwrap_or_default())?;
        wire::check_length("content type", request.content_type.as_deref().unwrap_or_default())?;
        wire::check_keep_alive(request.keep_alive)?;
        request.headers.check()?;
        PendingReply::send(sessions, request, timeout, decode)
    }
}

impl<T> fmt::Debug for CallBuilder<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallBuilder")
            .field("queue", &self.request.queue.name)
            .finish_non_exhaustive()
    }
}
