//! Decodes and encodes the fields of methods, properties and tables.

/// Takes fields from the front of a payload. Each method returns `None` if its field is truncated.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The bytes of a short string. One byte before them contains their length.
    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// A short string as text. U+FFFD replaces bytes that are not UTF-8.
    pub(super) fn short_text(&mut self) -> Option<String> {
        self.short().map(|text| String::from_utf8_lossy(text).into_owned())
    }

    /// A short string as a part of a line for people. U+FFFD replaces control characters, too: the
    /// broker's sentences contain the names that users have given.
    pub(super) fn sentence(&mut self) -> Option<String> {
        self.short_text().map(|text| text.replace(char::is_control, "\u{fffd}"))
    }

    /// The bytes of a long string, a table or an array. Four bytes before them contain their
    /// length.
    pub(super) fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// A value of a table. Its content is not decoded, so nested tables cause no recursion. `None`
    /// if the value is truncated, or if its type has an unknown length.
    pub(super) fn value(&mut self, kind: u8) -> Option<&'a [u8]> {
        match kind {
            b'S' | b'x' | b'A' | b'F' => self.long(),
            b'V' => self.take(0),
            b't' | b'b' | b'B' => self.take(1),
            b's' | b'u' | b'U' => self.take(2),
            b'I' | b'i' | b'f' => self.take(4),
            b'D' => self.take(5),
            b'l' | b'L' | b'd' | b'T' => self.take(8),
            _ => None,
        }
    }
}

/// Appends the output of `content`, with its length in four bytes before it.
pub(super) fn append_long(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    content(out);
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a short string. Every text passed here has at most 255 bytes: it arrived as a short
/// string, or its length was checked when it was configured.
pub(super) fn append_short(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    debug_assert!(text.len() <= 255, "{text:?} is too long for a short string");
    out.push(text.len() as u8);
    out.extend_from_slice(text);
}

/// Appends a text entry to a table.
pub(crate) fn append_text(table: &mut Vec<u8>, name: &str, value: &str) {
    append_short(table, name);
    table.push(b'S');
    append_long(table, |table| table.extend_from_slice(value.as_bytes()));
}

/// Appends an integer entry to a table.
pub(crate) fn append_integer(table: &mut Vec<u8>, name: &str, value: i64) {
    append_short(table, name);
    table.push(b'l');
    table.extend_from_slice(&value.to_be_bytes());
}
