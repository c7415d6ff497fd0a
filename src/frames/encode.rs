//! Frames that publish and acknowledge.

use super::fields::{append_long, append_short};
use super::{
    BASIC_ACK, BASIC_NACK, BASIC_PUBLISH, BASIC_REJECT, BODY, END, HEADER, METHOD, MethodId,
    OVERHEAD, Properties,
};

/// The frames of one message, and what follows it. They are encoded part by part while they are
/// written, so that a large body is not copied as a whole.
pub(crate) struct Frames<'a> {
    /// The part to write.
    part: Vec<u8>,
    channel: u16,
    frame_max: usize,
    /// What is left of the body.
    body: &'a [u8],
    /// Whole frames that follow the body.
    last: Vec<u8>,
}

/// A message to the default exchange, in frames of at most `frame_max` bytes. The broker returns a
/// mandatory one if there is no queue of that name.
pub(crate) fn publish<'a>(
    channel: u16,
    (queue, mandatory): (&str, bool),
    properties: &Properties<'_>,
    body: &'a [u8],
    frame_max: usize,
) -> Frames<'a> {
    const RESERVED: [u8; 2] = [0, 0];
    const DEFAULT_EXCHANGE: &str = "";
    const ENOUGH_FOR_OTHERS: usize = 512;
    let size = ENOUGH_FOR_OTHERS + properties.headers.len() + body.len().min(Frames::PART);
    let mut part = Vec::with_capacity(size);
    method(&mut part, channel, BASIC_PUBLISH, |out| {
        out.extend_from_slice(&RESERVED);
        append_short(out, DEFAULT_EXCHANGE);
        append_short(out, queue);
        out.push(mandatory.into());
    });
    const CLASS_AND_WEIGHT: [u8; 4] = [0, 60, 0, 0];
    frame(&mut part, HEADER, channel, |out| {
        out.extend_from_slice(&CLASS_AND_WEIGHT);
        out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        properties.append(out);
    });
    let mut frames = Frames { part, channel, frame_max, body, last: Vec::new() };
    frames.append_body();
    frames
}

impl Frames<'_> {
    /// A part has about this many bytes of the body.
    const PART: usize = 128 << 10;

    /// The frames to write now.
    pub(crate) fn part(&self) -> &[u8] {
        &self.part
    }

    /// Goes on to the next part. False if there is none.
    pub(crate) fn advance(&mut self) -> bool {
        self.part.clear();
        self.append_body();
        if self.body.is_empty() {
            self.part.append(&mut self.last);
        }
        !self.part.is_empty()
    }

    /// All that is left, without the first bytes of this part.
    pub(crate) fn rest(mut self, written: usize) -> Vec<u8> {
        let mut rest = self.part[written..].to_vec();
        while self.advance() {
            rest.extend_from_slice(&self.part);
        }
        rest
    }

    /// Adds frames behind the message.
    pub(crate) fn then(mut self, append: impl FnOnce(&mut Vec<u8>)) -> Self {
        append(if self.body.is_empty() { &mut self.part } else { &mut self.last });
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
        Frames { part, channel: 0, frame_max: usize::MAX, body: &[], last: Vec::new() }
    }
}

/// Appends the acknowledgement of one delivery.
pub(crate) fn ack(out: &mut Vec<u8>, channel: u16, delivery_tag: u64) {
    settle(out, channel, BASIC_ACK, delivery_tag, 0);
}

/// Appends the rejection of one delivery, which the broker then drops or dead-letters.
pub(crate) fn reject(out: &mut Vec<u8>, channel: u16, delivery_tag: u64) {
    settle(out, channel, BASIC_REJECT, delivery_tag, 0);
}

/// Appends the order to put a delivery, and every one before it that has not been settled, back
/// into its queue.
pub(crate) fn nack(out: &mut Vec<u8>, channel: u16, up_to_delivery_tag: u64) {
    const MULTIPLE_AND_REQUEUE: u8 = 0b11;
    settle(out, channel, BASIC_NACK, up_to_delivery_tag, MULTIPLE_AND_REQUEUE);
}

fn settle(out: &mut Vec<u8>, channel: u16, id: MethodId, delivery_tag: u64, bits: u8) {
    method(out, channel, id, |out| {
        out.extend_from_slice(&delivery_tag.to_be_bytes());
        out.push(bits);
    });
}

fn method(out: &mut Vec<u8>, channel: u16, id: MethodId, arguments: impl FnOnce(&mut Vec<u8>)) {
    frame(out, METHOD, channel, |out| {
        out.extend_from_slice(&id);
        arguments(out);
    });
}

/// Appends a frame around what `payload` appends.
fn frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    append_long(out, payload);
    out.push(END);
}
