//! What a call sends, and how it can end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use uuid::Uuid;

use super::options::Config;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::wire::{Headers, OnProgress, Reply, RequestHead};

/// A request and the options of its call.
pub(super) struct OutgoingRequest {
    pub(super) queue: Arc<RequestQueue>,
    pub(super) body: Vec<u8>,
    /// A random UUID unless the caller gave one.
    pub(super) message_id: String,
    pub(super) method: Option<String>,
    /// The default exchange unless set.
    pub(super) exchange: Option<String>,
    /// The name of the queue unless set.
    pub(super) routing_key: Option<String>,
    /// Overrides the client's.
    pub(super) content_type: Option<String>,
    pub(super) headers: Headers,
    pub(super) keep_alive: Option<Duration>,
    pub(super) is_idempotent: bool,
    /// Called with what the server tells of its progress.
    pub(super) on_progress: Option<OnProgress>,
}

impl OutgoingRequest {
    /// Whether the broker may refuse it for other reasons than its size.
    pub(super) fn may_be_refused(&self, config: &Config) -> bool {
        self.exchange.is_some() || config.options.identify
    }

    /// The properties with which this user sends an attempt.
    pub(super) fn head<'a>(
        &'a self,
        config: &'a Config,
        user: &'a str,
        reply_to: &'a str,
        correlation_id: Uuid,
        remaining: Duration,
    ) -> RequestHead<'a> {
        RequestHead {
            reply_to,
            correlation_id,
            message_id: &self.message_id,
            method: self.method.as_deref(),
            user_id: config.options.identify.then_some(user),
            content_type: self.content_type.as_ref().unwrap_or(&config.options.content_type),
            app_id: &config.app_id,
            headers: &self.headers,
            keep_alive: self.keep_alive,
            wants_progress: self.on_progress.is_some(),
            remaining,
        }
    }
}

/// The queue that a client calls.
pub(super) struct RequestQueue {
    pub(super) name: String,
    /// Set once a reply has come to a call of this client. If so, and the queue does not exist
    /// later, an idempotent call waits for a server to declare it again.
    pub(super) is_served: OnceLock<()>,
}

impl RequestQueue {
    pub(super) fn new(name: &str) -> Arc<RequestQueue> {
        Arc::new(RequestQueue { name: name.to_string(), is_served: OnceLock::new() })
    }
}

/// The outcome of an attempt.
pub(super) enum Outcome {
    /// The reply, or an error that ends the call.
    Ended(Result<Reply>),
    /// The broker ignored the request, so it was not executed, and is sent again.
    Ignored,
    /// The connection was lost, for this reason.
    Lost(String),
    /// The request of an idempotent call may be lost, for this reason. A reply may still come.
    MayBeLost(String),
}

/// The error for a call whose time was up before it was sent.
pub(super) fn too_late(deadline: Deadline) -> Error {
    let what = "the time was up before the request could be sent".into();
    Error::TimedOut { what, after: deadline.timeout, sent: false }
}
