//! Blocking RPC over RabbitMQ, with no async runtime.
//!
//! A *server* takes *requests* from a *request queue*, one at a time for each of its *workers*,
//! and publishes a *reply* to the queue that the request names in `reply_to`, with the request's
//! *correlation id*. A *client* has a reply queue of its own; a call publishes a request and
//! waits until a reply with this id arrives there. This is
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
//! Every call has one deadline, 30 s by default. It covers the whole call: connecting, waiting for
//! an in-flight slot or for a broker that is blocked by an alarm, publishing, and the reply. The
//! broker drops a request once its caller has stopped waiting. A call that gets no reply returns
//! within some 200 ms of its deadline: in that time it asks the broker about the queue, to say why.
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
//! - A request that has not been sent: until its deadline, through other connections if necessary.
//! - A request that was lost with its connection: only if it is idempotent
//!   ([`ClientOptions::idempotent`], [`CallBuilder::idempotent`]).
//! - A request that may be lost on a connection that works: only if it is idempotent, and either
//!   other calls have left the connection because no replies came, or its server sends no sign of
//!   life ([`ClientOptions::keep_alive`]).
//! - An idempotent request whose queue is gone when it is sent again: every 200 ms until its
//!   deadline, since a server declares the queue anew.
//! - A call that timed out, was refused or failed: never.
//! - A lost connection: a client reconnects with its next call, a server at once. After each failed
//!   attempt they wait longer, for a random time, so that they do not all return at the same moment.
//! - A first connection: only for as long as [`Brokers::wait`] says.
//! - Credentials that a broker refused: not on the next broker, and not before the next call.
//!
//! A handler gets each request at least once, unless the request expires or the broker loses it:
//! requests are not persistent. It gets a request twice if its server is lost before the broker has
//! the acknowledgement, or if an idempotent call is sent again. The `message_id` then stays the same
//! ([`Request::message_id`], [`Request::redelivered`]).
//!
//! # Threads
//!
//! A thread that waits for a reply or a request reads the socket itself, in turns with the other
//! threads that wait. Each connection has three threads of its own: one in reserve, which reads
//! while no other thread waits, and two of amiquip's, for its I/O and its heartbeats. A client needs
//! no more. [`RpcServer::serve`] adds one thread for each worker, and supervises them on the thread
//! that calls it. While a requester wants signs of life, one thread more sends them. Connecting
//! takes a thread for as long as it lasts. Direct replies have connections of their own, which
//! workers make; so has the answering of overload ([`ServerOptions::max_waiting`]), with a worker
//! more.
//!
//! No thread spins. Two sleep to poll: one that reconnects to a cluster, for up to 3 s, and the
//! caller of an idempotent call whose queue is gone. An idle client wakes up for heartbeats only. An
//! idle server also asks the broker about its queue, every 4 s.
//!
//! # Logging
//!
//! By the `log` crate: connections come and go at `info`, what needs attention at `warn`, each
//! request with its id, trace id, sizes and time at `debug`. Bodies and passwords are never logged.
//! But amiquip's module `amiquip::io_loop::handshake_state` logs the login at `debug`, and the
//! password with it. Leave that module out of what you log.
//!
//! # Limits
//!
//! The crate runs on Unix. A reply goes to one requester; there are no streams. Looking up a host
//! name takes as long as the system's resolver does, in a thread that no call waits for past its
//! deadline. amiquip 0.4.2, which does the handshake and the heartbeats, is no longer developed.
//! None of its types are in this crate's interface, so it can be replaced.
//!
//! # Layout
//!
//! Imports point down; `client` and `server` do not know each other.
//!
//! ```text
//!  fibonacci               the tutorial's service: the only module that knows numbers
//!  client      server      calls and their attempts; workers and their threads
//!  wire        broker      requests and replies as messages; a connection, and how it is replaced
//!  frames                  AMQP: bytes to messages and methods, and back
//!  error  deadline  lock  observation
//!
//!  caller or worker                            amiquip's I/O thread (channel 0:
//!    │ wire, frames::encode                      │     login, heartbeats)
//!    ▼                                           ▼
//!  broker::channel ───────────▶ broker::transport ───────────▶ socket ──▶ RabbitMQ
//!                                                                            │
//!  the thread with the read turn (broker::turn): a caller or worker that     │
//!  waits, else the reserve ◀── frames::decoder ◀── socket ◀──────────────────┘
//!    │ broker::data_plane
//!    ├─▶ channel 0: broker::control, wakes amiquip
//!    ├─▶ answers:   broker::channel, wakes the thread that asked
//!    ├─▶ requests:  server::inbox,   wakes the worker
//!    └─▶ replies:   client::dispatcher, wakes the caller
//! ```
//!
//! The way of a call: [`RpcClient::call`] → `client/call.rs` (the call and its deadline) →
//! `broker/reconnector.rs` (which session) → `client/session.rs` (publishes) → `wire.rs` →
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
