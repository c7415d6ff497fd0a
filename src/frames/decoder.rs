//! The broker's bytes, split by frame: channel 0 for amiquip, every other channel for this crate.
//!
//! The peer is not trusted. Memory grows by what has arrived, never by what was announced; nothing
//! recurses; and a violation of the protocol ends the connection with a sentence.

#[cfg(test)]
mod tests;

use std::fmt;

use super::fields::Fields;
use super::{
    BODY, CHANNEL_CLOSE, CONNECTION_CLOSE, END, HEADER, HEARTBEAT, METHOD, MethodId, OVERHEAD,
    PREFIX, Properties,
};

/// What the broker says on channel 0.
const CONNECTION_START: MethodId = [0, 10, 0, 10];
const CONNECTION_SECURE: MethodId = [0, 10, 0, 20];
const CONNECTION_TUNE: MethodId = [0, 10, 0, 30];
const CONNECTION_OPEN_OK: MethodId = [0, 10, 0, 41];
const CONNECTION_CLOSE_OK: MethodId = [0, 10, 0, 51];
const CONNECTION_BLOCKED: MethodId = [0, 10, 0, 60];
const CONNECTION_UNBLOCKED: MethodId = [0, 10, 0, 61];
/// What it says on the others.
const CHANNEL_OPEN_OK: MethodId = [0, 20, 0, 11];
const CHANNEL_CLOSE_OK: MethodId = [0, 20, 0, 41];
const QUEUE_DECLARE_OK: MethodId = [0, 50, 0, 11];
const BASIC_QOS_OK: MethodId = [0, 60, 0, 11];
const BASIC_CONSUME_OK: MethodId = [0, 60, 0, 21];
const BASIC_CANCEL: MethodId = [0, 60, 0, 30];
const BASIC_RETURN: MethodId = [0, 60, 0, 50];
const BASIC_DELIVER: MethodId = [0, 60, 0, 60];

/// Takes bytes as they arrive, and gives them back frame by frame.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Bytes that arrived and have not been decoded stand in `begin..end`.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    started: bool,
    /// The broker's limit for the size of a frame, in bytes.
    frame_max: usize,
    /// Messages whose frames have not all arrived: at most one a channel.
    unfinished: Vec<Unfinished>,
}

/// What the decoder makes of the next frame.
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

/// What a frame of channel 0 says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Something that amiquip alone needs to know.
    Other,
    /// The most channels (0 is no limit) and the largest frame, in bytes, that the broker takes.
    Limits {
        channel_max: u16,
        frame_max: usize,
    },
    Closed(Close),
    CloseConfirmed,
    /// A resource alarm: the broker takes no messages, for this reason.
    Blocked(String),
    Unblocked,
}

/// What happens on a channel.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// The broker answers a [`Method`](super::Method).
    Answer(Answer),
    Delivery(Delivery),
    /// The broker could not route a mandatory message to this queue, for this reason.
    Return {
        queue: String,
        reason: String,
        message: Message,
    },
    /// The broker cancelled the consumer: the queue was deleted.
    Cancelled,
    /// The broker closed the channel.
    Closed(Close),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    ChannelClosed,
    Queue(DeclaredQueue),
    Done,
}

/// What the broker says of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeclaredQueue {
    pub(crate) name: String,
    pub(crate) messages: u32,
    pub(crate) consumers: u32,
}

/// Why the broker closed a channel or the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) code: u16,
    pub(crate) text: String,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Delivery {
    pub(crate) tag: u64,
    pub(crate) redelivered: bool,
    pub(crate) message: Message,
}

/// A message's properties, undecoded, and its body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    properties: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// An event whose message has not all arrived.
#[derive(Debug)]
struct Unfinished {
    channel: u16,
    event: Event,
    /// The size that the content header announced, once that has arrived.
    size: Option<u64>,
}

/// RabbitMQ's default, which also holds until the broker has told its limit.
pub(crate) const RABBITMQ_FRAME_MAX: usize = 131_072;
/// The largest that RabbitMQ's `max_message_size` can be
/// ([Configuration](https://www.rabbitmq.com/docs/configure)).
const MESSAGE_MAX: usize = 512 << 20;

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder {
            buffer: Vec::new(),
            begin: 0,
            end: 0,
            started: false,
            frame_max: RABBITMQ_FRAME_MAX,
            unfinished: Vec::new(),
        }
    }
}

impl Decoder {
    /// Where to put the bytes that arrive next: room for at least 64 kB.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        const ROOM: usize = 64 << 10;
        if self.buffer.len() - self.end < ROOM {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
            if self.buffer.len() - self.end < ROOM {
                self.buffer.resize(2 * self.end + ROOM, 0);
            }
        }
        &mut self.buffer[self.end..]
    }

    /// Notes that this many bytes have been put into [`Decoder::room`].
    pub(crate) fn arrived(&mut self, length: usize) {
        self.end += length;
    }

    /// The next frame, or the message that it completes; `Err` tells how the peer broke the protocol.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming<'_>>, String> {
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
                    // The broker may have given up a message half-way.
                    self.unfinished.retain(|unfinished| unfinished.channel != channel);
                    let mut event = event(payload).ok_or_else(|| out_of_place(payload))?;
                    match event.message() {
                        None => Some(event),
                        Some(_) => {
                            self.unfinished.push(Unfinished { channel, event, size: None });
                            None
                        }
                    }
                }
                (HEADER | BODY, 1..) => {
                    continue_content(&mut self.unfinished, kind, channel, payload)?
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
        }
        Ok(None)
    }

    fn control(&mut self, begin: usize, end: usize) -> Result<Incoming<'_>, String> {
        let frame = &mut self.buffer[begin..end];
        let (kind, payload) = (frame[0], &frame[PREFIX..end - begin - 1]);
        let notice = if kind == HEARTBEAT { Some(Notice::Other) } else { notice(payload) };
        let notice = notice.ok_or_else(|| out_of_place(payload))?;
        if let Notice::Limits { frame_max, .. } = notice {
            self.frame_max = frame_max;
        }
        Ok(Incoming::Control { frame: without_broker_properties(frame), notice })
    }

    /// The length of the next frame, once all of it has arrived.
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
        let length = size as usize + OVERHEAD;
        if length > self.frame_max {
            let limit = self.frame_max;
            return Err(format!("the broker sent a frame of {length} bytes; the limit is {limit}"));
        }
        Ok((bytes.len() >= length).then_some(length))
    }
}

/// Code and text, as RabbitMQ's own log has them.
impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

impl Message {
    /// A message without properties.
    pub(crate) fn bare(body: Vec<u8>) -> Message {
        Message { properties: Vec::new(), body }
    }

    pub(crate) fn properties(&self) -> Properties<'_> {
        Properties::decode(&self.properties)
    }
}

/// The first byte tells whether the peer speaks AMQP at all.
fn check_protocol(first: u8) -> Result<(), String> {
    const TLS_ALERT: u8 = 21;
    match first {
        METHOD => Ok(()),
        TLS_ALERT => Err("this port speaks TLS; use amqps://".into()),
        _ => Err("what listens on this port does not speak AMQP 0-9-1".into()),
    }
}

fn out_of_place(method: &[u8]) -> String {
    let id = &method[..method.len().min(4)];
    format!("the broker sent a method that is cut short or out of place ({id:?})")
}

/// The event that a method on a channel begins; `None` if the method is cut short or out of place.
fn event(method: &[u8]) -> Option<Event> {
    let mut fields = Fields(method);
    let message = Message::default();
    Some(match fields.array()? {
        BASIC_DELIVER => {
            let _consumer_tag = fields.short()?;
            let (tag, redelivered) = (fields.u64()?, fields.u8()? & 1 != 0);
            Event::Delivery(Delivery { tag, redelivered, message })
        }
        BASIC_RETURN => {
            let _code = fields.u16()?;
            let reason = fields.short_text()?;
            let _exchange = fields.short()?;
            Event::Return { queue: fields.short_text()?, reason, message }
        }
        QUEUE_DECLARE_OK => {
            let name = fields.short_text()?;
            let (messages, consumers) = (fields.u32()?, fields.u32()?);
            Event::Answer(Answer::Queue(DeclaredQueue { name, messages, consumers }))
        }
        CHANNEL_CLOSE_OK => Event::Answer(Answer::ChannelClosed),
        CHANNEL_OPEN_OK | BASIC_QOS_OK | BASIC_CONSUME_OK => Event::Answer(Answer::Done),
        CHANNEL_CLOSE => Event::Closed(close(fields)?),
        BASIC_CANCEL => Event::Cancelled,
        _ => return None,
    })
}

impl Event {
    fn message(&mut self) -> Option<&mut Message> {
        match self {
            Event::Delivery(Delivery { message, .. }) | Event::Return { message, .. } => {
                Some(message)
            }
            _ => None,
        }
    }
}

/// Adds a content header or a part of a body to its message, and returns that when it is
/// complete. Frames of no message are passed over: the broker may have given it up.
fn continue_content(
    unfinished: &mut Vec<Unfinished>,
    kind: u8,
    channel: u16,
    payload: &[u8],
) -> Result<Option<Event>, String> {
    let messages = unfinished.iter_mut().filter_map(|other| other.event.message());
    let arrived: usize = messages.map(|message| message.body.len()).sum();
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
        }
        (BODY, Some(announced)) => {
            if (message.body.len() + payload.len()) as u64 > *announced {
                return Err("the broker sent a body longer than its header said".into());
            }
            if arrived + payload.len() > MESSAGE_MAX {
                return Err("the broker sent too many messages at once".into());
            }
            // More than has arrived, so that a large body is not moved often; but in proportion to
            // that, however much was announced.
            let body = &mut message.body;
            if body.capacity() - body.len() < payload.len() {
                let most = 8 * (body.len() + payload.len());
                let missing = *announced as usize - body.len();
                body.reserve_exact(missing.min(most));
            }
            message.body.extend_from_slice(payload);
        }
        _ => return Err("the broker sent the frames of a message in the wrong order".into()),
    }
    let is_complete = *size == Some(message.body.len() as u64);
    Ok(is_complete.then(|| unfinished.swap_remove(index).event))
}

/// What a method on channel 0 says; `None` if it is cut short or out of place.
fn notice(method: &[u8]) -> Option<Notice> {
    let mut fields = Fields(method);
    Some(match fields.array()? {
        CONNECTION_START => {
            let _version = fields.u16()?;
            let _properties = fields.long()?;
            Notice::Other
        }
        CONNECTION_SECURE | CONNECTION_OPEN_OK => Notice::Other,
        CONNECTION_TUNE => {
            let (channel_max, frame_max) = (fields.u16()?, fields.u32()? as usize);
            // 0 is the broker's way of saying that it has no limit: then a message's is the limit.
            let frame_max = if frame_max == 0 { MESSAGE_MAX } else { frame_max };
            Notice::Limits { channel_max, frame_max }
        }
        CONNECTION_CLOSE => Notice::Closed(close(fields)?),
        CONNECTION_CLOSE_OK => Notice::CloseConfirmed,
        CONNECTION_BLOCKED => Notice::Blocked(fields.short_text()?),
        CONNECTION_UNBLOCKED => Notice::Unblocked,
        _ => return None,
    })
}

fn close(mut fields: Fields<'_>) -> Option<Close> {
    Some(Close { code: fields.u16()?, text: fields.short_text()? })
}

/// amiquip's decoder follows nested tables by recursion, so that deep ones overflow its stack,
/// which ends the process. Of the methods on channel 0 `connection.start` alone has a table: the
/// broker's properties, which nobody here reads and which are left out.
fn without_broker_properties(frame: &mut [u8]) -> &[u8] {
    /// Behind the method's id stands the protocol's version.
    const TABLE_AT: usize = PREFIX + 4 + 2 + 4;
    if frame[0] != METHOD || frame[PREFIX..PREFIX + 4] != CONNECTION_START {
        return frame;
    }
    let table = u32::from_be_bytes(*frame[..TABLE_AT].last_chunk().expect("it is longer")) as usize;
    frame.copy_within(TABLE_AT + table.., TABLE_AT);
    frame[TABLE_AT - 4..TABLE_AT].fill(0);
    let length = frame.len() - table;
    frame[3..PREFIX].copy_from_slice(&((length - OVERHEAD) as u32).to_be_bytes());
    &frame[..length]
}
