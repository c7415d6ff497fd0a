//! An idle server that looks at another broker.
//!
//! From RabbitMQ 4.3 on, a node that is cut off from its cluster goes on as if nothing had happened.

use amiquip::{AmqpValue, ConsumerOptions, FieldTable};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::patience::{PATIENCE, await_value};
use crate::programs::{rpc_server_at, stop};
use crate::proxy::Proxy;
use crate::queue;
use crate::raw::{Properties, Raw, Verdict};
use crate::usage::thread_names;

#[test]
fn idle_server_looks_for_requests_at_the_next_broker() {
    let (cut_off, broker, queue) = (Broker::shared(), Broker::fragile(), queue_name("waiting"));
    let _server = Serving::echo(&format!("{},{}", cut_off.url(), broker.url()), &queue);
    queue::declare_durable(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    assert_eq!(client.call_timeout("7", 2 * PATIENCE).unwrap(), b"7");
}

/// Only a delivery proves that a broker works: one that is cut off may count requests that were
/// answered long ago.
#[test]
fn idle_server_stays_if_the_next_broker_counts_requests_and_delivers_none() {
    let (own, other, queue) = (Broker::shared(), Broker::fragile(), queue_name("counted"));
    // Only the first consumer of this queue gets requests, and it takes one of the two.
    let single = ("x-single-active-consumer".to_owned(), AmqpValue::Boolean(true));
    queue::declare(&other.url(), &queue, true, FieldTable::from([single]));
    let mut program = queue::connect(&other.url());
    let channel = program.open_channel(None).unwrap();
    channel.qos(0, 1, false).unwrap();
    let consumer = channel.basic_consume(queue.as_str(), ConsumerOptions::default()).unwrap();
    let mut raw = Raw::connect(other.port(0));
    for _ in 0..2 {
        let published = raw.publish("", queue.as_bytes(), &Properties::default(), b"7");
        assert_eq!(published, Verdict::Confirmed);
    }
    consumer.receiver().recv_timeout(PATIENCE).unwrap();
    assert_eq!(connect(&other.url(), &queue).queue().unwrap().messages, 1);
    let proxy = Proxy::to(other.port(0));
    let mut server = rpc_server_at(&format!("{},{}", own.url(), proxy.url()), &queue, &[]);
    await_value(|| proxy.logins(), |logins| *logins > 0);
    await_value(|| thread_names(server.pid()), |names| !names.contains(&"rpc-look".into()));
    assert_eq!(connect(&own.url(), &queue).call("7").unwrap(), b"13");
    stop(&mut server);
    let connected = server.stderr().lines().filter(|line| line.contains("taking requests"));
    assert_eq!(connected.count(), 1, "{}", server.stderr());
}
