//! Servers that end while they work on a request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpValue, FieldTable};
use rabbitmq_rpc::{Brokers, Error, RpcServer, ServerOptions, fibonacci};

use crate::broker::{Broker, queue_name};
use crate::embedded::{connect, connect_fibonacci};
use crate::patience::{PATIENCE, SetOnDrop, poll};
use crate::process::Process;
use crate::programs::{RPC_SERVER, rpc_server};
use crate::random::Random;
use crate::raw::Raw;
use crate::{queue, settings};

#[test]
fn request_of_killed_server_goes_to_another() {
    let queue = queue_name("killed");
    let url = Broker::shared().url();
    let client = connect_fibonacci(&url, &queue);
    let mut first = rpc_server(&queue, &["--recursive"]);
    let mut raw = Raw::connect(Broker::shared().port(0));
    // This takes hours. The second server does not use recursion.
    raw.request(&queue, b"80");
    queue::wait_until_taken(&url, &queue);
    let mut second = rpc_server(&queue, &[]);
    first.kill();
    assert_eq!(raw.reply().body, b"23416728348467685");
    second.wait_for_line("is redelivered", PATIENCE);
    assert_eq!(client.call(7), Ok(13));
}

/// Servers are killed and started at random under the load of eight clients, for 10 s or for
/// `CHAOS_SECONDS`. `CHAOS_SEED` repeats the choices of a run.
#[test]
fn calls_are_answered_while_servers_are_killed_at_random() {
    let seconds = settings::number("CHAOS_SECONDS").unwrap_or(10);
    let seed = settings::seed("CHAOS_SEED");
    println!("CHAOS_SEED={seed}");
    let mut random = Random::new(seed);

    let queue = queue_name("chaos");
    let url = Broker::shared().url();
    let args = [["--workers", "2", "--prefetch", "1"], ["--workers", "1", "--prefetch", "8"]];
    let mut servers = vec![rpc_server(&queue, &args[0]), rpc_server(&queue, &args[1])];
    let stopped = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..8u64 {
            let (url, queue, stopped, answered) = (&url, &queue, &stopped, &answered);
            scope.spawn(move || {
                let client = connect_fibonacci(url, queue);
                let mut n = number;
                while !stopped.load(Ordering::Relaxed) {
                    n = (n + 7) % 187;
                    let began = Instant::now();
                    let reply = client.call(n);
                    assert_eq!(reply, Ok(fibonacci::fib(n)), "after {:?}", began.elapsed());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(client.client().counters().in_flight, 0);
            });
        }
        let _stop = SetOnDrop(&stopped);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut killed = 0;
        while Instant::now() < end {
            let before = answered.load(Ordering::Relaxed);
            let chosen = random.below(servers.len());
            if random.below(2) == 0 || servers.len() > 3 || killed == 0 {
                servers.remove(chosen).kill();
                killed += 1;
            }
            if servers.is_empty() || random.below(2) == 0 {
                servers.push(rpc_server(&queue, &random.pick(&args)));
            }
            // Some choices follow after many answers, others at once.
            let until = before + random.below(400);
            let is_enough = |answered: &usize| servers.is_empty() || *answered >= until;
            let left = end.saturating_duration_since(Instant::now());
            let _ = poll(left, || answered.load(Ordering::Relaxed), is_enough);
        }
        if servers.is_empty() {
            servers.push(rpc_server(&queue, &[]));
        }
        println!("{killed} servers killed, {} calls answered", answered.load(Ordering::Relaxed));
    });
}

#[test]
fn request_that_kills_its_servers_becomes_dead_letter() {
    let url = Broker::shared().url();
    let queue = queue_name("poison");
    let mut raw = Raw::connect(Broker::shared().port(0));
    let dead_letters = raw.reply_queue();
    let exchange = raw.fanout_to(&dead_letters);
    let limited = ["--queue-type", "quorum", "--delivery-limit", "2"];
    let limited = [&limited[..], &["--dead-letter-exchange", &exchange, "--recursive"]].concat();
    let mut server = rpc_server(&queue, &limited);
    let client = connect_fibonacci(&url, &queue);
    raw.request(&queue, b"60");
    for delivery in 0..3 {
        if delivery > 0 {
            let args = [&["--url", &url, "--queue", &queue], &limited[..]].concat();
            server = Process::spawn(RPC_SERVER, &args);
            server.wait_for_line("is redelivered", PATIENCE);
        } else {
            queue::wait_until_taken(&url, &queue);
        }
        server.kill();
    }
    let letter = raw.reply();
    assert_eq!(letter.body, b"60");
    let _server = rpc_server(&queue, &limited);
    assert_eq!(client.call(7), Ok(13));
}

#[test]
fn server_counts_redelivery_from_classic_queue() {
    let url = Broker::shared().url();
    let queue = queue_name("redelivered");
    let limit = FieldTable::from_iter([("x-max-length".to_string(), AmqpValue::LongInt(1000))]);
    queue::declare(&url, &queue, true, limit);
    let client = connect(&url, &queue);
    let call = client.send("work").unwrap();
    for round in 0..3 {
        let options = ServerOptions { drain_timeout: Duration::ZERO, ..Default::default() };
        let server = RpcServer::connect(Brokers::parse(&url).unwrap(), &queue, options).unwrap();
        let stopper = server.stopper();
        let (release, blocked) = crossbeam_channel::bounded::<()>(0);
        let last = round == 2;
        let served = server.serve(move |_| {
            stopper.stop();
            if !last {
                let _ = blocked.recv();
            }
            Ok(Vec::new())
        });
        drop(release);
        // In the last round the handler may return before or after the stop takes effect.
        if !last {
            assert!(matches!(served, Err(Error::TimedOut { .. })), "{served:?}");
        }
        assert_eq!(server.counters().redelivered, u64::from(round > 0));
    }
    drop(call);
}
