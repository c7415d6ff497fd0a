//! The properties of a message.
//!
//! A peer can send any bytes as properties. A property that cannot be decoded counts as absent. The
//! message is still delivered, so that its receiver can at least answer it.

#[cfg(test)]
mod tests;

use super::fields::{Fields, append_long, append_short};

/// The properties that this crate reads or writes; AMQP has a few more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Properties<'a> {
    pub(crate) content_type: Option<&'a str>,
    pub(crate) content_encoding: Option<&'a str>,
    /// The entries of the headers table, in the format that [`super::append_text`] writes and
    /// [`find_header`] reads. Without entries, no table is sent.
    pub(crate) headers: &'a [u8],
    /// Any bytes: the replier hands them back as they are.
    pub(crate) correlation_id: Option<&'a [u8]>,
    pub(crate) reply_to: Option<&'a str>,
    pub(crate) expiration: Option<&'a str>,
    pub(crate) message_id: Option<&'a str>,
    /// Seconds since 1970.
    pub(crate) timestamp: Option<u64>,
    pub(crate) type_: Option<&'a str>,
    pub(crate) user_id: Option<&'a str>,
    pub(crate) app_id: Option<&'a str>,
}

/// A flag is set for each property that is present. The properties follow in the order of their
/// flags, from the highest bit to the lowest.
const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const CORRELATION_ID: u16 = 1 << 10;
const REPLY_TO: u16 = 1 << 9;
const EXPIRATION: u16 = 1 << 8;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const TYPE: u16 = 1 << 5;
const USER_ID: u16 = 1 << 4;
const APP_ID: u16 = 1 << 3;

impl<'a> Properties<'a> {
    /// Decodes flags and properties. An invalid property counts as absent. If a property is
    /// truncated, all properties after it are absent too.
    pub(super) fn decode(bytes: &'a [u8]) -> Properties<'a> {
        let mut properties = Properties::default();
        properties.fill(Fields(bytes));
        properties
    }

    fn fill(&mut self, mut fields: Fields<'a>) -> Option<()> {
        let flags = fields.u16()?;
        let has = |bit| flags & bit != 0;
        let text = |fields: &mut Fields<'a>, bit| -> Option<Option<&'a str>> {
            Some(if has(bit) { std::str::from_utf8(fields.short()?).ok() } else { None })
        };
        self.content_type = text(&mut fields, CONTENT_TYPE)?;
        self.content_encoding = text(&mut fields, CONTENT_ENCODING)?;
        self.headers = if has(HEADERS) { fields.long()? } else { &[] };
        for bit in [DELIVERY_MODE, PRIORITY] {
            if has(bit) {
                fields.u8()?;
            }
        }
        self.correlation_id = if has(CORRELATION_ID) { Some(fields.short()?) } else { None };
        self.reply_to = text(&mut fields, REPLY_TO)?;
        self.expiration = text(&mut fields, EXPIRATION)?;
        self.message_id = text(&mut fields, MESSAGE_ID)?;
        self.timestamp = if has(TIMESTAMP) { Some(fields.u64()?) } else { None };
        self.type_ = text(&mut fields, TYPE)?;
        self.user_id = text(&mut fields, USER_ID)?;
        self.app_id = text(&mut fields, APP_ID)?;
        Some(())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.append(&mut out);
        out
    }

    pub(super) fn append(&self, out: &mut Vec<u8>) {
        let flags_at = out.len();
        out.extend_from_slice(&[0, 0]);
        let mut flags = append_property(out, CONTENT_TYPE, self.content_type);
        flags |= append_property(out, CONTENT_ENCODING, self.content_encoding);
        if !self.headers.is_empty() {
            flags |= HEADERS;
            append_long(out, |out| out.extend_from_slice(self.headers));
        }
        flags |= append_property(out, CORRELATION_ID, self.correlation_id);
        flags |= append_property(out, REPLY_TO, self.reply_to);
        flags |= append_property(out, EXPIRATION, self.expiration);
        flags |= append_property(out, MESSAGE_ID, self.message_id);
        if let Some(seconds) = self.timestamp {
            flags |= TIMESTAMP;
            out.extend_from_slice(&seconds.to_be_bytes());
        }
        flags |= append_property(out, TYPE, self.type_);
        flags |= append_property(out, USER_ID, self.user_id);
        flags |= append_property(out, APP_ID, self.app_id);
        out[flags_at..flags_at + 2].copy_from_slice(&flags.to_be_bytes());
    }
}

/// Appends a text property, if there is one. Returns its flag, or 0.
fn append_property<T: AsRef<[u8]>>(out: &mut Vec<u8>, flag: u16, text: Option<T>) -> u16 {
    text.map_or(0, |text| {
        append_short(out, text.as_ref());
        flag
    })
}

/// The value of a header. Tables, arrays, decimal numbers and nothing (`void`) have no variant.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum HeaderValue<'a> {
    /// A text: the only kind that this crate itself writes.
    Text(&'a str),
    /// An integer of any width, signed or not.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// A point in time, in seconds since 1970.
    Time(u64),
    /// Bytes. A text that is not UTF-8 counts as bytes too.
    Bytes(&'a [u8]),
}

/// The headers in a table, in its order. Those whose value has no [`HeaderValue`] are left out. The
/// iterator ends where the table cannot be decoded.
pub(crate) fn headers(table: &[u8]) -> impl Iterator<Item = (&str, HeaderValue<'_>)> {
    entries(table).filter_map(|(name, kind, value)| {
        Some((std::str::from_utf8(name).ok()?, header_value(kind, value)?))
    })
}

/// The names, types and encoded values in a table, up to one that cannot be decoded.
fn entries(table: &[u8]) -> impl Iterator<Item = (&[u8], u8, &[u8])> {
    let mut fields = Fields(table);
    std::iter::from_fn(move || {
        let (name, kind) = (fields.short()?, fields.u8()?);
        Some((name, kind, fields.value(kind)?))
    })
}

/// The values in the array of this name, which are tables. None if there is no such array.
pub(crate) fn find_tables<'a>(table: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    let array = entries(table).find(|(key, kind, _)| *key == name.as_bytes() && *kind == b'A');
    let mut fields = Fields(array.map_or(&[], |(_, _, array)| array));
    std::iter::from_fn(move || {
        let kind = fields.u8()?;
        fields.value(kind)
    })
}

/// The text of the header with this name. `None` if its value is not a text, or if the table cannot
/// be decoded up to this header.
pub(crate) fn find_header<'a>(table: &'a [u8], name: &str) -> Option<&'a str> {
    match headers(table).find(|(key, _)| *key == name)? {
        (_, HeaderValue::Text(text)) => Some(text),
        _ => None,
    }
}

/// The types of values are those of [RabbitMQ's
/// errata](https://www.rabbitmq.com/amqp-0-9-1-errata).
fn header_value(kind: u8, value: &[u8]) -> Option<HeaderValue<'_>> {
    let unsigned = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let signed = |bytes: &[u8]| {
        let unused = 64 - 8 * bytes.len();
        (unsigned(bytes) << unused) as i64 >> unused
    };
    Some(match kind {
        b'S' => std::str::from_utf8(value).map_or(HeaderValue::Bytes(value), HeaderValue::Text),
        b'x' => HeaderValue::Bytes(value),
        b't' => HeaderValue::Boolean(value[0] != 0),
        b'b' | b's' | b'I' | b'l' => HeaderValue::Integer(signed(value)),
        b'B' | b'u' | b'i' | b'L' => HeaderValue::Integer(i64::try_from(unsigned(value)).ok()?),
        b'f' => HeaderValue::Float(f32::from_bits(unsigned(value) as u32).into()),
        b'd' => HeaderValue::Float(f64::from_bits(unsigned(value))),
        b'T' => HeaderValue::Time(unsigned(value)),
        _ => return None,
    })
}
