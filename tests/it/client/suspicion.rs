//! When a client leaves a connection that works, and when not.

use std::thread;

use rabbitmq_rpc::{ClientOptions, Error, ServerOptions};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_with};
use crate::manual_server::ManualServer;
use crate::patience::{PATIENCE, SECOND};
use crate::queue;

/// The server is slow, so requests wait in the queue.
#[test]
fn overload_is_not_taken_for_a_lost_connection() {
    let broker = Broker::shared();
    let queue = queue_name("overload");
    let server = ServerOptions { prefetch: 1, ..Default::default() };
    let _server = Serving::start(&broker.url(), &queue, server, |_| {
        thread::sleep(9 * SECOND);
        Ok(Vec::new())
    });
    let client = connect(&broker.url(), &queue);
    // The requests wait until after the deadlines of the calls below.
    let waiting: Vec<_> = (0..3).map(|_| client.send_timeout("7", PATIENCE).unwrap()).collect();
    for _ in 0..4 {
        let error = client.call_timeout("7", 2 * SECOND).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    }
    assert_eq!(client.counters().reconnects, 0);
    drop(waiting);
}

/// No reply ever comes, whichever connection the client uses.
#[test]
fn connection_is_replaced_less_and_less_often_without_an_answer() {
    let broker = Broker::shared();
    let queue = queue_name("unanswered");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    for _ in 0..14 {
        client.call_timeout("7", SECOND).unwrap_err();
        server.next();
    }
    let reconnects = client.counters().reconnects;
    assert!((1..=2).contains(&reconnects), "{reconnects} connections in 14 s");
}

/// From RabbitMQ 4.3 on, a node that is cut off from its cluster goes on accepting requests.
#[test]
fn client_looks_for_a_server_at_the_next_broker() {
    let (cut_off, broker, queue) = (Broker::shared(), Broker::fragile(), queue_name("elsewhere"));
    queue::declare_durable(&cut_off.url(), &queue);
    let _server = Serving::echo(&broker.url(), &queue);
    let urls = format!("{},{}", cut_off.url(), broker.url());
    let options = ClientOptions { timeout: 20 * SECOND, ..Default::default() };
    let client = connect_with(&urls, &queue, options.clone());
    let call = client.request("7").idempotent(true).send().unwrap();
    assert_eq!(call.wait().unwrap(), b"7");
    assert_eq!(client.counters().reconnects, 1);

    let client = connect_with(&urls, &queue, options);
    assert_eq!(client.queue().unwrap().consumers, 1);
    assert_eq!(client.call("8").unwrap(), b"8");
}
