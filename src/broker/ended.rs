//! Why a connection has ended.

use std::fmt;

use crate::frames::Close;

/// The first reason that this side found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The peer ended it without an AMQP close.
    Peer,
    /// The broker closed it, and gave this reason.
    Closed(Close),
    /// The broker was silent for two heartbeats.
    Silent,
    /// The broker did not finish the login in time.
    LoginTimedOut,
    /// This side closed it, and had nothing to complain about.
    ThisSide,
    /// This side ended it for this reason, or the socket failed.
    Cut(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Peer => f.write_str("the connection ended without a word"),
            Ended::Closed(close) => write!(f, "the broker closed the connection: {close}"),
            Ended::Silent => f.write_str("the broker was silent for two heartbeats"),
            Ended::LoginTimedOut => f.write_str("it did not finish the login in time"),
            Ended::ThisSide => f.write_str("the connection was closed"),
            Ended::Cut(reason) => f.write_str(reason),
        }
    }
}

/// What this side found to be wrong.
impl From<String> for Ended {
    fn from(reason: String) -> Ended {
        Ended::Cut(reason)
    }
}

impl From<&str> for Ended {
    fn from(reason: &str) -> Ended {
        Ended::Cut(reason.into())
    }
}
