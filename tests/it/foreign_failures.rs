//! Failures in a form of the service's own.

use crossbeam_channel::{bounded, unbounded};
use rabbitmq_rpc::{Failure, Reply, Request, RpcClient, ServerOptions, Status};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect};
use crate::patience::{PATIENCE, await_value};

/// An example of a form: the failure as a result.
fn render(request: &Request, failure: &Failure) -> Reply {
    match request.header("renderer") {
        Some("panics") => panic!("a renderer panics"),
        Some("unsendable") => Reply::from("").with_header("rpc-own", ""),
        _ => Reply::from(format!("{}!", failure.status.name()))
            .with_type("failed")
            .with_content_type("text/x-failure"),
    }
}

fn options() -> ServerOptions {
    ServerOptions { render_failure: Some(render), ..Default::default() }
}

fn fail(request: &Request) -> Result<Reply, Failure> {
    match request.body() {
        b"good" => Ok(Reply::from("good")),
        b"fail" => Err(Failure::new(Status::NotFound, "no such part")),
        b"unsendable" => Ok(Reply::from("").with_header("", "")),
        b"large" => Ok(Reply::from(vec![b'7'; 300_000])),
        _ => panic!("the handler panics"),
    }
}

fn answer(client: &RpcClient, body: &str) -> (String, Option<String>, Option<String>) {
    let reply = client.request(body).reply().unwrap();
    let own = |text: Option<&str>| text.map(str::to_string);
    let body = String::from_utf8_lossy(reply.body()).into_owned();
    (body, own(reply.kind()), own(reply.content_type()))
}

fn rendered(status: &str) -> (String, Option<String>, Option<String>) {
    (status.to_string(), Some("failed".into()), Some("text/x-failure".into()))
}

#[test]
fn every_failure_of_a_request_is_rendered() {
    let queue = queue_name("rendered");
    let server = Serving::requests(&url(), &queue, options(), fail);
    let client = connect(&url(), &queue);
    assert_eq!(answer(&client, "good"), ("good".into(), None, None));
    assert_eq!(answer(&client, "fail"), rendered("NOT_FOUND!"));
    assert_eq!(answer(&client, "panic"), rendered("INTERNAL!"));
    assert_eq!(answer(&client, "unsendable"), rendered("INTERNAL!"));
    let unknown = client.request("").method("rpc.none").call().unwrap();
    assert_eq!(unknown, b"UNIMPLEMENTED!");
    let counters = server.stop();
    assert_eq!((counters.served, counters.failed), (1, 4));
}

#[test]
fn failure_that_cannot_be_rendered_is_an_error_reply() {
    let queue = queue_name("unrendered");
    let _server = Serving::requests(&url(), &queue, options(), fail);
    let client = connect(&url(), &queue);
    for renderer in ["panics", "unsendable"] {
        let error = client.request("fail").header("renderer", renderer).call().unwrap_err();
        assert_eq!(error.to_string(), "NOT_FOUND: no such part");
    }
}

#[test]
fn refusal_of_a_reply_by_the_broker_is_rendered() {
    let broker = Broker::start();
    let queue = queue_name("rendered-large");
    let client = connect(&broker.url(), &queue);
    broker.limit_messages(200_000);
    let _server = Serving::requests(&broker.url(), &queue, options(), fail);
    assert_eq!(answer(&client, "large"), rendered("INTERNAL!"));
}

#[test]
fn refusal_of_an_overloaded_service_is_rendered() {
    let queue = queue_name("rendered-overload");
    let (begin, begun) = unbounded();
    let (release, released) = bounded::<()>(0);
    let options = ServerOptions { max_waiting: Some(1), ..options() };
    let _server = Serving::requests(&url(), &queue, options, move |_| {
        begin.send(()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok("")
    });
    let client = connect(&url(), &queue);
    let _begun = client.send("").unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    let _waiting = client.send("").unwrap();
    await_value(|| client.queue().unwrap().messages, |waiting| *waiting == 1);
    assert_eq!(answer(&client, ""), rendered("RESOURCE_EXHAUSTED!"));
    drop(release);
}
