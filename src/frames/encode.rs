//! Frames that publish and acknowledge.

use super::fields::{append_long, append_short};
use super::{
    BASIC_ACK, BASIC_NACK, BASIC_PUBLISH, BASIC_REJECT, BODY, END, HEADER, METHOD, MethodId,
    OVERHEAD, Properties,
};

/// Appends a message to the default exchange, in frames of at most `frame_max` bytes. The broker
/// returns a mandatory one if there is no queue of that name.
pub(crate) fn publish(
    out: &mut Vec<u8>,
    channel: u16,
    (queue, mandatory): (&str, bool),
    properties: &Properties<'_>,
    body: &[u8],
    frame_max: usize,
) {
    const RESERVED: [u8; 2] = [0, 0];
    const DEFAULT_EXCHANGE: &str = "";
    method(out, channel, BASIC_PUBLISH, |out| {
        out.extend_from_slice(&RESERVED);
        append_short(out, DEFAULT_EXCHANGE);
        append_short(out, queue);
        out.push(mandatory.into());
    });
    const CLASS_AND_WEIGHT: [u8; 4] = [0, 60, 0, 0];
    frame(out, HEADER, channel, |out| {
        out.extend_from_slice(&CLASS_AND_WEIGHT);
        out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        properties.append(out);
    });
    for part in body.chunks(frame_max - OVERHEAD) {
        frame(out, BODY, channel, |out| out.extend_from_slice(part));
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
