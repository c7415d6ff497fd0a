//! The broker's bytes, split by frame: messages for this crate, everything else for amiquip.
//!
//! The peer is not trusted. Memory grows by what has arrived, never by what was announced; nothing
//! recurses; and a violation of the protocol ends the connection with a sentence.

#[cfg(test)]
mod tests;

use std::fmt;

use super::fields::Fields;
use super::{
    BASIC_CANCEL, BASIC_DELIVER, BASIC_RETURN, BODY, CHANNEL_CLOSE, CONNECTION_BLOCKED,
    CONNECTION_CLOSE, CONNECTION_START, CONNECTION_TUNE, CONNECTION_UNBLOCKED, END, HEADER,
    HEARTBEAT, METHOD, MethodId, OTHERS_FOR_AMIQUIP, OVERHEAD, PREFIX, Properties,
};

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
    /// A whole frame that is amiquip's to handle, and what it says to others.
    Control {
        frame: &'a [u8],
        notice: Option<Notice>,
    },
    Delivery {
        channel: u16,
        delivery: Delivery,
    },
    /// A mandatory message for this queue that the broker could not route, for this reason.
    Return {
        queue: String,
        reason: String,
        message: Message,
    },
}

/// What a control frame says that this crate acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The largest frame that the broker takes, in bytes.
    FrameMax(usize),
    ConnectionClosed(Close),
    ChannelClosed {
        channel: u16,
        close: Close,
    },
    /// The broker cancelled the consumer of this channel: its queue was deleted.
    ConsumerCancelled {
        channel: u16,
    },
    /// A resource alarm: the broker takes no messages, for this reason.
    Blocked(String),
    Unblocked,
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

#[derive(Debug)]
struct Unfinished {
    channel: u16,
    kind: Kind,
    /// The size that the content header announced, once that has arrived.
    size: Option<u64>,
    message: Message,
}

#[derive(Debug)]
enum Kind {
    Delivery { tag: u64, redelivered: bool },
    Return { queue: String, reason: String },
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

    /// The next frame or message that is complete; `Err` tells how the peer broke the protocol.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming<'_>>, String> {
        loop {
            let Some(length) = self.frame_length()? else {
                if self.begin == self.end {
                    (self.begin, self.end) = (0, 0);
                }
                return Ok(None);
            };
            let (begin, end) = (self.begin, self.begin + length);
            self.begin = end;
            if self.buffer[end - 1] != END {
                return Err("the broker sent a frame that does not end where it should".into());
            }
            let kind = self.buffer[begin];
            let channel = u16::from_be_bytes([self.buffer[begin + 1], self.buffer[begin + 2]]);
            let payload = &self.buffer[begin + PREFIX..end - 1];
            let complete = match kind {
                METHOD => {
                    self.unfinished.retain(|unfinished| unfinished.channel != channel);
                    let Some(unfinished) = begin_content(channel, payload) else {
                        let notice = notice(channel, payload);
                        if let Some(Notice::FrameMax(limit)) = notice {
                            self.frame_max = limit;
                        }
                        let frame = make_fit_for_amiquip(&mut self.buffer[begin..end])?;
                        return Ok(Some(Incoming::Control { frame, notice }));
                    };
                    self.unfinished.push(unfinished);
                    None
                }
                HEADER | BODY => continue_content(&mut self.unfinished, kind, channel, payload)?,
                HEARTBEAT => {
                    let frame = &self.buffer[begin..end];
                    return Ok(Some(Incoming::Control { frame, notice: None }));
                }
                _ => return Err(format!("the broker sent a frame of the unknown type {kind}")),
            };
            if let Some(Unfinished { channel, kind, message, .. }) = complete {
                return Ok(Some(match kind {
                    Kind::Delivery { tag, redelivered } => {
                        let delivery = Delivery { tag, redelivered, message };
                        Incoming::Delivery { channel, delivery }
                    }
                    Kind::Return { queue, reason } => Incoming::Return { queue, reason, message },
                }));
            }
        }
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

/// The message that this method announces, if it announces one.
fn begin_content(channel: u16, payload: &[u8]) -> Option<Unfinished> {
    let mut fields = Fields(payload);
    let id: MethodId = fields.take(4)?.try_into().ok()?;
    let kind = match id {
        BASIC_DELIVER => {
            let _consumer_tag = fields.short()?;
            Kind::Delivery { tag: fields.u64()?, redelivered: fields.u8()? & 1 != 0 }
        }
        BASIC_RETURN => {
            let _code = fields.u16()?;
            let reason = fields.short_text()?;
            let _exchange = fields.short()?;
            Kind::Return { queue: fields.short_text()?, reason }
        }
        _ => return None,
    };
    Some(Unfinished { channel, kind, size: None, message: Message::default() })
}

/// Adds a content header or a part of a body to its message, and returns that when it is
/// complete. Frames of no message are passed over: the broker may have given it up.
fn continue_content(
    unfinished: &mut Vec<Unfinished>,
    kind: u8,
    channel: u16,
    payload: &[u8],
) -> Result<Option<Unfinished>, String> {
    let arrived: usize = unfinished.iter().map(|other| other.message.body.len()).sum();
    let Some(index) = unfinished.iter().position(|other| other.channel == channel) else {
        return Ok(None);
    };
    let Unfinished { size, message, .. } = &mut unfinished[index];
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
    Ok(is_complete.then(|| unfinished.swap_remove(index)))
}

/// amiquip's decoder follows nested tables by recursion, so that deep ones overflow its stack,
/// which ends the process. It gets only the methods that it may have to handle, of which
/// `connection.start` alone has a table: the broker's properties, which nobody here reads and which
/// are left out.
fn make_fit_for_amiquip(frame: &mut [u8]) -> Result<&[u8], String> {
    const MALFORMED: &str = "the broker sent a method that is cut short";
    let length = frame.len();
    let mut fields = Fields(&frame[PREFIX..length - 1]);
    let id: MethodId = fields.take(4).and_then(|id| id.try_into().ok()).ok_or(MALFORMED)?;
    // The connection's methods come on channel 0, and only they. amiquip's I/O thread panics when
    // it gives up on a method that is out of place.
    let is_connections = id[..2] == CONNECTION_START[..2];
    if is_connections != (frame[1..3] == [0, 0]) {
        return Err(format!("the broker sent the method {id:?} on a channel that has none such"));
    }
    if id == CONNECTION_START {
        let _version = fields.u16().ok_or(MALFORMED)?;
        let properties = fields.long().ok_or(MALFORMED)?.len();
        let table_at = length - 1 - fields.0.len() - properties;
        frame[table_at - 4..table_at].fill(0);
        frame.copy_within(table_at + properties.., table_at);
        let frame = &mut frame[..length - properties];
        let size = (frame.len() - OVERHEAD) as u32;
        frame[3..PREFIX].copy_from_slice(&size.to_be_bytes());
        return Ok(frame);
    }
    match OTHERS_FOR_AMIQUIP.contains(&id) {
        true => Ok(frame),
        false => Err(format!("the broker sent the unexpected method {id:?}")),
    }
}

/// What this method says that the crate acts on.
fn notice(channel: u16, payload: &[u8]) -> Option<Notice> {
    let mut fields = Fields(payload);
    let id: MethodId = fields.take(4)?.try_into().ok()?;
    let close =
        |mut fields: Fields<'_>| Some(Close { code: fields.u16()?, text: fields.short_text()? });
    match id {
        CONNECTION_TUNE => {
            let _channel_max = fields.u16()?;
            let limit = fields.u32()? as usize;
            // 0 is the broker's way of saying that it has no limit: then a message's is the limit.
            Some(Notice::FrameMax(if limit == 0 { MESSAGE_MAX } else { limit }))
        }
        CONNECTION_CLOSE => Some(Notice::ConnectionClosed(close(fields)?)),
        CONNECTION_BLOCKED => Some(Notice::Blocked(fields.short_text()?)),
        CONNECTION_UNBLOCKED => Some(Notice::Unblocked),
        CHANNEL_CLOSE => Some(Notice::ChannelClosed { channel, close: close(fields)? }),
        BASIC_CANCEL => Some(Notice::ConsumerCancelled { channel }),
        _ => None,
    }
}
