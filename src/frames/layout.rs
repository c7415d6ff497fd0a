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
pub(super) const CONNECTION_START: MethodId = [0, 10, 0, 10];
pub(super) const CONNECTION_START_OK: MethodId = [0, 10, 0, 11];
pub(super) const CONNECTION_SECURE: MethodId = [0, 10, 0, 20];
pub(super) const CONNECTION_TUNE: MethodId = [0, 10, 0, 30];
pub(super) const CONNECTION_OPEN_OK: MethodId = [0, 10, 0, 41];
pub(super) const CONNECTION_CLOSE: MethodId = [0, 10, 0, 50];
pub(crate) const CONNECTION_CLOSE_OK: MethodId = [0, 10, 0, 51];
pub(super) const CONNECTION_BLOCKED: MethodId = [0, 10, 0, 60];
pub(super) const CONNECTION_UNBLOCKED: MethodId = [0, 10, 0, 61];
pub(super) const CHANNEL_OPEN: MethodId = [0, 20, 0, 10];
pub(super) const CHANNEL_OPEN_OK: MethodId = [0, 20, 0, 11];
pub(super) const CHANNEL_CLOSE: MethodId = [0, 20, 0, 40];
pub(crate) const CHANNEL_CLOSE_OK: MethodId = [0, 20, 0, 41];
pub(super) const EXCHANGE_DECLARE: MethodId = [0, 40, 0, 10];
pub(super) const EXCHANGE_DECLARE_OK: MethodId = [0, 40, 0, 11];
pub(super) const QUEUE_DECLARE: MethodId = [0, 50, 0, 10];
pub(super) const QUEUE_DECLARE_OK: MethodId = [0, 50, 0, 11];
pub(super) const QUEUE_BIND: MethodId = [0, 50, 0, 20];
pub(super) const QUEUE_BIND_OK: MethodId = [0, 50, 0, 21];
pub(super) const BASIC_QOS: MethodId = [0, 60, 0, 10];
pub(super) const BASIC_QOS_OK: MethodId = [0, 60, 0, 11];
pub(crate) const BASIC_CONSUME: MethodId = [0, 60, 0, 20];
pub(super) const BASIC_CONSUME_OK: MethodId = [0, 60, 0, 21];
pub(super) const BASIC_CANCEL: MethodId = [0, 60, 0, 30];
pub(crate) const BASIC_PUBLISH: MethodId = [0, 60, 0, 40];
pub(super) const BASIC_RETURN: MethodId = [0, 60, 0, 50];
pub(super) const BASIC_DELIVER: MethodId = [0, 60, 0, 60];
pub(super) const BASIC_ACK: MethodId = [0, 60, 0, 80];
pub(super) const BASIC_REJECT: MethodId = [0, 60, 0, 90];
pub(super) const BASIC_NACK: MethodId = [0, 60, 0, 120];
