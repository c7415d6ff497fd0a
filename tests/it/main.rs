//! Tests against a real RabbitMQ, which `scripts/broker.sh` starts.
//!
//! A missing broker fails them; nothing is skipped.

mod basics; // a call from end to end, in this crate's programs and in its types
mod broker; // a private RabbitMQ, and what can be done to it
mod client; // the client: deadlines, errors, many callers, faults, leaks
mod process; // a program under test
mod tutorial_six; // pika's tutorial six on either side
