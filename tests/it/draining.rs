//! A server that stops: what it returns to the queue, and what it waits for.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use rabbitmq_rpc::{Brokers, Error, QueueType, Request, RpcServer, ServerOptions};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect};
use crate::patience::{AT_ONCE, PATIENCE, SECOND, await_value, poll};
use crate::proxy::{Mode, Proxy};
use crate::queue;

/// The requests that a busy worker has prefetched go to another server at once, as do those that
/// arrive while it stops.
#[test]
fn stopping_server_returns_at_once_what_no_handler_has_begun() {
    let (url, queue) = (Broker::shared().url(), queue_name("returned"));
    let (begin, begun) = unbounded();
    let (release, released) = bounded::<()>(0);
    let options = || ServerOptions { prefetch: 8, ..Default::default() };
    let busy = Serving::start(&url, &queue, options(), move |request| {
        begin.send(()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok(request.to_vec())
    });
    let client = connect(&url, &queue);
    let first = client.send("first").unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    let prefetched: Vec<_> = (0..5).map(|n| client.send(n.to_string()).unwrap()).collect();
    await_value(|| client.queue().unwrap().messages, |waiting| *waiting == 0);
    let _idle = Serving::start(&url, &queue, options(), |request| Ok(request.to_vec()));
    let stopped = Instant::now();
    busy.stopper.stop();
    for (n, call) in prefetched.into_iter().enumerate() {
        assert_eq!(call.wait().unwrap(), n.to_string().as_bytes());
    }
    for n in 0..5 {
        assert_eq!(client.call(n.to_string()).unwrap(), n.to_string().as_bytes());
    }
    assert!(stopped.elapsed() < AT_ONCE, "{:?}", stopped.elapsed());
    drop(release);
    assert_eq!(first.wait().unwrap(), b"first");
    assert_eq!(busy.stop().served, 1);
}

/// RabbitMQ before 4.3 counts every return against the delivery limit.
#[test]
fn returned_requests_do_not_use_up_their_deliveries() {
    if Broker::shared().version() < (4, 3, 0) {
        return;
    }
    let (url, queue) = (Broker::shared().url(), queue_name("restarts"));
    let options = || ServerOptions {
        prefetch: 8,
        queue_type: QueueType::Quorum,
        delivery_limit: Some(2),
        ..Default::default()
    };
    let client = connect_after_declaring(&url, &queue, options());
    let calls: Vec<_> =
        (0..10).map(|n| client.request(n.to_string()).timeout(PATIENCE).send().unwrap()).collect();
    for _ in 0..5 {
        let (begin, begun) = unbounded();
        let (release, released) = bounded::<()>(0);
        let busy = Serving::start(&url, &queue, options(), move |request| {
            begin.send(()).unwrap();
            let _ = released.recv_timeout(PATIENCE);
            Ok(request.to_vec())
        });
        begun.recv_timeout(PATIENCE).unwrap();
        busy.stopper.stop();
        drop(release);
        busy.stop();
    }
    let _server = Serving::start(&url, &queue, options(), |request| Ok(request.to_vec()));
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.wait().unwrap(), n.to_string().as_bytes());
    }
}

fn connect_after_declaring(
    url: &str,
    queue: &str,
    options: ServerOptions,
) -> rabbitmq_rpc::RpcClient {
    RpcServer::connect(Brokers::parse(url).unwrap(), queue, options).unwrap();
    connect(url, queue)
}

/// During an alarm, the broker does not read from the connection.
#[test]
fn stop_does_not_claim_that_the_broker_has_the_last_reply() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("unconfirmed"));
    let (begin, begun) = unbounded();
    let (release, released) = bounded::<()>(0);
    let drain_timeout = Duration::from_secs(3);
    let options = ServerOptions { drain_timeout, ..Default::default() };
    let server = RpcServer::connect(Brokers::parse(&url).unwrap(), &queue, options).unwrap();
    let stopper = server.stopper();
    let serving = thread::spawn(move || {
        server.serve(move |request: &Request| {
            if request.body() == b"last" {
                begin.send(()).unwrap();
                let _ = released.recv_timeout(PATIENCE);
            }
            Ok(request.body().to_vec())
        })
    });
    let client = connect(&url, &queue);
    assert_eq!(client.call("first").unwrap(), b"first");
    let last = client.send("last").unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    broker.raise_memory_alarm(0);
    drop(release);
    await_value(|| stopper.counters().served, |served| *served == 2);
    stopper.stop();
    let error = serving.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("has not said that it has the last replies"), "{error}");
    broker.clear_memory_alarm(0);
    drop(last);
}

/// Nor that it has what was written just before the connection was lost.
#[test]
fn stop_without_a_connection_does_not_claim_that_the_broker_has_the_last_reply() {
    // The idle worker's questions about the queue, whose answers would be a proof, get none.
    let mute = |proxy: &Proxy| proxy.set(Mode::LoginsOnly);
    let served = stop_between_connections(mute, |proxy, _| proxy.go_down());
    let error = served.expect("it looks for another connection").unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("has not said that it has the last replies"), "{error}");
}

/// A worker that leaves a connection which works finds out that the broker has its replies. It
/// leaves one on which its channel has lasted for less than a second.
#[test]
fn stop_after_the_queue_was_deleted_knows_that_the_broker_has_the_last_reply() {
    let end = |proxy: &Proxy, queue: &str| {
        proxy.set(Mode::Refuse);
        queue::delete(&url(), queue);
    };
    // A busy machine may take longer than a second, but not each time.
    let served = (0..8).find_map(|_| stop_between_connections(|_| {}, end));
    assert_eq!(served, Some(Ok(())));
}

/// Stops a server that has replied once. Its last connection has ended in this way, and it gets no
/// other. `None` if it does not look for one.
fn stop_between_connections(
    before_the_reply: impl Fn(&Proxy),
    end: impl Fn(&Proxy, &str),
) -> Option<Result<(), Error>> {
    let (proxy, queue) = (Proxy::to(Broker::shared().port(0)), queue_name("between"));
    queue::declare_durable(&url(), &queue);
    let client = connect(&url(), &queue);
    let call = client.send("7").unwrap();
    let (begin, begun) = unbounded();
    let (release, released) = bounded::<()>(0);
    let brokers = Brokers::parse(&proxy.url()).unwrap();
    let server = RpcServer::connect(brokers, &queue, ServerOptions::default()).unwrap();
    let stopper = server.stopper();
    let serving = thread::spawn(move || {
        server.serve(move |request: &Request| {
            begin.send(()).unwrap();
            let _ = released.recv_timeout(PATIENCE);
            Ok(request.body().to_vec())
        })
    });
    begun.recv_timeout(PATIENCE).unwrap();
    before_the_reply(&proxy);
    drop(release);
    assert_eq!(call.wait().unwrap(), b"7");
    let tries = proxy.tries();
    end(&proxy, &queue);
    let looks = poll(AT_ONCE / 2, || proxy.tries(), |now| *now > tries);
    let stopped = Instant::now();
    stopper.stop();
    let served = serving.join().unwrap();
    looks.ok()?;
    assert!(stopped.elapsed() < AT_ONCE, "nobody can find out more: {:?}", stopped.elapsed());
    Some(served)
}

/// Requests whose callers have gone while they waited in a busy worker cost the next one nothing.
#[test]
fn request_that_expires_in_a_worker_is_not_executed() {
    let (url, queue) = (Broker::shared().url(), queue_name("expired"));
    let (begin, begun) = unbounded();
    let (release, released) = bounded::<()>(0);
    let options = ServerOptions { prefetch: 8, ..Default::default() };
    let server = Serving::start(&url, &queue, options, move |request| {
        begin.send(request.to_vec()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok(request.to_vec())
    });
    let client = connect(&url, &queue);
    let first = client.send("first").unwrap();
    assert_eq!(begun.recv_timeout(PATIENCE).unwrap(), b"first");
    let late = client.request("late").timeout(3 * SECOND).send().unwrap();
    let fresh = client.send("fresh").unwrap();
    await_value(|| client.queue().unwrap().messages, |waiting| *waiting == 0);
    let was_sent = Instant::now();
    assert!(matches!(late.wait(), Err(Error::TimedOut { .. })));
    // The server counts from when it reads the request, soon after the broker has sent it.
    thread::sleep((was_sent + 5 * SECOND).saturating_duration_since(Instant::now()));
    drop(release);
    assert_eq!(first.wait().unwrap(), b"first");
    assert_eq!(fresh.wait().unwrap(), b"fresh");
    assert!(!begun.try_iter().any(|body| body == b"late"));
    assert_eq!(server.stop().expired, 1);
}
