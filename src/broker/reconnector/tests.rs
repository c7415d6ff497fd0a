//! Tests the reconnector with peers that accept logins only.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::broker::tests::{accept_login, listen, refuse_login};

struct Plain(Connection);

impl Session for Plain {
    fn connection(&self) -> &Connection {
        &self.0
    }

    fn ended(&self) -> Option<Error> {
        None
    }
}

fn brokers(addresses: &[SocketAddr]) -> Brokers {
    let urls: Vec<_> = addresses.iter().map(|address| format!("amqp://{address}")).collect();
    Brokers::parse(&urls.join(",")).unwrap()
}

#[test]
fn callers_do_not_wait_for_a_thread_that_panicked_while_it_connected() {
    let tries = AtomicUsize::new(0);
    let open = move |connection, _| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => panic!("on purpose"),
        _ => Ok(Plain(connection)),
    };
    let reconnector = Reconnector::new(&brokers(&[listen(accept_login)]), open);
    let Err(error) = reconnector.first_session(Duration::MAX) else { panic!("it panicked") };
    assert!(error.to_string().contains("connecting panicked"), "{error}");
    assert!(reconnector.session(Deadline::after(Duration::from_secs(30))).is_ok());
}

#[test]
fn next_broker_is_tried_if_a_session_cannot_be_set_up() {
    let addresses = [listen(accept_login), listen(accept_login)];
    let brokers = brokers(&addresses);
    for unfit in [addresses.len() - 1, addresses.len()] {
        let broken = addresses[..unfit].to_vec();
        let open = move |connection: Connection, _| {
            let port = connection.endpoint.port;
            match broken.iter().any(|address| address.port() == port) {
                true => Err(connection.endpoint.unreachable("it declares no queue")),
                false => Ok(Plain(connection)),
            }
        };
        let first = Reconnector::new(&brokers, open).first_session(Duration::MAX);
        match first {
            Ok(session) => assert_eq!(session.0.endpoint.port, addresses[1].port()),
            Err(error) => {
                let [one, other] = addresses.map(|at| format!("{at}: it declares no queue"));
                assert!(error.to_string().ends_with(&format!("{one}; {other}")), "{error}");
                assert_eq!(unfit, 2);
            }
        }
    }
}

/// The brokers of a cluster know the same passwords, but one may refuse what another one takes.
#[test]
fn refused_login_is_tried_again_at_the_same_broker_and_what_follows_it_at_another() {
    let after_refusal = |first: SocketAddr| {
        let addresses = [first, listen(accept_login)];
        let tries = AtomicUsize::new(0);
        let open = move |connection: Connection, _| match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Error::Refused("it may declare no queue".into())),
            _ => Ok(Plain(connection)),
        };
        let reconnector = Reconnector::new(&brokers(&addresses), open);
        assert!(matches!(reconnector.first_session(Duration::MAX), Err(Error::Refused(_))));
        lock(&reconnector.state).order.brokers[0].port == first.port()
    };
    assert!(after_refusal(listen(refuse_login)));
    assert!(!after_refusal(listen(accept_login)));
}

#[test]
fn refusal_that_passes_is_noticed_within_seconds_however_long_it_has_lasted() {
    let mut state = State::<Plain>::new(Brokers::parse("amqp://a").unwrap().order());
    state.connected_since = Some(Instant::now());
    for _ in 0..1_000 {
        state.failed(Error::Refused("the password is wrong".into()));
    }
    let wait = state.next_try - Instant::now();
    assert!(Duration::from_secs(1) < wait && wait <= Duration::from_secs(3), "{wait:?}");
}
