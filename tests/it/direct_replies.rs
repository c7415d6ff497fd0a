//! Replies by direct reply-to over slow networks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;
use rabbitmq_rpc::ServerOptions;

use crate::broker::{Broker, queue_name};
use crate::embedded::Serving;
use crate::patience::{PATIENCE, await_value};
use crate::proxy::{Mode, Proxy};
use crate::queue;
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, Verdict};

/// A server behind a proxy, which replies with so many bytes, and its number of runs.
fn serve(proxy: &Proxy, queue: &str, bytes: usize) -> (Serving, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let serving = Serving::start(&proxy.url(), queue, ServerOptions::default(), move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(vec![b'x'; bytes])
    });
    (serving, runs)
}

/// A requester by direct reply-to, with a request in the queue.
fn request(broker: &Broker, queue: &str, properties: Properties) -> Raw {
    let mut raw = Raw::connect(broker.port(0));
    raw.consume(DIRECT_REPLY_TO.as_bytes());
    assert_eq!(raw.publish("", queue.as_bytes(), &properties, b"7"), Verdict::Confirmed);
    raw
}

/// The reply takes longer than a heartbeat, and than any limit for an answer.
#[test]
fn large_reply_over_a_slow_network_is_delivered_and_its_request_executed_once() {
    const BYTES: usize = 24 << 20;
    let (broker, queue) = (Broker::fragile(), queue_name("direct-large"));
    broker.limit_messages(32 << 20);
    let proxy = Proxy::to(broker.port(0));
    let (serving, runs) = serve(&proxy, &queue, BYTES);
    // The proxy forwards 16 kB at a time: 2 MB/s.
    proxy.set_delay(Duration::from_millis(8));
    let properties = Properties::default().reply_to(DIRECT_REPLY_TO.as_bytes());
    let mut raw = request(&broker, &queue, properties);
    assert_eq!(raw.reply().body.len(), BYTES);
    proxy.set_delay(Duration::ZERO);
    let counters = serving.stop();
    assert_eq!((counters.served, counters.redelivered), (1, 0), "{counters:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    broker.limit_messages(16 << 20);
}

/// An old broker needs another connection for a direct reply. The end of that one returns no other
/// request to the queue, and closes no other channel.
#[test]
fn direct_reply_lost_with_its_connection_costs_no_other_request_anything() {
    let (broker, queue) = (Broker::shared(), queue_name("direct-lost"));
    if broker.version() >= (3, 10, 12) {
        return;
    }
    let (requests, replies) = (Proxy::to(broker.port(0)), Proxy::to(broker.port(0)));
    let (release, released) = bounded::<()>(0);
    let options = ServerOptions { prefetch: 3, ..Default::default() };
    let urls = format!("{},{}?heartbeat=0", requests.url(), replies.url());
    let serving = Serving::start(&urls, &queue, options, move |body| {
        let _ = released.recv_timeout(PATIENCE);
        Ok(body.to_vec())
    });
    requests.set(Mode::Refuse);
    let properties = || Properties::default().reply_to(DIRECT_REPLY_TO.as_bytes());
    let mut raw = request(broker, &queue, properties());
    release.send(()).unwrap();
    assert_eq!(raw.reply().body, b"7");
    await_value(|| serving.server.counters().served, |served| *served == 1);
    replies.set(Mode::Stall);
    for body in [b"8", b"9"] {
        let verdict = raw.publish("", queue.as_bytes(), &properties(), body);
        assert_eq!(verdict, Verdict::Confirmed);
    }
    queue::wait_until_taken(&broker.url(), &queue);
    drop(release);
    await_value(|| replies.held_back(), |held_back| *held_back > 0);
    replies.cut();
    replies.set(Mode::Forward);
    let mut bodies = [(); 2].map(|()| raw.reply().body);
    bodies.sort();
    assert_eq!(bodies, [b"8", b"9"]);
    let counters = serving.stop();
    assert_eq!(counters.redelivered, 1, "{counters:?}");
}
