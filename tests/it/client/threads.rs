//! Many callers, one client.

use std::thread;

use rabbitmq_rpc::ClientOptions;

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_with};

#[test]
fn every_reply_goes_to_its_caller() {
    const THREADS: usize = 64;
    const CALLS: usize = 300;
    let broker = Broker::shared();
    let queue = queue_name("threads");
    let _server = Serving::echo(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);

    thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = &client;
            scope.spawn(move || {
                for call in 0..CALLS {
                    let body = format!("thread {thread}, call {call}");
                    assert_eq!(client.call(body.as_str()).unwrap(), body.as_bytes());
                }
            });
        }
    });
    let counters = client.counters();
    let all = (THREADS * CALLS) as u64;
    assert_eq!((counters.calls, counters.replies, counters.late), (all, all, 0));
    assert_eq!((counters.timed_out, counters.reconnects, counters.in_flight), (0, 0, 0));
}

#[test]
fn more_callers_than_room_get_through() {
    let broker = Broker::shared();
    let queue = queue_name("little-room");
    let _server = Serving::echo(&broker.url(), &queue);
    let options = ClientOptions { max_in_flight: 3, ..Default::default() };
    let client = connect_with(&broker.url(), &queue, options);

    thread::scope(|scope| {
        for thread in 0..16 {
            let client = &client;
            scope.spawn(move || {
                for call in 0..50 {
                    let body = format!("thread {thread}, call {call}");
                    assert_eq!(client.call(body.as_str()).unwrap(), body.as_bytes());
                }
            });
        }
    });
    let counters = client.counters();
    assert_eq!((counters.replies, counters.timed_out, counters.in_flight), (800, 0, 0));
}

#[test]
fn a_thousand_calls_of_one_thread_are_in_flight_together() {
    let broker = Broker::shared();
    let queue = queue_name("pipeline");
    let _server = Serving::echo(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);

    let calls: Vec<_> = (0..1000).map(|n| client.send(n.to_string()).unwrap()).collect();
    // In any order: a reply does not wait for the one before it to be asked for.
    for (n, call) in calls.into_iter().enumerate().rev() {
        assert_eq!(call.wait().unwrap(), n.to_string().as_bytes());
    }
    assert_eq!(client.counters().in_flight, 0);
}
