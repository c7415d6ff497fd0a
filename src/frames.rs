//! Decodes and encodes AMQP frames, messages and methods. Does no I/O.
//!
//! The layout is that of AMQP 0-9-1, 4.2.3 to 4.2.6
//! ([specification](https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf)). The field types are
//! those of [RabbitMQ's errata](https://www.rabbitmq.com/amqp-0-9-1-errata).

mod decoder;
mod encode;
mod fields;
mod handshake;
mod incoming;
mod properties;

pub(crate) use self::decoder::{Decoder, Incoming, RABBITMQ_FRAME_MAX};
pub(crate) use self::encode::{
    CHANNEL_CLOSE_OK, CONNECTION_CLOSE_OK, Frames, Method, Route, ack, bare_method, publish, reject,
};
pub(crate) use self::fields::{append_integer, append_text};
pub(crate) use self::handshake::with_client_properties;
pub(crate) use self::incoming::{
    Answer, Close, DeclaredQueue, Delivery, Event, Message, Notice, Version,
};
pub use self::properties::HeaderValue;
pub(crate) use self::properties::{Properties, find_header, headers};

/// The first byte of a frame is its type.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// The last byte of a frame.
const END: u8 = 0xce;
/// The length of the fields before the payload: type (1 byte), channel (2), payload size (4).
const PREFIX: usize = 7;
/// The difference between the length of a frame and the length of its payload, in bytes.
const OVERHEAD: usize = PREFIX + 1;

/// The largest message, in bytes, that RabbitMQ's `max_message_size` can allow
/// ([Configuration](https://www.rabbitmq.com/docs/configure)).
const MESSAGE_MAX: usize = 512 << 20;

/// The class and the method: the first four bytes of a method's payload.
pub(crate) type MethodId = [u8; 4];
pub(crate) const BASIC_PUBLISH: MethodId = [0, 60, 0, 40];
pub(crate) const BASIC_CONSUME: MethodId = [0, 60, 0, 20];
pub(crate) const CHANNEL_OPEN: MethodId = [0, 20, 0, 10];
const CONNECTION_CLOSE: MethodId = [0, 10, 0, 50];
const CHANNEL_CLOSE: MethodId = [0, 20, 0, 40];
