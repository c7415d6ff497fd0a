//! AMQP frames, pure: bytes to messages and methods, and back.
//!
//! The layout is AMQP 0-9-1's, 4.2.3 to 4.2.6
//! ([specification](https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf)), the field types as
//! in [RabbitMQ's errata](https://www.rabbitmq.com/amqp-0-9-1-errata).

mod decoder;
mod encode;
mod fields;
mod incoming;
mod properties;

pub(crate) use self::decoder::{Decoder, Incoming, RABBITMQ_FRAME_MAX};
pub(crate) use self::encode::{
    CHANNEL_CLOSE_OK, CONNECTION_CLOSE_OK, Frames, Method, Route, ack, bare_method, publish, reject,
};
pub(crate) use self::fields::{append_integer, append_text};
pub(crate) use self::incoming::{Answer, Close, DeclaredQueue, Delivery, Event, Message, Notice};
pub(crate) use self::properties::{Properties, find_header};

/// The types of a frame, which is its first byte.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// A frame's last byte.
const END: u8 = 0xce;
/// Type (1 byte), channel (2) and size of the payload (4).
const PREFIX: usize = 7;
/// A frame is longer than its payload by its prefix and its last byte.
const OVERHEAD: usize = PREFIX + 1;

/// The largest that RabbitMQ's `max_message_size` can be
/// ([Configuration](https://www.rabbitmq.com/docs/configure)).
const MESSAGE_MAX: usize = 512 << 20;

/// The first four bytes of a method's payload: class and method.
type MethodId = [u8; 4];
const CONNECTION_CLOSE: MethodId = [0, 10, 0, 50];
const CHANNEL_CLOSE: MethodId = [0, 20, 0, 40];
