//! AMQP frames by hand: those that come in are cleaned, those that publish are written.
//!
//! The layout is AMQP 0-9-1's, 4.2.3 to 4.2.6
//! ([specification](https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf)), the field types as
//! in [RabbitMQ's errata](https://www.rabbitmq.com/amqp-0-9-1-errata).

mod clean;
mod write;

pub(crate) use self::clean::Cleaner;
pub(crate) use self::write::{Properties, ack, publish};

/// The types of a frame, which is its first byte.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
/// A frame's last byte.
const END: u8 = 0xce;
