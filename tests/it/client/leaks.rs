//! Nothing leaks: neither memory nor threads nor descriptors nor calls nor connections.
//!
//! Memory, threads and descriptors belong to a process, so what is measured runs in one of its
//! own: this test binary again, with [`measured_process`] alone. `scripts/leaks.sh` makes it long.

use std::env;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{ClientCounters, RpcClient};

use super::counters_when;
use crate::broker::Broker;
use crate::embedded::{Serving, connect, connect_idempotent};
use crate::patience::await_value;
use crate::process::Process;
use crate::usage::Usage;

/// How much of each there is, short and long.
struct Amounts {
    calls: usize,
    cycles: usize,
    reconnects: u64,
    /// How long any part may take.
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

/// Says how long it is to be: `long`, or else short.
const LENGTH: &str = "RABBITMQ_RPC_LEAKS";
/// Tells the measured process where the broker is.
const URL: &str = "RABBITMQ_RPC_LEAKS_URL";
const QUEUE: &str = "leaks";
/// Each of them has its connection closed again and again, not sooner than a client takes for
/// normal: one that is thrown out within a second of connecting waits before the next try.
const CLIENTS: u64 = 10;

fn amounts() -> Amounts {
    match env::var(LENGTH).as_deref() {
        Ok("long") => LONG,
        _ => SHORT,
    }
}

/// The other side: the broker, the server, and the operator who closes connections.
#[test]
fn nothing_leaks() {
    let Amounts { cycles, limit, .. } = amounts();
    let broker = Broker::start();
    let _server = Serving::echo(&broker.url(), QUEUE);
    let this_binary = env::current_exe().unwrap();
    let mut measured = Process::from(
        Command::new(this_binary)
            .args(["--exact", "client::leaks::measured_process", "--nocapture"])
            .env(URL, broker.url()),
    );

    measured.wait_for_line("opened and closed", limit);
    let (good, bad) = await_value(
        || how_connections_ended(&broker.log(0)),
        |(good, bad)| good + bad.len() >= cycles,
    );
    assert!(bad.is_empty(), "{} connections were killed, not {good}: {}", bad.len(), bad[0]);

    measured.wait_for_line("close our connections", limit);
    broker.ctl(&["eval", &close_all_of(measured.pid())]);
    let status = measured.wait(limit);
    let figures: Vec<_> =
        measured.stdout().lines().filter(|line| line.contains(": ")).map(String::from).collect();
    println!("{}", figures.join("\n"));
    assert!(status.success(), "{}", measured.stderr());
}

/// How many of the connections that had logged in ended in good order, and what the broker says
/// of the others.
fn how_connections_ended(log: &str) -> (usize, Vec<String>) {
    let closing = |line: &&str| line.contains("closing AMQP connection") && line.contains("user:");
    let (good, bad): (Vec<_>, Vec<_>) =
        log.lines().filter(closing).partition(|line| line.contains("[info]"));
    (good.len(), bad.into_iter().map(String::from).collect())
}

/// An Erlang program for the broker that closes that process's connections again and again, as
/// `rabbitmqctl close_connection` does, which would take two seconds for each.
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

/// The process that is measured: does nothing unless [`nothing_leaks`] runs it.
#[test]
fn measured_process() {
    let Ok(url) = env::var(URL) else { return };
    let Amounts { calls, cycles, reconnects, limit } = amounts();

    // What stays for good with first use is no leak.
    call_and_give_up(&url, calls / 5);
    open_and_close(&url, cycles / 5);
    let before = Usage::of(std::process::id());

    let counters = call_and_give_up(&url, calls);
    report(&format!("{calls} calls, {} replies late", counters.late), before);
    open_and_close(&url, cycles);
    report(&format!("{cycles} clients opened and closed"), before);

    // Threads that come and go make the allocator settle anew.
    println!("close our connections");
    reconnect(&url, reconnects / 5, limit);
    let before = Usage::of(std::process::id());
    reconnect(&url, reconnects, limit);
    report(&format!("{reconnects} reconnects"), before);
}

/// Every hundredth call is given up before its reply comes.
fn call_and_give_up(url: &str, calls: usize) -> ClientCounters {
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

/// Clients that come and go, some of them with a call in flight.
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

fn reconnect(url: &str, reconnects: u64, limit: Duration) {
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect_idempotent(url, QUEUE)).collect();
    let reconnected = || clients.iter().map(|client| client.counters().reconnects).sum::<u64>();
    let deadline = Instant::now() + limit;
    loop {
        for client in &clients {
            assert_eq!(client.call("7").unwrap(), b"7");
        }
        if reconnected() >= reconnects {
            break;
        }
        assert!(Instant::now() < deadline, "{} reconnects", reconnected());
        thread::sleep(Duration::from_millis(10));
    }
    assert!(clients.iter().all(|client| client.counters().in_flight == 0));
    clients.into_iter().for_each(RpcClient::close);
}

/// Tells what has become of the process meanwhile, and fails if it has grown.
fn report(what: &str, before: Usage) {
    // A thread that has done its work takes a moment to end.
    let now = await_value(
        || Usage::of(std::process::id()),
        |now| now.threads <= before.threads && now.descriptors <= before.descriptors,
    );
    let grown = now.memory - before.memory;
    println!("{what}: {} kB resident, {grown:+} kB since the warm-up, {now:?}", now.memory);
    assert!(grown < 2048, "after {what} it has grown by {grown} kB from {before:?}");
}
