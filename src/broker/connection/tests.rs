//! Tests connecting to a host name with several addresses.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;
use crate::broker::tests::{accept_login, accept_login_slowly, listen, refuse_login};

fn mute(mut tcp: TcpStream) {
    // Until the client gives up.
    let _ = tcp.read_to_end(&mut Vec::new());
}

fn hang_up(_: TcpStream) {}

fn speak_http(mut tcp: TcpStream) {
    let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    mute(tcp);
}

/// Also returns whether a TCP connection was accepted.
fn connect_to(addresses: &[SocketAddr]) -> (Result<Connection>, bool) {
    let endpoint = &"amqp://several".parse().unwrap();
    let login = Login { endpoint, password: "guest".into(), tls: None, heartbeat: 10 };
    let (deadline, mut has_reached) = (Deadline::after(Duration::from_secs(3)), false);
    (connect_to_any(addresses, &login, deadline, &mut has_reached), has_reached)
}

#[test]
fn next_address_is_tried_whatever_listens_at_the_first() {
    let broker = listen(accept_login);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for other in [closed, listen(hang_up), listen(speak_http), listen(mute)] {
        connect_to(&[other, broker]).0.unwrap().close();
    }
}

/// Bytes that arrive count as a heartbeat, also those of an incomplete first frame.
#[test]
fn login_whose_first_frame_comes_in_parts_succeeds() {
    connect_to(&[listen(accept_login_slowly)]).0.unwrap().close();
}

#[test]
fn each_address_has_its_reason() {
    let (http, gone) = (listen(speak_http), listen(hang_up));
    let (Err(error), true) = connect_to(&[http, gone]) else { panic!("none of them is a broker") };
    let text = error.to_string();
    assert!(text.contains(&format!("at {http}, what listens on this port")), "{text}");
    assert!(text.contains(&format!("at {gone}, it hung up")), "{text}");
    let (Err(error), true) = connect_to(&[gone, gone]) else { panic!("it is no broker") };
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    let (Err(error), false) = connect_to(&[]) else { panic!("there is no address") };
    assert!(error.to_string().contains("no address"), "{error}");
}

#[test]
fn refused_login_is_not_tried_at_the_next_address() {
    let (Err(error), true) = connect_to(&[listen(refuse_login), listen(accept_login)]) else {
        panic!("the login is refused")
    };
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
}

/// With Nagle's algorithm, a call takes 44 ms.
#[test]
fn dial_sets_nodelay() {
    let deadline = Deadline::after(Duration::from_secs(5));
    assert!(dial(&listen(hang_up), deadline).unwrap().nodelay().unwrap());
}
