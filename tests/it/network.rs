//! A network that swallows packets: deadlines hold, the heartbeat ends the session, and another
//! broker takes over.

use std::time::{Duration, Instant};

use rabbitmq_rpc::{Brokers, ClientOptions, Error, RpcClient};

use crate::broker::{Broker, queue_name};
use crate::embedded::connect_fibonacci;
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{rpc_server_at, stop};
use crate::proxy::{Mode, Proxy};

/// A second of heartbeat is two of silence, and up to one more until that is noticed.
const HEARTBEAT: &str = "?heartbeat=1";

fn serving(url: &str, queue: &str) -> Process {
    rpc_server_at(url, queue, &["--connect-timeout", "1"])
}

fn client(urls: &str, queue: &str, idempotent: bool) -> RpcClient {
    let mut brokers = Brokers::parse(urls).unwrap();
    brokers.connect_timeout = Duration::from_secs(1);
    let options = ClientOptions { idempotent, ..ClientOptions::default() };
    RpcClient::connect(brokers, queue, options).unwrap()
}

#[test]
fn calls_keep_their_deadlines() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let _server = serving(&Broker::shared().url(), &queue);
    let client = client(&(proxy.url() + HEARTBEAT), &queue, false);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    proxy.set(Mode::Swallow);
    let second = Duration::from_secs(1);
    let until = Instant::now() + 6 * second;
    let mut errors = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        errors.push(client.call_timeout("7", second).expect_err("nothing comes through"));
        let took = began.elapsed();
        assert!(took < second + second / 2, "{took:?}: {errors:?}");
    }
    // Silence at first; then the heartbeat ends the session, and none comes about.
    assert!(matches!(errors[0], Error::TimedOut { sent: true, .. }), "{errors:?}");
    assert!(matches!(errors.last(), Some(Error::Unreachable { .. })), "{errors:?}");

    proxy.set(Mode::Forward);
    assert_eq!(client.call_timeout("7", PATIENCE), Ok(b"13".to_vec()));

    proxy.set(Mode::Swallow);
    let began = Instant::now();
    drop(client);
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
}

#[test]
fn the_next_broker_takes_over() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let _server = serving(&Broker::shared().url(), &queue);
    let urls = format!("{}{HEARTBEAT},{}", proxy.url(), Broker::shared().url());
    let client = client(&urls, &queue, false);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    proxy.set(Mode::Swallow);
    let began = Instant::now();
    let lost = client.call("7").expect_err("the request was swallowed");
    assert!(matches!(lost, Error::ConnectionLost { .. }), "{lost:?}");
    assert!(lost.to_string().contains("silent for two heartbeats"), "{lost}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());

    assert_eq!(client.call_timeout("7", Duration::from_secs(6)), Ok(b"13".to_vec()));
    assert_eq!(client.counters().reconnects, 1);
    // What was good last comes first: the swallowing one is not asked again.
    let began = Instant::now();
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn an_idempotent_call_is_sent_again_through_the_next_broker() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let _server = serving(&Broker::shared().url(), &queue);
    let urls = format!("{}{HEARTBEAT},{}", proxy.url(), Broker::shared().url());
    let client = connect_fibonacci(&urls, &queue);
    proxy.set(Mode::Swallow);
    assert_eq!(client.call(7), Ok(13));
}

#[test]
fn a_broker_that_takes_no_more_than_the_login_is_not_tried_for_ever() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let urls = format!("{},{}", proxy.url(), Broker::shared().url());
    let mut server = serving(&urls, &queue);
    let client = client(&urls, &queue, false);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    proxy.set(Mode::LoginsOnly);
    proxy.cut();
    server.wait_for_line("trying again", PATIENCE);
    let until = Instant::now() + PATIENCE;
    while let Err(error) = client.call_timeout("7", Duration::from_secs(5)) {
        assert!(Instant::now() < until, "{error}");
    }
}

#[test]
fn a_server_moves_to_the_next_broker() {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("network"));
    let urls = format!("{}{HEARTBEAT},{}", proxy.url(), Broker::shared().url());
    let mut server = serving(&urls, &queue);
    let client = client(&Broker::shared().url(), &queue, false);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));

    proxy.set(Mode::Swallow);
    // The broker misses the server's heartbeats too, and gives the request out again.
    assert_eq!(client.call_timeout("7", PATIENCE), Ok(b"13".to_vec()));
    let said = server.stderr();
    assert!(said.contains("silent for two heartbeats"), "{said}");
    stop(&mut server);
}
