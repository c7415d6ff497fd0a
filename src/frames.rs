//! AMQP frames of the data plane, pure: bytes to messages, and messages to bytes.
//!
//! The layout is AMQP 0-9-1's, 4.2.3 to 4.2.6
//! ([specification](https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf)), the field types as
//! in [RabbitMQ's errata](https://www.rabbitmq.com/amqp-0-9-1-errata).

mod decoder;
mod encode;
mod fields;
mod properties;

pub(crate) use self::decoder::{
    Close, Decoder, Delivery, Incoming, Message, Notice, RABBITMQ_FRAME_MAX,
};
pub(crate) use self::encode::{Frames, ack, nack, publish, reject};
pub(crate) use self::properties::{Properties, append_header, find_header};

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

/// The first four bytes of a method's payload: class and method.
type MethodId = [u8; 4];
const CONNECTION_START: MethodId = [0, 10, 0, 10];
const CONNECTION_TUNE: MethodId = [0, 10, 0, 30];
const CONNECTION_CLOSE: MethodId = [0, 10, 0, 50];
const CONNECTION_BLOCKED: MethodId = [0, 10, 0, 60];
const CONNECTION_UNBLOCKED: MethodId = [0, 10, 0, 61];
const CHANNEL_CLOSE: MethodId = [0, 20, 0, 40];
const BASIC_CANCEL: MethodId = [0, 60, 0, 30];
const BASIC_PUBLISH: MethodId = [0, 60, 0, 40];
const BASIC_RETURN: MethodId = [0, 60, 0, 50];
const BASIC_DELIVER: MethodId = [0, 60, 0, 60];
const BASIC_ACK: MethodId = [0, 60, 0, 80];
const BASIC_REJECT: MethodId = [0, 60, 0, 90];
const BASIC_NACK: MethodId = [0, 60, 0, 120];

/// The frame that confirms the broker's `connection.close`.
pub(crate) const CONNECTION_CLOSE_OK: &[u8] = &[METHOD, 0, 0, 0, 0, 0, 4, 0, 10, 0, 51, END];

/// The methods besides `connection.start` that a broker sends to clients in answer to amiquip, or
/// of its own accord.
const OTHERS_FOR_AMIQUIP: [MethodId; 15] = [
    [0, 10, 0, 20], // connection.secure
    CONNECTION_TUNE,
    [0, 10, 0, 41], // connection.open-ok
    CONNECTION_CLOSE,
    [0, 10, 0, 51], // connection.close-ok
    CONNECTION_BLOCKED,
    CONNECTION_UNBLOCKED,
    [0, 20, 0, 11], // channel.open-ok
    CHANNEL_CLOSE,
    [0, 20, 0, 41], // channel.close-ok
    [0, 50, 0, 11], // queue.declare-ok
    [0, 60, 0, 11], // basic.qos-ok
    [0, 60, 0, 21], // basic.consume-ok
    BASIC_CANCEL,
    [0, 60, 0, 31], // basic.cancel-ok
];
