//! Calls from inside a handler, and programs with several queues.

use std::time::Duration;

use rabbitmq_rpc::{Error, Failure, Request, ServerOptions, Status};

use crate::broker::{queue_name, url};
use crate::embedded::{Serving, TRACE, connect};

/// Replies with the deadline and trace of the request: the handler of an inner server.
fn inner(request: &Request) -> Result<String, Failure> {
    if request.body() == b"missing" {
        return Err(Failure::new(Status::NotFound, "no such part"));
    }
    let left = request.remaining().map(|left| left.as_secs());
    let header = |name| request.header(name).unwrap_or("none");
    Ok(format!("{left:?} {} {} {}", header("traceparent"), header("tracestate"), header("baggage")))
}

#[test]
fn handler_passes_on_deadline_and_trace() {
    let (front, stock) = (queue_name("front"), queue_name("stock"));
    let _stock = Serving::requests(&url(), &stock, ServerOptions::default(), inner);
    let client = connect(&url(), &stock);
    let _front = Serving::requests(&url(), &front, ServerOptions::default(), move |request| {
        // The outer deadline limits this longer timeout.
        let call = client.request(request.body()).timeout(Duration::from_secs(500));
        Ok(call.within(request).call()?)
    });
    let client = connect(&url(), &front);
    let call = |traceparent: &str| {
        let call = client.request("bolts").timeout(Duration::from_millis(20_900));
        let call = call.header("tracestate", "a=1").header("baggage", "b=2");
        String::from_utf8(call.header("traceparent", traceparent).call().unwrap()).unwrap()
    };
    for (traceparent, expected) in
        [(TRACE, format!("{TRACE} a=1 b=2")), ("not a traceparent", "none none b=2".into())]
    {
        let answer = call(traceparent);
        let (left, passed_on) = answer.split_once(' ').unwrap();
        let left = left.strip_prefix("Some(").and_then(|left| left.strip_suffix(')'));
        let left: u64 = left.and_then(|left| left.parse().ok()).expect(&answer);
        assert!((10..=20).contains(&left), "{answer}");
        assert_eq!(passed_on, expected);
    }

    let error = client.call("missing").unwrap_err();
    let expected = Failure::new(Status::NotFound, "no such part");
    assert_eq!(error, Error::Remote(expected), "the error of the inner server");
}

#[test]
fn unroutable_inner_call_is_answered_as_unavailable() {
    let front = queue_name("front");
    let client = connect(&url(), &queue_name("unserved"));
    let _front = Serving::requests(&url(), &front, ServerOptions::default(), move |request| {
        Ok(client.request("7").within(request).call()?)
    });
    match connect(&url(), &front).call("7") {
        Err(Error::Remote(failure)) => {
            assert_eq!(failure.status, Status::Unavailable);
            assert!(failure.message.contains("there is no queue or exchange"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn clients_of_several_queues_share_a_connection() {
    let queues = [queue_name("one"), queue_name("two")];
    let _servers = queues.clone().map(|queue| {
        let name = queue.clone();
        Serving::start(&url(), &queue, ServerOptions::default(), move |_| Ok(name.clone().into()))
    });
    let one = connect(&url(), &queues[0]);
    let two = one.for_queue(&queues[1]).unwrap();
    let unserved = one.for_queue("unserved").unwrap();
    assert_eq!(one.call("?").unwrap(), queues[0].as_bytes());
    drop(one);
    assert_eq!(two.call("?").unwrap(), queues[1].as_bytes(), "the connection is still open");
    assert_eq!(unserved.call("?"), Err(Error::Unroutable { queue: "unserved".into() }));
    let counters = two.counters();
    assert_eq!((counters.calls, counters.replies, counters.reconnects), (3, 2, 0));
}

#[test]
fn serve_returns_at_once_after_stop() {
    let queue = queue_name("together");
    let server = Serving::echo(&url(), &queue);
    let client = connect(&url(), &queue);
    assert_eq!(client.call("7").unwrap(), b"7");
    let (again, stopper) = (server.server.clone(), server.stopper.clone());
    assert_eq!(server.stop().served, 1);
    assert_eq!(again.serve(inner), Ok(()));
    assert_eq!(stopper.counters().served, 1);
}
