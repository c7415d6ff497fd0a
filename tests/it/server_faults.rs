//! A server whose broker, connection, queue or fellow servers are taken away.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpValue, FieldTable};
use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, FibonacciRpcClient, RpcClient, RpcServer, ServerOptions,
    fibonacci,
};

use crate::basics::rpc_server;
use crate::broker::{Broker, queue_name};
use crate::process::Process;
use crate::queue;
use crate::raw::Raw;

const SOON: Duration = Duration::from_secs(30);

fn client(url: &str, queue: &str) -> FibonacciRpcClient {
    let brokers = Brokers::parse(url).unwrap();
    FibonacciRpcClient::with_options(brokers, queue, FibonacciRpcClient::options()).unwrap()
}

fn spawn_server(url: &str, queue: &str, args: &[&str]) -> Process {
    let args = [&["--url", url, "--queue", queue], args].concat();
    let mut server = Process::spawn(env!("CARGO_BIN_EXE_rpc_server"), &args);
    server.wait_for_line("Awaiting", SOON);
    server
}

#[test]
fn a_request_whose_server_is_killed_goes_to_another() {
    let queue = queue_name("killed");
    let url = Broker::shared().url();
    let client = client(&url, &queue);
    let mut first = rpc_server(&queue, &["--recursive"]);
    let mut raw = Raw::connect(Broker::shared().port(0));
    // Some seconds' work in a build for tests.
    raw.request(&queue, b"38");
    queue::wait_until_taken(&url, &queue);
    let mut second = rpc_server(&queue, &["--recursive"]);
    first.kill();
    assert_eq!(raw.reply().body, b"39088169");
    second.wait_for_line("a request comes again", SOON);
    assert_eq!(client.call(7), Ok(13));
}

/// Servers are killed and started at random under the load of eight clients, for 10 s or for as
/// many as CHAOS_SECONDS says; CHAOS_SEED repeats a run's choices.
#[test]
fn servers_killed_at_random_cost_no_call() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = number("CHAOS_SECONDS").unwrap_or(10);
    let seed = number("CHAOS_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u128() as u64);
    println!("CHAOS_SEED={seed}");
    let mut random = {
        let mut state = seed | 1;
        move |below: u64| {
            // Xorshift: enough for choosing victims.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        }
    };

    let queue = queue_name("chaos");
    let url = Broker::shared().url();
    let args = [["--workers", "2", "--prefetch", "1"], ["--workers", "1", "--prefetch", "8"]];
    let mut servers = vec![rpc_server(&queue, &args[0]), rpc_server(&queue, &args[1])];
    let over = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..8u64 {
            let (url, queue, over, answered) = (&url, &queue, &over, &answered);
            scope.spawn(move || {
                let client = client(url, queue);
                let mut n = number;
                while !over.load(Ordering::Relaxed) {
                    n = (n + 7) % 187;
                    let began = Instant::now();
                    let reply = client.call(n);
                    assert_eq!(reply, Ok(fibonacci::fib(n)), "after {:?}", began.elapsed());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(client.client().counters().in_flight, 0);
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut killed = 0;
        while Instant::now() < end {
            let before = answered.load(Ordering::Relaxed);
            let victim = random(servers.len() as u64) as usize;
            if random(2) == 0 || servers.len() > 3 {
                servers.remove(victim).kill();
                killed += 1;
            }
            if servers.is_empty() || random(2) == 0 {
                servers.push(rpc_server(&queue, &args[random(2) as usize]));
            }
            // Some choices come in the midst of work, others one upon the other.
            let until = before + random(400) as usize;
            while !servers.is_empty()
                && answered.load(Ordering::Relaxed) < until
                && Instant::now() < end
            {
                thread::sleep(Duration::from_millis(1));
            }
        }
        if servers.is_empty() {
            servers.push(rpc_server(&queue, &[]));
        }
        over.store(true, Ordering::Relaxed);
        println!("{killed} servers killed, {} calls answered", answered.load(Ordering::Relaxed));
        assert!(killed > 0);
    });
}

#[test]
fn a_request_that_kills_its_servers_ends_as_a_dead_letter() {
    let url = Broker::shared().url();
    let queue = queue_name("poison");
    let mut raw = Raw::connect(Broker::shared().port(0));
    let dead_letters = raw.reply_queue();
    let exchange = raw.fanout_to(&dead_letters);
    let limited = ["--queue-type", "quorum", "--delivery-limit", "2"];
    let limited = [&limited[..], &["--dead-letter-exchange", &exchange, "--recursive"]].concat();
    let mut server = rpc_server(&queue, &limited);
    let client = client(&url, &queue);
    raw.request(&queue, b"60");
    for delivery in 0..3 {
        if delivery > 0 {
            let args = [&["--url", &url, "--queue", &queue], &limited[..]].concat();
            server = Process::spawn(env!("CARGO_BIN_EXE_rpc_server"), &args);
            server.wait_for_line("a request comes again", SOON);
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
fn at_start_a_broker_that_does_not_answer_ends_the_server() {
    // It accepts as the system does, and never says a word.
    let black_hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://127.0.0.1:{}", black_hole.local_addr().unwrap().port());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let closed = format!("amqp://127.0.0.1:{closed}");
    for (url, least) in [(url, 500), (closed, 0)] {
        let began = Instant::now();
        let args = ["--url", &url, "--connect-timeout", "0.5"];
        let mut server = Process::spawn(env!("CARGO_BIN_EXE_rpc_server"), &args);
        assert_eq!(server.wait(SOON).code(), Some(69), "{}", server.stderr());
        let took = began.elapsed();
        assert!((Duration::from_millis(least)..Duration::from_secs(4)).contains(&took), "{took:?}");
        let address = url.strip_prefix("amqp://").unwrap();
        assert!(server.stderr().contains(address), "{}", server.stderr());
    }
}

#[test]
fn a_queue_deleted_under_a_server_is_made_again() {
    let url = Broker::shared().url();
    let queue = queue_name("deleted");
    let mut server = rpc_server(&queue, &["--workers", "3"]);
    let client = client(&url, &queue);
    for _ in 0..2 {
        assert_eq!(client.call(7), Ok(13));
        let mut other = queue::connect(&url);
        let channel = other.open_channel(None).unwrap();
        channel.queue_delete(queue.as_str(), Default::default()).unwrap();
        other.close().unwrap();
        server.wait_for_line("the request queue was deleted", SOON);
        server.wait_for_line("taking requests", SOON);
    }
    let began = Instant::now();
    while client.call(7) != Ok(13) {
        assert!(began.elapsed() < SOON);
    }
    server.signal("TERM");
    assert_eq!(server.wait(SOON).code(), Some(0), "{}", server.stderr());
}

/// What hurts a node is done to one node of this test's own, since each takes seconds to start.
#[test]
fn a_server_outlives_what_happens_to_its_broker() {
    let broker = Broker::start();
    the_operator_closes_its_connection(&broker);
    the_broker_closes_its_channel_for_being_slow(&broker);
    it_loses_its_permissions_for_good(&broker);
    its_node_is_killed_and_comes_back(&broker);
    its_node_freezes_while_it_stops(&broker);
}

fn the_operator_closes_its_connection(broker: &Broker) {
    let queue = queue_name("closed");
    let mut server = spawn_server(&broker.url(), &queue, &["--workers", "2"]);
    let client = client(&broker.url(), &queue);
    assert_eq!(client.call(7), Ok(13));
    broker.ctl(&["close_all_connections", "maintenance of the cellar"]);
    let line = server.wait_for_line("trying again in", SOON);
    assert!(line.contains("maintenance of the cellar"), "{line}");
    server.wait_for_line("taking requests", SOON);
    assert_eq!(client.call(7), Ok(13));
    let tries = server.stderr().lines().filter(|line| line.contains("trying again")).count();
    assert_eq!(tries, 1, "{}", server.stderr());
}

/// RabbitMQ closes a channel on which a delivery waits for its acknowledgement past the
/// [consumer timeout](https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).
fn the_broker_closes_its_channel_for_being_slow(broker: &Broker) {
    let set = |name: &str, value: &str| {
        broker.ctl(&["eval", &format!("application:set_env(rabbit, {name}, {value}).")]);
    };
    set("consumer_timeout", "1500");
    set("channel_tick_interval", "200");
    let queue = queue_name("slow");
    let brokers = Brokers::parse(&broker.url()).unwrap();
    let options = ServerOptions { workers: 2, ..Default::default() };
    let server = Arc::new(RpcServer::connect(brokers.clone(), &queue, options).unwrap());
    let stopper = server.stopper();
    // The first to have the slow request works on it until another has it too.
    let slow = AtomicUsize::new(0);
    let (again, comes_again) = crossbeam_channel::bounded::<()>(1);
    let both = Barrier::new(2);
    let serving = Arc::clone(&server);
    let serving = thread::spawn(move || {
        serving.serve(move |request: &[u8]| {
            match request {
                b"slow" if slow.fetch_add(1, Ordering::Relaxed) == 0 => {
                    comes_again.recv_timeout(SOON).unwrap();
                }
                b"slow" => again.send(()).unwrap(),
                _ => drop(both.wait()),
            }
            Ok(request.to_vec())
        })
    });
    let client = RpcClient::connect(brokers, &queue, ClientOptions::default()).unwrap();
    assert_eq!(client.call("slow"), Ok(b"slow".to_vec()));
    set("consumer_timeout", "1800000");
    // Either of these is answered only while both workers are at work.
    let calls = [client.send("both").unwrap(), client.send("both").unwrap()];
    for call in calls {
        assert_eq!(call.wait(), Ok(b"both".to_vec()));
    }
    assert_eq!(server.counters().redelivered, 1);
    stopper.stop();
    assert_eq!(serving.join().unwrap(), Ok(()));
    set("channel_tick_interval", "60000");
}

fn it_loses_its_permissions_for_good(broker: &Broker) {
    broker.ctl(&["add_user", "ann", "first secret"]);
    broker.ctl(&["set_permissions", "ann", ".*", ".*", ".*"]);
    let url = broker.url().replace("guest:guest", "ann:first%20secret");
    let queue = queue_name("refused");
    let mut with_password = spawn_server(&url, &queue, &[]);
    broker.ctl(&["change_password", "ann", "second secret"]);
    broker.ctl(&["close_all_connections", "new passwords"]);
    assert_eq!(with_password.wait(SOON).code(), Some(77), "{}", with_password.stderr());
    let said = with_password.stderr();
    assert!(said.contains("refused the login of user \"ann\": check"), "{said}");

    let url = url.replace("first", "second");
    let mut with_permission = spawn_server(&url, &queue, &[]);
    broker.ctl(&["set_permissions", "ann", "", "", ""]);
    broker.ctl(&["close_all_connections", "new permissions"]);
    assert_eq!(with_permission.wait(SOON).code(), Some(77), "{}", with_permission.stderr());
    let said = with_permission.stderr();
    assert!(said.contains("user \"ann\" lacks the permission"), "{said}");
    assert!(said.contains(&format!("queue '{queue}'")), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

fn its_node_is_killed_and_comes_back(broker: &Broker) {
    let queue = queue_name("restart");
    let mut server = spawn_server(&broker.url(), &queue, &["--workers", "2"]);
    let stopped = spawn_server(&broker.url(), &queue, &[]);
    let client = client(&broker.url(), &queue);
    assert_eq!(client.call(7), Ok(13));
    broker.kill(0);
    server.wait_for_line("trying again in", SOON);

    // One that is told to stop meanwhile does not wait for the broker.
    let mut stopped = stopped;
    stopped.wait_for_line("trying again in", SOON);
    stopped.signal("TERM");
    assert_eq!(stopped.wait(Duration::from_secs(10)).code(), Some(0), "{}", stopped.stderr());

    broker.start_node(0);
    let began = Instant::now();
    server.wait_for_line("taking requests", SOON);
    let took = began.elapsed();
    println!("took requests again {took:?} after the node did");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(client.call(7), Ok(13));
    server.signal("TERM");
    assert_eq!(server.wait(SOON).code(), Some(0), "{}", server.stderr());
}

fn its_node_freezes_while_it_stops(broker: &Broker) {
    let queue = queue_name("frozen");
    let mut idle = spawn_server(&broker.url(), &queue, &["--drain-timeout", "1"]);
    broker.freeze(0);
    idle.signal("TERM");
    let ended = idle.wait(Duration::from_secs(10));
    broker.thaw(0);
    assert_eq!(ended.code(), Some(0), "{}", idle.stderr());
}

#[test]
fn a_classic_queue_says_only_that_a_request_comes_again() {
    let url = Broker::shared().url();
    let queue = queue_name("redelivered");
    let limit = FieldTable::from_iter([("x-max-length".to_string(), AmqpValue::LongInt(1000))]);
    queue::declare(&url, &queue, true, limit);
    let brokers = Brokers::parse(&url).unwrap();
    let client = RpcClient::connect(brokers.clone(), &queue, ClientOptions::default()).unwrap();
    let call = client.send("work").unwrap();
    for round in 0..3 {
        let options = ServerOptions { drain_timeout: Duration::ZERO, ..Default::default() };
        let server = RpcServer::connect(brokers.clone(), &queue, options).unwrap();
        let stopper = server.stopper();
        let (never, hangs) = crossbeam_channel::bounded::<()>(0);
        let last = round == 2;
        let served = server.serve(move |_| {
            stopper.stop();
            if !last {
                let _ = hangs.recv();
            }
            Ok(Vec::new())
        });
        drop(never);
        if !last {
            assert!(matches!(served, Err(Error::TimedOut { .. })), "{served:?}");
        }
        assert_eq!(server.counters().redelivered, u64::from(round > 0));
    }
    drop(call);
}
