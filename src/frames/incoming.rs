//! Decodes the broker's methods: those on channel 0 concern the connection, the others a channel.

use std::fmt;

use super::fields::Fields;
use super::layout::*;
use super::properties::{Properties, find_header};

/// A version of RabbitMQ: major, minor and patch. Versions can be compared.
pub(crate) type Version = (u32, u32, u32);

/// The content of a frame on channel 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A frame that only amiquip needs to decode.
    Other,
    /// The broker's version, if it names one that looks like RabbitMQ's.
    Start {
        version: Option<Version>,
    },
    /// The greatest number of channels and the largest frame, in bytes, that the broker accepts; 0
    /// is no limit. The heartbeat interval, in seconds, that it suggests; 0 suggests none.
    Tune {
        channel_max: u16,
        frame_max: usize,
        heartbeat: u16,
    },
    Closed(Close),
    CloseConfirmed,
    /// A resource alarm: the broker accepts no messages, for this reason.
    Blocked(String),
    Unblocked,
}

/// An event on a channel.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// The broker's answer to a [`Method`](super::Method).
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

/// The broker's answer about a queue.
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
    /// The class and the method that the broker refused; zeros if it was none.
    pub(crate) method: MethodId,
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
    pub(crate) properties: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl Event {
    /// Decodes a method on a channel. The message of the event arrives in later frames. `None` if
    /// the method is truncated or not valid there.
    pub(super) fn decode(method: &[u8]) -> Option<Event> {
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
                let reason = fields.sentence()?;
                let _exchange = fields.short()?;
                Event::Return { queue: fields.short_text()?, reason, message }
            }
            QUEUE_DECLARE_OK => {
                // The name is sent back to the broker, so it is not a text with replaced bytes.
                let name = String::from_utf8(fields.short()?.to_vec()).ok()?;
                let (messages, consumers) = (fields.u32()?, fields.u32()?);
                Event::Answer(Answer::Queue(DeclaredQueue { name, messages, consumers }))
            }
            CHANNEL_CLOSE_OK => Event::Answer(Answer::ChannelClosed),
            CHANNEL_OPEN_OK | EXCHANGE_DECLARE_OK | QUEUE_BIND_OK | BASIC_QOS_OK
            | BASIC_CONSUME_OK => Event::Answer(Answer::Done),
            CHANNEL_CLOSE => Event::Closed(close(fields)?),
            BASIC_CANCEL => Event::Cancelled,
            _ => return None,
        })
    }

    pub(super) fn message(&mut self) -> Option<&mut Message> {
        match self {
            Event::Delivery(Delivery { message, .. }) | Event::Return { message, .. } => {
                Some(message)
            }
            _ => None,
        }
    }
}

impl Notice {
    /// Decodes a method on channel 0. `None` if it is truncated or not valid there.
    pub(super) fn decode(method: &[u8]) -> Option<Notice> {
        let mut fields = Fields(method);
        Some(match fields.array()? {
            CONNECTION_START => {
                let _protocol = fields.u16()?;
                Notice::Start { version: find_header(fields.long()?, "version").and_then(version) }
            }
            CONNECTION_SECURE | CONNECTION_OPEN_OK => Notice::Other,
            CONNECTION_TUNE => {
                let (channel_max, frame_max) = (fields.u16()?, fields.u32()? as usize);
                Notice::Tune { channel_max, frame_max, heartbeat: fields.u16()? }
            }
            CONNECTION_CLOSE => Notice::Closed(close(fields)?),
            CONNECTION_CLOSE_OK => Notice::CloseConfirmed,
            CONNECTION_BLOCKED => Notice::Blocked(fields.sentence()?),
            CONNECTION_UNBLOCKED => Notice::Unblocked,
            _ => return None,
        })
    }
}

/// Decodes a version such as `3.10.8` or `4.3.0-rc.1`.
fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next()??))
}

fn close(mut fields: Fields<'_>) -> Option<Close> {
    let (code, text) = (fields.u16()?, fields.sentence()?);
    Some(Close { code, text, method: fields.array().unwrap_or_default() })
}

impl Close {
    /// Whether the broker refused a message. It handles the frames of a channel in order, so it
    /// took the messages that were published before on that channel, and ignored those after it.
    pub(crate) fn refuses_message(&self) -> bool {
        self.method == BASIC_PUBLISH
    }

    /// Whether the broker refused a message because of what it contains, and not because of what
    /// the user may do.
    pub(crate) fn is_message_fault(&self) -> bool {
        self.refuses_message() && self.code != 403
    }

    /// Whether the broker closed it by itself, and not because of a method.
    pub(crate) fn names_no_method(&self) -> bool {
        self.method == MethodId::default()
    }

    /// Whether the connection, the user or the node has as many channels as it may have. RabbitMQ
    /// names no class and method then (`create_channel` in its `rabbit_reader.erl`).
    pub(crate) fn is_channel_limit(&self) -> bool {
        self.code == 530
            && self.names_no_method()
            && self.text.starts_with("NOT_ALLOWED - number of channels opened ")
    }
}

/// The code and the text, in the format of RabbitMQ's log.
impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

impl Message {
    pub(crate) fn properties(&self) -> Properties<'_> {
        Properties::decode(&self.properties)
    }
}

#[cfg(test)]
mod tests {
    use super::super::append_text;
    use super::*;

    #[test]
    fn brokers_version_is_read() {
        let start = |version: &str| {
            let mut entries = b"\x0ccapabilitiesF\0\0\0\x05\x02okt\x01".to_vec();
            append_text(&mut entries, "version", version);
            let table = [&(entries.len() as u32).to_be_bytes()[..], &entries].concat();
            let start = [&CONNECTION_START[..], &[0, 9], &table, b"\0\0\0\0\0\0\0\0"].concat();
            Notice::decode(&start)
        };
        for (text, version) in [
            ("3.10.8", Some((3, 10, 8))),
            ("4.3.0-rc.1", Some((4, 3, 0))),
            ("4.2.7+12.gabc", Some((4, 2, 7))),
            ("4.3", None),
            ("unknown", None),
            ("99999999999.0.0", None),
        ] {
            assert_eq!(start(text), Some(Notice::Start { version }), "{text}");
        }
    }
}
