//! Request queues that exist, and that the server declares.

use std::thread;
use std::time::Duration;

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect, connect_fibonacci};
use crate::patience::{PATIENCE, SECOND, await_value};
use crate::programs::{rpc_client, rpc_server, rpc_server_at, stop};
use crate::queue;

fn text(value: &str) -> AmqpValue {
    AmqpValue::LongString(value.into())
}

fn arguments<const N: usize>(entries: [(&str, AmqpValue); N]) -> FieldTable {
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

#[test]
fn existing_queue_is_used_whatever_its_arguments() {
    let url = Broker::shared().url();
    for (kind, durable, arguments) in [
        ("transient", false, FieldTable::new()),
        ("durable", true, FieldTable::new()),
        ("quorum", true, arguments([("x-queue-type", text("quorum"))])),
        (
            "odd",
            false,
            arguments([
                ("x-message-ttl", AmqpValue::LongInt(60_000)),
                ("x-max-priority", AmqpValue::LongInt(5)),
                ("x-dead-letter-exchange", text("amq.fanout")),
                ("x-single-active-consumer", AmqpValue::Boolean(true)),
            ]),
        ),
    ] {
        let queue = queue_name(kind);
        queue::declare(&url, &queue, durable, arguments);
        // The server does not compare the queue with its own options.
        for args in [&[][..], &["--queue-type", "quorum", "--delivery-limit", "3"]] {
            let _server = rpc_server(&queue, args);
            assert_eq!(rpc_client(&queue, &["7"]).stdout, b"13\n", "{kind} {args:?}");
        }
    }
}

#[test]
fn missing_queue_is_declared_as_requested() {
    let classic = queue_name("classic");
    let quorum = queue_name("quorum");
    let limited = ["--queue-type", "quorum", "--delivery-limit", "4"];
    let limited = [&limited[..], &["--dead-letter-exchange", "amq.direct"]].concat();
    let _servers = [rpc_server(&classic, &[]), rpc_server(&quorum, &limited)];
    for queue in [&classic, &quorum] {
        assert_eq!(rpc_client(queue, &["7"]).stdout, b"13\n", "{queue}");
    }
    let columns = ["list_queues", "name", "durable", "auto_delete", "arguments"];
    let listed = Broker::shared().ctl(&columns);
    let row = |queue: &str| listed.lines().find(|row| row.starts_with(queue)).unwrap();
    let durable = "\ttrue\tfalse\t";
    let plain = format!("{classic}{durable}[");
    assert!(row(&classic).starts_with(&plain), "{}", row(&classic));
    assert!(!row(&classic).contains("quorum"), "{}", row(&classic));
    for part in [
        durable,
        "{\"x-queue-type\",\"quorum\"}",
        "{\"x-delivery-limit\",4}",
        "{\"x-dead-letter-exchange\",\"amq.direct\"}",
    ] {
        assert!(row(&quorum).contains(part), "no {part} in {}", row(&quorum));
    }
}

/// With one broker, tutorial programs can share the queue: on RabbitMQ 4.3 they would have to name the
/// same time.
#[test]
fn quorum_queue_names_a_time_for_lost_nodes_if_there_are_several() {
    let quorum = |queue: &str, urls: &str, args: &[&str]| {
        drop(rpc_server_at(urls, queue, &[&["--queue-type", "quorum"], args].concat()));
        let listed = Broker::shared().ctl(&["list_queues", "name", "arguments"]);
        listed.lines().find(|row| row.starts_with(queue)).unwrap().to_string()
    };
    let (one, several) = (url(), format!("{0},{0}", url()));
    let argument = "\"x-consumer-disconnected-timeout\"";
    let row = quorum(&queue_name("alone"), &one, &[]);
    assert!(!row.contains(argument), "{row}");
    let row = quorum(&queue_name("several"), &several, &[]);
    assert!(row.contains(&format!("{{{argument},2000}}")), "{row}");
    let row = quorum(&queue_name("none"), &several, &["--disconnected-timeout", "0"]);
    assert!(!row.contains(argument), "{row}");
    let row = quorum(&queue_name("named"), &one, &["--disconnected-timeout", "0.5"]);
    assert!(row.contains(&format!("{{{argument},500}}")), "{row}");
}

/// A virtual host can have a default type, which a broker gives to queues that name none.
#[test]
fn declared_queues_have_the_type_of_the_options_whatever_the_default_is() {
    let (broker, host) = (Broker::shared(), queue_name("default"));
    broker.ctl(&["add_vhost", &host, "--default-queue-type", "quorum"]);
    broker.ctl(&["set_permissions", "-p", &host, "guest", ".*", ".*", ".*"]);
    let _server = rpc_server_at(&broker.url().replace("%2f", &host), "q", &["--max-waiting", "9"]);
    let listed = broker.ctl(&["list_queues", "-p", &host, "name", "type"]);
    assert!(!listed.contains("quorum"), "{listed}");
    for queue in ["q\t", "q.overflow\t"] {
        assert!(listed.contains(queue), "{listed}");
    }
}

/// RabbitMQ treats a queue without a type as a classic one.
#[test]
fn program_that_names_no_type_shares_the_declared_queue() {
    let queue = queue_name("shared");
    let _server = rpc_server(&queue, &[]);
    queue::declare_durable(&url(), &queue);
}

/// The server waits before it declares a deleted quorum queue again, so an operator who takes a
/// quarter of a second can do so first.
#[test]
fn operator_replaces_quorum_queue_of_running_server() {
    let (url, queue) = (Broker::shared().url(), queue_name("replaced"));
    let mut server = rpc_server(&queue, &["--queue-type", "quorum"]);
    let mut operator = queue::connect(&url);
    let mut replace = || {
        let channel = operator.open_channel(None).unwrap();
        channel.queue_delete(queue.as_str(), Default::default()).unwrap();
        server.wait_for_line("the request queue was deleted", PATIENCE);
        thread::sleep(SECOND / 4);
        let limited = [("x-queue-type", text("quorum")), ("x-max-length", AmqpValue::LongInt(9))];
        let arguments = arguments(limited);
        let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
        let is_first = channel.queue_declare(queue.as_str(), options).is_ok();
        server.wait_for_line("taking requests", PATIENCE);
        is_first
    };
    // A busy machine may take longer than a quarter of a second, but not each time.
    assert!((0..8).any(|_| replace()));
    assert_eq!(connect_fibonacci(&url, &queue).call(7), Ok(13));
    stop(&mut server);
}

/// A server looks for the deleted queue, and declares it if it is not there. In between, an operator
/// may declare it with other arguments.
#[test]
fn operator_and_server_declare_deleted_queue_at_the_same_time() {
    const SERVERS: u32 = 40;
    let url = Broker::shared().url();
    let served: Vec<_> = (0..SERVERS).map(|_| queue_name("contested")).collect();
    let served: Vec<_> = served.iter().map(|queue| (queue, Serving::echo(&url, queue))).collect();
    // A worker that has served for a second stays on its connection.
    thread::sleep(SECOND);
    let mut operator = queue::connect(&url);
    for (index, (queue, _)) in served.iter().enumerate() {
        let channel = operator.open_channel(None).unwrap();
        channel.queue_delete(queue.as_str(), Default::default()).unwrap();
        // Each time, the server has got a little further.
        thread::sleep(Duration::from_micros(50 * index as u64));
        let arguments = arguments([("x-max-length", AmqpValue::LongInt(9))]);
        let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
        // It fails if the server was first.
        let _ = channel.queue_declare(queue.as_str(), options);
    }
    for (queue, server) in served {
        // If the queue exists again soon enough, RabbitMQ 3.10 moves the consumer to it. It was seen
        // to lose all deliveries to such a consumer, so the test makes no call.
        let client = connect(&url, queue);
        let consumers = || client.queue().map(|queue| queue.consumers);
        await_value(consumers, |consumers| *consumers == Ok(1)).unwrap();
        server.stop();
    }
}
