//! What the client asks the broker about a queue, and what that costs others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{Error, ServerOptions};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::few_channels::connect_with_few_channels;
use crate::manual_server::ManualServer;
use crate::patience::SECOND;
use crate::proxy::Proxy;
use crate::queue;

/// Each of the calls asks about a queue of its own, and the broker is far away.
#[test]
fn callers_return_soon_after_their_deadlines_however_many_there_are() {
    // A busy machine may let them return late, but not each time.
    assert!((0..8).any(|_| callers_return_soon_and_know_why()));
}

fn callers_return_soon_and_know_why() -> bool {
    let broker = Broker::shared();
    let proxy = Proxy::to(broker.port(0));
    let names: Vec<_> = (0..40).map(|_| queue_name("silent")).collect();
    names.iter().for_each(|name| queue::declare_durable(&broker.url(), name));
    let client = connect(&proxy.url(), &names[0]);
    proxy.set_delay(Duration::from_millis(15));
    let clients: Vec<_> = names.iter().map(|name| client.for_queue(name).unwrap()).collect();
    let began = Instant::now();
    let calls: Vec<_> = clients.iter().map(|c| c.send_timeout("7", 2 * SECOND).unwrap()).collect();
    let sent = began.elapsed();
    let late: Vec<_> = thread::scope(|scope| {
        let wait = |call: rabbitmq_rpc::PendingReply| {
            let error = call.wait().unwrap_err();
            (began.elapsed().saturating_sub(2 * SECOND), error.to_string())
        };
        let waiting: Vec<_> =
            calls.into_iter().map(|call| scope.spawn(move || wait(call))).collect();
        waiting.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let latest = late.iter().map(|(late, _)| *late).max().unwrap();
    let known = late.iter().filter(|(_, text)| text.contains("consumers: 0")).count();
    println!("sent in {sent:?}; the last returned {latest:?} late; {known} of 40 know why");
    latest < sent + SECOND / 2 && known > 20
}

/// A look at the queue takes about as long as a caller waits for it, or longer.
#[test]
fn requests_that_wait_are_executed_once_although_the_broker_is_far_away() {
    thread::scope(|scope| {
        let runs = |delay| scope.spawn(move || runs_of_four_requests(Duration::from_millis(delay)));
        assert_eq!([60, 150].map(runs).map(|runs| runs.join().unwrap()), [4, 4]);
    });
}

/// The number of runs of four requests that wait for one another, with a broker that is this far
/// away in each direction.
fn runs_of_four_requests(distance: Duration) -> usize {
    let broker = Broker::shared();
    let queue = queue_name("far");
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let options = ServerOptions { prefetch: 1, ..Default::default() };
    let _server = Serving::start(&broker.url(), &queue, options, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        thread::sleep(2 * SECOND);
        Ok(Vec::new())
    });
    let proxy = Proxy::to(broker.port(0));
    let client = connect(&proxy.url(), &queue);
    proxy.set_delay(distance);
    let call = || client.request("7").idempotent(true).keep_alive(SECOND / 2).send().unwrap();
    let calls = [(); 4].map(|()| call());
    thread::scope(|scope| {
        let waiting = calls.map(|call| scope.spawn(|| call.wait().unwrap()));
        waiting.into_iter().for_each(|call| drop(call.join().unwrap()));
    });
    runs.load(Ordering::Relaxed)
}

/// The broker closes a connection that opens more channels than it allows the user.
#[test]
fn look_costs_no_connection_of_a_user_with_two_channels() {
    let broker = Broker::shared();
    let queue = queue_name("limited");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect_with_few_channels(broker, &queue, 2);
    let held = client.send("held").unwrap();
    let request = server.next();
    let error = client.call_timeout("7", SECOND).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    assert!(client.queue().unwrap_err().to_string().contains("channel"), "it needs another one");
    server.reply(&request, b"13");
    assert_eq!(held.wait().unwrap(), b"13");
    assert_eq!(client.counters().reconnects, 0);
}

/// A question about a queue that does not exist closes the channel for questions.
#[test]
fn question_about_a_missing_queue_leaves_the_others_their_answers() {
    let broker = Broker::shared();
    let queue = queue_name("asked");
    let _server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let missing = client.for_queue(&queue_name("missing")).unwrap();
    thread::scope(|scope| {
        let others = [(); 8].map(|()| {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(client.queue().unwrap().consumers, 1)))
        });
        for _ in 0..20 {
            let error = missing.queue().unwrap_err();
            assert!(matches!(error, Error::Unroutable { .. }), "{error:?}");
        }
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// The broker's process for the request queue is suspended, so the query is not answered.
#[test]
fn reply_during_queue_query_is_accepted() {
    const TIMEOUT: Duration = Duration::from_secs(5);
    // Other tests list the queues of the shared broker, and would wait for the suspended one.
    let broker = Broker::fragile();
    let queue = queue_name("asked");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let queue_process = |what: &str| {
        let name = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)");
        let found = format!("{{ok, Queue}} = rabbit_amqqueue:lookup({name})");
        broker.ctl(&["eval", &format!("{found}, sys:{what}(amqqueue:get_pid(Queue)).")]);
    };
    // The query takes 200 ms at most. A busy machine may miss that time, but not each time.
    let mut tries = 0;
    loop {
        let began = Instant::now();
        let call = client.send_timeout("7", TIMEOUT).unwrap();
        let request = server.next();
        queue_process("suspend");
        let waiting = thread::spawn(move || (call.wait(), Instant::now()));
        thread::sleep((began + TIMEOUT + SECOND / 10).saturating_duration_since(Instant::now()));
        server.reply(&request, b"13");
        let (outcome, ended) = waiting.join().unwrap();
        queue_process("resume");
        if let Ok(reply) = &outcome {
            assert_eq!(reply, b"13");
            assert!(ended - began >= TIMEOUT, "the reply arrived before the deadline");
            return;
        }
        tries += 1;
        assert!(tries < 8, "{outcome:?}");
    }
}
