//! Frames that publish and acknowledge, written without a detour through amiquip's structures.

use super::{BODY, END, HEADER, METHOD};

/// The properties of a message that we send; AMQP knows some more.
#[derive(Debug, Default)]
pub(crate) struct Properties<'a> {
    pub(crate) content_type: Option<&'a str>,
    /// One header, and its text.
    pub(crate) header: Option<(&'a str, &'a str)>,
    pub(crate) delivery_mode: Option<u8>,
    pub(crate) correlation_id: Option<&'a str>,
    pub(crate) reply_to: Option<&'a str>,
    pub(crate) expiration: Option<&'a str>,
    pub(crate) message_id: Option<&'a str>,
    pub(crate) timestamp: Option<u64>,
    pub(crate) type_: Option<&'a str>,
    pub(crate) app_id: Option<&'a str>,
}

/// Appends a message to the default exchange, in frames of at most `frame_max` bytes; one that is
/// mandatory comes back where there is no such queue.
pub(crate) fn publish(
    out: &mut Vec<u8>,
    channel: u16,
    (queue, mandatory): (&str, bool),
    properties: &Properties<'_>,
    body: &[u8],
    frame_max: usize,
) {
    const BASIC_PUBLISH: [u8; 4] = [0, 60, 0, 40];
    const RESERVED: [u8; 2] = [0, 0];
    const DEFAULT_EXCHANGE: u8 = 0; // the length of its name
    frame(out, METHOD, channel, |out| {
        out.extend_from_slice(&BASIC_PUBLISH);
        out.extend_from_slice(&RESERVED);
        out.push(DEFAULT_EXCHANGE);
        short_string(out, queue);
        out.push(mandatory.into());
    });
    const CLASS_AND_WEIGHT: [u8; 4] = [0, 60, 0, 0];
    frame(out, HEADER, channel, |out| {
        out.extend_from_slice(&CLASS_AND_WEIGHT);
        out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        properties.append(out);
    });
    const OVERHEAD: usize = 8;
    for part in body.chunks(frame_max - OVERHEAD) {
        frame(out, BODY, channel, |out| out.extend_from_slice(part));
    }
}

/// Appends the acknowledgement of one delivery.
pub(crate) fn ack(out: &mut Vec<u8>, channel: u16, delivery_tag: u64) {
    const BASIC_ACK: [u8; 4] = [0, 60, 0, 80];
    const THIS_ONE_ALONE: u8 = 0;
    frame(out, METHOD, channel, |out| {
        out.extend_from_slice(&BASIC_ACK);
        out.extend_from_slice(&delivery_tag.to_be_bytes());
        out.push(THIS_ONE_ALONE);
    });
}

impl Properties<'_> {
    /// Flags first, a bit for each property that is there, then the properties, in the order of
    /// their bits, highest first.
    fn append(&self, out: &mut Vec<u8>) {
        let flags_at = out.len();
        out.extend_from_slice(&[0, 0]);
        let mut flags = 0u16;
        flags |= text(out, 15, self.content_type);
        if let Some((name, value)) = self.header {
            flags |= 1 << 13;
            sized(out, |out| {
                short_string(out, name);
                out.push(b'S');
                sized(out, |out| out.extend_from_slice(value.as_bytes()));
            });
        }
        if let Some(mode) = self.delivery_mode {
            flags |= 1 << 12;
            out.push(mode);
        }
        flags |= text(out, 10, self.correlation_id);
        flags |= text(out, 9, self.reply_to);
        flags |= text(out, 8, self.expiration);
        flags |= text(out, 7, self.message_id);
        if let Some(seconds) = self.timestamp {
            flags |= 1 << 6;
            out.extend_from_slice(&seconds.to_be_bytes());
        }
        flags |= text(out, 5, self.type_);
        flags |= text(out, 3, self.app_id);
        out[flags_at..flags_at + 2].copy_from_slice(&flags.to_be_bytes());
    }
}

/// Appends a text property if it is there, and returns its flag then.
fn text(out: &mut Vec<u8>, bit: u16, text: Option<&str>) -> u16 {
    text.map_or(0, |text| {
        short_string(out, text);
        1 << bit
    })
}

/// Appends a frame around what `payload` appends.
fn frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    sized(out, payload);
    out.push(END);
}

/// Appends what `content` appends, with its length before it.
fn sized(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    content(out);
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// AMQP's short string: its length is one byte. Everything that we put there either came as one
/// or was checked where it was configured.
fn short_string(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}
