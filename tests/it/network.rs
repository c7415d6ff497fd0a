//! A network that delivers nothing: calls keep their deadlines, missing heartbeats end the session,
//! and client and server go to the next broker.

use std::time::Instant;

use rabbitmq_rpc::Error;

use crate::broker::{Broker, queue_name};
use crate::embedded::{connect, connect_fibonacci};
use crate::patience::{AT_ONCE, PATIENCE, SECOND, await_value};
use crate::process::Process;
use crate::programs::{RPC_SERVER, rpc_server, rpc_server_at, stop};
use crate::proxy::{Mode, Proxy};

/// The URL through that proxy. With a heartbeat of one second, silence is noticed after two to
/// three seconds; a failed attempt to connect takes one second.
fn through(proxy: &Proxy) -> String {
    proxy.url() + "?heartbeat=1&connection_timeout=1000"
}

#[test]
fn calls_keep_deadlines_before_and_after_session_is_lost() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let _server = rpc_server(&queue, &[]);
    let client = connect(&through(&proxy), &queue);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    proxy.set(Mode::Stall);
    let fail = || {
        let began = Instant::now();
        let error = client.call_timeout("7", SECOND).expect_err("the network delivers nothing");
        let took = began.elapsed();
        assert!(took < 2 * SECOND, "{took:?}: {error:?}");
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
    assert_eq!((client.counters().reconnects, second.tries()), (1, 1));

    // The broker that worked last is tried first, so the stalled one is not tried again.
    let tries = first.tries();
    second.cut();
    assert_eq!(await_value(|| client.call("7"), Result::is_ok), Ok(b"13".to_vec()));
    assert_eq!((client.counters().reconnects, first.tries()), (2, tries));
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
    let stderr = server.stderr();
    assert!(stderr.contains("silent for two heartbeats"), "{stderr}");
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
    let args = ["--queue-type", "quorum", "--connect-timeout", "1"];
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
fn server_stops_within_a_second_while_its_connection_is_set_up() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let mut server = rpc_server_at(&proxy.url(), &queue, &[]);
    proxy.set(Mode::LoginsOnly);
    proxy.cut();
    // It logs in, asks for a channel, and gets no answer.
    await_value(|| proxy.logins(), |logins| *logins == 2);
    await_value(|| proxy.held_back(), |held_back| *held_back > 0);
    server.signal("TERM");
    let ended = server.ends_within(SECOND).expect("it stops within a second");
    assert_eq!(ended.code(), Some(0), "{}", server.stderr());
}
