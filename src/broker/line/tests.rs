//! A line between two sockets of this process.

use std::net::TcpListener;

use super::*;

fn line() -> (Line, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let line = Line::new(tcp);
    line.set_nonblocking().unwrap();
    (line, peer)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(200)
}

#[test]
fn a_fuse_cuts_the_line_unless_it_is_put_out() {
    let (line, mut peer) = line();
    drop(line.fuse(Duration::from_millis(20)));
    peer.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let error = peer.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "nothing came, nothing ended");

    let _fuse = line.fuse(Duration::from_millis(20));
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end of the connection");
    assert!(matches!(line.write(b"late", soon()), Err(Unwritten::Gone)));
}

#[test]
fn a_writer_gives_up_at_its_deadline_and_its_message_stays_whole() {
    let (line, mut peer) = line();
    let mut sent = Vec::new();
    let mut was_begun = false;
    // Nobody reads, so that at some point the sockets are full: first in the middle of a
    // message, and in the end before the next.
    loop {
        let message = vec![sent.len() as u8; 1 << 20];
        match line.write(&message, soon()) {
            Ok(()) => sent.extend(message),
            Err(Unwritten::Late { begun: true }) => {
                was_begun = true;
                sent.extend(message);
            }
            Err(Unwritten::Late { begun: false }) => break,
            Err(Unwritten::Gone) => panic!("the peer is there"),
        }
    }
    assert!(was_begun, "a message of a megabyte does not just fit");
    assert_eq!(
        line.write_for_amiquip(b"x").unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "amiquip does not get in between either"
    );

    let reading = thread::spawn(move || {
        let mut received = vec![0; sent.len() + 4];
        peer.read_exact(&mut received).unwrap();
        let last = received.split_off(sent.len());
        assert!(received == sent, "what was begun arrives first, and whole");
        assert_eq!(last, b"last");
    });
    line.write(b"last", Instant::now() + Duration::from_secs(10)).unwrap();
    reading.join().unwrap();
}

#[test]
fn many_writers_do_not_mix_their_messages() {
    const LENGTH: usize = 100_000;
    let (line, mut peer) = line();
    thread::scope(|scope| {
        for writer in 0..8u8 {
            let line = line.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    let until = Instant::now() + Duration::from_secs(30);
                    line.write(&[writer; LENGTH], until).unwrap();
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
fn a_line_that_is_cut_lets_go_of_who_waits_for_amiquips_rest() {
    let (line, _peer) = line();
    let mut filled = false;
    while !filled {
        let written = line.write_for_amiquip(&[7; 1 << 16]);
        filled = written.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    }
    let began = Instant::now();
    let late = began + Duration::from_secs(10);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| line.write(b"behind it", late));
        thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished(), "amiquip's bytes have to go first");
        line.cut();
        assert!(matches!(waiting.join().unwrap(), Err(Unwritten::Gone)));
    });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
