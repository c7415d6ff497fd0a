//! Blocking RPC over RabbitMQ, with no async runtime.
//!
//! A *server* takes *requests* from a *request queue*, one at a time for each of its *workers*,
//! and publishes a *reply* to the queue that the request names in `reply_to`, with the request's
//! *correlation id*. A *client* has a reply queue of its own; a call publishes a request and
//! polls that queue until the correlation id matches. This is
//! [RabbitMQ's tutorial six](https://www.rabbitmq.com/tutorials/tutorial-six-python), and any
//! program written after it, in any language, can take either side.
//!
//! The core moves bytes. [`RpcServer`] calls a closure for each request:
//!
//! ```no_run
//! use rabbitmq_rpc::{Brokers, Failure, Request, RpcServer, ServerOptions, Status};
//!
//! let brokers = Brokers::parse("amqp://guest:guest@localhost")?;
//! let server = RpcServer::connect(brokers, "upper_case", ServerOptions::default())?;
//! server.serve(|request: &Request| match std::str::from_utf8(request.body()) {
//!     Ok(text) => Ok(text.to_uppercase()),
//!     Err(_) => Err(Failure::new(Status::InvalidArgument, "the request is not UTF-8")),
//! })?;
//! # Ok::<(), rabbitmq_rpc::Error>(())
//! ```
//!
//! [`RpcClient`] calls it, from as many threads as there are:
//!
//! ```no_run
//! use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
//!
//! let brokers = Brokers::parse("amqp://guest:guest@localhost")?;
//! let client = RpcClient::connect(brokers, "upper_case", ClientOptions::default())?;
//! assert_eq!(client.call("hello")?, b"HELLO");
//! # Ok::<(), rabbitmq_rpc::Error>(())
//! ```
//!
//! [`FibonacciRpcClient`] and [`fibonacci::answer`] are the tutorial's own service on top. Whole
//! programs are in the repository under `scripts/examples`: a service with JSON bodies, a nested
//! call, a worker pool that drains on SIGTERM, and a web front.
//!
//! # Time
//!
//! Every call has one deadline, 30 s unless set, which covers all of it: connecting, waiting for
//! room or for a broker that is blocked by an alarm, publishing, and the reply. The broker drops
//! a request once its caller has stopped waiting. After its deadline a call returns within some
//! 200 ms, in which it asks the broker what the matter is with the queue.
//!
//! # Errors
//!
//! Each [`Error`] is one sentence that says what to do.
//!
//! | error | what it means | may have been executed | what to do |
//! |---|---|---|---|
//! | [`Config`](Error::Config) | a URL or an option makes no sense | no | change what it names |
//! | [`Unreachable`](Error::Unreachable) | no broker until the deadline | no | try again later |
//! | [`Refused`](Error::Refused) | login, virtual host or permission refused | no | grant it |
//! | [`QueueRefused`](Error::QueueRefused) | the queue is another's, or cannot be made so | no | change name or options |
//! | [`Unroutable`](Error::Unroutable) | no such queue | no | start a server |
//! | [`Blocked`](Error::Blocked) | a memory or disk alarm until the deadline | if it was sent | free the resource |
//! | [`TimedOut`](Error::TimedOut) | no reply, or no room, until the deadline | if it was sent | retry if that is safe |
//! | [`ServerSilent`](Error::ServerSilent) | the signs of life stay away | yes | retry if that is safe |
//! | [`ConnectionLost`](Error::ConnectionLost) | lost with the request out | yes | retry if that is safe |
//! | [`Remote`](Error::Remote) | the server answered with a [`Failure`] | unless overloaded | read its status |
//! | [`BadReply`](Error::BadReply) | the reply is not what it should be | yes | look at the server |
//! | [`Closed`](Error::Closed) | this program closed the client | yes | – |
//!
//! [`Error::may_have_executed`] tells the third column.
//!
//! # What is tried again, and what is not
//!
//! - A request that has not gone out yet: until its deadline, with another connection if need be.
//! - A request that was lost with its connection: only if it is idempotent
//!   ([`ClientOptions::idempotent`], [`CallBuilder::idempotent`]).
//! - A request that may be lost on a connection that is well: only if it is idempotent, when other
//!   calls have left the connection or no sign of life comes ([`ClientOptions::keep_alive`]).
//! - An idempotent request whose queue is gone when it is sent again: every 200 ms until its
//!   deadline, since a server declares the queue anew.
//! - A call that timed out, was refused or failed: never.
//! - A lost connection: by the next call, or by a server at once, a little later after each try
//!   that fails, at random, so that not all come back at the same moment.
//! - A first connection: only for as long as [`Brokers::wait`] says.
//! - Credentials that a broker refused: not on the next broker, and not before the next call.
//!
//! A handler gets each request at least once that the broker neither loses nor lets expire, since
//! requests are not persistent. It gets one twice if its server is lost before the
//! broker has the acknowledgement, or if an idempotent call is sent again; the `message_id` then
//! stays the same ([`Request::message_id`], [`Request::redelivered`]).
//!
//! # Threads
//!
//! A thread that waits for a reply or a request reads the socket itself, in turns with the others
//! that wait. Each connection has one thread in reserve, which reads while nobody waits, and
//! amiquip's two, one for its I/O and one for its heartbeats. A connected client has one more, for
//! what the broker has to be asked. A server has one for each worker, and one that asks the broker
//! about the queue every 4 s; [`RpcServer::serve`] supervises them on the
//! thread that calls it. While a requester wants signs of life, one more gives them.
//! Connecting has a thread for as long as it lasts; direct replies have connections of their own.
//! No thread spins, none sleeps to poll but the one that connects to a cluster anew, for up to
//! 3 s, and an idle client wakes up for heartbeats alone.
//!
//! # Logging
//!
//! By the `log` crate: connections come and go at `info`, what needs a look at `warn`, each
//! request with its id, trace id, sizes and time at `debug`. Bodies are never logged, nor
//! passwords: but mind that amiquip's own module `amiquip::io_loop::handshake_state` logs the login
//! at `debug`, in which the password can be read. Leave that module out of what you log.
//!
//! # Limits
//!
//! It runs on Unix. A reply goes to one requester; there are no
//! streams. Looking up a host name takes as long as the system's resolver does, in a thread that
//! no call waits for past its deadline. The AMQP client beneath, amiquip 0.4.2, is no longer
//! developed; none of its types are in this crate's interface, so that it can be replaced.
//!
//! # Layout
//!
//! Imports point down; `client` and `server` never meet.
//!
//! ```text
//!  fibonacci                    the tutorial's service: the only part that knows numbers
//!  client        server         calls, sessions, reconnection; workers and their supervision
//!  wire          broker         requests and replies as messages; a connection to one broker
//!  frames                       bytes to messages, messages to bytes
//!  error  deadline  observation
//!
//!  caller ──▶ wire ──▶ frames ──▶ broker::transport ────────▶ socket ──▶ RabbitMQ
//!    ▲                                  ▲                                   │
//!    │ wakes the caller        control  │                                   │
//!  client::dispatcher        amiquip ───┘                                   │
//!    ▲                          ▲ all other frames                          │
//!    │ messages                 │                                           │
//!  broker::data_plane ──────────┘ ◀── frames ◀── the reader (broker::turn) ◀┘
//!    │ messages
//!    ▼
//!  server::inbox ──▶ worker ──▶ handler ──▶ wire ──▶ and out, as a caller's request
//! ```
//!
//! The way of a call: [`RpcClient::call`] → `client/call.rs` (the call and its deadline) →
//! `client/reconnector.rs` (which session) → `client/session.rs` (publishes) → `wire.rs` →
//! `frames/encode.rs` → `broker/transport.rs` (the socket) → the broker → `broker/turn.rs` (who
//! reads) → `broker/data_plane.rs` → `frames/decoder.rs` → `server/inbox.rs` →
//! `server/worker.rs` → the handler → and the same way back, to `client/dispatcher.rs` and the
//! caller, in the caller's own thread.

mod broker;
mod client;
mod deadline;
mod error;
pub mod fibonacci;
mod frames;
pub mod guide;
mod lock;
mod observation;
mod server;
mod wire;

pub use broker::{Brokers, TlsFiles};
pub use client::{
    CallBuilder, ClientCounters, ClientOptions, PendingReply, QueueStatus, RpcClient,
};
pub use error::{Error, Failure, Result, Status};
pub use fibonacci::{FibonacciRpcClient, PendingNumber};
pub use observation::Observation;
pub use server::{QueueType, RpcServer, Served, ServerCounters, ServerOptions, Stopper, Worker};
pub use wire::{Reply, Request};

/// The README's Rust, compiled as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
