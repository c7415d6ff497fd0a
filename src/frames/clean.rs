//! Incoming frames made fit for amiquip.
//!
//! What a peer puts into the properties of a message reaches us byte for byte, and amiquip's
//! decoder is not up to it: bytes that are no UTF-8 make it lose that property and misread the
//! ones behind it; where it then runs past the frame's end it gives up the whole connection; and
//! tables nested some thousand deep overflow its stack, which ends the process. A request that
//! did that to one server would be given to the next. So every frame passes through
//! [`Cleaner`] first, which leaves out of a content header what cannot be decoded, and whatever
//! of its headers table is not plain text. Everything else passes as it came.

use super::{HEADER, METHOD};

/// Takes bytes as they come from the broker and gives them back in whole, clean frames.
#[derive(Debug, Default)]
pub(crate) struct Cleaner {
    /// The beginning of a frame whose end has not come yet.
    unfinished: Vec<u8>,
    /// The broker's limit for the size of a frame, from the frame that told it.
    frame_max: Option<usize>,
}

/// Type (1 byte), channel (2) and size of the payload (4).
const PREFIX: usize = 7;

impl Cleaner {
    /// Adds `input`, and appends to `clean` every frame that is complete now.
    pub(crate) fn push(&mut self, input: &[u8], clean: &mut Vec<u8>) {
        self.unfinished.extend_from_slice(input);
        let mut begin = 0;
        while let Some(length) = frame_length(&self.unfinished[begin..]) {
            let end = begin + length;
            let frame = &mut self.unfinished[begin..end];
            self.frame_max = self.frame_max.or(proposed_frame_max(frame));
            clean_frame(frame, clean);
            begin = end;
        }
        self.unfinished.drain(..begin);
    }

    /// The broker's limit for the size of a frame, in bytes, once, when it has told it.
    pub(crate) fn take_frame_max(&mut self) -> Option<usize> {
        self.frame_max.take()
    }
}

/// The limit in `connection.tune` (class 10, method 30), behind the limit for channels (2 bytes).
/// amiquip agrees to whatever the broker proposes, and does not tell it.
fn proposed_frame_max(frame: &[u8]) -> Option<usize> {
    const TUNE: [u8; 4] = [0, 10, 0, 30];
    let limits = frame.get(PREFIX..)?.strip_prefix(&TUNE).filter(|_| frame[0] == METHOD)?;
    let frame_max = limits.get(2..6)?.try_into().ok()?;
    Some(u32::from_be_bytes(frame_max) as usize)
}

/// The length of the frame that `bytes` begin with, once they hold all of it.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let size = u32::from_be_bytes(bytes.get(3..PREFIX)?.try_into().ok()?);
    let length = PREFIX + size as usize + 1;
    (bytes.len() >= length).then_some(length)
}

fn clean_frame(frame: &mut [u8], clean: &mut Vec<u8>) {
    let payload_end = frame.len() - 1;
    match frame[0] {
        METHOD => clean_method(&mut frame[PREFIX..payload_end]),
        HEADER => {
            let begin = clean.len();
            clean.extend_from_slice(&frame[..PREFIX]);
            clean_header(&frame[PREFIX..payload_end], clean);
            let size = (clean.len() - begin - PREFIX) as u32;
            clean[begin + 3..begin + PREFIX].copy_from_slice(&size.to_be_bytes());
            clean.push(frame[payload_end]);
            return;
        }
        _ => {}
    }
    clean.extend_from_slice(frame);
}

/// In `basic.deliver` (class 60, method 60) the exchange and the routing key are as the publisher
/// gave them, and we have no use for either: what is no UTF-8 there becomes question marks.
fn clean_method(payload: &mut [u8]) {
    const DELIVER: [u8; 4] = [0, 60, 0, 60];
    let Some(&tag_length) = payload.strip_prefix(&DELIVER).and_then(<[u8]>::first) else { return };
    // Behind the consumer tag stand the delivery tag (8 bytes) and a flag (1 byte).
    let mut at = DELIVER.len() + 1 + usize::from(tag_length) + 9;
    for _ in ["exchange", "routing key"] {
        let Some(&length) = payload.get(at) else { return };
        let end = at + 1 + usize::from(length);
        let Some(text) = payload.get_mut(at + 1..end) else { return };
        if std::str::from_utf8(text).is_err() {
            text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        at = end;
    }
}

/// How a property is laid out, by its bit in the flags: the highest bit comes first.
#[derive(Clone, Copy)]
enum Layout {
    ShortString,
    Table,
    Octet,
    Timestamp,
}

const PROPERTIES: [Layout; 14] = {
    use Layout::*;
    [
        ShortString, // content_type
        ShortString, // content_encoding
        Table,       // headers
        Octet,       // delivery_mode
        Octet,       // priority
        ShortString, // correlation_id
        ShortString, // reply_to
        ShortString, // expiration
        ShortString, // message_id
        Timestamp,   // timestamp
        ShortString, // type
        ShortString, // user_id
        ShortString, // app_id
        ShortString, // cluster_id
    ]
};

/// A content header: class (2 bytes), weight (2), body size (8), flags (2), properties. Appends
/// it with those properties alone that can be decoded; from one that is cut short on there are
/// none.
fn clean_header(payload: &[u8], clean: &mut Vec<u8>) {
    const FIXED: usize = 12;
    let Some(flags) = payload.get(FIXED..FIXED + 2) else {
        return clean.extend_from_slice(payload);
    };
    let flags = u16::from_be_bytes([flags[0], flags[1]]);
    clean.extend_from_slice(&payload[..FIXED]);
    let flags_at = clean.len();
    clean.extend_from_slice(&[0, 0]);

    let mut kept: u16 = 0;
    let mut rest = &payload[FIXED + 2..];
    for (index, layout) in PROPERTIES.into_iter().enumerate() {
        let bit = 1 << (15 - index);
        if flags & bit == 0 {
            continue;
        }
        let keep = match layout {
            Layout::ShortString => take_short_string(&mut rest).map(|text| keep_text(text, clean)),
            Layout::Table => take_long(&mut rest).map(|table| keep_table(table, clean)),
            Layout::Octet => take(&mut rest, 1).map(|byte| keep_bytes(byte, clean)),
            Layout::Timestamp => take(&mut rest, 8).map(|bytes| keep_bytes(bytes, clean)),
        };
        match keep {
            Some(true) => kept |= bit,
            Some(false) => {}
            None => break,
        }
    }
    clean[flags_at..flags_at + 2].copy_from_slice(&kept.to_be_bytes());
}

fn keep_bytes(bytes: &[u8], clean: &mut Vec<u8>) -> bool {
    clean.extend_from_slice(bytes);
    true
}

fn keep_text(text: &[u8], clean: &mut Vec<u8>) -> bool {
    let decodes = std::str::from_utf8(text).is_ok();
    if decodes {
        clean.push(text.len() as u8);
        clean.extend_from_slice(text);
    }
    decodes
}

/// Appends the table's entries whose value is text (`S`), up to the first that cannot be told
/// from the next.
fn keep_table(mut table: &[u8], clean: &mut Vec<u8>) -> bool {
    let size_at = clean.len();
    clean.extend_from_slice(&[0; 4]);
    loop {
        let entry = table;
        let Some(key) = take_short_string(&mut table) else { break };
        let Some(kind) = take(&mut table, 1) else { break };
        let Some(value) = take_value(kind[0], &mut table) else { break };
        let is_text = kind[0] == b'S' && std::str::from_utf8(value).is_ok();
        if is_text && std::str::from_utf8(key).is_ok() {
            clean.extend_from_slice(&entry[..entry.len() - table.len()]);
        }
    }
    let size = (clean.len() - size_at - 4) as u32;
    clean[size_at..size_at + 4].copy_from_slice(&size.to_be_bytes());
    true
}

/// Takes a field value without looking into it, so that nesting costs nothing. `None` where it
/// is cut short, or of a type whose length nobody told us.
fn take_value<'a>(kind: u8, rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    match kind {
        b'S' | b'x' | b'A' | b'F' => take_long(rest),
        b'V' => take(rest, 0),
        b't' | b'b' | b'B' => take(rest, 1),
        b's' | b'u' | b'U' => take(rest, 2),
        b'I' | b'i' | b'f' => take(rest, 4),
        b'D' => take(rest, 5),
        b'l' | b'L' | b'd' | b'T' => take(rest, 8),
        _ => None,
    }
}

fn take_short_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take(rest, 1)?[0];
    take(rest, length.into())
}

fn take_long<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(take(rest, 4)?.try_into().ok()?);
    take(rest, length as usize)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests;
