//! The options of a server.

use std::time::Duration;

use crate::error::{Error, Failure, Result};
use crate::wire;
use crate::wire::{Reply, Request};

/// The options of a server.
///
/// ```
/// use std::time::Duration;
/// use rabbitmq_rpc::ServerOptions;
///
/// let options = ServerOptions {
///     workers: 4,
///     drain_timeout: Duration::from_secs(10), // How long a stop waits at most.
///     max_waiting: Some(100), // Further callers get RESOURCE_EXHAUSTED at once.
///     ..Default::default()
/// };
/// # assert_eq!(options.prefetch, 1);
/// ```
// Two functions with the same code may be equal or not. Nothing here depends on it.
#[allow(unpredictable_function_pointer_comparisons)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// The number of workers: 1 unless set. Each has a thread and a channel of its own, and
    /// executes one request at a time.
    pub workers: usize,
    /// The number of unacknowledged requests that the broker sends to each worker: 1 unless set, so
    /// that the next request goes to the next free worker. If requests are quick, a higher number
    /// is faster ([Consumer prefetch](https://www.rabbitmq.com/docs/consumer-prefetch)). 0 is no
    /// limit.
    pub prefetch: u16,
    /// The kind of queue to declare if the queue does not exist: classic unless set, whatever the
    /// virtual host's default is. An existing queue is used as it is.
    pub queue_type: QueueType,
    /// How often a request is delivered again at most, if its workers are lost while they work on
    /// it: quorum queues only ([Poison
    /// messages](https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling)). Before 4.3,
    /// RabbitMQ also counts requests that were prefetched and returned unexecuted by a server that
    /// stops: leave `prefetch` at 1, or allow for as many restarts. Without a limit of its own, a
    /// queue has that of the broker: none before RabbitMQ 4.0, then 20.
    pub delivery_limit: Option<u32>,
    /// The exchange that receives requests that were rejected, expired or delivered too often
    /// ([Dead letter exchanges](https://www.rabbitmq.com/docs/dlx)).
    pub dead_letter_exchange: Option<String>,
    /// The exchange to which the queue is bound, with its name as the routing key: none unless set.
    /// A direct exchange is declared if there is none of this name. A client that names the
    /// exchange ([`ClientOptions::exchange`](crate::ClientOptions::exchange)) needs the permission
    /// to write to it alone, and then reaches no other queue.
    pub exchange: Option<String>,
    /// The routing key with which the queue is bound to the exchange, in place of its name: a
    /// pattern for a topic exchange, or a weight such as `1` for a consistent-hash exchange
    /// ([scaling](crate::guide::scaling)).
    pub binding_key: Option<String>,
    /// How many requests may wait in the queue, if the server declares it: no limit unless set. If
    /// there are more, a classic queue refuses the newest requests, and their callers get
    /// [`Status::ResourceExhausted`](crate::Status::ResourceExhausted) at once. A quorum queue
    /// refuses those that have waited longest, among them one that was returned because its worker
    /// was lost ([Queue length limit](https://www.rabbitmq.com/docs/maxlength)). It may have been
    /// executed, so their callers get [`Status::Unavailable`](crate::Status::Unavailable), as those
    /// of a queue that was declared by other means. The server answers them from another queue,
    /// whose name is that of this queue with `.overflow` appended, through another connection. This
    /// cannot be combined with a dead-letter exchange.
    /// [`RpcServer::with_worker`](super::RpcServer::with_worker) does not answer them.
    pub max_waiting: Option<u32>,
    /// Makes the reply to a request that failed, if its callers expect failures in another form
    /// than [an error reply](crate::guide::wire_contract): whether the handler failed, it panicked,
    /// its reply cannot be sent, or too many requests wait. If it panics itself, or its reply
    /// cannot be sent, the caller gets the error reply.
    pub render_failure: Option<fn(&Request, &Failure) -> Reply>,
    /// After how long the broker returns the requests of workers whose node was lost, for quorum
    /// queues that the server declares, and from RabbitMQ 4.3 on: at most a day. Brokers before 4.3
    /// return them at once.
    ///
    /// Unless this is set, it is 2 s if the server knows several brokers. If it knows one only, or
    /// this is zero, it is left to the broker, which waits for a minute. RabbitMQ 4.3 refuses (406)
    /// a program that declares the queue again and does not name the same time
    /// (`x-consumer-disconnected-timeout`), as the servers of RabbitMQ's tutorials do.
    pub disconnected_timeout: Option<Duration>,
    /// The version of this program, which it tells to `rpc_client --ping`.
    pub version: Option<String>,
    /// How long a server that is told to stop waits for the requests in progress: 30 s unless set.
    pub drain_timeout: Duration,
}

/// The kinds of queue that a server can declare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueueType {
    /// On one node. The fastest kind.
    #[default]
    Classic,
    /// Replicated. It survives the loss of a node, and counts deliveries.
    Quorum,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            workers: 1,
            prefetch: 1,
            queue_type: QueueType::Classic,
            delivery_limit: None,
            dead_letter_exchange: None,
            exchange: None,
            binding_key: None,
            max_waiting: None,
            render_failure: None,
            version: None,
            disconnected_timeout: None,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl ServerOptions {
    pub(super) fn check(&self) -> Result<()> {
        let exchanges = [&self.exchange, &self.dead_letter_exchange];
        exchanges.into_iter().flatten().try_for_each(|exchange| wire::check_exchange(exchange))?;
        wire::check_length("binding key", self.binding_key.as_deref().unwrap_or_default())?;
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let mistake = if self.workers == 0 {
            "a server needs at least one worker"
        } else if self.delivery_limit.is_some() && self.queue_type != QueueType::Quorum {
            "a delivery limit needs a quorum queue: a classic one counts no deliveries"
        } else if self.disconnected_timeout > Some(DAY) {
            "disconnected_timeout is at most a day"
        } else if self.binding_key.is_some() && self.exchange.is_none() {
            "a binding key needs an exchange: name one"
        } else if self.max_waiting == Some(0) {
            "with room for no waiting request, the broker refuses all: set max_waiting to 1 or more"
        } else if self.max_waiting.is_some() && self.dead_letter_exchange.is_some() {
            "a server that limits how many requests may wait answers the dead letters itself: set \
             no dead-letter exchange, or no limit"
        } else {
            return Ok(());
        };
        Err(Error::Config(mistake.into()))
    }
}
