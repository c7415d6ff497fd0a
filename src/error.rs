//! What can go wrong, as sentences a caller can act on.

use std::fmt;
use std::time::Duration;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call got no result, or why a server stopped.
///
/// The text of each is one sentence that names its object and the cause, and never a password.
/// [`Error::may_have_executed`] tells whether it is safe to try again.
///
/// ```no_run
/// # use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
/// # let brokers = Brokers::parse("amqp://localhost")?;
/// # let client = RpcClient::connect(brokers, "orders", ClientOptions::default())?;
/// match client.call("buy") {
///     Ok(reply) => println!("{} bytes", reply.len()),
///     Err(error) if error.may_have_executed() => println!("look before you retry: {error}"),
///     Err(error) => println!("nothing was bought: {error}"),
/// }
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A URL or an option makes no sense; nothing was tried. The text names the part to change.
    Config(String),
    /// No broker could be reached, or none was fit for work, until the deadline.
    Unreachable {
        /// The brokers that were tried, as `host:port`, comma-separated.
        brokers: String,
        /// What the last of them said.
        reason: String,
    },
    /// The broker refused the credentials, the virtual host or the permission. Trying again
    /// does not help; the text names the user, the virtual host and the resource.
    Refused(String),
    /// The broker refused the queue: it is another connection's alone, or cannot be made as it was
    /// asked for (AMQP's 405, 406 and 541).
    QueueRefused {
        /// The queue's name.
        queue: String,
        /// What the broker said, and what to change.
        reason: String,
    },
    /// There is no such queue, so nobody got the request.
    Unroutable {
        /// The queue's name.
        queue: String,
    },
    /// The broker took no requests because of a resource alarm until the deadline
    /// ([Memory and disk alarms](https://www.rabbitmq.com/docs/alarms)).
    Blocked {
        /// What the broker gave as its reason, such as `low on memory`.
        reason: String,
        /// How long the call waited.
        after: Duration,
        /// Whether the request had been handed to the connection when the deadline passed:
        /// the broker may then still take it in.
        sent: bool,
    },
    /// The deadline passed.
    TimedOut {
        /// What had been waited for.
        what: String,
        /// How long the wait was.
        after: Duration,
        /// Whether the request had been sent when the deadline passed.
        sent: bool,
    },
    /// The caller had asked for signs of life, and they stay away: no server works on the request
    /// any more, as far as can be told.
    ServerSilent {
        /// The queue's name.
        queue: String,
        /// How long there was no sign.
        after: Duration,
        /// Whether the queue has no consumers: nobody serves it at present.
        unserved: bool,
    },
    /// The connection was lost after the request had been sent.
    ConnectionLost {
        /// What ended it.
        reason: String,
    },
    /// The server answered with an error.
    Remote(Failure),
    /// The reply is not what it should be.
    BadReply(String),
    /// The client or server was closed by its own program.
    Closed,
}

impl Error {
    /// Whether the server could have run the request, or could still run it.
    ///
    /// `false`: sending the request again is safe. `true`: it is safe only if the handler may run
    /// twice.
    pub fn may_have_executed(&self) -> bool {
        match self {
            Error::Config(_)
            | Error::Unreachable { .. }
            | Error::Refused(_)
            | Error::QueueRefused { .. }
            | Error::Unroutable { .. } => false,
            Error::Blocked { sent, .. } | Error::TimedOut { sent, .. } => *sent,
            Error::Remote(failure) => failure.status != Status::ResourceExhausted,
            Error::ServerSilent { .. }
            | Error::ConnectionLost { .. }
            | Error::BadReply(_)
            | Error::Closed => true,
        }
    }

    /// The kind of error as a name for logs and metrics, such as `TIMED_OUT`; the status's name for
    /// one that the server answered with.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Config(_) => "CONFIG",
            Error::Unreachable { .. } => "UNREACHABLE",
            Error::Refused(_) => "REFUSED",
            Error::QueueRefused { .. } => "QUEUE_REFUSED",
            Error::Unroutable { .. } => "UNROUTABLE",
            Error::Blocked { .. } => "BLOCKED",
            Error::TimedOut { .. } => "TIMED_OUT",
            Error::ServerSilent { .. } => "SERVER_SILENT",
            Error::ConnectionLost { .. } => "CONNECTION_LOST",
            Error::Remote(failure) => failure.status.name(),
            Error::BadReply(_) => "BAD_REPLY",
            Error::Closed => "CLOSED",
        }
    }
}

/// What a handler answers whose own call to another server failed: a failure of that server's
/// goes on to the requester as it is.
impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = match &error {
            Error::Remote(failure) => return failure.clone(),
            Error::TimedOut { .. } | Error::Blocked { .. } => Status::DeadlineExceeded,
            Error::Unreachable { .. }
            | Error::Unroutable { .. }
            | Error::ServerSilent { .. }
            | Error::ConnectionLost { .. }
            | Error::Closed => Status::Unavailable,
            Error::Config(_)
            | Error::Refused(_)
            | Error::QueueRefused { .. }
            | Error::BadReply(_) => Status::Internal,
        };
        Failure::new(status, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(text) | Error::Refused(text) | Error::BadReply(text) => f.write_str(text),
            Error::Unreachable { brokers, reason } => {
                write!(f, "no working connection to {brokers}: {reason}")
            }
            Error::QueueRefused { queue, reason } => {
                write!(f, "the broker refused queue {queue:?}: {reason}")
            }
            Error::Unroutable { queue } => write!(
                f,
                "there is no queue {queue:?}: nobody got the request; start a server on it, or \
                 check the name"
            ),
            Error::Blocked { reason, after, sent } => write!(
                f,
                "the broker took no requests for {after:?} ({reason}); free the resource it \
                 names, then {}",
                if *sent { "see whether the request was executed" } else { "try again" }
            ),
            Error::TimedOut { what, after, .. } => write!(f, "timed out after {after:?}: {what}"),
            Error::ServerSilent { queue, after, unserved } => write!(
                f,
                "no sign of life for {after:?} from the server of queue {queue:?}{}; the request \
                 may have been executed: try again only if that is safe",
                if *unserved { ", which nobody serves now (start a server)" } else { "" }
            ),
            Error::ConnectionLost { reason } => write!(
                f,
                "the connection was lost before the reply came ({reason}); the request may have \
                 been executed: try again only if that is safe"
            ),
            Error::Remote(failure) => failure.fmt(f),
            Error::Closed => f.write_str("closed by this program before the reply came"),
        }
    }
}

impl std::error::Error for Error {}

/// What a handler returns, and a caller gets, instead of a result: a status and one sentence.
///
/// ```
/// use rabbitmq_rpc::{Failure, Status};
///
/// let failure = Failure::new(Status::NotFound, "there is no account 7");
/// assert_eq!(failure.to_string(), "NOT_FOUND: there is no account 7");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure, for programs.
    pub status: Status,
    /// One sentence, for people.
    pub message: String,
}

impl Failure {
    /// A failure of this kind, told in one sentence.
    pub fn new(status: Status, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.name(), self.message)
    }
}

impl std::error::Error for Failure {}

/// The kinds of failure: gRPC's status codes without `OK`, under gRPC's names
/// ([Status codes](https://grpc.io/docs/guides/status-codes/)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// The caller no longer wants it.
    Cancelled,
    /// Anything else; also a status that this version does not know.
    Unknown,
    /// The request is invalid, regardless of the server's state.
    InvalidArgument,
    /// It took too long on the server's side.
    DeadlineExceeded,
    /// What it names is not there.
    NotFound,
    /// What it would make is there already.
    AlreadyExists,
    /// This caller may not do it.
    PermissionDenied,
    /// Something has run out: a quota, a disk, the room for waiting requests. Who answers this
    /// says that it has not executed the request.
    ResourceExhausted,
    /// The server's state does not allow it.
    FailedPrecondition,
    /// It clashed with another request; try again from further up.
    Aborted,
    /// A value lies outside what the server can do.
    OutOfRange,
    /// The server cannot do this at all.
    Unimplemented,
    /// The server is at fault: its handler panicked, for one.
    Internal,
    /// The server cannot do it now; try again later.
    Unavailable,
    /// Data was lost or damaged for good.
    DataLoss,
    /// The caller did not prove who it is.
    Unauthenticated,
}

/// Every status with its name, in the order of the enum.
const NAMES: [(Status, &str); 16] = [
    (Status::Cancelled, "CANCELLED"),
    (Status::Unknown, "UNKNOWN"),
    (Status::InvalidArgument, "INVALID_ARGUMENT"),
    (Status::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Status::NotFound, "NOT_FOUND"),
    (Status::AlreadyExists, "ALREADY_EXISTS"),
    (Status::PermissionDenied, "PERMISSION_DENIED"),
    (Status::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Status::FailedPrecondition, "FAILED_PRECONDITION"),
    (Status::Aborted, "ABORTED"),
    (Status::OutOfRange, "OUT_OF_RANGE"),
    (Status::Unimplemented, "UNIMPLEMENTED"),
    (Status::Internal, "INTERNAL"),
    (Status::Unavailable, "UNAVAILABLE"),
    (Status::DataLoss, "DATA_LOSS"),
    (Status::Unauthenticated, "UNAUTHENTICATED"),
];

impl Status {
    /// The name that goes over the wire, such as `OUT_OF_RANGE`.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// The status of that name; [`Status::Unknown`] for one that this version does not know.
    pub fn from_name(name: &str) -> Status {
        let known = NAMES.iter().find(|(_, known)| *known == name);
        known.map_or(Status::Unknown, |(status, _)| *status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_travel_between_threads() {
        fn assert_error<E: std::error::Error + Clone + Send + Sync + 'static>() {}
        assert_error::<Error>();
        assert_error::<Failure>();
    }

    #[test]
    fn every_status_is_found_again_by_its_name() {
        for (status, name) in NAMES {
            assert_eq!(status.name(), name);
            assert_eq!(Status::from_name(name), status);
        }
        assert_eq!(Status::from_name("OK"), Status::Unknown);
    }
}
