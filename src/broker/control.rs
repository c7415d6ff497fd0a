//! The frames of channel 0 on their way to amiquip, through a pair of sockets.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;

/// Control frames that the reader of the socket passes to amiquip's I/O thread.
pub(super) struct ControlFrames {
    state: Mutex<State>,
    /// From here amiquip reads. It does not block.
    pub(super) output: UnixStream,
}

/// The times are those of the making at first.
struct State {
    /// `None` after the last frame: amiquip then reads the end of the stream.
    input: Option<UnixStream>,
    last_arrival: Instant,
    /// When amiquip last got a heartbeat for what had arrived.
    last_heartbeat: Instant,
}

impl ControlFrames {
    pub(super) fn new() -> io::Result<ControlFrames> {
        let (input, output) = UnixStream::pair()?;
        input.set_nonblocking(true)?;
        output.set_nonblocking(true)?;
        let now = Instant::now();
        let state = State { input: Some(input), last_arrival: now, last_heartbeat: now };
        Ok(ControlFrames { state: Mutex::new(state), output })
    }

    pub(super) fn push(&self, frame: &[u8]) -> Result<(), String> {
        lock(&self.state).push(frame)
    }

    /// Notes that bytes have arrived from the broker: passes a heartbeat to amiquip. amiquip sees
    /// only channel 0, and ends a connection if it receives nothing for two heartbeat intervals.
    pub(super) fn note_arrival(&self) -> Result<(), String> {
        const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut state = lock(&self.state);
        state.last_arrival = Instant::now();
        if state.last_arrival - state.last_heartbeat >= INTERVAL {
            state.last_heartbeat = state.last_arrival;
            // amiquip takes heartbeats at any time, even before `connection.start`.
            state.push(&HEARTBEAT)?;
        }
        Ok(())
    }

    /// How long nothing has arrived.
    pub(super) fn silence(&self) -> Duration {
        lock(&self.state).last_arrival.elapsed()
    }

    /// Ends the stream. No more frames follow.
    pub(super) fn end(&self) {
        lock(&self.state).input = None;
    }
}

impl State {
    fn push(&mut self, frame: &[u8]) -> Result<(), String> {
        match self.input.as_mut().map(|input| input.write(frame)) {
            None => Ok(()),
            Some(Ok(length)) if length == frame.len() => Ok(()),
            // amiquip reads at once, and the pair holds more than a broker sends.
            _ => Err("the broker floods the connection with control frames".into()),
        }
    }
}
