//! pika's tutorial six on either side.
