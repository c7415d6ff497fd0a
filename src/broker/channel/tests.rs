//! Tests channels against a peer that answers as the test says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;
use crate::broker::transport::Transport;
use crate::broker::url::Endpoint;

const OPEN_OK: &[u8] = b"\x01\0\x01\0\0\0\x08\0\x14\0\x0b\0\0\0\0\xce";

/// An answer about the queue `q`, in which this many messages wait.
fn declared(messages: u8) -> Vec<u8> {
    let fields = [b"\x01q\0\0\0"[..].to_vec(), vec![messages], vec![0; 4]].concat();
    let size = (4 + fields.len()) as u8;
    [&[1, 0, 1, 0, 0, 0, size, 0, 50, 0, 11], &*fields, &[0xce]].concat()
}

/// Reads one frame.
fn next_method(peer: &mut TcpStream) {
    let mut prefix = [0; 7];
    peer.read_exact(&mut prefix).unwrap();
    let mut rest = vec![0; usize::from(prefix[6]) + 1];
    peer.read_exact(&mut rest).unwrap();
}

/// A channel whose peer runs `answer` after the channel is open.
fn channel(answer: impl FnOnce(&mut TcpStream) + Send + 'static) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let transport = Transport::new(tcp, None).unwrap();
    let endpoint: Endpoint = "amqp://localhost".parse().unwrap();
    let data_plane = DataPlane::new(endpoint, transport, 0).unwrap();
    thread::spawn(move || {
        next_method(&mut peer);
        peer.write_all(OPEN_OK).unwrap();
        answer(&mut peer);
        // The connection lasts as long as the channel.
        let _ = peer.read_to_end(&mut Vec::new());
    });
    data_plane.open_channel(within(CLOSE_TIMEOUT), Arc::default(), |_, _| {}).unwrap()
}

fn within(time: Duration) -> Limit {
    Limit::Until(Instant::now() + time)
}

#[test]
fn answer_that_comes_after_its_time_limit_is_not_taken_for_the_next() {
    let channel = channel(|peer| {
        (0..2).for_each(|_| next_method(peer));
        peer.write_all(&declared(1)).unwrap();
        // The client has read the late answer by then.
        thread::sleep(Duration::from_millis(100));
        peer.write_all(&declared(2)).unwrap();
    });
    let unanswered = channel.queue(Method::FindQueue("q"), within(CLOSE_TIMEOUT / 10));
    assert!(matches!(unanswered, Err(CallError::Unanswered(_))), "{unanswered:?}");
    let found = channel.queue(Method::FindQueue("q"), within(10 * CLOSE_TIMEOUT)).unwrap();
    assert_eq!(found.messages, 2);
    channel.data_plane.cut("the test is over");
}

#[test]
fn answers_to_methods_that_were_sent_together_come_in_their_order() {
    let channel = channel(|peer| {
        (0..3).for_each(|_| next_method(peer));
        peer.write_all(&[declared(1), declared(2), declared(3)].concat()).unwrap();
    });
    (0..3).for_each(|_| channel.send(Method::FindQueue("q")));
    channel.skip_answer();
    let messages = || channel.answer(within(10 * CLOSE_TIMEOUT))?.queue().map(|q| q.messages);
    assert_eq!(messages().unwrap(), 2);
    assert_eq!(messages().unwrap(), 3);
    assert!(!channel.is_answered());
    channel.data_plane.cut("the test is over");
}
