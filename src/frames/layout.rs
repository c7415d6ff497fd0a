//! The layout of a frame, and the numbers of methods.

/// The first byte of a frame is its type.
pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
pub(super) const HEARTBEAT: u8 = 8;
/// The last byte of a frame.
pub(super) const END: u8 = 0xce;
/// The length of the fields before the payload: type (1 byte), channel (2), payload size (4).
pub(super) const PREFIX: usize = 7;
/// The difference between the length of a frame and the length of its payload, in bytes.
pub(super) const OVERHEAD: usize = PREFIX + 1;

/// The largest message, in bytes, that RabbitMQ's `max_message_size` can allow
/// ([Configuration](https://www.rabbitmq.com/docs/configure)).
pub(super) const MESSAGE_MAX: usize = 512 << 20;

/// The class and the method: the first four bytes of a method's payload.
pub(crate) type MethodId = [u8; 4];
pub(crate) const BASIC_PUBLISH: MethodId = [0, 60, 0, 40];
pub(crate) const BASIC_CONSUME: MethodId = [0, 60, 0, 20];
pub(super) const CHANNEL_OPEN: MethodId = [0, 20, 0, 10];
pub(super) const CONNECTION_CLOSE: MethodId = [0, 10, 0, 50];
pub(super) const CHANNEL_CLOSE: MethodId = [0, 20, 0, 40];
