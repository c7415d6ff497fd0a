//! Blocking RPC over RabbitMQ, with no async runtime.

mod broker;
mod client;
mod deadline;
mod error;
pub mod fibonacci;
mod frames;
mod server;
mod wire;

pub use broker::{Brokers, TlsFiles};
pub use client::{ClientCounters, ClientOptions, PendingReply, RpcClient};
pub use error::{Error, Failure, Result, Status};
pub use fibonacci::{FibonacciRpcClient, PendingNumber};
pub use server::{QueueType, RpcServer, ServerCounters, ServerOptions, Stopper, Worker};
