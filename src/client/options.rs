//! The options of a client, and what all its sessions share.

use std::sync::Arc;
use std::time::Duration;

use super::counters::Counters;
use crate::broker::{Brokers, program};
use crate::observation::Observer;

/// The options of a client.
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
    /// The time limit of a call that sets no timeout of its own: 30 s unless set. It covers the
    /// whole call: connecting, waiting for an in-flight slot or for a blocked broker, and the
    /// reply. With `Duration::MAX` a call waits forever.
    pub timeout: Duration,
    /// The greatest number of calls in flight at once: 1,024 unless set. A further call waits until
    /// one of them ends. Calls that are sent again may exceed it.
    pub max_in_flight: usize,
    /// Whether a request may be executed twice. If so, a call whose connection is lost is sent
    /// again until its deadline, under a new correlation id and the same `message_id`. The same
    /// happens if the request may be lost on a connection that works: if other calls have abandoned
    /// that connection because no replies came, if no sign of life comes
    /// ([`ClientOptions::keep_alive`]), or if nobody serves the queue at one of several brokers. If
    /// the queue does not exist any more, although the client has had a reply through it or the
    /// request is sent again, the call tries again every 200 ms until shortly before its deadline.
    /// A call that the broker refused is not sent again.
    pub idempotent: bool,
    /// The `content_type` of the requests: `application/octet-stream` unless set.
    pub content_type: String,
    /// The exchange to which requests are published, with the queue's name as the routing key: the
    /// default exchange unless set. The broker routes them to the queues that are bound there, such
    /// as that of a server with [`ServerOptions::exchange`](crate::ServerOptions::exchange). If no
    /// queue is bound, or if there is no such exchange, a call ends with
    /// [`Error::Unroutable`](crate::Error::Unroutable).
    pub exchange: Option<String>,
    /// Whether requests carry the user's name, which the broker checks ([Validated
    /// User-ID](https://www.rabbitmq.com/docs/validated-user-id)): no unless set. A handler reads
    /// it with [`Request::user_id`](crate::Request::user_id). With `auth_mechanism=external`, the
    /// user in the URL has to be the name that the broker reads from the certificate.
    pub identify: bool,
    /// The interval at which the server sends a sign of life while it works on a request: none
    /// unless set, and then at least 100 ms and at most a day. If no sign comes for three
    /// intervals, the client asks the broker about the queue. The call ends with
    /// [`Error::ServerSilent`](crate::Error::ServerSilent) if the queue has no consumers, or if a
    /// sign had come before and no request waits in the queue. A server that does not support signs
    /// of life, such as one of tutorial six, sends none. The call then goes on until its deadline.
    ///
    /// An idempotent request is sent again instead, if no sign of it comes for three intervals, but
    /// at least 3 s, and no request waits in the queue. The attempt after such a silence waits
    /// twice as long. The first reply to any of the attempts counts.
    pub keep_alive: Option<Duration>,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            timeout: Duration::from_secs(30),
            max_in_flight: 1024,
            idempotent: false,
            content_type: "application/octet-stream".into(),
            exchange: None,
            identify: false,
            keep_alive: None,
        }
    }
}

/// The settings and counters that all sessions share.
pub(super) struct Config {
    pub(super) brokers: Brokers,
    /// The queue of the first client. Clients that
    /// [`RpcClient::for_queue`](super::RpcClient::for_queue) made use other queues.
    pub(super) queue: String,
    pub(super) options: ClientOptions,
    pub(super) app_id: String,
    pub(super) counters: Counters,
    pub(super) observer: Observer,
}

impl Config {
    pub(super) fn new(brokers: Brokers, queue: &str, options: ClientOptions) -> Arc<Config> {
        Arc::new(Config {
            brokers,
            queue: queue.to_string(),
            options,
            app_id: program(),
            counters: Counters::default(),
            observer: Observer::default(),
        })
    }
}
