//! A server whose queue is deleted, with and without a notice to its consumers.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use amiquip::QueueDeclareOptions;
use crossbeam_channel::{bounded, unbounded};
use rabbitmq_rpc::{Brokers, Error, RpcServer, Served, ServerOptions, fibonacci};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_fibonacci, connect_idempotent};
use crate::patience::{PATIENCE, SECOND, await_value};
use crate::programs::{rpc_server, rpc_server_at, stop};
use crate::proxy::Proxy;
use crate::queue;
use crate::raw::Raw;

/// All workers open channels at the same time, while the broker has not confirmed yet that their
/// first channels are closed.
#[test]
fn server_redeclares_deleted_queue() {
    let (url, queue) = (Broker::shared().url(), queue_name("deleted"));
    let limited = format!("{url}?channel_max=9");
    let mut server = rpc_server_at(&limited, &queue, &["--workers", "8"]);
    let client = connect(&url, &queue);
    let consumers = || client.queue().map(|queue| queue.consumers);
    for _ in 0..4 {
        await_value(consumers, |consumers| *consumers == Ok(8)).unwrap();
        // A worker that has served for a second stays on its connection.
        thread::sleep(SECOND);
        assert_eq!(client.call("7").unwrap(), b"13");
        queue::delete(&url, &queue);
        server.wait_for_line("the request queue was deleted", PATIENCE);
    }
    await_value(consumers, |consumers| *consumers == Ok(8)).unwrap();
    assert_eq!(client.call("7").unwrap(), b"13");
    stop(&mut server);
}

/// The pause before a quorum queue is declared again is longer than connecting may take.
#[test]
fn server_redeclares_deleted_quorum_queue_despite_short_connect_timeout() {
    let (url, queue) = (Broker::shared().url(), queue_name("deleted"));
    let args = ["--queue-type", "quorum", "--connect-timeout", "0.4"];
    let mut server = rpc_server(&queue, &args);
    queue::delete(&url, &queue);
    server.wait_for_line("the request queue was deleted", PATIENCE);
    server.wait_for_line("taking requests", PATIENCE);
    assert_eq!(connect_fibonacci(&url, &queue).call(7), Ok(13));
    stop(&mut server);
}

#[test]
fn idempotent_call_waits_until_deleted_queue_is_declared_again() {
    let (url, queue) = (Broker::shared().url(), queue_name("deleted"));
    let (again, once) = (connect_idempotent(&url, &queue), connect(&url, &queue));
    let unroutable = || Err(Error::Unroutable { queue: queue.clone() });
    assert_eq!(again.call_timeout("7", PATIENCE), unroutable(), "there was no such queue yet");
    let server = Serving::echo(&url, &queue);
    assert_eq!([again.call("7").unwrap(), once.call("7").unwrap()], [b"7", b"7"]);
    server.stop();
    queue::delete(&url, &queue);
    assert_eq!(once.call_timeout("8", PATIENCE), unroutable());
    // Nobody declares it in time. A busy broker may return the last attempt late, but not each time.
    assert!((0..8).any(|_| again.call_timeout("8", 3 * SECOND) == unroutable()));
    let call = again.request("9").timeout(PATIENCE).send().unwrap();
    thread::scope(|scope| {
        let answer = scope.spawn(|| call.wait());
        let _server = Serving::echo(&url, &queue);
        assert_eq!(answer.join().unwrap().unwrap(), b"9");
    });
}

/// The requests that a worker has got from a queue are answered although the queue is deleted, also
/// if the server is told to stop.
#[test]
fn worker_answers_what_it_got_from_a_deleted_queue() {
    for is_stopped in [false, true] {
        answers_from_a_deleted_queue(is_stopped);
    }
}

fn answers_from_a_deleted_queue(is_stopped: bool) {
    let (url, queue) = (Broker::shared().url(), queue_name("deleted"));
    let (release, released) = bounded::<()>(0);
    let options = ServerOptions { workers: 2, prefetch: 3, ..Default::default() };
    let server = Serving::start(&url, &queue, options, move |body| {
        if body != b"2" {
            let _ = released.recv_timeout(PATIENCE);
        }
        Ok(body.to_vec())
    });
    await_value(|| server.stopper.status().is_ready(), |is_ready| *is_ready);
    let mut raw = Raw::connect(Broker::shared().port(0));
    // The broker gives the workers requests in turn, so one of them gets the first and the third.
    for body in ["1", "2", "3"] {
        raw.request(&queue, body.as_bytes());
    }
    assert_eq!(raw.reply().body, b"2");
    queue::wait_until_taken(&url, &queue);
    queue::delete(&url, &queue);
    // The idle worker declares the queue again. By then, both have been notified.
    let client = connect(&url, &queue);
    await_value(|| client.queue(), Result::is_ok).unwrap();
    if is_stopped {
        server.stopper.stop();
    }
    drop(release);
    let mut replies = [raw.reply().body, raw.reply().body];
    replies.sort();
    assert_eq!(replies, [b"1", b"3"]);
}

/// After a consumer was cancelled, its worker asks RabbitMQ 4.3 whether the queue is gone. A stop
/// waits for the answer, which decides who answers what the worker has got.
#[test]
fn stopping_worker_answers_what_it_got_from_a_queue_that_may_be_deleted() {
    let (url, queue) = (Broker::shared().url(), queue_name("may-be-deleted"));
    let proxy = Arc::new(Proxy::to(Broker::shared().port(0)));
    let (release, released) = bounded::<()>(0);
    let options = ServerOptions { prefetch: 3, ..Default::default() };
    let server = Serving::start(&proxy.url(), &queue, options, move |body| {
        if body == b"1" {
            let _ = released.recv_timeout(PATIENCE);
            // The worker knows that the broker has a reply of this size before it goes on.
            return Ok(vec![b'1'; 1 << 20]);
        }
        Ok(body.to_vec())
    });
    // From then on, an answer takes longer than a stop waits for idle workers.
    let network = Arc::clone(&proxy);
    server.server.on_request(move |_| network.set_delay(SECOND / 4));
    let mut raw = Raw::connect(Broker::shared().port(0));
    for body in ["1", "2", "3"] {
        raw.request(&queue, body.as_bytes());
    }
    queue::wait_until_taken(&url, &queue);
    queue::delete(&url, &queue);
    await_value(|| server.stopper.status().workers_ready, |ready| *ready == 0);
    server.stopper.stop();
    drop(release);
    assert_eq!(raw.reply().body.len(), 1 << 20);
    let mut replies = [raw.reply().body, raw.reply().body];
    replies.sort();
    assert_eq!(replies, [b"2", b"3"]);
    server.stop();
}

/// An idle worker that declares the queue again does not end the connection of a busy one.
#[test]
fn busy_worker_answers_although_its_queue_was_deleted() {
    let (url, queue) = (Broker::shared().url(), queue_name("deleted-busy"));
    let (begin, begun) = bounded(1);
    let (release, released) = bounded::<()>(0);
    let options = ServerOptions { workers: 2, ..Default::default() };
    let _server = Serving::start(&url, &queue, options, move |body| {
        begin.send(()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok(body.to_vec())
    });
    let client = connect(&url, &queue);
    let call = client.send("7").unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    queue::delete(&url, &queue);
    await_value(|| client.queue(), Result::is_ok).unwrap();
    drop(release);
    assert_eq!(call.wait(), Ok(b"7".to_vec()));
}

/// An idle worker that finds the queue gone does not end the connection of a busy one. The busy one
/// consumes again too, although the broker notifies it of nothing.
#[test]
fn busy_worker_answers_although_its_queue_was_deleted_without_notice() {
    let (url, queue) = (Broker::shared().url(), queue_name("forgotten-busy"));
    let (begin, begun) = bounded(1);
    let (release, released) = bounded::<()>(0);
    let options = ServerOptions { workers: 2, ..Default::default() };
    let _server = Serving::start(&url, &queue, options, move |body| {
        begin.send(()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok(body.to_vec())
    });
    let client = connect(&url, &queue);
    let call = client.send_timeout("7", 2 * PATIENCE).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    forget(&queue);
    // RabbitMQ 4 may close a connection that asks while parts of the first queue exist.
    let consumers = || connect(&url, &queue).queue().map(|queue| queue.consumers);
    await_value(consumers, |consumers| *consumers == Ok(1)).unwrap();
    drop(release);
    assert_eq!(call.wait(), Ok(b"7".to_vec()));
    await_value(consumers, |consumers| *consumers == Ok(2)).unwrap();
}

/// Removes the broker's record of a queue without a notice to its consumers. A cluster did so after
/// it had lost a node.
fn forget(queue: &str) {
    // RabbitMQ wants the queue's name here, and its record from 3.12 on.
    let queue_or_name = if Broker::shared().version() < (3, 12, 0) { "Name" } else { "Queue" };
    let forget = format!(
        "Name = rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>), \
         {{ok, Queue}} = rabbit_amqqueue:lookup(Name), \
         ok = rabbit_amqqueue:internal_delete({queue_or_name}, <<\"tests\">>)."
    );
    Broker::shared().ctl(&["eval", &forget]);
}

#[test]
fn server_redeclares_queue_deleted_without_notice() {
    let queue = queue_name("forgotten");
    let mut server = rpc_server(&queue, &[]);
    forget(&queue);
    server.wait_for_line("was deleted without a word", PATIENCE);
    server.wait_for_line("taking requests", PATIENCE);
    let client = connect_fibonacci(&Broker::shared().url(), &queue);
    assert_eq!(client.call(7), Ok(13));
    stop(&mut server);
}

/// A worker whose consumer died with the first queue consumes from the one that is declared in its
/// place.
#[test]
fn server_consumes_again_from_redeclared_queue() {
    let (url, queue) = (Broker::shared().url(), queue_name("redeclared"));
    let (begin, begun) = unbounded();
    let (release, released) = bounded::<()>(0);
    let _server = Serving::start(&url, &queue, ServerOptions::default(), move |body| {
        begin.send(()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok(body.to_vec())
    });
    let client = connect(&url, &queue);
    let first = client.send("1").unwrap();
    // A busy worker does not look at the queue, so it does not find out that there is none.
    begun.recv_timeout(PATIENCE).unwrap();
    forget(&queue);
    // RabbitMQ 4 refuses a few times to declare it while parts of the first queue exist.
    let is_declared = || {
        let mut other = queue::connect(&url);
        let channel = other.open_channel(None).unwrap();
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.as_str(), options).is_ok()
    };
    await_value(is_declared, |is_declared| *is_declared);
    drop(release);
    assert_eq!([first.wait().unwrap(), client.call("2").unwrap()], [b"1", b"2"]);
}

/// As [`server_redeclares_queue_deleted_without_notice`], for a caller's own loop.
#[test]
fn with_worker_ends_when_queue_is_deleted_without_notice() {
    let (url, queue) = (Broker::shared().url(), queue_name("forgotten-own-loop"));
    let server = RpcServer::connect(Brokers::parse(&url).unwrap(), &queue, Default::default());
    let server = server.unwrap();
    let served = server.with_worker(|worker| {
        forget(&queue);
        worker.serve_one(fibonacci::answer, PATIENCE)
    });
    let error = served.unwrap_err();
    assert!(error.to_string().contains("was deleted without a word"), "{error}");
    // A queue that the broker does notify of, between two loops.
    for _ in 0..2 {
        let idle =
            || server.with_worker(|worker| worker.serve_one(fibonacci::answer, Duration::ZERO));
        assert_eq!(await_value(idle, Result::is_ok), Ok(Served::Nothing));
        queue::delete(&url, &queue);
    }
}
