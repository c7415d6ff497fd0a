//! Hostile requests from many connections, while good clients call: each good call gets the right
//! answer, and the server does not grow.
//!
//! `scripts/hostile.sh` sends them from 10,000 connections, and also limits how long the good calls
//! take.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{MakeProperties, NOT_UTF8, nested, none, usual};
use crate::broker::{Broker, queue_name, url};
use crate::embedded::connect_fibonacci;
use crate::patience::SetOnDrop;
use crate::programs::{rpc_server, stop};
use crate::raw::{Raw, entry, long};
use crate::settings;
use crate::usage::memory_of;

const GOOD_CLIENTS: usize = 8;
const HOSTILE_THREADS: usize = 4;
/// How much the server may grow, in kB: some bodies of 1 MB in its queues, and memory that the
/// allocator keeps.
const GROWTH: i64 = 16 << 10;
/// The slowest good call in 100 may take this many times as long as without hostile requests.
const SLOWER: u32 = 10;

/// Properties and body size of each request. Some reach the server; the broker refuses others.
const HOSTILE: [(MakeProperties, usize); 12] = [
    (|_| none(), 1),
    (|_| none().correlation_id(b"id"), 1),
    (|_| none().reply_to(b"no such queue"), 1),
    (|_| usual(b"amq.rabbitmq.reply-to.g1h2AA9nZW5lcmF0ZWRAOTk5OTkAAAABAAAAAAAAAAA=.aGVsbG8="), 1),
    (|_| usual(NOT_UTF8), 1),
    (|queue| none().correlation_id(NOT_UTF8).reply_to(queue), 1),
    (|queue| usual(queue).expiration(NOT_UTF8), 1),
    (|queue| none().headers(&nested(b'F', 2_000)).correlation_id(b"id").reply_to(queue), 1),
    (|queue| none().headers(&entry(NOT_UTF8, b'S', &long(NOT_UTF8))).reply_to(queue), 1),
    (usual, 0),
    (usual, 1 << 20),
    (|queue| usual(queue).property(3, b"\x20a".to_vec()), 1),
];

#[test]
fn good_calls_are_answered_during_hostile_requests() {
    let connections = settings::number("RABBITMQ_RPC_HOSTILE");
    let is_long = connections.is_some();
    let connections = connections.unwrap_or(200) as usize;
    let queue = queue_name("hostile-load");
    let mut server = rpc_server(&queue, &["--workers", "2"]);

    let quiet = p99_of_good_calls(&queue, || thread::sleep(Duration::from_secs(1)));
    let before = memory_of(server.pid()).unwrap();
    let disturbed = p99_of_good_calls(&queue, || send_hostile(&queue, connections, server.pid()));
    let after = memory_of(server.pid()).unwrap();

    println!("p99 of good calls: {quiet:?}, among {connections} hostile connections {disturbed:?}");
    println!("server: {before} kB before, {after} kB after");
    assert!(after - before < GROWTH, "the server grew from {before} kB to {after} kB");
    // A short run has too few calls to judge the slowest.
    assert!(!is_long || disturbed < SLOWER * quiet, "{disturbed:?} after {quiet:?}");
    stop(&mut server);
}

/// Lets the good clients call while `meanwhile` runs.
fn p99_of_good_calls(queue: &str, meanwhile: impl FnOnce()) -> Duration {
    let stop = AtomicBool::new(false);
    let call = || {
        let client = connect_fibonacci(&url(), queue);
        let mut took = Vec::new();
        loop {
            let began = Instant::now();
            assert_eq!(client.call(10), Ok(55));
            took.push(began.elapsed());
            if stop.load(Ordering::Relaxed) {
                return took;
            }
        }
    };
    let mut took = thread::scope(|scope| {
        let callers: Vec<_> = (0..GOOD_CLIENTS).map(|_| scope.spawn(call)).collect();
        let stop = SetOnDrop(&stop);
        meanwhile();
        drop(stop);
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
    });
    took.sort();
    took[took.len() * 99 / 100]
}

/// Sends each request on a connection of its own, which ends without a close method.
fn send_hostile(queue: &str, connections: usize, server: u32) {
    let next = AtomicUsize::new(0);
    let send = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= connections {
                return;
            }
            let (properties, length) = HOSTILE[number % HOSTILE.len()];
            let mut raw = Raw::connect(Broker::shared().port(0));
            let reply_queue = raw.reply_queue();
            let body = vec![b'9'; length];
            raw.publish("", queue.as_bytes(), &properties(reply_queue.as_bytes()), &body);
            if number % 1000 == 999 {
                println!("{number}: server {} kB", memory_of(server).unwrap());
            }
        }
    };
    thread::scope(|scope| (0..HOSTILE_THREADS).for_each(|_| drop(scope.spawn(send))));
}
