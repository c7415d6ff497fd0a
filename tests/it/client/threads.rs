//! Many threads call through one client.

use std::thread;

use rabbitmq_rpc::ClientOptions;

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_with};
use crate::patience::await_value;
use crate::process::Process;
use crate::programs::{RPC_BENCH, rpc_server};
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, Verdict};
use crate::usage::thread_names;

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
fn more_callers_than_max_in_flight_are_served() {
    let broker = Broker::shared();
    let queue = queue_name("few-slots");
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
fn one_thread_has_a_thousand_calls_in_flight() {
    let broker = Broker::shared();
    let queue = queue_name("pipeline");
    let _server = Serving::echo(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);

    let calls: Vec<_> = (0..1000).map(|n| client.send(n.to_string()).unwrap()).collect();
    // In reverse order: a reply can be taken before the replies to earlier calls.
    for (n, call) in calls.into_iter().enumerate().rev() {
        assert_eq!(call.wait().unwrap(), n.to_string().as_bytes());
    }
    assert_eq!(client.counters().in_flight, 0);
}

/// The sorted names of a process's threads, without the program's own.
fn threads(process: &Process) -> Vec<String> {
    let mut names = thread_names(process.pid());
    names.retain(|name| !name.starts_with("rpc_") && name != "signals");
    names.sort();
    names
}

#[test]
fn server_closes_unused_connection_for_direct_replies() {
    let broker = Broker::shared();
    let queue = queue_name("direct-threads");
    let server = rpc_server(&queue, &[]);
    // A thread that has not run yet has the name of the one that started it.
    let wanted = ["amiquip-io", "rpc-reader", "rpc-reader", "rpc-worker"];
    let before = await_value(|| threads(&server), |names| *names == wanted);
    let mut raw = Raw::connect(broker.port(0));
    raw.consume(DIRECT_REPLY_TO.as_bytes());
    let direct = Properties::default().correlation_id(b"id").reply_to(DIRECT_REPLY_TO.as_bytes());
    assert_eq!(raw.publish("", queue.as_bytes(), &direct, b"7"), Verdict::Confirmed);
    assert_eq!(raw.reply().body, b"13");
    // From these versions on, the reply to a node that is down does not end its connection.
    let version = broker.version();
    let is_safe = version >= (3, 11, 4) || ((3, 10, 12)..(3, 11, 0)).contains(&version);
    if is_safe {
        assert_eq!(threads(&server), before);
    } else {
        await_value(|| threads(&server).len(), |count| *count == before.len() + 3);
        await_value(|| threads(&server), |names| *names == before);
    }
}

/// The documentation of [`rabbitmq_rpc`] lists these threads.
#[test]
fn client_and_server_have_the_documented_threads() {
    let queue = queue_name("thread-names");
    let url = Broker::shared().url();
    let server = rpc_server(&queue, &["--workers", "2"]);
    let args = ["--url", &url, "--queue", &queue, "--requests", "100000", "--rate", "100"];
    let client = Process::spawn(RPC_BENCH, &args);
    // amiquip's heartbeat thread has no name of its own, but that of the thread that started it.
    let wanted = ["amiquip-io", "rpc-reader", "rpc-reader", "rpc-worker", "rpc-worker"];
    await_value(|| threads(&server), |names| *names == wanted);
    let wanted = ["amiquip-io", "rpc-reader", "rpc-reader"];
    await_value(|| threads(&client), |names| *names == wanted);
}
