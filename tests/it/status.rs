//! How a server and a client say that they are.

use crossbeam_channel::unbounded;
use rabbitmq_rpc::{Brokers, Request, RpcClient, RpcServer, ServerOptions, ServerStatus};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect};
use crate::patience::{PATIENCE, await_value};
use crate::proxy::{Mode, Proxy};

#[test]
fn server_is_ready_while_every_worker_takes_requests() {
    let queue = queue_name("status");
    let proxy = Proxy::to(Broker::shared().port(0));
    let (begun, has_begun) = unbounded();
    let (release, released) = unbounded();
    let options = ServerOptions { workers: 2, ..Default::default() };
    let serving = Serving::start(&proxy.url(), &queue, options, move |request| {
        begun.send(()).unwrap();
        released.recv_timeout(PATIENCE).unwrap();
        Ok(request.to_vec())
    });
    let address = format!("127.0.0.1:{}", proxy.port());
    let status = || serving.stopper.status();
    let ready = await_value(status, ServerStatus::is_ready);
    assert_eq!((ready.workers, ready.workers_ready, ready.in_progress), (2, 2, 0));
    assert_eq!((ready.broker.as_deref(), ready.last_error), (Some(&*address), None));

    let client = connect(&url(), &queue);
    let call = client.send("7").unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    let busy = await_value(status, |status| status.in_progress == 1);
    assert!(busy.is_ready(), "a busy worker takes requests: {busy}");
    assert!(busy.oldest_since > ready.connected_since, "{busy:?}");
    let line = format!("2 of 2 workers take requests from {address}, connected for ");
    assert!(busy.to_string().starts_with(&line), "{busy}");
    assert!(busy.to_string().contains("; requests in progress: 1, the oldest for "), "{busy}");

    // The worker that executes a request cannot notice this by itself.
    proxy.set(Mode::Refuse);
    proxy.cut();
    let lost = await_value(status, |status| status.broker.is_none() && status.workers_ready == 0);
    assert!(!lost.is_ready() && lost.connected_since.is_none(), "{lost:?}");
    assert_eq!(lost.in_progress, 1, "{lost}");
    let texts = format!("{lost} {lost:?}");
    assert!(lost.last_error.is_some() && !texts.contains("guest:guest"), "{texts}");
    proxy.set(Mode::Forward);
    release.send(()).unwrap();
    assert_eq!(call.wait().unwrap(), b"7");
    let again = await_value(status, |status| status.is_ready() && status.in_progress == 0);
    assert!(again.connected_since > ready.connected_since && again.last_error.is_some());
    assert!(again.to_string().ends_with("; requests in progress: 0"), "it is over: {again}");

    let _call = client.send("8").unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    await_value(status, |status| status.in_progress == 1);
    serving.stopper.stop();
    let stopping = status();
    assert!(stopping.is_stopping && !stopping.is_ready() && stopping.in_progress == 1);
    assert!(stopping.to_string().starts_with("stopping; 0 of 2 workers"), "{stopping}");
    release.send(()).unwrap();
}

#[test]
fn status_of_server_that_cannot_connect_says_why() {
    let brokers = Brokers::parse("amqp://guest:wrong-secret@127.0.0.1:1").unwrap();
    let options = ServerOptions::default();
    let server = RpcServer::new(brokers, "q", options).unwrap();
    assert!(server.serve(|_: &Request| Ok("")).is_err());
    let status = server.stopper().status();
    assert!(!status.is_ready() && status.to_string().contains("not connected"), "{status}");
    assert!(status.to_string().contains("127.0.0.1:1"), "{status}");
    assert!(!format!("{status} {status:?}").contains("wrong-secret"));
}

#[test]
fn client_says_what_it_is_connected_to_and_what_it_waits_for() {
    let queue = queue_name("client-status");
    let proxy = Proxy::to(Broker::shared().port(0));
    let (release, released) = unbounded();
    let serving = Serving::start(&url(), &queue, ServerOptions::default(), move |request| {
        released.recv_timeout(PATIENCE).unwrap();
        Ok(request.to_vec())
    });
    let client = connect(&proxy.url(), &queue);
    let idle = client.status();
    let address = format!("127.0.0.1:{}", proxy.port());
    assert!(idle.is_ready() && idle.last_error.is_none() && idle.in_flight == 0, "{idle:?}");
    assert_eq!(idle.broker.as_ref(), Some(&address));
    let call = client.send("7").unwrap();
    let waiting = client.status();
    assert!(waiting.in_flight == 1 && waiting.oldest_since > idle.connected_since, "{waiting:?}");
    let text = waiting.to_string();
    assert!(text.starts_with(&format!("connected to {address} for ")), "{text}");
    (0..2).for_each(|_| release.send(()).unwrap());
    assert_eq!(call.wait().unwrap(), b"7");
    proxy.cut();
    let lost = await_value(|| client.status(), |status| !status.is_ready());
    assert!(lost.last_error.is_some() && lost.connected_since.is_none(), "{lost:?}");
    assert!(lost.to_string().starts_with("not connected; calls in flight: 0; "), "{lost}");
    assert_eq!(client.call("8").unwrap(), b"8");
    assert!(client.status().connected_since > idle.connected_since);
    serving.stop();
    assert!(RpcClient::local(|_: &Request| Ok("")).status().is_ready());
}
