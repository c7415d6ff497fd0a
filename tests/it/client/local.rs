//! A client without a broker, which a program's own tests use.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rabbitmq_rpc::{Error, Failure, Request, RpcClient, Status};

use crate::patience::PATIENCE;

fn answer(request: &Request) -> Result<String, Failure> {
    match request.body() {
        b"slow" => {
            // On the wire, a deadline is in milliseconds.
            let left = request.remaining().expect("the call has a deadline");
            thread::sleep(left + Duration::from_millis(2));
        }
        b"7" => {}
        _ => return Err(Failure::new(Status::NotFound, "no such number")),
    }
    Ok(format!("{:?} {:?}", request.header("tenant"), request.content_type()))
}

#[test]
fn local_client_calls_handler_as_any_client_calls_server() {
    let client = RpcClient::local(answer);
    let call = client.request("7").header("tenant", "8").content_type("text/plain");
    assert_eq!(call.call().unwrap(), b"Some(\"8\") Some(\"text/plain\")");
    let mut pending = client.for_queue("other").unwrap().send("7").unwrap();
    assert!(pending.try_wait().unwrap().is_some());
    assert!(matches!(pending.try_wait(), Err(Error::Config(_))), "the call is over");
    let failure = Failure::new(Status::NotFound, "no such number");
    assert_eq!(client.call("8"), Err(Error::Remote(failure)));
    assert!(matches!(client.request("7").header("", "").call(), Err(Error::Config(_))));
    assert_eq!(client.queue().unwrap().consumers, 1);
}

#[test]
fn local_call_keeps_its_deadline() {
    let client = RpcClient::local(answer);
    let unsent = client.call_timeout("7", Duration::ZERO).unwrap_err();
    assert!(matches!(unsent, Error::TimedOut { sent: false, .. }), "{unsent:?}");
    let late = client.call_timeout("slow", Duration::from_millis(20)).unwrap_err();
    assert!(matches!(late, Error::TimedOut { sent: true, .. }), "{late:?}");
    assert_eq!(client.counters().timed_out, 2);
    assert!(client.call_timeout("7", PATIENCE).is_ok());
}

#[test]
fn hook_observes_local_calls() {
    let client = RpcClient::local(answer);
    let observed: Arc<Mutex<Vec<_>>> = Arc::default();
    let calls = Arc::clone(&observed);
    client.on_call(move |call| calls.lock().unwrap().push((call.status, call.bytes_out)));
    let _ = (client.call("7"), client.call("none"));
    assert_eq!(*observed.lock().unwrap(), [("OK", 1), ("NOT_FOUND", 4)]);
    assert_eq!(client.counters().calls, 2);
}
