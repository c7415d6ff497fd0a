//! What a server answers in place of a result.

use std::fmt;

/// What a handler returns, and a caller receives, in place of a result: a status and one sentence.
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
    /// Whether the server states that no handler has begun to execute the request.
    pub(crate) not_executed: bool,
}

impl Failure {
    /// A failure of this kind, described in one sentence.
    pub fn new(status: Status, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into(), not_executed: false }
    }

    /// The failure of a request for which there is no handler.
    pub(crate) fn unimplemented(message: impl Into<String>) -> Failure {
        Failure { not_executed: true, ..Failure::new(Status::Unimplemented, message) }
    }
}

/// One line: a server's sentence cannot control a terminal or add a line to a log.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.name(), one_line(&self.message))
    }
}

/// A text of another program as a part of a line.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl std::error::Error for Failure {}

/// The kinds of failure: gRPC's status codes without `OK`, under gRPC's names
/// ([Status codes](https://grpc.io/docs/guides/status-codes/)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// The caller cancelled the request.
    Cancelled,
    /// Any other failure, and every status that this version does not know.
    Unknown,
    /// The request is invalid, whatever state the server is in.
    InvalidArgument,
    /// The server took too long.
    DeadlineExceeded,
    /// What the request names does not exist.
    NotFound,
    /// What the request would create exists already.
    AlreadyExists,
    /// The caller lacks the permission.
    PermissionDenied,
    /// A resource is used up: a quota, a disk, the space for waiting requests. A server that
    /// answers this has not executed the request.
    ResourceExhausted,
    /// The server is not in the state that the request needs.
    FailedPrecondition,
    /// The request conflicted with another one. Repeat the whole operation, not only this request.
    Aborted,
    /// A value is outside the range that the server supports.
    OutOfRange,
    /// The server does not support this operation. If it has no handler for it, it says that it
    /// has not executed the request.
    Unimplemented,
    /// The server has a bug: for example, its handler panicked.
    Internal,
    /// The server cannot execute the request now. Try again later.
    Unavailable,
    /// Data is permanently lost or damaged.
    DataLoss,
    /// The caller did not authenticate itself.
    Unauthenticated,
}

/// Every status and its name, in the order of the enum.
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
    /// The name that a reply carries, such as `OUT_OF_RANGE`.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// The status with this name, or [`Status::Unknown`] if this version does not know the name.
    pub fn from_name(name: &str) -> Status {
        let known = NAMES.iter().find(|(_, known)| *known == name);
        known.map_or(Status::Unknown, |(status, _)| *status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_found_again_by_its_name() {
        for (status, name) in NAMES {
            assert_eq!(status.name(), name);
            assert_eq!(Status::from_name(name), status);
        }
        assert_eq!(Status::from_name("OK"), Status::Unknown);
    }
}
