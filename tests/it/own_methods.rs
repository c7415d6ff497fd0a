//! The methods that a server answers itself: `rpc.ping`, and no other.

use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::bounded;
use rabbitmq_rpc::{
    Brokers, Error, Methods, Request, RpcClient, RpcServer, Served, ServerOptions, Status,
};
use serde_json::Value;

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect};
use crate::patience::{PATIENCE, await_value};
use crate::programs::rpc_server;
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, Verdict};

fn ping(client: &RpcClient) -> Result<Value, Error> {
    let pong = client.request("").method("rpc.ping").reply()?;
    assert_eq!(pong.content_type(), Some("application/json"));
    Ok(serde_json::from_slice(pong.body()).expect("the answer is JSON"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn worker_answers_ping_without_the_handler() {
    let queue = queue_name("ping");
    let version = Some("7.1 \"beta\"".to_string());
    let options = ServerOptions { version, ..Default::default() };
    let before = now();
    let methods = Methods::new().otherwise(|request| match request.body() {
        b"7" => Ok("13"),
        _ => panic!("a handler sees {:?}", request.method()),
    });
    let server = Serving::requests(&url(), &queue, options, methods);
    let client = connect(&url(), &queue);
    client.call("7").unwrap();
    let pong = ping(&client).unwrap();
    assert!(pong["program"].as_str().unwrap().starts_with("it-"), "{pong}");
    assert_eq!(pong["version"], "7.1 \"beta\"");
    assert_eq!(pong["pid"], std::process::id());
    assert!((before..=now()).contains(&pong["serving_since"].as_u64().unwrap()), "{pong}");
    assert_eq!((&pong["served"], &pong["failed"]), (&1.into(), &0.into()));
    assert_eq!(pong["in_progress"], 1);
    assert_eq!(ping(&client).unwrap()["served"], 2);
    assert_eq!(server.stop().served, 3);
}

#[test]
fn rpc_server_answers_ping_and_fibonacci_of_any_other_type() {
    let queue = queue_name("ping-program");
    let server = rpc_server(&queue, &[]);
    let client = connect(&url(), &queue);
    let pong = ping(&client).unwrap();
    assert_eq!((&pong["program"], &pong["pid"]), (&"rpc_server".into(), &server.pid().into()));
    assert_eq!(pong["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(client.request("7").method("rpc").call().unwrap(), b"13");
}

#[test]
fn unknown_method_of_the_server_reaches_no_handler() {
    let queue = queue_name("unknown-own");
    let handler = |_: &Request| -> Result<String, _> { panic!("a handler sees the request") };
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), handler);
    let client = connect(&url(), &queue);
    for method in ["rpc.stop", "rpc.", "rpc.ping.x"] {
        let error = client.request("").method(method).call().unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed()), ("UNIMPLEMENTED", false));
    }
}

#[test]
fn loop_of_ones_own_answers_ping() {
    let queue = queue_name("ping-loop");
    let server = RpcServer::connect(Brokers::parse(&url()).unwrap(), &queue, Default::default());
    let client = connect(&url(), &queue);
    let pending = client.request("").method("rpc.ping").send().unwrap();
    let handler = |_: &Request| -> Result<String, _> { panic!("a handler sees the request") };
    let served = server.unwrap().with_worker(|worker| worker.serve_one(handler, PATIENCE));
    assert_eq!(served, Ok(Served::Request));
    let pong: Value = serde_json::from_slice(&pending.wait().unwrap()).unwrap();
    assert_eq!(pong["served"], 0);
}

/// A pong is the answer of a worker. What refuses requests over the limit is none.
#[test]
fn overloaded_service_answers_no_ping() {
    let queue = queue_name("ping-overload");
    let (busy, is_busy) = bounded(1);
    let (go_on, may_go_on) = bounded::<()>(0);
    let options = ServerOptions { max_waiting: Some(1), ..Default::default() };
    let _server = Serving::requests(&url(), &queue, options, move |_| {
        busy.send(()).unwrap();
        let _ = may_go_on.recv();
        Ok("")
    });
    let client = connect(&url(), &queue);
    let _begun = client.send("").unwrap();
    is_busy.recv_timeout(PATIENCE).unwrap();
    let _waiting = client.send("").unwrap();
    await_value(|| client.queue().unwrap().messages, |waiting| *waiting == 1);
    assert_eq!(ping(&client).unwrap_err().kind(), Status::ResourceExhausted.name());
    drop(go_on);
}

#[test]
fn requester_by_direct_reply_to_gets_a_pong() {
    let queue = queue_name("ping-direct");
    let _server = Serving::echo(&url(), &queue);
    let mut raw = Raw::connect(Broker::shared().port(0));
    raw.consume(DIRECT_REPLY_TO.as_bytes());
    let reply_to = Properties::default().reply_to(DIRECT_REPLY_TO.as_bytes()).type_(b"rpc.ping");
    assert_eq!(raw.publish("", queue.as_bytes(), &reply_to, b""), Verdict::Confirmed);
    assert!(raw.reply().body.starts_with(b"{\"program\":"));
}
