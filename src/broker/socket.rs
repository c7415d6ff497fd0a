//! The socket of one connection, plain or TLS. It never blocks but in `poll`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::self_pipe::SelfPipe;
use crate::lock::lock;

pub(super) struct NonBlockingSocket {
    tcp: TcpStream,
    tls: Option<Mutex<Box<dyn Stream>>>,
    tls_may_hold_more: AtomicBool,
}

/// A TLS session over the socket.
pub(super) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

impl NonBlockingSocket {
    pub(super) fn new(tcp: TcpStream, tls: Option<Box<dyn Stream>>) -> io::Result<Self> {
        tcp.set_nonblocking(true)?;
        let tls_may_hold_more = AtomicBool::new(tls.is_some());
        Ok(NonBlockingSocket { tcp, tls: tls.map(Mutex::new), tls_may_hold_more })
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Writes some of the bytes. Never blocks.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.tcp).write(bytes),
            Some(tls) => lock(tls).write(bytes),
        }
    }

    /// Reads some of the available bytes. Never blocks.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return (&self.tcp).read(into) };
        let read = lock(tls).read(into);
        self.tls_may_hold_more.store(read.is_ok(), Ordering::Relaxed);
        read
    }

    /// Blocks until the socket is ready for one of `events` or has ended, until the pipe is
    /// signalled, or until `until`. Does not block while TLS may hold decrypted bytes, which `poll`
    /// cannot see: until a read returns an error. Returns the events that are ready.
    pub(super) fn poll(
        &self,
        pipe: Option<&SelfPipe>,
        events: PollFlags,
        until: Option<Instant>,
    ) -> io::Result<PollFlags> {
        if events.contains(PollFlags::IN) && self.tls_may_hold_more.load(Ordering::Relaxed) {
            return Ok(PollFlags::IN);
        }
        let timeout = until.map(timespec_until);
        let socket = PollFd::from_borrowed_fd(self.tcp.as_fd(), events);
        let pipe_fd = pipe.map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
        let mut fds = [socket.clone(), pipe_fd.unwrap_or(socket)];
        let count = 1 + usize::from(pipe.is_some());
        match poll(&mut fds[..count], timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(PollFlags::empty()),
            Err(error) => return Err(error.into()),
        }
        if let Some(pipe) = pipe.filter(|_| !fds[1].revents().is_empty()) {
            pipe.clear();
        }
        let found = fds[0].revents();
        let has_ended = found.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        Ok(if has_ended { events } else { found })
    }

    /// Ends the connection at once. Threads that wait to read or to write return.
    pub(super) fn shut_down(&self) {
        // Shutdown fails only if the connection has ended already.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }
}

/// The timeout for `poll`: at most an hour. After it, the polling thread checks its deadline.
pub(super) fn timespec_until(until: Instant) -> Timespec {
    const LONGEST: Duration = Duration::from_secs(3600);
    let left = until.saturating_duration_since(Instant::now()).min(LONGEST);
    Timespec::try_from(left).expect("an hour has few seconds")
}
