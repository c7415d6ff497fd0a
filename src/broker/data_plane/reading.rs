//! What the thread with the turn to read does: it passes on what arrives.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use log::Level;
use rustix::event::PollFlags;

use super::DataPlane;
use crate::broker::ended::Ended;
use crate::broker::turn::{Reader, Socket};
use crate::frames::{
    Answer, CHANNEL_CLOSE_OK, CONNECTION_CLOSE_OK, Event, Incoming, Notice, bare_method,
};
use crate::lock::lock;

/// What every broker accepts, however little it says: `frame-min-size` of AMQP 0-9-1.
const FRAME_MIN_SIZE: usize = 4096;

impl Socket for DataPlane {
    fn poll(&self, reader: Reader, until: Option<Instant>) -> bool {
        // Whoever waits can take the turn from the reserve.
        if reader == Reader::Reserve {
            self.notes.log();
        }
        let output = if self.transport.has_backlog() { PollFlags::OUT } else { PollFlags::empty() };
        let pipe = &self.pipes[reader as usize];
        match self.transport.socket.poll(Some(pipe), PollFlags::IN | output, until) {
            Ok(found) => {
                if found.contains(PollFlags::OUT) {
                    self.transport.flush_backlog();
                }
                found.contains(PollFlags::IN)
            }
            Err(error) => {
                self.cut(format!("waiting for the socket: {error}"));
                false
            }
        }
    }

    fn read(&self) {
        if let Err(reason) = self.read_some() {
            self.cut(reason);
        }
    }

    fn interrupt_poll(&self, reader: Reader) {
        self.pipes[reader as usize].signal();
    }
}

impl DataPlane {
    /// Reads from the socket once and dispatches all complete frames. `Err` is the reason why the
    /// connection has ended.
    fn read_some(&self) -> Result<(), Ended> {
        let mut decoder = lock(&self.decoder);
        let length = match self.transport.socket.read(decoder.unfilled()) {
            Ok(0) => return Err(Ended::Peer),
            Ok(length) => length,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return Ok(()),
                io::ErrorKind::ConnectionReset => return Err(Ended::Peer),
                _ => return Err(error.to_string().into()),
            },
        };
        decoder.filled(length);
        self.control.note_arrival();
        self.transport.write_together(|| {
            while let Some(incoming) = decoder.next()? {
                match incoming {
                    Incoming::Event { channel, event } => self.dispatch(channel, event)?,
                    Incoming::Control { frame, notice } => self.control_frame(frame, notice)?,
                }
            }
            Ok(())
        })
    }

    /// Passes an event to its channel. Called by the reader.
    fn dispatch(&self, number: u16, event: Event) -> Result<(), Ended> {
        let Some(slot) = lock(&self.slots).get(&number).cloned() else {
            let text = format!("the broker sent something on channel {number}, which is not open");
            return Err(text.into());
        };
        match event {
            Event::Answer(Answer::ChannelClosed) => {
                lock(&self.slots).remove(&number);
            }
            Event::Answer(answer) if !slot.handles_answers => {
                lock(&slot.answers).push(answer);
                self.notify(&slot.waiter);
            }
            Event::Closed(close) => {
                let _ = slot.closed.set(close.clone());
                // The flag changes under the write lock, so no thread writes on the channel after
                // this frame.
                let mut was_open = false;
                self.write_control(&bare_method(number, CHANNEL_CLOSE_OK), || {
                    was_open = slot.is_open.swap(false, Ordering::Release);
                    true
                });
                if was_open {
                    lock(&self.slots).remove(&number);
                    (slot.handler)(self, Event::Closed(close));
                    self.notify(&slot.waiter);
                }
            }
            event if slot.is_open.load(Ordering::Relaxed) => (slot.handler)(self, event),
            _ => {}
        }
        Ok(())
    }

    fn control_frame(&self, frame: &[u8], notice: Notice) -> Result<(), Ended> {
        match notice {
            Notice::Other => {}
            Notice::Start { version } => {
                let _ = self.version.set(version);
            }
            Notice::Tune { channel_max, frame_max, heartbeat } => {
                for (own, other) in [(&self.channel_max, channel_max), (&self.heartbeat, heartbeat)]
                {
                    // 0 is no limit, and suggests no heartbeat: this side's counts.
                    let other = if other == 0 { u16::MAX } else { other };
                    own.fetch_min(other, Ordering::Relaxed);
                }
                if frame_max != 0 {
                    self.frame_max.fetch_min(frame_max.max(FRAME_MIN_SIZE), Ordering::Relaxed);
                }
            }
            Notice::Closed(close) => {
                self.end(Ended::Closed(close));
                // amiquip does not take part in closing.
                self.write_control(&bare_method(0, CONNECTION_CLOSE_OK), || true);
                self.control.end();
                return Ok(());
            }
            Notice::CloseConfirmed => return Err(Ended::ThisSide),
            Notice::Blocked(reason) => {
                let broker = &self.endpoint;
                let text = format_args!("{broker} takes no messages at present: {reason}");
                self.note(Level::Warn, text);
                *lock(&self.blocked) = Some(reason);
                return Ok(());
            }
            Notice::Unblocked => {
                let broker = &self.endpoint;
                self.note(Level::Info, format_args!("{broker} takes messages again"));
                *lock(&self.blocked) = None;
                self.wake_all();
                return Ok(());
            }
        }
        Ok(self.control.push(frame)?)
    }
}
