//! The headers of a message.

use super::check_length;
use crate::error::{Error, Result};
use crate::frames;

/// The prefix of the names of this crate's own headers.
const OWN_PREFIX: &str = "rpc-";

/// The headers that the user gives a message, or finds in one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    entries: Vec<u8>,
    invalid: Option<Error>,
}

impl Headers {
    /// Those of a message that has arrived.
    pub(super) fn received(entries: &[u8]) -> Headers {
        Headers { entries: entries.to_vec(), invalid: None }
    }

    /// Appends a header of the user's.
    pub(crate) fn append(&mut self, name: &str, value: &str) {
        let checked = match name {
            "" => Err(Error::Config("a header's name is empty".into())),
            name if name.starts_with(OWN_PREFIX) => Err(Error::Config(format!(
                "the header {name:?} cannot be set: names that begin with {OWN_PREFIX:?} are this \
                 crate's own"
            ))),
            name => check_length("header's name", name),
        };
        match checked {
            Ok(()) => frames::append_header(&mut self.entries, name, value),
            Err(error) => drop(self.invalid.get_or_insert(error)),
        }
    }

    pub(super) fn append_own(&mut self, name: &str, value: &str) {
        frames::append_header(&mut self.entries, name, value);
    }

    pub(super) fn extend(&mut self, others: &Headers) {
        self.entries.extend_from_slice(&others.entries);
    }

    pub(crate) fn entries(&self) -> &[u8] {
        &self.entries
    }

    /// # Errors
    /// [`Error::Config`] names the header that cannot be sent.
    pub(crate) fn check(&self) -> Result<()> {
        self.invalid.clone().map_or(Ok(()), Err)
    }

    /// Refuses headers that do not fit into a frame together with the other properties.
    pub(crate) fn check_size(&self, frame_max: usize) -> Result<()> {
        const OTHER_PROPERTIES: usize = 2048;
        let size = self.entries.len();
        match size + OTHER_PROPERTIES <= frame_max {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "the headers have {size} bytes; this broker takes {} at most",
                frame_max - OTHER_PROPERTIES
            ))),
        }
    }
}

/// The trace id in a `traceparent` of [W3C Trace Context](https://www.w3.org/TR/trace-context/),
/// 3.2; `None` for one that is not as it should be.
pub(crate) fn trace_id(traceparent: &str) -> Option<&str> {
    let is_hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // A version above 00 may add parts.
    let is_valid = is_hex(version, 2)
        && version != "ff"
        && (version != "00" || parts.next().is_none())
        && is_hex(trace, 32)
        && is_hex(parent, 16)
        && is_hex(flags, 2)
        && [trace, parent].iter().all(|id| id.bytes().any(|byte| byte != b'0'));
    is_valid.then_some(trace)
}
