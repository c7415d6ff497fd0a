//! The limit of calls in flight.

use std::thread;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{ClientOptions, Error};

use crate::broker::{Broker, queue_name};
use crate::embedded::connect_with;
use crate::manual_server::ManualServer;
use crate::patience::SECOND;

/// A place gets free just after the deadlines of the calls that wait for it.
#[test]
fn call_that_waits_until_its_deadline_is_not_sent() {
    let broker = Broker::shared();
    let queue = queue_name("late");
    let server = ManualServer::start(&broker.url(), &queue);
    let options = ClientOptions { max_in_flight: 4, ..Default::default() };
    let client = connect_with(&broker.url(), &queue, options);
    let deadline = Instant::now() + SECOND;
    let longer = SECOND + Duration::from_millis(2);
    let held: Vec<_> = (0..4).map(|_| client.send_timeout("held", longer).unwrap()).collect();
    (0..4).for_each(|_| drop(server.next()));
    thread::scope(|scope| {
        let send =
            || client.send_timeout("late", deadline.saturating_duration_since(Instant::now()));
        let late = [(); 12].map(|()| scope.spawn(send));
        for call in late {
            let error = call.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::TimedOut { sent: false, .. }), "{error:?}");
        }
    });
    drop(held);
    let call = client.send("next").unwrap();
    assert_eq!(server.next().body, b"next", "none of the late requests was sent");
    drop(call);
}

/// The call in flight is not waited for, and its place is noticed to be free by somebody else.
#[test]
fn place_of_an_expired_call_goes_to_the_first_that_waits() {
    let broker = Broker::shared();
    let queue = queue_name("expired-slot");
    let server = ManualServer::start(&broker.url(), &queue);
    let options = ClientOptions { max_in_flight: 1, timeout: 20 * SECOND, ..Default::default() };
    let client = connect_with(&broker.url(), &queue, options);
    let expiring = client.send_timeout("expiring", SECOND).unwrap();
    server.next();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.call("waiting"));
        // Whoever asks for the counters removes the expired call.
        let request = loop {
            client.counters();
            match server.requests.recv_timeout(Duration::from_millis(1)) {
                Ok(request) => break request,
                Err(_) => assert!(!waiting.is_finished()),
            }
        };
        server.reply(&request, b"13");
        assert_eq!(waiting.join().unwrap(), Ok(b"13".to_vec()));
    });
    drop(expiring);
}
