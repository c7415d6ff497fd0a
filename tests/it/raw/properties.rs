//! The properties of a content header, and the encoding of their values, valid or not.

/// The flags and properties of a content header, as the test gives them.
#[derive(Debug, Clone, Default)]
pub struct Properties {
    pub flags: u16,
    pub bytes: Vec<u8>,
}

/// Each method appends one property. Call them in this order, which is the order on the wire.
impl Properties {
    pub fn content_type(self, text: &[u8]) -> Properties {
        self.property(15, short(text))
    }

    pub fn content_encoding(self, text: &[u8]) -> Properties {
        self.property(14, short(text))
    }

    pub fn headers(self, entries: &[u8]) -> Properties {
        self.property(13, long(entries))
    }

    pub fn delivery_mode(self, mode: u8) -> Properties {
        self.property(12, vec![mode])
    }

    pub fn priority(self, priority: u8) -> Properties {
        self.property(11, vec![priority])
    }

    pub fn correlation_id(self, text: &[u8]) -> Properties {
        self.property(10, short(text))
    }

    pub fn reply_to(self, text: &[u8]) -> Properties {
        self.property(9, short(text))
    }

    pub fn expiration(self, text: &[u8]) -> Properties {
        self.property(8, short(text))
    }

    pub fn message_id(self, text: &[u8]) -> Properties {
        self.property(7, short(text))
    }

    pub fn timestamp(self, seconds: u64) -> Properties {
        self.property(6, seconds.to_be_bytes().to_vec())
    }

    pub fn type_(self, text: &[u8]) -> Properties {
        self.property(5, short(text))
    }

    pub fn user_id(self, text: &[u8]) -> Properties {
        self.property(4, short(text))
    }

    pub fn app_id(self, text: &[u8]) -> Properties {
        self.property(3, short(text))
    }

    pub fn cluster_id(self, text: &[u8]) -> Properties {
        self.property(2, short(text))
    }

    /// Sets a flag and appends these bytes, which need not be a valid value.
    pub fn property(mut self, bit: u8, bytes: Vec<u8>) -> Properties {
        self.flags |= 1 << bit;
        self.bytes.extend(bytes);
        self
    }
}

pub fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short string has at most 255 bytes");
    [&[length], text].concat()
}

pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// An entry of a table: its key, the letter of its type, and the encoded value.
pub fn entry(key: &[u8], kind: u8, value: &[u8]) -> Vec<u8> {
    [&short(key)[..], &[kind], value].concat()
}
