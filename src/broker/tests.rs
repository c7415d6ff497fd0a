//! Stands in for a broker in unit tests: accepts logins, and declares nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const START: &[u8] = b"\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US";
const TUNE: &[u8] = b"\0\x0a\0\x1e\x07\xff\0\x02\0\0\0\x3c";
const OPEN_OK: &[u8] = b"\0\x0a\0\x29\0";
const CLOSE_OK: &[u8] = b"\0\x0a\0\x33";
const REFUSED: &[u8] = b"\0\x0a\0\x32\x01\x93\x0eACCESS_REFUSED\0\0\0\0";

/// The address of a listener that calls `serve` in a new thread for each connection.
pub(super) fn listen(serve: impl Fn(TcpStream) + Send + Sync + Copy + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for tcp in listener.incoming() {
            let tcp = tcp.unwrap();
            thread::spawn(move || serve(tcp));
        }
    });
    address
}

/// Accepts the login, and answers a close.
pub(super) fn accept_login(tcp: TcpStream) {
    converse(tcp, |tcp| send(tcp, START));
}

/// The same, but its first frame comes in two parts that are more than a second apart.
pub(super) fn accept_login_slowly(tcp: TcpStream) {
    converse(tcp, |tcp| {
        let start = frame(START);
        let (first, last) = start.split_at(9);
        // The client may be gone.
        let _ = tcp.write_all(first);
        thread::sleep(Duration::from_millis(1200));
        let _ = tcp.write_all(last);
    });
}

fn converse(mut tcp: TcpStream, start: impl FnOnce(&mut TcpStream)) {
    let mut greeting = [0; 8];
    if tcp.read_exact(&mut greeting).is_err() {
        return;
    }
    start(&mut tcp);
    while let Some(method) = next_method(&mut tcp) {
        match method[..4] {
            [0, 10, 0, 11] => send(&mut tcp, TUNE),
            [0, 10, 0, 40] => send(&mut tcp, OPEN_OK),
            [0, 10, 0, 50] => send(&mut tcp, CLOSE_OK),
            _ => {}
        }
    }
}

/// Refuses the credentials.
pub(super) fn refuse_login(mut tcp: TcpStream) {
    tcp.read_exact(&mut [0; 8]).unwrap();
    send(&mut tcp, START);
    next_method(&mut tcp).expect("the login");
    send(&mut tcp, REFUSED);
    while next_method(&mut tcp).is_some() {}
}

fn send(tcp: &mut TcpStream, method: &[u8]) {
    // The client may be gone.
    let _ = tcp.write_all(&frame(method));
}

fn frame(method: &[u8]) -> Vec<u8> {
    let length = (method.len() as u32).to_be_bytes();
    [&[1, 0, 0], &length[..], method, &[0xce]].concat()
}

fn next_method(tcp: &mut TcpStream) -> Option<Vec<u8>> {
    let mut prefix = [0; 7];
    tcp.read_exact(&mut prefix).ok()?;
    let length = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
    let mut payload = vec![0; length as usize + 1];
    tcp.read_exact(&mut payload).ok()?;
    Some(payload)
}
