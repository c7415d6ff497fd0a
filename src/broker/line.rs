//! The line to one broker, as it is shared: amiquip's I/O thread reads and writes on it, whoever
//! publishes writes on it too, and anybody may cut it.
//!
//! Publishing goes past amiquip, which would hand each of a message's three frames to its I/O
//! thread and wake that thread up: a third of all the CPU time of a call. Worse, it would block
//! without limit once too much is waiting. On the line itself a writer knows how much of its
//! message is out, and can give up at its deadline.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use mio::unix::EventedFd;
use mio::{Events, Poll, PollOpt, Ready, Token};

/// A clone is the same line.
#[derive(Clone)]
pub(crate) struct Line(Arc<Shared>);

struct Shared {
    tcp: TcpStream,
    /// What runs over TCP, if something does.
    over_tcp: OnceLock<Mutex<Box<dyn Stream>>>,
    way_out: Mutex<WayOut>,
    /// Notified when the way out may be free again.
    free: Condvar,
    frame_max: AtomicUsize,
    was_cut: AtomicBool,
}

/// What may run over TCP: TLS.
pub(crate) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// Who is in the middle of writing. The frames of one message stay together, and whole.
#[derive(Default)]
struct WayOut {
    /// Bytes of amiquip's that have to follow those it has written.
    owed_by_amiquip: usize,
    /// A writer waits for room in the middle of its message.
    taken: bool,
    /// The end of a message whose writer's time was up.
    rest: Vec<u8>,
}

/// Why frames were not written.
#[derive(Debug)]
pub(crate) enum Unwritten {
    /// The time is up. If some of it had been written, the rest goes out before anything else.
    Late { begun: bool },
    /// The connection has ended.
    Gone,
}

impl Line {
    pub(super) fn new(tcp: TcpStream) -> Line {
        Line(Arc::new(Shared {
            tcp,
            over_tcp: OnceLock::new(),
            way_out: Mutex::default(),
            free: Condvar::new(),
            frame_max: AtomicUsize::new(FRAME_MIN_SIZE),
            was_cut: AtomicBool::new(false),
        }))
    }

    /// The TCP connection, for whatever is to run over it.
    pub(super) fn tcp(&self) -> io::Result<TcpStream> {
        self.0.tcp.try_clone()
    }

    /// From now on TCP carries this.
    pub(super) fn carry(&self, stream: Box<dyn Stream>) {
        let first = self.0.over_tcp.set(Mutex::new(stream));
        debug_assert!(first.is_ok(), "there is one thing that runs over TCP");
    }

    /// From now on who reads or writes never waits.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.0.tcp.set_nonblocking(true)
    }

    /// Writes whole frames, with nothing in between. Blocks until `until` while the broker does
    /// not read.
    pub(crate) fn write(&self, frames: &[u8], until: Instant) -> Result<(), Unwritten> {
        let mut written = 0;
        let mut way_out = self.way_out();
        while written < frames.len() {
            if self.was_cut() {
                return Err(Unwritten::Gone);
            }
            if way_out.taken || way_out.owed_by_amiquip > 0 {
                let now = Instant::now();
                if until <= now {
                    return Err(Unwritten::Late { begun: false });
                }
                let waited = self.0.free.wait_timeout(way_out, until - now);
                way_out = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let done =
                self.write_rest(&mut way_out).and_then(|()| self.write_some(&frames[written..]));
            match done {
                Ok(length) => written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    way_out.taken = true;
                    drop(way_out);
                    let room = self.wait_for_room(until).inspect_err(|error| {
                        log::error!("waiting for room to write: {error}");
                        // Nobody may write behind half a message.
                        self.cut();
                    });
                    way_out = self.way_out();
                    way_out.taken = false;
                    self.0.free.notify_all();
                    if !room.map_err(|_| Unwritten::Gone)? {
                        // Without a rest before it, its own first record may be half out.
                        let is_tls = self.0.over_tcp.get().is_some();
                        let sealed = is_tls && way_out.rest.is_empty();
                        let begun = written > 0 || sealed;
                        if begun {
                            way_out.rest = frames[written..].to_vec();
                        }
                        return Err(Unwritten::Late { begun });
                    }
                }
                Err(_) => return Err(Unwritten::Gone),
            }
        }
        Ok(())
    }

    /// Writes for amiquip's I/O thread, which never waits, and comes back with what was left.
    pub(super) fn write_for_amiquip(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut way_out = self.way_out();
        if way_out.taken {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.write_rest(&mut way_out)?;
        let done = self.write_some(bytes);
        let left = bytes.len() - *done.as_ref().unwrap_or(&0);
        let owed = std::mem::replace(&mut way_out.owed_by_amiquip, left);
        if owed > 0 && left == 0 {
            self.0.free.notify_all();
        }
        done
    }

    fn write_rest(&self, way_out: &mut WayOut) -> io::Result<()> {
        while !way_out.rest.is_empty() {
            let length = self.write_some(&way_out.rest)?;
            way_out.rest.drain(..length);
        }
        Ok(())
    }

    /// In TLS a record may be half out although nothing was written: then the same bytes have to
    /// be tried again before any others (SSL_write(3)).
    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.over_tcp.get() {
            None => (&self.0.tcp).write(bytes),
            Some(stream) => lock(stream).write(bytes),
        }
    }

    /// Whether the socket takes bytes before the time is up.
    fn wait_for_room(&self, until: Instant) -> io::Result<bool> {
        let poll = Poll::new()?;
        let socket = self.descriptor();
        poll.register(&EventedFd(&socket), Token(0), Ready::writable(), PollOpt::level())?;
        let mut events = Events::with_capacity(1);
        poll.poll(&mut events, Some(until.saturating_duration_since(Instant::now())))?;
        Ok(!events.is_empty())
    }

    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.over_tcp.get() {
            None => (&self.0.tcp).read(into),
            Some(stream) => lock(stream).read(into),
        }
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.0.tcp.as_raw_fd()
    }

    /// The largest frame, in bytes, that the broker takes.
    pub(crate) fn frame_max(&self) -> usize {
        self.0.frame_max.load(Ordering::Relaxed)
    }

    /// Notes the broker's limit; 0 is its way of saying that it has none.
    pub(super) fn set_frame_max(&self, frame_max: usize) {
        let frame_max = if frame_max == 0 { RABBITMQS_FRAME_MAX } else { frame_max };
        self.0.frame_max.store(frame_max.max(FRAME_MIN_SIZE), Ordering::Relaxed);
    }

    /// Whether we ended the connection, rather than the peer or the network.
    pub(crate) fn was_cut(&self) -> bool {
        self.0.was_cut.load(Ordering::Relaxed)
    }

    /// Ends the connection at once: amiquip's I/O thread sees its end, and every call that waits
    /// for the broker returns.
    pub(crate) fn cut(&self) {
        // Who has just looked, and holds the lock, is waiting once the lock is free.
        let way_out = self.way_out();
        self.0.was_cut.store(true, Ordering::Relaxed);
        drop(way_out);
        self.0.free.notify_all();
        // It fails only on a connection that has ended already.
        let _ = self.0.tcp.shutdown(Shutdown::Both);
    }

    /// Cuts the connection after `limit`, unless what this returns is dropped before: a time
    /// limit for amiquip's synchronous calls, which have none of their own.
    pub(crate) fn fuse(&self, limit: Duration) -> Fuse {
        let (burning, out) = crossbeam_channel::bounded::<()>(0);
        let line = self.clone();
        let burn = move || {
            if out.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                line.cut();
            }
        };
        if thread::Builder::new().name("rpc-fuse".into()).spawn(burn).is_err() {
            // Without a limit nothing may wait here.
            self.cut();
        }
        Fuse { _burning: burning }
    }

    fn way_out(&self) -> MutexGuard<'_, WayOut> {
        lock(&self.0.way_out)
    }
}

/// The frame size that AMQP allows before anything is agreed, and RabbitMQ's default.
const FRAME_MIN_SIZE: usize = 4096;
const RABBITMQS_FRAME_MAX: usize = 131_072;

/// See [`Line::fuse`].
pub(crate) struct Fuse {
    _burning: Sender<()>,
}

/// No code that holds these locks can panic half-way through a change.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
