//! The frames of channel 0 on their way to amiquip, through a pair of sockets.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;

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
        // amiquip reads at once. The pair holds some hundred frames, and a broker sends few.
        match lock(&self.state).push(frame) {
            true => Ok(()),
            false => Err("the broker floods the connection with control frames".into()),
        }
    }

    /// Notes that bytes have arrived from the broker: passes a heartbeat to amiquip. amiquip sees
    /// only channel 0, and ends a connection if it receives nothing for two heartbeat intervals.
    pub(super) fn note_arrival(&self) {
        const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut state = lock(&self.state);
        state.last_arrival = Instant::now();
        if state.last_arrival - state.last_heartbeat >= INTERVAL {
            state.last_heartbeat = state.last_arrival;
            // amiquip takes heartbeats at any time, even before `connection.start`. While its
            // thread hangs, what it has not read serves as well, and more would fill the pair.
            if ioctl_fionread(&self.output).is_ok_and(|unread| unread == 0) {
                state.push(&HEARTBEAT);
            }
        }
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
    /// False if the pair does not take the whole frame.
    fn push(&mut self, frame: &[u8]) -> bool {
        let written = self.input.as_mut().map(|input| input.write(frame));
        written.is_none_or(|written| written.is_ok_and(|length| length == frame.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_do_not_pile_up_while_amiquip_hangs() {
        let control = ControlFrames::new().unwrap();
        for _ in 0..1000 {
            lock(&control.state).last_heartbeat -= Duration::from_secs(2);
            control.note_arrival();
        }
        assert_eq!(ioctl_fionread(&control.output).unwrap(), 8);
        control.push(&[8, 0, 0, 0, 0, 0, 0, 0xce]).unwrap();
    }
}
