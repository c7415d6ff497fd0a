//! The byte stream that amiquip's I/O thread reads and writes.
//!
//! It is ours rather than amiquip's for four reasons: `TCP_NODELAY` is set on it (a publish is
//! three frames; without it Nagle's algorithm and delayed acknowledgements make a call take
//! 44 ms), every step of setting it up has a time limit, what comes in is cleaned
//! ([`crate::frames`]), and it can be cut from outside: amiquip's synchronous calls have no
//! timeouts, and end only with the connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};
use mio::unix::EventedFd;
use mio::{Evented, Poll, PollOpt, Ready, Token};

use super::Endpoint;
use crate::deadline::Deadline;
use crate::frames::Cleaner;

/// A stream over TCP, or over TLS over TCP, that is ready for amiquip.
pub(crate) struct Socket {
    stream: Box<dyn Stream>,
    descriptor: RawFd,
    cleaner: Cleaner,
    /// Clean frames, of which the first `handed` bytes have been handed on.
    clean: Vec<u8>,
    handed: usize,
    anything_came: bool,
    cutter: Cutter,
}

/// What a [`Socket`] reads and writes: a TCP stream, or one in TLS.
pub(crate) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

impl Socket {
    /// Wraps a stream on which all handshakes below AMQP are over.
    pub(crate) fn new(stream: Box<dyn Stream>, cutter: Cutter) -> io::Result<Socket> {
        cutter.tcp.set_nonblocking(true)?;
        Ok(Socket {
            stream,
            descriptor: cutter.tcp.as_raw_fd(),
            cleaner: Cleaner::default(),
            clean: Vec::new(),
            handed: 0,
            anything_came: false,
            cutter,
        })
    }
}

/// Opens a TCP connection to the first address of the endpoint that takes one: a `localhost`
/// that is `::1` first must not hide a broker on `127.0.0.1`. Looking up a name blocks for as
/// long as the system's resolver does; each address gets its part of what then is left.
pub(crate) fn dial(endpoint: &Endpoint, deadline: Deadline) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> =
        (endpoint.host.as_str(), endpoint.port).to_socket_addrs()?.collect();
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (index, address) in addresses.iter().enumerate() {
        let part = deadline.remaining() / (addresses.len() - index) as u32;
        match TcpStream::connect_timeout(address, part.max(Duration::from_millis(1))) {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(refused) => error = refused,
        }
    }
    Err(error)
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.handed == self.clean.len() {
            self.clean.clear();
            self.handed = 0;
            let mut raw = [0; 16 << 10];
            let length = self.stream.read(&mut raw)?;
            if length == 0 {
                self.cutter.ended_by_peer.store(true, Ordering::Relaxed);
                return Ok(0);
            }
            if !std::mem::replace(&mut self.anything_came, true) {
                check_protocol(raw[0])?;
            }
            self.cleaner.push(&raw[..length], &mut self.clean);
        }
        let length = into.len().min(self.clean.len() - self.handed);
        into[..length].copy_from_slice(&self.clean[self.handed..self.handed + length]);
        self.handed += length;
        Ok(length)
    }
}

/// What a peer says first tells whether it is a broker at all.
fn check_protocol(first: u8) -> io::Result<()> {
    const METHOD_FRAME: u8 = 1;
    const TLS_ALERT: u8 = 21;
    match first {
        METHOD_FRAME => Ok(()),
        TLS_ALERT => Err(io::Error::other("this port speaks TLS; use amqps://")),
        _ => Err(io::Error::other("what listens on this port does not speak AMQP 0-9-1")),
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Evented for Socket {
    fn register(&self, poll: &Poll, token: Token, on: Ready, how: PollOpt) -> io::Result<()> {
        EventedFd(&self.descriptor).register(poll, token, on, how)
    }

    fn reregister(&self, poll: &Poll, token: Token, on: Ready, how: PollOpt) -> io::Result<()> {
        EventedFd(&self.descriptor).reregister(poll, token, on, how)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        EventedFd(&self.descriptor).deregister(poll)
    }
}

impl amiquip::IoStream for Socket {}

/// Ends a connection at once, from any thread: amiquip's I/O thread then sees its end, and every
/// call that waits for the broker returns.
#[derive(Clone, Debug)]
pub(crate) struct Cutter {
    tcp: Arc<TcpStream>,
    ended_by_peer: Arc<AtomicBool>,
}

impl Cutter {
    pub(crate) fn new(tcp: &TcpStream) -> io::Result<Cutter> {
        Ok(Cutter { tcp: Arc::new(tcp.try_clone()?), ended_by_peer: Arc::default() })
    }

    pub(crate) fn cut(&self) {
        // It fails only on a connection that has ended already.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// Cuts the connection after `limit`, unless what this returns is dropped before: a time
    /// limit for whatever is done with the connection in the meantime.
    pub(crate) fn fuse(&self, limit: Duration) -> Fuse {
        let (burning, out) = crossbeam_channel::bounded::<()>(0);
        let cutter = self.clone();
        thread::spawn(move || {
            if out.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                cutter.cut();
            }
        });
        Fuse { _burning: burning }
    }

    /// Whether the peer ended the connection in good order, rather than we or the network.
    pub(crate) fn was_ended_by_peer(&self) -> bool {
        self.ended_by_peer.load(Ordering::Relaxed)
    }
}

/// See [`Cutter::fuse`].
#[derive(Debug)]
pub(crate) struct Fuse {
    _burning: Sender<()>,
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Under Nagle's algorithm a call takes 44 ms.
    #[test]
    fn every_address_of_a_name_is_tried_and_nodelay_is_set() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint: Endpoint = format!("amqp://localhost:{port}").parse().unwrap();
        let tcp = dial(&endpoint, Deadline::after(Duration::from_secs(5))).unwrap();
        assert!(tcp.nodelay().unwrap());
    }

    #[test]
    fn a_fuse_cuts_the_connection_unless_it_is_put_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_peer, _) = listener.accept().unwrap();
        tcp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let cutter = Cutter::new(&tcp).unwrap();

        drop(cutter.fuse(Duration::from_millis(50)));
        let error = tcp.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "nothing came, nothing ended");

        let _fuse = cutter.fuse(Duration::from_millis(50));
        assert_eq!(tcp.read(&mut [0]).unwrap(), 0, "the end of the connection");
    }

    #[test]
    fn what_is_no_broker_is_recognized_by_its_first_byte() {
        assert!(check_protocol(1).is_ok());
        assert!(check_protocol(0x15).unwrap_err().to_string().contains("amqps://"));
        assert!(check_protocol(b'H').unwrap_err().to_string().contains("AMQP"));
    }
}
