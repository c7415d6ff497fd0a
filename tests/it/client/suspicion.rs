//! When a client leaves a connection that works, and when not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use amiquip::AmqpProperties;
use crossbeam_channel::bounded;
use rabbitmq_rpc::{ClientOptions, Error, ServerOptions};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_with};
use crate::manual_server::ManualServer;
use crate::patience::{PATIENCE, SECOND, await_value};
use crate::proxy::{Mode, Proxy};
use crate::queue;

/// The server is slow, so requests wait in the queue until they expire.
#[test]
fn overload_is_not_taken_for_a_lost_connection() {
    let broker = Broker::shared();
    let queue = queue_name("overload");
    let server = ServerOptions { prefetch: 1, ..Default::default() };
    let (release, released) = bounded::<()>(0);
    let _server = Serving::start(&broker.url(), &queue, server, move |_| {
        let _ = released.recv_timeout(PATIENCE);
        Ok(Vec::new())
    });
    let client = connect(&broker.url(), &queue);
    for _ in 0..4 {
        let error = client.call_timeout("7", 2 * SECOND).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    }
    assert_eq!(client.counters().reconnects, 0);
    drop(release);
}

/// A look at the queue takes longer than a caller waits for it.
#[test]
fn answers_that_come_late_from_a_far_broker_are_no_evidence_of_loss() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("far-away"));
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let server = ServerOptions { prefetch: 1, ..Default::default() };
    let _server = Serving::start(&Broker::shared().url(), &queue, server, move |body| {
        counter.fetch_add(usize::from(body == b"7"), Ordering::Relaxed);
        thread::sleep(6 * SECOND);
        Ok(Vec::new())
    });
    let client = connect(&proxy.url(), &queue);
    proxy.set_delay(SECOND / 5);
    let call = || client.request("7").idempotent(true).timeout(PATIENCE).send().unwrap();
    let waiting = [(); 2].map(|()| call());
    for _ in 0..4 {
        let error = client.call_timeout("8", 2 * SECOND).unwrap_err();
        assert!(matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
    }
    waiting.into_iter().for_each(|call| drop(call.wait().unwrap()));
    assert_eq!((runs.load(Ordering::Relaxed), client.counters().reconnects), (2, 0));
}

/// Without heartbeats, too.
#[test]
fn silent_connection_is_left_for_the_next_broker() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("mute"));
    let _server = Serving::echo(&Broker::shared().url(), &queue);
    let urls = format!("{}?heartbeat=0,{}", proxy.url(), Broker::shared().url());
    let client = connect(&urls, &queue);
    assert_eq!(client.call("7").unwrap(), b"7");
    proxy.set(Mode::Stall);
    await_value(|| client.call_timeout("8", SECOND), Result::is_ok).unwrap();
    assert_eq!(client.counters().reconnects, 1);
}

/// The server has begun with the request, and then its reply is lost.
#[test]
fn connection_without_answers_since_a_sign_of_life_is_replaced() {
    let broker = Broker::shared();
    let queue = queue_name("begun");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let call = client.request("7").idempotent(true).keep_alive(SECOND).timeout(PATIENCE);
    let call = call.send().unwrap();
    thread::scope(|scope| {
        let reply = scope.spawn(|| call.wait());
        let alive = AmqpProperties::default().with_type_("keep-alive".into());
        server.reply_with(&server.next(), alive, b"");
        server.reply(&server.next(), b"7");
        assert_eq!(reply.join().unwrap().unwrap(), b"7");
    });
    await_value(|| client.counters().reconnects, |reconnects| *reconnects == 1);
}

/// No reply ever comes, whichever connection the client uses.
#[test]
fn connection_is_replaced_less_and_less_often_without_an_answer() {
    let broker = Broker::shared();
    let queue = queue_name("unanswered");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let began = Instant::now();
    while began.elapsed() < 11 * SECOND {
        client.call_timeout("7", SECOND).unwrap_err();
    }
    drop(server);
    // After 3 s, 3 to 6 s, and 6 to 12 s.
    let reconnects = client.counters().reconnects;
    assert!((1..=2).contains(&reconnects), "{reconnects} connections in 12 s");
}

/// From RabbitMQ 4.3 on, a node that is cut off from its cluster goes on accepting requests.
#[test]
fn client_looks_for_a_server_at_the_next_broker() {
    let (cut_off, broker, queue) = (Broker::shared(), Broker::fragile(), queue_name("elsewhere"));
    queue::declare_durable(&cut_off.url(), &queue);
    let _server = Serving::echo(&broker.url(), &queue);
    let urls = format!("{},{}", cut_off.url(), broker.url());
    let options = ClientOptions { timeout: PATIENCE, ..Default::default() };
    let client = connect_with(&urls, &queue, options.clone());
    let call = client.request("7").idempotent(true).send().unwrap();
    assert_eq!(call.wait().unwrap(), b"7");
    assert_eq!(client.counters().reconnects, 1);

    let client = connect_with(&urls, &queue, options);
    assert_eq!(client.queue().unwrap().consumers, 1);
    assert_eq!(client.call("8").unwrap(), b"8");
}

/// Answers come to other calls, so the request is not lost on its way.
#[test]
fn idempotent_request_to_a_queue_without_a_server_is_sent_once() {
    let (url, unserved, served) = (Broker::shared().url(), queue_name("alone"), queue_name("busy"));
    queue::declare_durable(&url, &unserved);
    let _server = Serving::echo(&url, &served);
    let client = connect(&format!("{url},{url}"), &served);
    let alone = client.for_queue(&unserved).unwrap();
    let mut call = alone.request("7").idempotent(true).timeout(PATIENCE).send().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| call.wait_timeout(5 * SECOND));
        while !waiting.is_finished() {
            assert_eq!(client.call("8").unwrap(), b"8");
        }
        assert_eq!(waiting.join().unwrap(), Ok(None));
    });
    assert_eq!(alone.queue().unwrap().messages, 1);
}

/// Nobody serves the queue, so the client looks elsewhere. Then the queue is deleted, with what was
/// sent through either connection.
#[test]
fn request_lost_with_its_queue_is_sent_again_although_the_connection_was_replaced() {
    let (url, queue) = (Broker::shared().url(), queue_name("lost-again"));
    queue::declare_durable(&url, &queue);
    let client = connect(&format!("{url},{url}"), &queue);
    let call = client.request("7").idempotent(true).keep_alive(SECOND).timeout(15 * SECOND);
    let call = call.send().unwrap();
    thread::scope(|scope| {
        let reply = scope.spawn(|| call.wait());
        await_value(|| client.counters().reconnects, |reconnects| *reconnects == 1);
        queue::wait_for_requests(&url, &queue, 3);
        queue::delete(&url, &queue);
        let server = ManualServer::start(&url, &queue);
        server.reply(&server.next(), b"13");
        assert_eq!(reply.join().unwrap().unwrap(), b"13");
    });
}
