//! A network that delivers nothing: calls keep their deadlines, missing heartbeats end the session,
//! and client and server go to the next broker.

use std::env;
use std::io::stdin;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{Brokers, Error, RpcServer, ServerOptions};

use crate::broker::{Broker, queue_name};
use crate::embedded::{connect, connect_fibonacci};
use crate::patience::{AT_ONCE, PATIENCE, SECOND, await_value};
use crate::process::Process;
use crate::programs::{RPC_CLIENT, RPC_SERVER, rpc_server, rpc_server_at, stop};
use crate::proxy::{Mode, Proxy};
use crate::queue;

/// The URL through that proxy. With a heartbeat of one second, silence is noticed after two to
/// three seconds; a failed attempt to connect takes three seconds.
fn through(proxy: &Proxy) -> String {
    proxy.url() + "?heartbeat=1&connection_timeout=3000"
}

#[test]
fn calls_keep_deadlines_before_and_after_session_is_lost() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let _server = rpc_server(&queue, &[]);
    // Silence is noticed, and an attempt to connect fails, long after the deadline of a call.
    let client = connect(&format!("{}?heartbeat=6&connection_timeout=20000", proxy.url()), &queue);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    proxy.set(Mode::Stall);
    let fail = || {
        let began = Instant::now();
        let error = client.call_timeout("7", 2 * SECOND).expect_err("the network delivers nothing");
        let took = began.elapsed();
        assert!(took < 10 * SECOND, "{took:?}: {error:?}");
        error
    };
    // At first the session is only silent. Then missing heartbeats end it, and there is no other.
    let error = fail();
    assert!(matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
    await_value(fail, |error| matches!(error, Error::Unreachable { .. }));

    proxy.set(Mode::Forward);
    assert_eq!(client.call_timeout("7", PATIENCE), Ok(b"13".to_vec()));

    proxy.set(Mode::Stall);
    let began = Instant::now();
    drop(client);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[test]
fn programs_wait_for_a_broker_that_is_not_up_yet() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("not-up"));
    let url = proxy.url();
    let start = |program, more: &[&str]| {
        proxy.set(Mode::Refuse);
        let before = proxy.tries();
        let args = ["--url", &url, "--queue", &queue, "--wait", "60"];
        let process = Process::spawn(program, &[&args[..], more].concat());
        await_value(|| proxy.tries() - before, |tries| *tries >= 3);
        proxy.set(Mode::Forward);
        process
    };
    let mut server = start(RPC_SERVER, &[]);
    server.wait_for_line("Awaiting RPC requests", PATIENCE);
    start(RPC_CLIENT, &["7"]).wait_for_stdout(|numbers| numbers == "13\n", PATIENCE);
    stop(&mut server);
}

#[test]
fn first_connection_is_retried_only_until_the_wait_is_over() {
    let proxy = Proxy::to(Broker::shared().port(0));
    proxy.set(Mode::Refuse);
    let mut brokers = Brokers::parse(&proxy.url()).unwrap();
    for wait in [Duration::ZERO, 3 * SECOND] {
        let (began, before) = (Instant::now(), proxy.tries());
        brokers.wait = wait;
        let error = RpcServer::connect(brokers.clone(), "any", ServerOptions::default());
        assert!(matches!(error, Err(Error::Unreachable { .. })), "{error:?}");
        // With the last pause at most 2 s more. Connecting may take 10 s in all.
        assert!((wait..wait + 5 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
        assert_eq!(proxy.tries() - before > 1, !wait.is_zero());
    }
}

#[test]
fn the_next_broker_takes_over() {
    let [first, second] = [(); 2].map(|()| Proxy::to(Broker::shared().port(0)));
    let queue = queue_name("network");
    let _server = rpc_server(&queue, &[]);
    let urls = format!("{},{}", through(&first), second.url());
    let client = connect(&urls, &queue);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    first.set(Mode::Stall);
    let lost = client.call("7").expect_err("the request was lost");
    assert!(matches!(lost, Error::ConnectionLost { .. }), "{lost:?}");
    assert!(lost.to_string().contains("silent for two heartbeats"), "{lost}");
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));
    let tries = || [client.counters().reconnects as usize, first.tries(), second.tries()];
    assert_eq!(tries(), [1, 1, 1], "the silent broker is not tried again");

    // The broker that worked last is tried first.
    second.cut();
    assert_eq!(await_value(|| client.call("7"), Result::is_ok), Ok(b"13".to_vec()));
    assert_eq!(tries(), [2, 1, 2]);
}

/// The environment variables of [`client_that_sends_a_large_request`].
const URL: &str = "RABBITMQ_RPC_LARGE_REQUEST_URL";
const QUEUE: &str = "RABBITMQ_RPC_LARGE_REQUEST_QUEUE";

/// Sends one request through a network that does not take all of it. Does nothing unless
/// [`connection_ends_when_poll_fails_inside_a_message`] runs it.
#[test]
fn client_that_sends_a_large_request() {
    let Ok(url) = env::var(URL) else { return };
    env_logger::init();
    let client = connect(&url, &env::var(QUEUE).unwrap());
    println!("connected");
    stdin().read_line(&mut String::new()).unwrap();
    let sent = client.send_timeout(vec![7; 64 << 20], PATIENCE / 2).map(drop);
    println!("ended: {sent:?}");
}

/// `poll` fails if a process may have fewer open files than it polls. No frame may follow the part
/// of the message that was written.
#[test]
fn connection_ends_when_poll_fails_inside_a_message() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("poll"));
    queue::declare_durable(&Broker::shared().url(), &queue);
    let mut command = Command::new(env::current_exe().unwrap());
    let role = ["--exact", "network::client_that_sends_a_large_request", "--nocapture"];
    // The broker does not notice the silence before the client does.
    let url = proxy.url() + "?heartbeat=0";
    let mut client = Process::with_stdin(command.args(role).env(URL, url).env(QUEUE, &queue));
    client.wait_for_line("connected", PATIENCE);
    // The broker then has nothing more to send, so the reading thread stays in `poll`, and the
    // writer's call of `poll` fails first. Nothing reports that nothing more comes.
    thread::sleep(SECOND / 2);
    proxy.set(Mode::Stall);
    client.write_stdin("send\n");
    await_value(|| proxy.held_back(), |held_back| *held_back > 0);
    let limit = format!("--pid={}", client.pid());
    let limited = Command::new("prlimit").args([&limit, "--nofile=0"]).status().unwrap();
    assert!(limited.success());
    // The next write fills the socket again.
    proxy.set(Mode::Forward);
    let line = client.wait_for_line("ended", PATIENCE);
    assert!(line.contains("Too many open files"), "it connects anew: {line}");
    await_value(|| client.stderr().contains("waiting for room to write"), |has_come| *has_come);
    let look = Broker::shared().ctl(&["list_queues", "name", "messages"]);
    assert!(look.contains(&format!("{queue}\t0")), "the request is incomplete: {look}");
}

#[test]
fn idempotent_call_is_sent_again_through_next_broker() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let _server = rpc_server(&queue, &[]);
    let urls = format!("{},{}", through(&proxy), Broker::shared().url());
    let client = connect_fibonacci(&urls, &queue);
    proxy.set(Mode::Stall);
    assert_eq!(client.call(7), Ok(13));
}

#[test]
fn client_and_server_leave_broker_that_stalls_after_login() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let urls = format!("{},{}", through(&proxy), Broker::shared().url());
    let mut server = rpc_server_at(&urls, &queue, &[]);
    let client = connect(&urls, &queue);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    proxy.set(Mode::LoginsOnly);
    proxy.cut();
    server.wait_for_line("trying again", PATIENCE);
    let reply = await_value(|| client.call_timeout("7", 5 * SECOND), Result::is_ok);
    assert_eq!(reply, Ok(b"13".to_vec()));
}

#[test]
fn server_moves_to_next_broker() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let urls = format!("{},{}", through(&proxy), Broker::shared().url());
    let mut server = rpc_server_at(&urls, &queue, &[]);
    let client = connect(&Broker::shared().url(), &queue);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    proxy.set(Mode::Stall);
    // The broker misses the server's heartbeats too, and delivers the request again.
    assert_eq!(client.call_timeout("7", PATIENCE), Ok(b"13".to_vec()));
    await_value(|| server.stderr().contains("silent for two heartbeats"), |has_come| *has_come);
    // A stop is orderly once the broker has noticed the end of the first connection for certain,
    // after two heartbeats: it then had the replies, or delivered their requests again.
    thread::sleep(2 * SECOND);
    stop(&mut server);
}

/// The broker answers queries about the queue, and does not answer basic.consume. A cluster node did
/// so after a partition.
#[test]
fn server_leaves_broker_that_does_not_let_it_consume() {
    let broker = Broker::fragile();
    let queue = queue_name("unconsumable");
    let proxies = [Proxy::to(broker.port(0)), Proxy::to(broker.port(0))];
    let urls = proxies.each_ref().map(Proxy::url);
    let args = ["--queue-type", "quorum", "--connect-timeout", "3"];
    stop(&mut rpc_server_at(&urls[0], &queue, &args));

    let quorum_leader = |what: &str| broker.ctl(&["eval", &format!("sys:{what}('%2F_{queue}').")]);
    quorum_leader("suspend");
    let all = urls.join(",");
    let args = [&["--url", &all, "--queue", &queue], &args[..]].concat();
    let mut server = Process::spawn(RPC_SERVER, &args);
    for url in urls {
        let port = url.rsplit(':').next().unwrap().split('/').next().unwrap();
        let failed = format!("no working connection to 127.0.0.1:{port}");
        let line = server.wait_for_line(&failed, PATIENCE);
        assert!(line.contains("did not answer in time"), "{line}");
    }
    quorum_leader("resume");
    server.wait_for_line("taking requests", PATIENCE);
}

#[test]
fn server_stops_at_once_while_its_connection_is_set_up() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let mut server = rpc_server_at(&proxy.url(), &queue, &["--connect-timeout", "60"]);
    proxy.set(Mode::LoginsOnly);
    proxy.cut();
    // It logs in, asks for a channel, and gets no answer.
    await_value(|| proxy.logins(), |logins| *logins == 2);
    await_value(|| proxy.held_back(), |held_back| *held_back > 0);
    server.signal("TERM");
    let ended = server.ends_within(AT_ONCE).expect("it waits for no answer");
    assert_eq!(ended.code(), Some(0), "{}", server.stderr());
}
