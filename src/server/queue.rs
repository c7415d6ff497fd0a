//! The request queue: used as it is, or else declared.

use std::sync::Arc;

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions};

use super::overload::overflow_queue;
use super::{QueueType, ServerOptions, Shared};
use crate::broker::{Connection, Endpoint, closed_channel};
use crate::error::{Error, Result};
use crate::frames::Close;

/// Makes sure that there is a queue of that name, in as long as connecting may take.
pub(crate) fn ensure(connection: &mut Connection, shared: &Shared) -> Result<()> {
    let limit = shared.brokers.connect_timeout;
    let data_plane = Arc::clone(&connection.data_plane);
    let _limit = data_plane.time_limit(limit);
    look_or_declare(connection, &shared.queue, &shared.options).map_err(|error| {
        match data_plane.exceeded_time_limit() {
            // RabbitMQ 4 waits for the home node, for a minute, before it says anything.
            true => connection.endpoint.unreachable(format!(
                "it did not say within {limit:?} whether there is a queue {:?}: a cluster may be \
                 waiting for the queue's home node",
                shared.queue
            )),
            false => error,
        }
    })
}

/// Looks passively first: a queue that exists has the kind that its creator wanted.
fn look_or_declare(
    connection: &mut Connection,
    queue: &str,
    options: &ServerOptions,
) -> Result<()> {
    match declare(connection, queue, None) {
        Err(error)
            if closed_channel(&error)
                .is_some_and(|close| close.code == 404 && !is_its_node_down(&close.text)) =>
        {
            let declared = declare(connection, queue, Some(as_asked_for(queue, options)));
            declared.map_err(|error| refusal(connection, queue, &error))?;
            log::info!("declared the queue {queue:?}");
            Ok(())
        }
        looked => looked.map_err(|error| refusal(connection, queue, &error)),
    }
}

fn refusal(connection: &Connection, queue: &str, error: &amiquip::Error) -> Error {
    let close = closed_channel(error);
    match close.as_ref().or(connection.data_plane.closed_by_broker()) {
        Some(close) => explain(&connection.endpoint, queue, close),
        None => connection.explain(error, "declare the request queue"),
    }
}

/// Declares the queue on a channel of its own, since a refusal closes the channel; without
/// options only looks whether it is there.
fn declare(
    connection: &mut Connection,
    queue: &str,
    options: Option<QueueDeclareOptions>,
) -> Result<(), amiquip::Error> {
    let channel = connection.open_channel()?;
    match options {
        Some(options) => channel.queue_declare(queue, options)?,
        None => channel.queue_declare_passive(queue)?,
    };
    channel.close()
}

/// Durable: RabbitMQ is going to refuse queues that are neither durable nor exclusive
/// ([Deprecated features](https://www.rabbitmq.com/docs/deprecated-features-list)).
fn as_asked_for(queue: &str, options: &ServerOptions) -> QueueDeclareOptions {
    let mut arguments = FieldTable::new();
    if options.queue_type == QueueType::Quorum {
        let quorum = AmqpValue::LongString("quorum".into());
        arguments.insert("x-queue-type".into(), quorum);
    }
    if let Some(limit) = options.delivery_limit {
        arguments.insert("x-delivery-limit".into(), AmqpValue::LongLongInt(limit.into()));
    }
    if let Some(exchange) = &options.dead_letter_exchange {
        let exchange = AmqpValue::LongString(exchange.clone());
        arguments.insert("x-dead-letter-exchange".into(), exchange);
    }
    if let Some(limit) = options.max_waiting {
        arguments.insert("x-max-length".into(), AmqpValue::LongLongInt(limit.into()));
        if options.queue_type == QueueType::Classic {
            let newest = AmqpValue::LongString("reject-publish-dlx".into());
            arguments.insert("x-overflow".into(), newest);
        }
        let default_exchange = AmqpValue::LongString(String::new());
        arguments.insert("x-dead-letter-exchange".into(), default_exchange);
        let overflow = AmqpValue::LongString(overflow_queue(queue));
        arguments.insert("x-dead-letter-routing-key".into(), overflow);
    }
    QueueDeclareOptions { durable: true, arguments, ..Default::default() }
}

/// What the broker means by closing the channel or the connection over the queue, and what to
/// change.
fn explain(endpoint: &Endpoint, queue: &str, close: &Close) -> Error {
    let Close { code, text } = close;
    let refused = |reason| Error::QueueRefused { queue: queue.to_string(), reason };
    match code {
        403 if text.contains("reserved prefix") => {
            refused(format!("names that begin with \"amq.\" are the broker's own ({text})"))
        }
        405 => refused(format!(
            "another connection has it for itself alone; choose another name, or end that \
             connection ({text})"
        )),
        406 => refused(format!(
            "it cannot be declared with these arguments; give the queue type, delivery limit, \
             limit of waiting requests and dead-letter exchange that it has, or delete it ({text})"
        )),
        541 if text.contains("deprecated") || text.contains("transient") => {
            refused(format!("this broker no longer has queues of that kind ({text})"))
        }
        _ => endpoint.explain_close(close, "declare the request queue"),
    }
}

/// A durable classic queue lives on one node of a cluster, and while that is down the broker
/// says 404 as if there were none. Then there is nothing to declare, only to wait.
fn is_its_node_down(message: &str) -> bool {
    message.contains("is down or inaccessible")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_change() {
        let endpoint: Endpoint = "amqp://ann@rabbit".parse().unwrap();
        let channel =
            |code, text: &str| explain(&endpoint, "q", &Close { code, text: text.into() });
        let message = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q'";
        for (error, fix) in [
            (channel(403, "ACCESS_REFUSED - queue name 'amq.q' contains reserved prefix"), "amq."),
            (channel(405, "RESOURCE_LOCKED - ..."), "choose another name, or end that connection"),
            (channel(406, message), "give the queue type"),
            (channel(406, message), "'x-queue-type'"),
            (
                channel(541, "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated"),
                "no longer has queues of that kind",
            ),
        ] {
            assert!(matches!(error, Error::QueueRefused { .. }), "{error:?}");
            assert!(error.to_string().contains(fix), "{error}");
        }
        let refused = channel(403, "ACCESS_REFUSED - access to queue 'q' refused");
        assert!(matches!(&refused, Error::Refused(text) if text.contains("user \"ann\"")));
        let unreachable = channel(404, "home node of durable queue 'q' is down or inaccessible");
        assert!(matches!(unreachable, Error::Unreachable { .. }));
    }
}
