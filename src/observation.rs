//! What this crate reports about each finished call and request, for metrics.

use std::sync::OnceLock;
use std::time::Duration;

/// One finished call of a client, or one finished request of a server.
///
/// A metrics exporter needs little more than this:
///
/// ```no_run
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
/// use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
///
/// let seconds: Arc<Mutex<HashMap<(String, &str), f64>>> = Arc::default();
/// let sums = Arc::clone(&seconds);
/// let brokers = Brokers::parse("amqp://localhost")?;
/// let client = RpcClient::connect(brokers, "rpc_queue", ClientOptions::default())?;
/// client.on_call(move |call| {
///     let key = (call.queue.to_string(), call.status);
///     *sums.lock().unwrap().entry(key).or_default() += call.time.as_secs_f64();
/// });
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Observation<'a> {
    /// The request queue.
    pub queue: &'a str,
    /// The method that the request names, if it names one. On a server, it is a text of the
    /// requester's choice: give a metric only the names that you know.
    pub method: Option<&'a str>,
    /// `OK`, or the name of the [`Status`](crate::Status) that the request failed with. On a
    /// client, every other error is its [`Error::kind`](crate::Error::kind).
    pub status: &'static str,
    /// On a client, the time of the whole call, also of what it waited for before its request was
    /// sent. On a server, the time from the start of the handler until the reply was sent, without
    /// the time that the request waited.
    pub time: Duration,
    /// Size of the received body, in bytes.
    pub bytes_in: usize,
    /// Size of the sent body, in bytes.
    pub bytes_out: usize,
}

/// The hook, if one is set.
#[derive(Default)]
pub(crate) struct Observer(OnceLock<Hook>);

type Hook = Box<dyn Fn(&Observation<'_>) + Send + Sync>;

impl Observer {
    /// Sets the hook. A second hook is ignored, with a warning.
    pub(crate) fn set(&self, hook: impl Fn(&Observation<'_>) + Send + Sync + 'static) {
        if self.0.set(Box::new(hook)).is_err() {
            log::warn!("a hook for metrics is set already, so the second one is ignored");
        }
    }

    pub(crate) fn observe<'a>(&self, observation: impl FnOnce() -> Observation<'a>) {
        if let Some(hook) = self.0.get() {
            hook(&observation());
        }
    }
}
