//! A client leaks no memory, threads, descriptors, calls or connections.
//!
//! Memory, threads and descriptors belong to a process, so the measured client runs in a process of
//! its own: this test binary again, with [`measured_process`] alone. `scripts/leaks.sh` runs it
//! longer.

use std::env;
use std::process::Command;
use std::time::Duration;

use rabbitmq_rpc::{
    Brokers, ClientCounters, ClientOptions, RpcClient, RpcServer, Served, ServerOptions, Worker,
    fibonacci,
};

use super::counters_when;
use crate::broker::Broker;
use crate::embedded::{Serving, connect, connect_idempotent};
use crate::patience::{await_value, poll};
use crate::process::Process;
use crate::usage::Usage;

/// How many calls, clients and reconnects are measured.
struct Amounts {
    calls: usize,
    cycles: usize,
    reconnects: u64,
    /// How long each part may take.
    limit: Duration,
}

const SHORT: Amounts =
    Amounts { calls: 20_000, cycles: 200, reconnects: 50, limit: Duration::from_secs(120) };
const LONG: Amounts = Amounts {
    calls: 1_000_000,
    cycles: 5_000,
    reconnects: 1_000,
    limit: Duration::from_secs(3600),
};

/// The environment variable that selects [`LONG`], if it is `long`.
const LENGTH: &str = "RABBITMQ_RPC_LEAKS";
/// The environment variable with the broker's URL for the measured process.
const URL: &str = "RABBITMQ_RPC_LEAKS_URL";
/// The environment variable with the URL of a virtual host that takes no queues.
const FULL_URL: &str = "RABBITMQ_RPC_LEAKS_FULL_URL";
const QUEUE: &str = "leaks";
/// The number of clients that reconnect. The broker closes each connection when it is older than a
/// second, since a client that loses a younger connection waits before it connects again.
const CLIENTS: u64 = 10;

fn amounts() -> Amounts {
    match env::var(LENGTH).as_deref() {
        Ok("long") => LONG,
        _ => SHORT,
    }
}

/// Runs the broker and the server, and closes connections as an operator does.
#[test]
fn nothing_leaks() {
    let Amounts { cycles, limit, .. } = amounts();
    let broker = Broker::start();
    let _server = Serving::echo(&broker.url(), QUEUE);
    let full_url = broker.virtual_host("leaks-full");
    let (_, full) = full_url.rsplit_once('/').unwrap();
    broker.ctl(&["set_vhost_limits", "-p", full, r#"{"max-queues": 0}"#]);
    let this_binary = env::current_exe().unwrap();
    let mut measured = Process::from(
        Command::new(this_binary)
            .args(["--exact", "client::leaks::measured_process", "--nocapture"])
            .env(URL, broker.url())
            .env(FULL_URL, full_url)
            // glibc keeps some memory for each thread that was there at once with others.
            .env("MALLOC_ARENA_MAX", "1"),
    );

    measured.wait_for_line("opened and closed", limit);
    let (good, bad) = await_value(
        || how_connections_ended(&broker.log(0)),
        |(good, bad)| good + bad.len() >= cycles,
    );
    assert!(
        bad.is_empty(),
        "{} connections ended without a close, {good} with one: {}",
        bad.len(),
        bad[0]
    );

    measured.wait_for_line("close our connections", limit);
    broker.ctl(&["eval", &close_all_of(measured.pid())]);
    let status = measured.wait(limit);
    let figures: Vec<_> =
        measured.stdout().lines().filter(|line| line.contains(": ")).map(String::from).collect();
    println!("{}", figures.join("\n"));
    assert!(status.success(), "{}", measured.stderr());
}

/// How many of the connections that had been set up were closed, and the log lines of those that
/// were not.
fn how_connections_ended(log: &str) -> (usize, Vec<String>) {
    let closing =
        |line: &&str| line.contains("closing AMQP connection") && line.contains("vhost: '/'");
    let (good, bad): (Vec<_>, Vec<_>) =
        log.lines().filter(closing).partition(|line| line.contains("[info]"));
    (good.len(), bad.into_iter().map(String::from).collect())
}

/// An Erlang program for the broker that closes this process's connections again and again. Running
/// `rabbitmqctl close_connection` would take two seconds for each.
fn close_all_of(process: u32) -> String {
    format!(
        r#"
        Ours = fun(Connection) ->
            [{{_, Properties}}] = rabbit_reader:info(Connection, [client_properties]),
            {{_, _, Text}} = lists:keyfind(<<"information">>, 1, Properties),
            binary:match(Text, <<"process {process}">>) =/= nomatch
        end,
        Close = fun(Connection) -> rabbit_networking:close_connection(Connection, "again") end,
        Again = fun Again() ->
            timer:sleep(1100),
            [catch (Ours(C) andalso Close(C)) || C <- rabbit_networking:connections()],
            Again()
        end,
        spawn(Again)."#
    )
    .replace('\n', " ")
}

/// The process that is measured. Does nothing unless [`nothing_leaks`] runs it.
#[test]
fn measured_process() {
    let Ok(url) = env::var(URL) else { return };
    let full_url = env::var(FULL_URL).unwrap();
    let Amounts { calls, cycles, reconnects, limit } = amounts();

    // The first use allocates memory that is never freed. That is no leak.
    call_and_abandon(&url, calls / 5);
    open_and_close(&url, cycles / 5);
    lend_workers(&url, 2);
    fail_to_open(&full_url, 2);
    let before = Usage::of(std::process::id());

    let counters = call_and_abandon(&url, calls);
    report(&format!("{calls} calls, {} replies late", counters.late), before);
    lend_workers(&url, cycles / 10);
    report(&format!("{} servers lent a worker", cycles / 10), before);
    fail_to_open(&full_url, cycles / 10);
    report(&format!("{} clients that the broker gave no reply queue", cycles / 10), before);
    open_and_close(&url, cycles);
    report(&format!("{cycles} clients opened and closed"), before);

    // Threads that start and end change the allocator's arenas, so this part has its own warm-up.
    println!("close our connections");
    reconnect(&url, reconnects / 5, limit);
    let before = Usage::of(std::process::id());
    reconnect(&url, reconnects, limit);
    report(&format!("{reconnects} reconnects"), before);
}

/// Makes calls, and drops every hundredth before its reply arrives.
fn call_and_abandon(url: &str, calls: usize) -> ClientCounters {
    const IN_FLIGHT: usize = 50;
    let client = connect(url, QUEUE);
    for first in (0..calls).step_by(IN_FLIGHT) {
        let mut sent = Vec::new();
        for n in first..first + IN_FLIGHT {
            let call = client.send(n.to_string()).unwrap();
            match n % 100 {
                99 => drop(call),
                _ => sent.push((n, call)),
            }
        }
        for (n, call) in sent {
            assert_eq!(call.wait().unwrap(), n.to_string().as_bytes());
        }
    }
    let calls = calls as u64;
    let counters = counters_when(&client, |counters| counters.replies + counters.late == calls);
    assert_eq!((counters.calls, counters.timed_out, counters.in_flight), (calls, 0, 0));
    counters
}

/// Opens and closes clients, some of them with a call in flight.
fn open_and_close(url: &str, cycles: usize) {
    for cycle in 0..cycles {
        let client = connect(url, QUEUE);
        match cycle % 4 {
            0 => assert_eq!(client.call("7").unwrap(), b"7"),
            1 => drop(client.send("7").unwrap()),
            2 => drop((0..20).map(|n| client.send(n.to_string())).collect::<Vec<_>>()),
            _ => {}
        }
        client.close();
    }
}

/// Servers that are dropped right after they have lent a worker.
fn lend_workers(url: &str, servers: usize) {
    for _ in 0..servers {
        let brokers = Brokers::parse(url).unwrap();
        let server = RpcServer::connect(brokers, "leaks-lent", ServerOptions::default()).unwrap();
        let none = |worker: &Worker<'_>| worker.serve_one(fibonacci::answer, Duration::ZERO);
        assert_eq!(server.with_worker(none), Ok(Served::Nothing));
    }
}

/// Clients whose connection succeeds, and nothing after it.
fn fail_to_open(url: &str, clients: usize) {
    for _ in 0..clients {
        let brokers = Brokers::parse(url).unwrap();
        let error = RpcClient::connect(brokers, QUEUE, ClientOptions::default()).unwrap_err();
        assert!(error.to_string().contains("reply queue"), "{error}");
    }
}

fn reconnect(url: &str, reconnects: u64, limit: Duration) {
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect_idempotent(url, QUEUE)).collect();
    let reconnected = || {
        clients.iter().for_each(|client| assert_eq!(client.call("7").unwrap(), b"7"));
        clients.iter().map(|client| client.counters().reconnects).sum::<u64>()
    };
    let done = poll(limit, reconnected, |done| *done >= reconnects);
    done.unwrap_or_else(|done| panic!("{done} reconnects"));
    assert!(clients.iter().all(|client| client.counters().in_flight == 0));
    clients.into_iter().for_each(RpcClient::close);
}

/// Prints how the process has grown since `before`, and fails if it has grown too much.
fn report(what: &str, before: Usage) {
    // A thread that has finished takes a moment to end.
    let now = await_value(
        || Usage::of(std::process::id()),
        |now| now.threads <= before.threads && now.descriptors <= before.descriptors,
    );
    let grown = now.memory - before.memory;
    println!("{what}: {} kB resident, {grown:+} kB since the warm-up, {now:?}", now.memory);
    assert!(grown < 2048, "the process grew by {grown} kB in {what}, from {before:?}");
}
