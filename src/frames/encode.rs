//! Encodes the frames that are sent to the broker.

use super::fields::{append_long, append_short};
use super::layout::*;
use super::properties::Properties;

/// Names the only consumer of a channel.
const CONSUMER_TAG: &str = "rpc";

/// The methods that the broker answers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Method<'a> {
    CloseConnection,
    OpenChannel,
    CloseChannel,
    /// Asks whether there is a queue of this name.
    FindQueue(&'a str),
    /// Declares a queue that survives a restart of the broker. `arguments` are the entries of a
    /// table.
    DeclareQueue {
        queue: &'a str,
        arguments: &'a [u8],
    },
    /// Declares a queue that only this connection can use. The broker chooses its name.
    DeclareReplyQueue,
    /// Asks whether there is an exchange of this name.
    FindExchange(&'a str),
    /// Declares a direct exchange that survives a restart of the broker.
    DeclareExchange(&'a str),
    Bind {
        key: &'a str,
        queue: &'a str,
        exchange: &'a str,
    },
    /// Limits the number of unacknowledged deliveries; 0 is no limit.
    Prefetch(u16),
    /// `arguments` are the entries of a table.
    Consume {
        queue: &'a str,
        no_ack: bool,
        arguments: &'a [u8],
    },
}

impl Method<'_> {
    pub(crate) fn encode(self, channel: u16) -> Vec<u8> {
        const PASSIVE: u8 = 1;
        const DURABLE: u8 = 2;
        const EXCLUSIVE: u8 = 4;
        const NO_ACK: u8 = 2;
        /// Reply code 200, reply text `OK`, and no failing method.
        const OK: &[u8] = b"\x00\xc8\x02OK\0\0\0\0";
        let close = |id| method(channel, id, |out| out.extend_from_slice(OK));
        let with_names = |id, names: &[&str], bits, table: &[u8]| {
            method(channel, id, |out| {
                append_names(out, names, bits);
                append_long(out, |out| out.extend_from_slice(table));
            })
        };
        match self {
            Method::CloseConnection => close(CONNECTION_CLOSE),
            Method::OpenChannel => method(channel, CHANNEL_OPEN, |out| append_short(out, "")),
            Method::CloseChannel => close(CHANNEL_CLOSE),
            Method::FindQueue(queue) => with_names(QUEUE_DECLARE, &[queue], PASSIVE, &[]),
            Method::DeclareQueue { queue, arguments } => {
                with_names(QUEUE_DECLARE, &[queue], DURABLE, arguments)
            }
            Method::DeclareReplyQueue => with_names(QUEUE_DECLARE, &[""], EXCLUSIVE, &[]),
            Method::FindExchange(name) => with_names(EXCHANGE_DECLARE, &[name, ""], PASSIVE, &[]),
            Method::DeclareExchange(name) => {
                with_names(EXCHANGE_DECLARE, &[name, "direct"], DURABLE, &[])
            }
            Method::Bind { key, queue, exchange } => {
                with_names(QUEUE_BIND, &[queue, exchange, key], 0, &[])
            }
            Method::Prefetch(count) => method(channel, BASIC_QOS, |out| {
                const ANY_SIZE: [u8; 4] = [0; 4];
                const NOT_GLOBAL: u8 = 0;
                out.extend_from_slice(&ANY_SIZE);
                out.extend_from_slice(&count.to_be_bytes());
                out.push(NOT_GLOBAL);
            }),
            Method::Consume { queue, no_ack, arguments } => {
                let bits = if no_ack { NO_ACK } else { 0 };
                with_names(BASIC_CONSUME, &[queue, CONSUMER_TAG], bits, arguments)
            }
        }
    }
}

/// The frames of one message, and any frames after it. They are encoded in parts while they are
/// written, so that a large body is not copied all at once.
pub(crate) struct Frames<'a> {
    /// The encoded part to write now.
    part: Vec<u8>,
    channel: u16,
    frame_max: usize,
    /// The rest of the body, which is not encoded yet.
    body: &'a [u8],
    /// Whole frames to write after the body.
    trailer: Vec<u8>,
}

/// How to publish a message.
#[derive(Clone, Copy)]
pub(crate) struct Route<'a> {
    pub(crate) channel: u16,
    /// The default exchange, whose name is empty, routes to the queue that the routing key names.
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a str,
    /// Whether the broker returns the message if it reaches no queue.
    pub(crate) mandatory: bool,
    /// The largest frame, in bytes, that the broker accepts.
    pub(crate) frame_max: usize,
}

/// Encodes a message to publish.
pub(crate) fn publish<'a>(
    route: Route<'_>,
    properties: &Properties<'_>,
    body: &'a [u8],
) -> Frames<'a> {
    let Route { channel, exchange, routing_key, mandatory, frame_max } = route;
    const CLASS_AND_WEIGHT: [u8; 4] = [0, 60, 0, 0];
    const OTHER_FIELDS_SIZE: usize = 512;
    let size = OTHER_FIELDS_SIZE + properties.headers.len() + body.len().min(Frames::PART);
    let mut part = Vec::with_capacity(size);
    frame(&mut part, METHOD, channel, |out| {
        out.extend_from_slice(&BASIC_PUBLISH);
        append_names(out, &[exchange, routing_key], mandatory.into());
    });
    frame(&mut part, HEADER, channel, |out| {
        out.extend_from_slice(&CLASS_AND_WEIGHT);
        out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        properties.append(out);
    });
    let mut frames = Frames { part, channel, frame_max, body, trailer: Vec::new() };
    frames.append_body();
    frames
}

impl Frames<'_> {
    /// The approximate number of bytes of the body in one part.
    const PART: usize = 128 << 10;

    /// The frames to write now.
    pub(crate) fn part(&self) -> &[u8] {
        &self.part
    }

    /// Whether there is no other part, and copying this one is cheaper than a system call.
    pub(crate) fn is_small(&self) -> bool {
        const SMALL: usize = 4096;
        self.body.is_empty() && self.trailer.is_empty() && self.part.len() <= SMALL
    }

    /// Encodes the next part. False if there is none.
    pub(crate) fn advance(&mut self) -> bool {
        self.part.clear();
        self.append_body();
        if self.body.is_empty() {
            self.part.append(&mut self.trailer);
        }
        !self.part.is_empty()
    }

    /// Everything that is not written yet: this part without its first `written` bytes, and the
    /// parts after it.
    pub(crate) fn rest(mut self, written: usize) -> Vec<u8> {
        let mut rest = self.part[written..].to_vec();
        while self.advance() {
            rest.extend_from_slice(&self.part);
        }
        rest
    }

    /// Adds frames after the message.
    pub(crate) fn followed_by(mut self, frames: &[u8]) -> Self {
        let out = if self.body.is_empty() { &mut self.part } else { &mut self.trailer };
        out.extend_from_slice(frames);
        self
    }

    fn append_body(&mut self) {
        let in_frame = self.frame_max - OVERHEAD;
        let part = in_frame * (Frames::PART / in_frame).max(1);
        let (now, later) = self.body.split_at(self.body.len().min(part));
        for part in now.chunks(in_frame) {
            frame(&mut self.part, BODY, self.channel, |out| out.extend_from_slice(part));
        }
        self.body = later;
    }
}

/// Frames without a body.
impl From<Vec<u8>> for Frames<'_> {
    fn from(part: Vec<u8>) -> Self {
        Frames { part, channel: 0, frame_max: usize::MAX, body: &[], trailer: Vec::new() }
    }
}

/// Acknowledges one delivery.
pub(crate) fn ack(channel: u16, delivery_tag: u64) -> Vec<u8> {
    const NOT_MULTIPLE: u8 = 0;
    settle(channel, BASIC_ACK, delivery_tag, NOT_MULTIPLE)
}

/// Rejects one delivery. The broker then drops or dead-letters it.
pub(crate) fn reject(channel: u16, delivery_tag: u64) -> Vec<u8> {
    const NOT_REQUEUE: u8 = 0;
    settle(channel, BASIC_REJECT, delivery_tag, NOT_REQUEUE)
}

/// Returns one delivery to its queue. From 4.3 on, RabbitMQ does not count it against a delivery
/// limit, as it counts one that is rejected with `requeue`, or whose channel is closed.
pub(crate) fn give_back(channel: u16, delivery_tag: u64) -> Vec<u8> {
    const REQUEUE: u8 = 2;
    settle(channel, BASIC_NACK, delivery_tag, REQUEUE)
}

fn settle(channel: u16, id: MethodId, delivery_tag: u64, bits: u8) -> Vec<u8> {
    method(channel, id, |out| {
        out.extend_from_slice(&delivery_tag.to_be_bytes());
        out.push(bits);
    })
}

/// Ends the deliveries on this channel. The broker does not answer it.
pub(crate) fn cancel(channel: u16) -> Vec<u8> {
    const NO_WAIT: u8 = 1;
    method(channel, BASIC_CANCEL, |out| {
        append_short(out, CONSUMER_TAG);
        out.push(NO_WAIT);
    })
}

/// Encodes a method without arguments.
pub(crate) fn bare_method(channel: u16, id: MethodId) -> Vec<u8> {
    method(channel, id, |_| {})
}

/// Appends what most methods begin with: a reserved field, names and flags.
fn append_names(out: &mut Vec<u8>, names: &[&str], bits: u8) {
    const RESERVED: [u8; 2] = [0, 0];
    out.extend_from_slice(&RESERVED);
    names.iter().for_each(|name| append_short(out, name));
    out.push(bits);
}

pub(super) fn method(channel: u16, id: MethodId, arguments: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    const MOST_ARE_SHORTER: usize = 64;
    let mut out = Vec::with_capacity(MOST_ARE_SHORTER);
    frame(&mut out, METHOD, channel, |out| {
        out.extend_from_slice(&id);
        arguments(out);
    });
    out
}

/// Appends a frame with the payload that `payload` appends.
fn frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    append_long(out, payload);
    out.push(END);
}
