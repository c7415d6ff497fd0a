//! Replies that are larger than the broker takes.

use std::thread;

use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, Failure, RpcClient, RpcServer, ServerOptions, Status,
};

use crate::broker::{Broker, queue_name};

/// The broker closes the channel over such a reply, and gives the request out again.
#[test]
fn a_reply_that_is_too_large_is_answered_with_an_error() {
    let broker = Broker::fragile();
    broker.limit_messages(1000);
    let queue = queue_name("oversized");
    let brokers = Brokers::parse(&broker.url()).unwrap();
    let server = RpcServer::connect(brokers.clone(), &queue, ServerOptions::default()).unwrap();
    let stopper = server.stopper();
    let serving = thread::spawn(move || {
        let served = server.serve(|request| match request {
            b"large" => Ok(vec![b'x'; 1001]),
            _ => Ok(vec![b'x'; 1000]),
        });
        (served, server.counters())
    });
    let client = RpcClient::connect(brokers, &queue, ClientOptions::default()).unwrap();
    assert_eq!(client.call("small").unwrap().len(), 1000);
    for _ in 0..2 {
        let message = "the reply of 1001 bytes is larger than the broker takes: 1000";
        let failure = Failure::new(Status::ResourceExhausted, message);
        assert_eq!(client.call("large"), Err(Error::Remote(failure)));
    }
    assert_eq!(client.call("small").unwrap().len(), 1000);
    stopper.stop();
    let (served, counters) = serving.join().unwrap();
    broker.limit_messages(16 << 20);
    served.unwrap();
    assert_eq!((counters.failed, counters.redelivered), (2, 1), "the limit is learned once");
}
