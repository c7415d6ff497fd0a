//! A server that has not connected yet: it connects when it serves, and a stop ends the connecting.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{Brokers, Error, RpcServer, ServerOptions};

use crate::broker::{queue_name, url};
use crate::embedded::connect;
use crate::patience::{AT_ONCE, PATIENCE};
use crate::process::Process;
use crate::programs::{RPC_SERVER, stop};

fn new_server(url: &str, queue: &str, wait: Duration) -> RpcServer {
    let mut brokers = Brokers::parse(url).unwrap();
    (brokers.connect_timeout, brokers.wait) = (PATIENCE, wait);
    RpcServer::new(brokers, queue, ServerOptions::default()).unwrap()
}

fn upper_case(server: &RpcServer) -> Result<(), Error> {
    server.serve(|request| Ok(request.body().to_ascii_uppercase()))
}

#[test]
fn new_server_connects_when_it_serves() {
    let queue = queue_name("new");
    let server = new_server(&url(), &queue, Duration::ZERO);
    let stopper = server.stopper();
    let (ready, is_ready) = crossbeam_channel::bounded(1);
    let server = server.on_ready(move || ready.send(()).unwrap());
    let serving = thread::spawn(move || upper_case(&server));
    is_ready.recv_timeout(PATIENCE).unwrap();
    assert_eq!(connect(&url(), &queue).call("a").unwrap(), b"A");
    stopper.stop();
    assert_eq!(serving.join().unwrap(), Ok(()));
}

#[test]
fn new_server_lends_a_worker() {
    let queue = queue_name("new");
    let server = new_server(&url(), &queue, Duration::ZERO);
    let consumers = server.with_worker(|_| Ok(connect(&url(), &queue).queue()?.consumers));
    assert_eq!(consumers, Ok(1));
}

/// Without [`Brokers::wait`], the first failure is final, as it is for `RpcServer::connect`.
#[test]
fn new_server_that_finds_no_broker_ends_with_an_error() {
    let server = new_server("amqp://127.0.0.1:1", "q", Duration::ZERO);
    for _ in 0..2 {
        let error = upper_case(&server).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
}

#[test]
fn stop_ends_the_connecting_to_a_mute_broker() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://127.0.0.1:{}", mute.local_addr().unwrap().port());
    let server = new_server(&url, "q", PATIENCE);
    let stopper = server.stopper();
    let serving = thread::spawn(move || upper_case(&server));
    let accepted = mute.accept().unwrap();
    let began = Instant::now();
    stopper.stop();
    assert_eq!(serving.join().unwrap(), Ok(()));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    drop(accepted);
}

#[test]
fn server_that_is_stopped_before_it_serves_connects_to_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let server = new_server(&url, "q", PATIENCE);
    server.stopper().stop();
    assert_eq!(upper_case(&server), Ok(()));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn sigterm_ends_rpc_server_while_it_waits_for_a_broker() {
    let args = ["--url", "amqp://127.0.0.1:1", "--wait", "60"];
    let mut server = Process::spawn(RPC_SERVER, &args);
    server.wait_for_line("trying again in", PATIENCE);
    let began = Instant::now();
    stop(&mut server);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}
