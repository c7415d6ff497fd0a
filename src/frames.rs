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
mod layout;
mod properties;

pub(crate) use self::decoder::{Decoder, Incoming, RABBITMQ_FRAME_MAX};
pub(crate) use self::encode::{
    Frames, Method, Route, ack, bare_method, cancel, give_back, publish, reject,
};
pub(crate) use self::fields::{append_integer, append_text};
pub(crate) use self::handshake::with_client_properties;
pub(crate) use self::incoming::{
    Answer, Close, DeclaredQueue, Delivery, Event, Message, Notice, Version,
};
pub(crate) use self::layout::{
    BASIC_CONSUME, BASIC_PUBLISH, CHANNEL_CLOSE_OK, CONNECTION_CLOSE_OK,
};
pub use self::properties::HeaderValue;
pub(crate) use self::properties::{Properties, find_header, find_tables, headers};
