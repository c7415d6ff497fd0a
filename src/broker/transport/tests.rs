//! Tests a transport that is connected to another socket of this process.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

use super::*;
use crate::broker::self_pipe::SelfPipe;
use crate::frames::Route;

fn transport() -> (Transport, TcpStream) {
    let (tcp, peer) = sockets();
    (Transport::new(tcp, None).unwrap(), peer)
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (tcp, peer)
}

/// Later than a busy machine begins with what is to be late.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

fn late() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn writer_gives_up_at_its_deadline_and_its_message_stays_whole() {
    let (transport, mut peer) = transport();
    let mut sent = Vec::new();
    let mut was_begun = false;
    // The peer does not read, so the sockets fill up. The write that fills them times out in the
    // middle of a message. The one after it times out before its message.
    loop {
        let message = vec![sent.len() as u8; 1 << 20];
        match transport.write(message.clone().into(), soon(), || true, || {}) {
            Ok(()) => sent.extend(message),
            Err(WriteError::TimedOut { begun: true }) => {
                was_begun = true;
                sent.extend(message);
            }
            Err(WriteError::TimedOut { begun: false }) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(was_begun, "a message of a megabyte does not just fit");
    assert!(transport.has_backlog(), "the reader has to write the rest");
    transport.write_control(b"amiquip", || true);

    let reading = thread::spawn(move || {
        let mut received = vec![0; sent.len() + 11];
        peer.read_exact(&mut received).unwrap();
        let last = received.split_off(sent.len());
        assert!(received == sent, "what was begun arrives first, and whole");
        assert_eq!(last, b"amiquiplast");
    });
    transport.write(b"last".to_vec().into(), late(), || true, || {}).unwrap();
    assert!(!transport.has_backlog());
    reading.join().unwrap();
    assert!(lock(&transport.write).backlog.capacity() <= MAX_IDLE_BACKLOG, "it is freed");
}

#[test]
fn messages_of_many_writers_do_not_mix() {
    const LENGTH: usize = 100_000;
    let (transport, mut peer) = transport();
    thread::scope(|scope| {
        for writer in 0..8u8 {
            let transport = &transport;
            scope.spawn(move || {
                for _ in 0..20 {
                    transport.write(vec![writer; LENGTH].into(), late(), || true, || {}).unwrap();
                }
            });
        }
        let mut message = vec![0; LENGTH];
        for _ in 0..8 * 20 {
            peer.read_exact(&mut message).unwrap();
            assert!(message.iter().all(|byte| *byte == message[0]));
        }
    });
}

#[test]
fn messages_written_while_others_are_woken_go_out_together() {
    let (transport, mut peer) = transport();
    let write =
        |message: &[u8]| transport.write(message.to_vec().into(), late(), || true, || {}).unwrap();
    peer.set_nonblocking(true).unwrap();
    let mut received = vec![0; 100_000];
    transport.write_together(|| {
        write(b"first");
        write(b"second");
        let early = peer.read(&mut received).expect_err("both wait");
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
    });
    assert_eq!(peer.read(&mut received).unwrap(), 11);
    assert_eq!(&received[..11], b"firstsecond");
    transport.write_together(|| {
        write(b"before");
        write(&[7; 10_000]);
        peer.set_nonblocking(false).unwrap();
        peer.read_exact(&mut received[..10_006]).expect("a large message does not wait");
        assert_eq!(&received[..7], b"before\x07");
    });
}

#[test]
fn cut_wakes_writers_that_wait() {
    let (transport, _peer) = transport();
    transport.write_control(&vec![7; 64 << 20], || true);
    let began = Instant::now();
    thread::scope(|scope| {
        let writers = [0, 1].map(|_| {
            scope.spawn(|| transport.write(b"behind".to_vec().into(), late(), || true, || {}))
        });
        thread::sleep(Duration::from_millis(100));
        assert!(writers.iter().all(|writer| !writer.is_finished()), "amiquip's bytes go first");
        transport.cut();
        for writer in writers {
            assert_eq!(writer.join().unwrap(), Err(WriteError::Disconnected));
        }
    });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn nothing_is_written_on_a_closed_channel() {
    let (transport, mut peer) = transport();
    let written = transport.write(b"no".to_vec().into(), late(), || false, || {});
    assert_eq!(written, Err(WriteError::ChannelClosed));
    transport.write(b"other".to_vec().into(), late(), || true, || {}).unwrap();
    let mut received = [0; 5];
    peer.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"other");
}

#[test]
fn end_right_behind_the_last_bytes_is_read_at_once() {
    let (transport, mut peer) = transport();
    peer.write_all(b"last").unwrap();
    // On loopback, written bytes arrive at once.
    drop(peer);
    let mut into = [0; 64];
    for expected in [4, 0] {
        assert_eq!(
            transport.socket.poll(None, PollFlags::IN, Some(soon())).unwrap(),
            PollFlags::IN
        );
        assert_eq!(transport.socket.read(&mut into).unwrap(), expected);
    }
}

#[test]
fn bell_ends_a_poll_once() {
    let (transport, _peer) = transport();
    let pipe = SelfPipe::new().unwrap();
    pipe.signal();
    pipe.signal();
    let began = Instant::now();
    transport.socket.poll(Some(&pipe), PollFlags::IN, Some(late())).unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    let until = soon();
    transport.socket.poll(Some(&pipe), PollFlags::IN, Some(until)).unwrap();
    assert!(Instant::now() >= until);
}

/// A large message is encoded in parts while it is written. If the writer times out, the rest is
/// kept.
#[test]
fn large_message_arrives_whole_although_its_writer_gave_up() {
    const FRAME_MAX: usize = 4096;
    let (transport, mut peer) = transport();
    let body: Vec<u8> = (0..16 << 20).map(|byte: u32| byte as u8).collect();
    let message = || {
        let properties = crate::frames::Properties::default();
        let route = Route {
            channel: 1,
            exchange: "",
            routing_key: "q",
            mandatory: true,
            frame_max: FRAME_MAX,
        };
        let frames = crate::frames::publish(route, &properties, &body);
        frames.followed_by(b"behind")
    };
    let expected = message().rest(0);
    let error = transport.write(message(), soon(), || true, || {}).unwrap_err();
    assert_eq!(error, WriteError::TimedOut { begun: true });
    let reading = thread::spawn(move || {
        let mut received = vec![0; 2 * expected.len()];
        peer.read_exact(&mut received).unwrap();
        assert!(received == expected.repeat(2));
    });
    transport.write(message(), late(), || true, || {}).unwrap();
    reading.join().unwrap();
}

/// A TLS session that fails to write, and still holds bytes that the peer sent before.
struct FailsToWrite(&'static [u8]);

impl Read for FailsToWrite {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for FailsToWrite {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// These bytes may contain the reason why the connection ends.
#[test]
fn write_that_fails_takes_no_byte_from_the_reader() {
    let (tcp, _peer) = sockets();
    let transport = Transport::new(tcp, Some(Box::new(FailsToWrite(b"reason")))).unwrap();
    let written = transport.write(Frames::from(b"message".to_vec()), late(), || true, || {});
    assert_eq!(written, Err(WriteError::Disconnected));
    let mut read = [0; 6];
    assert_eq!(transport.socket.read(&mut read).unwrap(), 6);
    assert_eq!(&read, b"reason");
}

/// Whoever has just written waits behind those who came before.
#[test]
fn writers_take_turns_while_the_peer_reads_slowly() {
    const WRITERS: usize = 32;
    const LENGTH: usize = 32 << 10;
    let (transport, mut peer) = transport();
    let reading = thread::spawn(move || {
        let mut message = vec![0; LENGTH];
        while peer.read_exact(&mut message).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let (written, until) = (AtomicUsize::new(0), Instant::now() + Duration::from_secs(4));
    let longest = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut longest = (0, Duration::ZERO);
                    while Instant::now() < until {
                        let (before, began) = (written.load(Ordering::Relaxed), Instant::now());
                        transport.write(vec![7; LENGTH].into(), late(), || true, || {}).unwrap();
                        let others = written.fetch_add(1, Ordering::Relaxed) - before;
                        longest = (others.max(longest.0), began.elapsed().max(longest.1));
                    }
                    longest
                })
            })
            .collect();
        let longest = writers.into_iter().map(|writer| writer.join().unwrap());
        longest.reduce(|one, other| (one.0.max(other.0), one.1.max(other.1))).unwrap()
    });
    let total = written.into_inner();
    println!("{total} messages; the longest wait: {} others, {:?}", longest.0, longest.1);
    assert!(total > 4 * WRITERS, "{total}");
    // A thread may lose the processor before it takes its place in the line.
    assert!(longest.0 < 16 * WRITERS, "{} messages of others", longest.0);
    transport.cut();
    reading.join().unwrap();
}
