//! The frames of channel 0 on their way to amiquip.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mio::{Ready, Registration, SetReadiness};

use crate::lock::lock;

/// Control frames that the reader of the socket passes to amiquip's I/O thread.
pub(super) struct ControlFrames {
    incoming: Mutex<Incoming>,
    ready: SetReadiness,
    arrivals: Mutex<Arrivals>,
}

/// The times are those of the making at first.
struct Arrivals {
    last: Instant,
    /// When amiquip last got a heartbeat for what had arrived.
    noted: Instant,
}

#[derive(Default)]
struct Incoming {
    bytes: VecDeque<u8>,
    ended: bool,
}

impl ControlFrames {
    pub(super) fn new() -> (ControlFrames, Registration) {
        let (registration, ready) = Registration::new2();
        let now = Instant::now();
        let arrivals = Mutex::new(Arrivals { last: now, noted: now });
        let frames = ControlFrames { incoming: Mutex::default(), ready, arrivals };
        let _ = frames.wake_amiquip();
        (frames, registration)
    }

    pub(super) fn push(&self, frame: &[u8]) -> Result<(), String> {
        const MAX_BUFFERED: usize = 4 << 20;
        let mut incoming = lock(&self.incoming);
        if incoming.bytes.len() > MAX_BUFFERED {
            return Err("the broker floods the connection with control frames".into());
        }
        incoming.bytes.extend(frame);
        drop(incoming);
        self.wake_amiquip().map_err(|error| format!("amiquip cannot be woken: {error}"))
    }

    /// Notes that bytes have arrived from the broker: passes a heartbeat to amiquip. amiquip sees
    /// only channel 0, and ends a connection if it receives nothing for two heartbeat intervals.
    pub(super) fn note_arrival(&self) -> Result<(), String> {
        const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut arrivals = lock(&self.arrivals);
        arrivals.last = Instant::now();
        if arrivals.last - arrivals.noted >= INTERVAL {
            // amiquip takes heartbeats at any time, even before `connection.start`.
            self.push(&HEARTBEAT)?;
            arrivals.noted = arrivals.last;
        }
        Ok(())
    }

    /// How long nothing has arrived.
    pub(super) fn silence(&self) -> Duration {
        lock(&self.arrivals).last.elapsed()
    }

    /// Takes bytes for amiquip. Does not block.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        match incoming.bytes.read(into)? {
            0 if !incoming.ended => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }

    /// Marks the end of the stream. No more frames follow.
    pub(super) fn end(&self) {
        lock(&self.incoming).ended = true;
        // If it cannot be woken, its heartbeats end it.
        let _ = self.wake_amiquip();
    }

    /// The stream is always writable, so both flags are set. Setting the readiness again counts as
    /// a new event.
    fn wake_amiquip(&self) -> io::Result<()> {
        self.ready.set_readiness(Ready::readable() | Ready::writable())
    }
}
