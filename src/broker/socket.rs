//! The byte stream that amiquip's I/O thread reads and writes.
//!
//! It is ours rather than amiquip's because `TCP_NODELAY` has to be set on it (a publish is
//! three frames; without it Nagle's algorithm and delayed acknowledgements make a call take
//! 44 ms), because what comes in has to be cleaned ([`crate::frames`]), and because others write
//! on the same [`Line`].

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use mio::unix::EventedFd;
use mio::{Evented, Poll, PollOpt, Ready, Token};

use super::Endpoint;
use super::line::Line;
use crate::deadline::Deadline;
use crate::frames::Cleaner;

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

/// amiquip's end of a line.
pub(crate) struct Socket {
    line: Line,
    cleaner: Cleaner,
    /// Clean frames, of which the first `handed` bytes have been handed on.
    clean: Vec<u8>,
    handed: usize,
    anything_came: bool,
}

impl Socket {
    pub(crate) fn new(line: Line) -> io::Result<Socket> {
        line.set_nonblocking()?;
        Ok(Socket {
            line,
            cleaner: Cleaner::default(),
            clean: Vec::new(),
            handed: 0,
            anything_came: false,
        })
    }

    fn refill(&mut self) -> io::Result<()> {
        let mut raw = [0; 16 << 10];
        let length = self.line.read(&mut raw)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !std::mem::replace(&mut self.anything_came, true) {
            check_protocol(raw[0])?;
        }
        self.clean.clear();
        self.handed = 0;
        self.cleaner.push(&raw[..length], &mut self.clean);
        if let Some(frame_max) = self.cleaner.take_frame_max() {
            self.line.set_frame_max(frame_max);
        }
        Ok(())
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.handed == self.clean.len() {
            match self.refill() {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                refilled => refilled?,
            }
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
        self.line.write_for_amiquip(bytes)
    }

    /// Nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Evented for Socket {
    fn register(&self, poll: &Poll, token: Token, on: Ready, how: PollOpt) -> io::Result<()> {
        EventedFd(&self.line.descriptor()).register(poll, token, on, how)
    }

    fn reregister(&self, poll: &Poll, token: Token, on: Ready, how: PollOpt) -> io::Result<()> {
        EventedFd(&self.line.descriptor()).reregister(poll, token, on, how)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        EventedFd(&self.line.descriptor()).deregister(poll)
    }
}

impl amiquip::IoStream for Socket {}

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

    /// An edge-triggered event may be the only one for both.
    #[test]
    fn an_end_right_behind_the_last_bytes_is_seen_at_once() {
        const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut socket = Socket::new(Line::new(tcp)).unwrap();
        socket.anything_came = true;
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(&HEARTBEAT).unwrap();
        // On loopback it is there as soon as it has gone out.
        drop(peer);
        let mut into = [0; 64];
        assert_eq!(socket.read(&mut into).unwrap(), HEARTBEAT.len());
        assert_eq!(socket.read(&mut into).unwrap(), 0);
    }

    #[test]
    fn what_is_no_broker_is_recognized_by_its_first_byte() {
        assert!(check_protocol(1).is_ok());
        assert!(check_protocol(0x15).unwrap_err().to_string().contains("amqps://"));
        assert!(check_protocol(b'H').unwrap_err().to_string().contains("AMQP"));
    }
}
