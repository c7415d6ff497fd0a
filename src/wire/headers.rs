//! The headers of a message.

use super::names::check_length;
use crate::error::{Error, Result, ensure};
use crate::frames::{HeaderValue, append_text, headers};

/// The prefix of the names of this crate's own headers.
const OWN_PREFIX: &str = "rpc-";

/// The headers that the user gives a message, or finds in one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    /// The entries of the headers table.
    pub(super) entries: Vec<u8>,
    /// The first reason why the headers cannot be sent.
    pub(super) invalid: Option<Error>,
}

impl Headers {
    pub(crate) fn append(&mut self, name: &str, value: &str) {
        match check_name(name) {
            Ok(()) => append_text(&mut self.entries, name, value),
            Err(error) => drop(self.invalid.get_or_insert(error)),
        }
    }

    /// # Errors
    /// [`Error::Config`] names the header that cannot be sent.
    pub(crate) fn check(&self) -> Result<()> {
        self.invalid.clone().map_or(Ok(()), Err)
    }

    /// Refuses headers that do not fit into a frame together with the other properties.
    pub(crate) fn check_size(&self, frame_max: usize) -> Result<()> {
        const OTHER_PROPERTIES: usize = 2048;
        let (size, most) = (self.entries.len(), frame_max - OTHER_PROPERTIES);
        ensure(size <= most, || format!("the headers have {size} bytes; the broker allows {most}"))
    }
}

fn check_name(name: &str) -> Result<()> {
    ensure(!name.is_empty(), || "a header's name is empty".into())?;
    // RabbitMQ reads these two as arrays of further routing keys, and refuses texts
    // ([Sender-selected distribution](https://www.rabbitmq.com/docs/sender-selected)).
    ensure(!matches!(name, "CC" | "BCC"), || {
        format!("the header {name:?} cannot be set: RabbitMQ would send copies to other queues")
    })?;
    ensure(!name.starts_with(OWN_PREFIX), || {
        format!("the header {name:?} cannot be set: {OWN_PREFIX:?} is this crate's own prefix")
    })?;
    check_length("header's name", name)
}

/// Whether the header with this name is true: the text `true`, as this crate writes it, or a
/// Boolean.
pub(super) fn states_true(table: &[u8], name: &str) -> bool {
    let is_true = |value| matches!(value, HeaderValue::Text("true") | HeaderValue::Boolean(true));
    headers(table).any(|(key, value)| key == name && is_true(value))
}

/// The trace id in a `traceparent` of [W3C Trace Context](https://www.w3.org/TR/trace-context/),
/// 3.2; `None` if the `traceparent` is invalid.
pub(super) fn trace_id(traceparent: &str) -> Option<&str> {
    let parts: Vec<&str> = traceparent.splitn(5, '-').collect();
    let [version, trace, parent, flags, ref more @ ..] = parts[..] else { return None };
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
    // Only versions above 00 may add parts.
    let is_valid = [version, trace, parent, flags].map(str::len) == [2, 32, 16, 2]
        && [version, trace, parent, flags].into_iter().all(is_hex)
        && version != "ff"
        && (version != "00" || more.is_empty())
        && !is_zero(trace)
        && !is_zero(parent);
    is_valid.then_some(trace)
}
