//! Looks up or declares the request queue.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::options::{QueueType, ServerOptions};
use crate::broker::{Brokers, CallError, Channel, DataPlane, Endpoint, Limit};
use crate::error::{Error, Result};
use crate::frames::{BASIC_CONSUME, Close, Method, append_integer, append_text};

/// How long to wait before a quorum queue that was deleted is declared again. The deletion ends on
/// one node after the other. If the queue is declared again before that, it can lose its member on
/// such a node. RabbitMQ 3.10 then delivered nothing through that node
/// ([rabbitmq-server 17457](https://github.com/rabbitmq/rabbitmq-server/issues/17457) is a similar
/// case).
pub(super) const REDECLARE_DELAY: Duration = Duration::from_millis(500);

/// A part of the usual deadline of a call, but longer than nodes that are well lose each other.
const DISCONNECTED_TIMEOUT: Duration = Duration::from_secs(2);

/// How to declare a queue. The arguments always name its type: a virtual host can have another
/// default type, which neither drops messages nor counts deliveries as the options say.
pub(crate) struct Declaration {
    pub(super) queue: String,
    queue_type: QueueType,
    /// Whether a queue with exactly these arguments never refuses a request that it has delivered.
    refuses_newest: bool,
    /// The entries of an AMQP table.
    arguments: Vec<u8>,
}

/// Makes sure that the queue exists. Looks it up first, because an existing queue is used with the
/// arguments that it was declared with. If a quorum queue does not exist, declares it after the
/// pause. Does not block beyond `until`, to which the pause does not count. Returns whether the
/// queue is known to refuse only requests that it has never delivered.
pub(crate) fn ensure(
    data_plane: &Arc<DataPlane>,
    declaration: &Declaration,
    until: Instant,
    pause: Option<Duration>,
) -> Result<bool> {
    let Declaration { queue, queue_type, refuses_newest, arguments } = declaration;
    let ask = |method| data_plane.ask(method, Limit::Until(until));
    let declare = Method::DeclareQueue { queue, arguments };
    let found = match ask(Method::FindQueue(queue)) {
        Err(CallError::Closed(close)) if is_missing(&close) => {
            if let (QueueType::Quorum, Some(pause)) = (queue_type, pause) {
                thread::sleep(pause);
                return ensure(data_plane, declaration, until + pause, None);
            }
            match ask(declare).inspect(|_| log::info!("declared the queue {queue:?}")) {
                // Another program may have declared it meanwhile, with other arguments.
                Err(CallError::Closed(close)) if close.code == 406 => ask(Method::FindQueue(queue))
                    .map_err(|error| match error {
                        CallError::Closed(found) if found.code == 404 => CallError::Closed(close),
                        error => error,
                    }),
                declared => declared,
            }
        }
        found => found,
    };
    found.map_err(|error| match error {
        // RabbitMQ 4 waits for the home node for a minute before it answers.
        CallError::Unanswered(reason) => data_plane.endpoint.unreachable(format!(
            "it did not say whether there is a queue {queue:?}: {reason}; a cluster may be waiting \
             for the queue's home node"
        )),
        error => explain(data_plane, queue, error, "declare the request queue"),
    })?;
    // The broker accepts the declaration of a queue that has the same arguments.
    Ok(*refuses_newest && ask(declare).is_ok())
}

/// Consumes from the queue. Blocks until the broker has answered, but not beyond the limit for each
/// answer.
pub(super) fn consume(
    channel: &Channel,
    queue: &str,
    prefetch: u16,
    limit: Limit,
) -> Result<(), CallError> {
    // The priority that consumers have anyway. RabbitMQ refuses this argument for a stream, which
    // would give each request to every worker, also if it was answered before.
    let mut arguments = Vec::new();
    append_integer(&mut arguments, "x-priority", 0);
    channel.call(Method::Prefetch(prefetch), limit)?;
    let consume = Method::Consume { queue, no_ack: false, arguments: &arguments };
    channel.call(consume, limit).map(drop)
}

/// Whether there is no such queue. A durable classic queue is on one node of a cluster. While that
/// node is down, the broker also answers 404. The queue must not be declared then; it comes back
/// with its node.
pub(super) fn is_missing(close: &Close) -> bool {
    close.code == 404 && close.text.starts_with("NOT_FOUND - no queue ")
}

impl Declaration {
    /// The queue is durable, because future versions of RabbitMQ refuse queues that are neither
    /// durable nor exclusive ([Deprecated
    /// features](https://www.rabbitmq.com/docs/deprecated-features-list)).
    pub(super) fn new(queue: &str, options: &ServerOptions, brokers: &Brokers) -> Declaration {
        let mut declaration = Declaration::common(queue.to_string(), options, brokers);
        let (queue_type, arguments) = (declaration.queue_type, &mut declaration.arguments);
        if let Some(limit) = options.delivery_limit {
            append_integer(arguments, "x-delivery-limit", limit.into());
        }
        if let Some(exchange) = &options.dead_letter_exchange {
            append_text(arguments, "x-dead-letter-exchange", exchange);
        }
        if let Some(limit) = options.max_waiting {
            append_integer(arguments, "x-max-length", limit.into());
            if queue_type == QueueType::Classic {
                append_text(arguments, "x-overflow", "reject-publish-dlx");
            }
            append_text(arguments, "x-dead-letter-exchange", "");
            append_text(arguments, "x-dead-letter-routing-key", &overflow_queue(queue));
        }
        declaration.refuses_newest =
            options.max_waiting.is_some() && queue_type == QueueType::Classic;
        declaration
    }

    /// How to declare the overflow queue of this queue. Its messages have a time limit, since the
    /// broker removes the expiration of a message that it dead-letters: with all servers down, the
    /// queue would grow without bound. Its type is that of the request queue: a classic queue is
    /// not there while its node is down.
    pub(super) fn overflow(queue: &str, options: &ServerOptions, brokers: &Brokers) -> Declaration {
        let mut overflow = Declaration::common(overflow_queue(queue), options, brokers);
        append_integer(&mut overflow.arguments, "x-message-ttl", 60_000);
        overflow
    }

    /// What both queues have in common.
    fn common(queue: String, options: &ServerOptions, brokers: &Brokers) -> Declaration {
        let (mut arguments, queue_type) = (Vec::new(), options.queue_type);
        match queue_type {
            QueueType::Classic => append_text(&mut arguments, "x-queue-type", "classic"),
            QueueType::Quorum => {
                append_text(&mut arguments, "x-queue-type", "quorum");
                let in_a_cluster = brokers.are_several().then_some(DISCONNECTED_TIMEOUT);
                let timeout = options.disconnected_timeout.or(in_a_cluster);
                if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) {
                    let milliseconds = timeout.as_millis() as i64;
                    append_integer(&mut arguments, "x-consumer-disconnected-timeout", milliseconds);
                }
            }
        }
        Declaration { queue, queue_type, refuses_newest: false, arguments }
    }
}

/// The name of the queue to which the broker dead-letters the requests that exceed the limit.
pub(crate) fn overflow_queue(queue: &str) -> String {
    format!("{queue}.overflow")
}

/// Converts the reason why the broker does not let the server use the queue.
pub(super) fn explain(data_plane: &DataPlane, queue: &str, error: CallError, doing: &str) -> Error {
    match error {
        CallError::Closed(close) => explain_close(&data_plane.endpoint, queue, &close, doing),
        error => data_plane.explain(error, doing),
    }
}

/// The error says what to change. Where one code has several meanings, the beginning of the text
/// decides: no name of a user's is part of it. What is not recognized may pass.
fn explain_close(endpoint: &Endpoint, queue: &str, close: &Close, doing: &str) -> Error {
    let Close { code, text, method } = close;
    let is_about = |what| {
        let text = text.strip_prefix("PRECONDITION_FAILED - ");
        text.is_some_and(|text| text.starts_with(what))
    };
    let reason = match code {
        403 if text.starts_with("ACCESS_REFUSED - queue name ") => {
            "names that begin with \"amq.\" are the broker's own"
        }
        403 if *method == BASIC_CONSUME && text.starts_with("ACCESS_REFUSED - queue ") => {
            "another program consumes from it exclusively; end that program"
        }
        405 => {
            "another connection has it for itself alone; choose another name, or end that \
             connection"
        }
        406 if *method == BASIC_CONSUME && is_about("invalid arg ") => {
            "it is neither classic nor quorum: a stream, for example, gives each request to every \
             worker; choose another name, or delete it"
        }
        406 if is_about("invalid arg ") => {
            "this broker takes no such argument for a queue of this type; leave out the option \
             that sets it, or choose the other type"
        }
        406 if is_about("inequivalent arg ") => {
            "it cannot be declared with these arguments; give the queue type, delivery limit, \
             limit of waiting requests and dead-letter exchange that it has, or delete it"
        }
        541 if text.ends_with("the corresponding feature flag is disabled") => {
            "this broker has queues of that type disabled; enable the feature flag, or choose the \
             other type"
        }
        _ => return endpoint.explain_close(close, doing),
    };
    Error::QueueRefused { queue: queue.to_string(), reason: format!("{reason} ({text})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_change() {
        let endpoint: Endpoint = "amqp://ann@rabbit".parse().unwrap();
        let refused = |method, code, text: &str| {
            explain_close(&endpoint, "q", &Close { code, text: text.into(), method }, "declare")
        };
        let channel = |code, text: &str| refused([0; 4], code, text);
        let message = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q'";
        for (error, fix) in [
            (channel(403, "ACCESS_REFUSED - queue name 'amq.q' contains reserved prefix"), "amq."),
            (channel(405, "RESOURCE_LOCKED - ..."), "choose another name, or end that connection"),
            (channel(406, message), "give the queue type"),
            (channel(406, message), "'x-queue-type'"),
            (
                channel(406, "PRECONDITION_FAILED - invalid arg 'x-delivery-limit' for queue 'q'"),
                "leave out the option",
            ),
            (
                refused(
                    BASIC_CONSUME,
                    406,
                    "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '/' of \
                     queue type rabbit_stream_queue",
                ),
                "neither classic nor quorum",
            ),
            (
                refused(
                    BASIC_CONSUME,
                    403,
                    "ACCESS_REFUSED - queue 'name ' in vhost 'v' in exclusive use",
                ),
                "consumes from it exclusively",
            ),
            (
                channel(
                    541,
                    "INTERNAL_ERROR - Cannot declare a queue 'queue 'q' in vhost '/'' of type \
                     'rabbit_quorum_queue' on node 'n': the corresponding feature flag is disabled",
                ),
                "has queues of that type disabled",
            ),
        ] {
            assert!(matches!(error, Error::QueueRefused { .. }), "{error:?}");
            assert!(error.to_string().contains(fix), "{error}");
        }
        let refused = channel(
            403,
            "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'ann'",
        );
        assert!(matches!(&refused, Error::Refused(text) if text.contains("user \"ann\"")));
        for (code, text) in [
            (404, "home node of durable queue 'q' is down or inaccessible"),
            (406, "PRECONDITION_FAILED - queue limit in vhost 'inequivalent arg' (1) is reached"),
            (
                406,
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (1) is reached",
            ),
            (541, "INTERNAL_ERROR - Could not declare queue 'deprecated' because it timed out"),
        ] {
            let unreachable = channel(code, text);
            assert!(matches!(unreachable, Error::Unreachable { .. }), "{unreachable:?}");
        }
    }
}
