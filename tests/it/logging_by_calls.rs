//! A client whose logger itself makes calls, as one that ships a program's log over the same broker.

use std::cell::Cell;
use std::env;
use std::io::stdin;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use rabbitmq_rpc::RpcClient;

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::patience::{AT_ONCE, PATIENCE};
use crate::process::Process;
use crate::proxy::Proxy;

/// The environment variables of [`client_that_ships_its_log`].
const URL: &str = "RABBITMQ_RPC_SHIPPED_LOG_URL";
const QUEUE: &str = "RABBITMQ_RPC_SHIPPED_LOG_QUEUE";

static CLIENT: OnceLock<RpcClient> = OnceLock::new();

/// Sends each line of this crate's log by a call, and prints it.
struct Shipper;

impl Log for Shipper {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        thread_local!(static SHIPS: Cell<bool> = const { Cell::new(false) });
        let Some(client) = CLIENT.get() else { return };
        if !record.target().starts_with("rabbitmq_rpc") {
            return;
        }
        let line = record.args().to_string();
        // A line that is logged during such a call is not shipped.
        let shipped = !SHIPS.replace(true) && {
            let shipped = client.call_timeout(line.as_bytes(), Duration::from_millis(500)).is_ok();
            SHIPS.set(false);
            shipped
        };
        println!("logged: {line} (shipped: {shipped})");
    }

    fn flush(&self) {}
}

/// Makes a call for each line of its input. Does nothing unless
/// [`calls_of_a_logger_do_not_hang_the_client`] runs it.
#[test]
fn client_that_ships_its_log() {
    let Ok(url) = env::var(URL) else { return };
    log::set_logger(&Shipper).unwrap();
    log::set_max_level(LevelFilter::Debug);
    let _ = CLIENT.set(connect(&url, &env::var(QUEUE).unwrap()));
    let client = CLIENT.get().expect("it is set");
    println!("connected");
    let mut line = String::new();
    while stdin().read_line(&mut line).unwrap() > 0 {
        let began = Instant::now();
        let reply = client.call_timeout("7", PATIENCE / 2).map(drop);
        println!("called: {:?} {reply:?}", began.elapsed() < AT_ONCE);
    }
}

#[test]
fn calls_of_a_logger_do_not_hang_the_client() {
    let (broker, queue) = (Broker::fragile(), queue_name("shipped"));
    let server = Serving::echo(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let mut command = Command::new(env::current_exe().unwrap());
    let role = ["--exact", "logging_by_calls::client_that_ships_its_log", "--nocapture"];
    command.args(role).env(URL, proxy.url()).env(QUEUE, &queue);
    let mut client = Process::with_stdin(&mut command);
    client.wait_for_line("connected", PATIENCE);
    let call = |client: &mut Process, words: &str| {
        client.write_stdin("call\n");
        let line = client.wait_for_line("called", PATIENCE);
        assert!(line.contains(words), "{line}");
    };
    call(&mut client, "called: true Ok");

    // The reader of the socket notices the end, and the next call that the session is lost.
    proxy.cut();
    client.wait_for_line("the connection has ended", PATIENCE);
    call(&mut client, "called: true");
    call(&mut client, "called: true Ok");

    // The broker tells a connection of an alarm when it publishes something. The caller itself
    // reads that.
    broker.raise_memory_alarm(0);
    client.write_stdin("call\n");
    client.wait_for_line("takes no messages at present", PATIENCE);
    broker.clear_memory_alarm(0);
    client.wait_for_line("takes messages again", PATIENCE);
    let line = client.wait_for_line("called", PATIENCE);
    assert!(line.contains("Ok"), "{line}");
    drop(client);
    server.stop();
}
