//! Errors and failures. Each text is one sentence that says what to do.

mod failure;

use std::fmt;
use std::time::Duration;

pub(crate) use self::failure::one_line;
pub use self::failure::{Failure, Status};

/// The result of every function of this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call got no result, or why a server stopped.
///
/// The text is one sentence that names the object and the cause. It never contains a password.
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
    /// A URL or an option is invalid, or the request is larger than the broker takes. Nothing was
    /// executed. The text names the part to change.
    Config(String),
    /// No broker could be reached before the deadline, or none of them could be used.
    Unreachable {
        /// The brokers that were tried, as `host:port`, comma-separated.
        brokers: String,
        /// Why each of them could not be used.
        reason: String,
    },
    /// The broker refused the credentials, the virtual host or the permission. Trying again
    /// does not help before somebody has changed something at the broker. The text names the user,
    /// the virtual host and the resource.
    Refused(String),
    /// The broker refused the queue: another connection owns it or consumes from it exclusively, it
    /// is a stream, or the broker cannot declare it with these options (AMQP's 403, 405, 406 and
    /// 541).
    QueueRefused {
        /// The queue's name.
        queue: String,
        /// What the broker said, and what to change.
        reason: String,
    },
    /// The queue does not exist, or the exchange, so no server received the request.
    Unroutable {
        /// The name of the queue or the exchange.
        queue: String,
    },
    /// A resource alarm kept the broker from accepting requests until the deadline
    /// ([Memory and disk alarms](https://www.rabbitmq.com/docs/alarms)).
    Blocked {
        /// The reason that the broker gave, such as `low on memory`.
        reason: String,
        /// How long the call waited.
        after: Duration,
        /// Whether the request was already written to the connection when the deadline passed.
        /// The broker may then still accept it.
        sent: bool,
    },
    /// The deadline passed.
    TimedOut {
        /// What the call was waiting for.
        what: String,
        /// How long it waited.
        after: Duration,
        /// Whether the request had been sent when the deadline passed.
        sent: bool,
    },
    /// The caller asked for signs of life and they stopped: probably no server is executing the
    /// request any more.
    ServerSilent {
        /// The queue's name.
        queue: String,
        /// How long there was no sign of life.
        after: Duration,
        /// Whether the queue has no consumer at present.
        unserved: bool,
    },
    /// The connection was lost after the request had been sent.
    ConnectionLost {
        /// What ended the connection.
        reason: String,
    },
    /// The server answered with an error.
    Remote(Failure),
    /// The reply cannot be decoded.
    BadReply(String),
    /// This program closed the client or the server.
    Closed,
}

impl Error {
    /// Whether the server could have executed the request, or could still execute it.
    ///
    /// `false`: sending the request again is safe. `true`: it is safe only if the handler may run
    /// twice.
    pub fn may_have_executed(&self) -> bool {
        self.class().1
    }

    /// The kind of error as a name for logs and metrics, such as `TIMED_OUT`. For an error that
    /// the server answered with, it is the name of the status.
    pub fn kind(&self) -> &'static str {
        self.class().0
    }

    /// The name, whether the server may have executed the request, and the status to pass on.
    fn class(&self) -> (&'static str, bool, Status) {
        use Status::{DeadlineExceeded, Internal, ResourceExhausted, Unavailable};
        match self {
            Error::Config(_) => ("CONFIG", false, Internal),
            Error::Unreachable { .. } => ("UNREACHABLE", false, Unavailable),
            Error::Refused(_) => ("REFUSED", false, Internal),
            Error::QueueRefused { .. } => ("QUEUE_REFUSED", false, Internal),
            Error::Unroutable { .. } => ("UNROUTABLE", false, Unavailable),
            Error::Blocked { sent, .. } => ("BLOCKED", *sent, DeadlineExceeded),
            Error::TimedOut { sent, .. } => ("TIMED_OUT", *sent, DeadlineExceeded),
            Error::ServerSilent { .. } => ("SERVER_SILENT", true, Unavailable),
            Error::ConnectionLost { .. } => ("CONNECTION_LOST", true, Unavailable),
            Error::Remote(Failure { status: ResourceExhausted, .. }) => {
                (ResourceExhausted.name(), false, Unavailable)
            }
            Error::Remote(Failure { status, not_executed, .. }) => {
                (status.name(), !not_executed, *status)
            }
            Error::BadReply(_) => ("BAD_REPLY", true, Internal),
            Error::Closed => ("CLOSED", true, Unavailable),
        }
    }
}

/// The failure that a handler returns when its own call to another server failed. A failure from
/// that server is passed on, but `RESOURCE_EXHAUSTED` as `UNAVAILABLE`: that request was not
/// executed, and this handler's own was.
impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = error.class().2;
        match error {
            Error::Remote(Failure { message, .. }) => Failure::new(status, message),
            error => Failure::new(status, error.to_string()),
        }
    }
}

/// Fails with [`Error::Config`] and this text unless `valid`.
pub(crate) fn ensure(valid: bool, text: impl FnOnce() -> String) -> Result<()> {
    if valid { Ok(()) } else { Err(Error::Config(text())) }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = match self.may_have_executed() {
            true => "the request may have been executed: try again only if that is safe",
            false => "the request was not executed: try again",
        };
        match self {
            Error::Config(text) | Error::Refused(text) => f.write_str(text),
            Error::BadReply(text) => f.write_str(&one_line(text)),
            Error::Unreachable { brokers, reason } => {
                write!(f, "no working connection to {brokers}: {reason}")
            }
            Error::QueueRefused { queue, reason } => {
                write!(f, "the broker refused queue {queue:?}: {reason}")
            }
            Error::Unroutable { queue } => {
                let what = format_args!("there is no queue or exchange {queue:?}");
                write!(f, "{what}: start a server on it, or check the name")
            }
            Error::Blocked { reason, after, .. } => write!(
                f,
                "the broker took no requests for {} ({reason}): free this resource; {advice}",
                rounded(*after)
            ),
            Error::TimedOut { what, after, .. } => {
                write!(f, "timed out after {}: {what}", rounded(*after))
            }
            Error::ServerSilent { queue, after, unserved } => {
                let hint = if *unserved { " (nobody serves it: start a server)" } else { "" };
                let after = rounded(*after);
                write!(f, "no sign of life for {after} from queue {queue:?}{hint}; {advice}")
            }
            Error::ConnectionLost { reason } => {
                write!(f, "the connection was lost before the reply came ({reason}); {advice}")
            }
            Error::Remote(failure) => failure.fmt(f),
            Error::Closed => f.write_str("this program closed the client or the server"),
        }
    }
}

/// A time as people read it: in tenths of a second, or in milliseconds if it is short.
pub(crate) fn rounded(time: Duration) -> String {
    let step = if time < Duration::from_secs(1) { 1 } else { 100 };
    match (time.as_micros() + 500 * step) / (1000 * step) * step {
        0 => "0s".into(),
        time => format!("{:?}", Duration::from_millis(u64::try_from(time).unwrap_or(u64::MAX))),
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handler_does_not_pass_on_that_nothing_was_executed() {
        let inner = |status| Failure::from(Error::Remote(Failure::new(status, "busy")));
        assert_eq!(inner(Status::ResourceExhausted), Failure::new(Status::Unavailable, "busy"));
        assert_eq!(inner(Status::NotFound), Failure::new(Status::NotFound, "busy"));
        let unknown = Error::Remote(Failure::unimplemented("no such method"));
        assert!(!unknown.may_have_executed());
        assert_eq!(Failure::from(unknown), Failure::new(Status::Unimplemented, "no such method"));
    }

    #[test]
    fn times_are_rounded_for_people() {
        let text = |after| {
            let what = "no reply".into();
            Error::TimedOut { what, after: Duration::from_nanos(after), sent: true }.to_string()
        };
        assert_eq!(text(1_987_356_709), "timed out after 2s: no reply");
        assert_eq!(text(4_249_000_001), "timed out after 4.2s: no reply");
        assert_eq!(text(300_400_000), "timed out after 300ms: no reply");
        assert_eq!(text(0), "timed out after 0s: no reply");
        assert_eq!(rounded(Duration::from_secs(30)), "30s");
        assert!(rounded(Duration::MAX).len() > 12);
    }

    #[test]
    fn texts_of_other_programs_stay_one_line() {
        let failure = Failure::new(Status::Internal, "gone\n\u{1b}[2J\u{9b}mERROR all is lost");
        let reply = Error::BadReply("unknown field `\u{1b}[2J\r\n`".into());
        for text in [failure.to_string(), Error::Remote(failure).to_string(), reply.to_string()] {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
    }

    #[test]
    fn errors_travel_between_threads() {
        fn assert_error<E: std::error::Error + Clone + Send + Sync + 'static>() {}
        assert_error::<Error>();
        assert_error::<Failure>();
    }
}
