//! Splits the broker's bytes into frames: those of channel 0 for amiquip, all others for this
//! crate.
//!
//! The peer is not trusted. The decoder allocates memory for bytes that have arrived, not for bytes
//! that were announced. Nothing recurses. A violation of the protocol ends the connection, with one
//! sentence as the reason.

#[cfg(test)]
mod tests;

use std::mem;
use std::ops::RangeInclusive;

use super::fields::Fields;
use super::handshake::for_amiquip;
use super::incoming::{Event, Notice};
use super::layout::{BODY, END, HEADER, HEARTBEAT, MESSAGE_MAX, METHOD, OVERHEAD, PREFIX};

/// Takes bytes in chunks of any size, and returns them frame by frame.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// `begin..end` are the bytes that have arrived and are not decoded yet.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    started: bool,
    /// The messages that are not complete yet, at most one for each channel.
    unfinished: Vec<Unfinished>,
    /// The memory of an earlier body. The next body of about the same size reuses it.
    spare: Vec<u8>,
}

/// A decoded frame or event.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming<'a> {
    /// A whole frame of channel 0.
    Control {
        frame: &'a [u8],
        notice: Notice,
    },
    Event {
        channel: u16,
        event: Event,
    },
}

/// An event whose message is not complete yet.
#[derive(Debug)]
struct Unfinished {
    channel: u16,
    event: Event,
    /// The body size that the content header announced; `None` until the header has arrived.
    size: Option<u64>,
}

/// The largest frame, in bytes, that this crate asks the broker to send: RabbitMQ's default.
pub(crate) const RABBITMQ_FRAME_MAX: usize = 131_072;

impl Decoder {
    /// The buffer for the next read: at least 64 kB.
    pub(crate) fn unfilled(&mut self) -> &mut [u8] {
        const MIN_READ: usize = 64 << 10;
        if self.buffer.len() - self.end < MIN_READ {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
            if self.buffer.len() - self.end < MIN_READ {
                self.buffer.resize(2 * self.end + MIN_READ, 0);
            }
        }
        &mut self.buffer[self.end..]
    }

    /// Reuses the memory of a body that is no longer needed. If an allocator has returned a large
    /// block to the system, getting it back takes longer than filling it.
    pub(crate) fn recycle(&mut self, mut body: Vec<u8>) {
        const REUSABLE: RangeInclusive<usize> = 64 << 10..=32 << 20;
        if REUSABLE.contains(&body.capacity()) {
            body.clear();
            self.spare = body;
        }
    }

    /// Adds the first `length` bytes of [`Decoder::unfilled`] to the bytes to decode.
    pub(crate) fn filled(&mut self, length: usize) {
        self.end += length;
    }

    /// Decodes the next control frame or event. A message is part of its event, so the event
    /// follows the last frame of the message. `Err` says how the peer violated the protocol.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming<'_>>, String> {
        /// A larger buffer held a content header of unusual size. Its memory is given back.
        const MAX_KEPT: usize = 1 << 20;
        while let Some(length) = self.frame_length()? {
            let (begin, end) = (self.begin, self.begin + length);
            self.begin = end;
            if self.buffer[end - 1] != END {
                return Err("the broker sent a frame that does not end where it should".into());
            }
            let kind = self.buffer[begin];
            let channel = u16::from_be_bytes([self.buffer[begin + 1], self.buffer[begin + 2]]);
            let payload = &self.buffer[begin + PREFIX..end - 1];
            let event = match (kind, channel) {
                (METHOD | HEARTBEAT, 0) => return self.control(begin, end).map(Some),
                (METHOD, _) => {
                    // The broker may abandon a message before its last frame.
                    self.unfinished.retain(|unfinished| unfinished.channel != channel);
                    let mut event =
                        Event::decode(payload).ok_or_else(|| unexpected_method(payload))?;
                    match event.message() {
                        None => Some(event),
                        Some(_) => {
                            self.unfinished.push(Unfinished { channel, event, size: None });
                            None
                        }
                    }
                }
                (HEADER | BODY, 1..) => {
                    let spare = &mut self.spare;
                    append_content(&mut self.unfinished, spare, kind, channel, payload)?
                }
                _ => {
                    let text =
                        format!("the broker sent a frame of type {kind} on channel {channel}");
                    return Err(text);
                }
            };
            if let Some(event) = event {
                return Ok(Some(Incoming::Event { channel, event }));
            }
        }
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
            if self.buffer.len() > MAX_KEPT {
                self.buffer = Vec::new();
            }
        }
        Ok(None)
    }

    fn control(&mut self, begin: usize, end: usize) -> Result<Incoming<'_>, String> {
        let frame = &mut self.buffer[begin..end];
        let (kind, payload) = (frame[0], &frame[PREFIX..end - begin - 1]);
        let notice = if kind == HEARTBEAT { Some(Notice::Other) } else { Notice::decode(payload) };
        let notice = notice.ok_or_else(|| unexpected_method(payload))?;
        Ok(Incoming::Control { frame: for_amiquip(frame, &notice), notice })
    }

    /// The length of the next frame; `None` until the whole frame has arrived.
    fn frame_length(&mut self) -> Result<Option<usize>, String> {
        let bytes = &self.buffer[self.begin..self.end];
        if let Some(&first) = bytes.first()
            && !self.started
        {
            check_protocol(first)?;
            self.started = true;
        }
        let Some(prefix) = bytes.get(..PREFIX) else { return Ok(None) };
        let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
        let length = u64::from(size) + OVERHEAD as u64;
        // RabbitMQ splits bodies, but not content headers. It passes on those of publishers with a
        // larger limit, lengthens `reply_to` of direct reply-to, and adds `x-death`.
        let limit = if prefix[0] == HEADER { MESSAGE_MAX } else { RABBITMQ_FRAME_MAX };
        if length > limit as u64 {
            return Err(format!("the broker sent a frame of {length} bytes; the limit is {limit}"));
        }
        let length = length as usize;
        Ok((bytes.len() >= length).then_some(length))
    }
}

/// Rejects a peer that does not speak AMQP, by its first byte.
fn check_protocol(first: u8) -> Result<(), String> {
    const TLS_ALERT: u8 = 21;
    match first {
        METHOD => Ok(()),
        TLS_ALERT => Err("this port speaks TLS; use amqps://".into()),
        _ => Err("what listens on this port does not speak AMQP 0-9-1".into()),
    }
}

fn unexpected_method(method: &[u8]) -> String {
    let id = &method[..method.len().min(4)];
    format!("the broker sent a method that is cut short or out of place ({id:?})")
}

/// Adds a content header or a part of a body to its message. Returns the event when the message is
/// complete. Ignores frames that belong to no message, because the broker may have abandoned it.
fn append_content(
    unfinished: &mut Vec<Unfinished>,
    spare: &mut Vec<u8>,
    kind: u8,
    channel: u16,
    payload: &[u8],
) -> Result<Option<Event>, String> {
    let messages = unfinished.iter_mut().filter_map(|other| other.event.message());
    let arrived: usize =
        messages.map(|message| message.properties.len() + message.body.len()).sum();
    if arrived + payload.len() > MESSAGE_MAX {
        return Err("the broker sent too many messages at once".into());
    }
    let Some(index) = unfinished.iter().position(|other| other.channel == channel) else {
        return Ok(None);
    };
    let Unfinished { event, size, .. } = &mut unfinished[index];
    let message = event.message().expect("only events with a message are unfinished");
    match (kind, &size) {
        (HEADER, None) => {
            let mut fields = Fields(payload);
            let _class_and_weight = fields.take(4);
            let announced = fields.u64().ok_or("the broker sent a content header cut short")?;
            if announced > MESSAGE_MAX as u64 {
                return Err(format!(
                    "the broker announced a message of {announced} bytes; RabbitMQ's limit is \
                     {MESSAGE_MAX}"
                ));
            }
            *size = Some(announced);
            message.properties = fields.0.to_vec();
            if (spare.capacity() / 2..=spare.capacity()).contains(&(announced as usize)) {
                message.body = mem::take(spare);
            }
        }
        (BODY, Some(announced)) => {
            if (message.body.len() + payload.len()) as u64 > *announced {
                return Err("the broker sent a body longer than its header said".into());
            }
            // Reserving more than has arrived avoids moving a large body often. The reservation is
            // at most proportional to what has arrived, so a large announced size alone allocates
            // nothing.
            let body = &mut message.body;
            if body.capacity() - body.len() < payload.len() {
                let limit = 8 * (body.len() + payload.len());
                let missing = *announced as usize - body.len();
                body.reserve_exact(missing.min(limit));
            }
            message.body.extend_from_slice(payload);
        }
        _ => return Err("the broker sent the frames of a message in the wrong order".into()),
    }
    let is_complete = *size == Some(message.body.len() as u64);
    Ok(is_complete.then(|| unfinished.swap_remove(index).event))
}
