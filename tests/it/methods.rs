//! Services of several methods.

use std::sync::{Arc, Mutex};
use std::thread;

use rabbitmq_rpc::{
    Brokers, Error, Failure, Methods, Request, RpcServer, ServerOptions, Status, fibonacci,
};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect};
use crate::logged;
use crate::patience::PATIENCE;
use crate::programs::rpc_server_that_logs;
use crate::raw::{Properties, Raw, Verdict};

fn set_price(request: &Request) -> Result<String, Failure> {
    Ok(format!("set to {}", String::from_utf8_lossy(request.body())))
}

/// A server of the methods `price.get` and `price.set`, on a queue of its own.
fn prices(test: &str, complete: impl FnOnce(Box<Methods>) -> Box<Methods>) -> (String, Serving) {
    let queue = queue_name(test);
    let methods = Methods::new().on("price.get", |_| Ok("12")).on("price.set", set_price);
    let server = Serving::requests(&url(), &queue, ServerOptions::default(), complete(methods));
    (queue, server)
}

#[test]
fn request_goes_to_handler_of_its_method() {
    let (queue, _server) = prices("methods", |methods| methods);
    let client = connect(&url(), &queue);
    assert_eq!(client.request("").method("price.get").call().unwrap(), b"12");
    assert_eq!(client.request("13").method("price.set").call().unwrap(), b"set to 13");
}

#[test]
fn caller_of_unknown_method_knows_that_nothing_was_executed() {
    let (queue, server) = prices("unknown-method", |methods| methods);
    let client = connect(&url(), &queue);
    for (call, named) in [
        (client.request(""), "names no method"),
        (client.request("").method("price.raise"), "no method \"price.raise\""),
        (client.request("").method("price.get\n"), "no method \"price.get\\n\""),
        (client.request("").method("n".repeat(255)), "no method \"nnn"),
    ] {
        let error = call.call().unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed()), ("UNIMPLEMENTED", false));
        assert!(error.to_string().contains(named), "{error}");
    }
    assert_eq!(server.stop().failed, 4);
}

#[test]
fn method_that_no_request_can_reach_is_named_in_the_log() {
    logged::collect();
    let long = "n".repeat(256);
    let (queue, _server) =
        prices("own-name", |methods| methods.on("rpc.price", |_| Ok("12")).on(long, set_price));
    assert!(logged::contains("\"rpc.price\" is never called"));
    assert!(logged::contains("method's name has 256 bytes"));
    let error = connect(&url(), &queue).request("").method("rpc.price").call().unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), ("UNIMPLEMENTED", false));
}

#[test]
fn handler_that_answers_unimplemented_may_have_worked() {
    let queue = queue_name("own-unimplemented");
    let too_late = |_: &Request| Err::<String, _>(Failure::new(Status::Unimplemented, "later"));
    let inner = Methods::new();
    let methods = Methods::new().on("late", too_late).on("table", move |request| inner(request));
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), methods);
    let client = connect(&url(), &queue);
    for method in ["late", "table"] {
        let error = client.request("").method(method).call().unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed()), ("UNIMPLEMENTED", true));
    }
}

#[test]
fn otherwise_gets_requests_of_no_known_method() {
    let other = |request: &Request| Ok(format!("{:?}", request.method()));
    let (queue, _server) = prices("otherwise", move |methods| methods.otherwise(other));
    let client = connect(&url(), &queue);
    let call = |method| client.request("").method(method).call().unwrap();
    assert_eq!(client.call("").unwrap(), b"None");
    // aio-pika gives this type to each request.
    assert_eq!(call("call"), b"Some(\"call\")");
    assert_eq!(call("price.get"), b"12");

    // A type that is no text counts as none.
    let mut raw = Raw::connect(Broker::shared().port(0));
    let reply_to = raw.reply_queue();
    let properties = Properties::default().reply_to(reply_to.as_bytes()).type_(b"\xff\xfe");
    assert_eq!(raw.publish("", queue.as_bytes(), &properties, b""), Verdict::Confirmed);
    assert_eq!(raw.reply().body, b"None");
}

#[test]
fn serve_takes_closures_functions_and_methods() {
    type Serve = fn(&RpcServer) -> Result<(), Error>;
    let serve: [Serve; 4] = [
        |server| server.serve(|request| Ok(request.body().to_vec())),
        |server| server.serve(|request: &Request| Ok(request.body().to_vec())),
        |server| server.serve(Methods::new().otherwise(|request| Ok(request.body().to_vec()))),
        |server| server.serve(fibonacci::answer),
    ];
    for serve in serve {
        let queue = queue_name("closures");
        let brokers = Brokers::parse(&url()).unwrap();
        let server = RpcServer::connect(brokers, &queue, ServerOptions::default()).unwrap();
        let stopper = server.stopper();
        thread::scope(|scope| {
            let serving = scope.spawn(|| serve(&server));
            let reply = connect(&url(), &queue).call("1").unwrap();
            stopper.stop();
            assert_eq!((reply, serving.join().unwrap()), (b"1".to_vec(), Ok(())));
        });
    }
}

#[test]
fn hooks_and_log_name_the_method() {
    let observed: Arc<Mutex<Vec<_>>> = Arc::default();
    let observer = || {
        let observed = Arc::clone(&observed);
        move |it: &rabbitmq_rpc::Observation<'_>| {
            observed.lock().unwrap().push((it.method.map(str::to_string), it.status));
        }
    };
    let (queue, server) = prices("observed", |methods| methods);
    server.server.on_request(observer());
    let client = connect(&url(), &queue);
    client.on_call(observer());
    client.request("").method("price.get").call().unwrap();
    server.stop();
    let expected = (Some("price.get".to_string()), "OK");
    assert_eq!(*observed.lock().unwrap(), [expected.clone(), expected]);

    let queue = queue_name("logged-method");
    let mut server = rpc_server_that_logs(&queue, &[]);
    // The server of tutorial six answers whatever the method is.
    let client = connect(&url(), &queue);
    assert_eq!(client.request("7").method("fib\u{1b}").call().unwrap(), b"13");
    server.wait_for_line("to \"fib\\u{1b}\": OK, 1 bytes in, 2 out", PATIENCE);
}
