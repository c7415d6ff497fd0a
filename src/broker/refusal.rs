//! What the broker's refusals mean, and what to change.
//!
//! The reply code and the method that was refused decide. RabbitMQ uses one code for different
//! conditions, so the text decides among those: only the parts that RabbitMQ writes itself, before
//! the first and after the last name in quotation marks. Texts of more than 255 bytes are cut off.
//! Whatever is not recognized may pass: it counts as unreachable.

use super::url::Endpoint;
use crate::error::Error;
use crate::frames::Close;

impl Endpoint {
    /// Converts the reason that the broker gave for closing the connection during the login
    /// ([Access control](https://www.rabbitmq.com/docs/access-control)). About refused credentials
    /// the broker says no more than that.
    pub(super) fn explain_refused_login(&self, close: &Close) -> Error {
        let Endpoint { user, vhost, .. } = self;
        let text = close.text.as_str();
        match close.code {
            403 if self.external => {
                Error::Refused(format!("{self} refused the client certificate as a login"))
            }
            403 => Error::Refused(format!(
                "{self} refused the login of user {user:?}: check name and password{}",
                match user.as_str() {
                    "guest" => "; guest may log in from the broker's own machine only",
                    _ => "",
                }
            )),
            530 if text.starts_with("NOT_ALLOWED - vhost ") && text.ends_with(" not found") => {
                Error::Refused(format!(
                    "{self} refused user {user:?} the virtual host {vhost:?}: it is not found \
                     (rabbitmqctl add_vhost)"
                ))
            }
            530 if text.starts_with("NOT_ALLOWED - access to vhost ") && is_verdict(text) => {
                Error::Refused(format!(
                    "{self} refused user {user:?} the virtual host {vhost:?} (rabbitmqctl \
                     set_permissions): {text}"
                ))
            }
            530 if behind_names(text).contains("limit (") => self.unreachable(format!(
                "it has as many connections as it may have; close some, or raise that limit: {text}"
            )),
            _ => self.unreachable(format!("it takes no connection at present: {close}")),
        }
    }

    /// Converts the reason that the broker gave for closing a channel or the connection. `doing`
    /// names the operation, for which the user may lack the permission.
    pub(crate) fn explain_close(&self, close: &Close, doing: &str) -> Error {
        let Endpoint { user, vhost, .. } = self;
        let text = close.text.as_str();
        let why = match close.code {
            403 if is_verdict(text) => {
                return Error::Refused(format!(
                    "user {user:?} lacks the permission in virtual host {vhost:?} to {doing}: \
                     {text} (rabbitmqctl set_permissions)"
                ));
            }
            403 => "the broker cannot find out whether the user may do it; see the broker's log",
            404 if !text.starts_with("NOT_FOUND - no ") => {
                "the queue exists, but not on a node that is up, or too few nodes of the cluster \
                 are up"
            }
            406 if text.starts_with("PRECONDITION_FAILED - queue limit in ")
                || text.starts_with("PRECONDITION_FAILED - cannot declare queue ")
                    && text.ends_with(" is reached") =>
            {
                "there are as many queues as there may be; delete some, or raise that limit"
            }
            530 if close.is_channel_limit() => {
                "the user has as many channels as it may have; ask for fewer workers, or raise \
                 that limit"
            }
            541 if behind_names(text).contains("timed out") => {
                "too few nodes of the cluster are up, or they are too slow"
            }
            _ => return self.unreachable(format!("cannot {doing}: the broker said {close}")),
        };
        self.unreachable(format!("cannot {doing}: {why} (the broker said {close})"))
    }
}

/// Whether the text says that access is refused, and not that a limit is reached or that the
/// broker could not find out.
fn is_verdict(text: &str) -> bool {
    let tail = behind_names(text);
    tail.is_empty() || tail.starts_with(" by backend ")
}

/// The text behind the last name, which no name of a user's is part of.
fn behind_names(text: &str) -> &str {
    text.rsplit_once('\'').map_or(text, |(_, tail)| tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::BASIC_CONSUME;

    fn endpoint(url: &str) -> Endpoint {
        url.parse().unwrap()
    }

    fn close(code: u16, text: &str) -> Close {
        Close { code, text: text.into(), method: [0; 4] }
    }

    /// The texts are those of RabbitMQ 3.10 to 4.3.
    #[test]
    fn login_is_refused_for_good_only_by_a_verdict_whatever_the_names() {
        let endpoint = endpoint("amqp://limit%20(1):p@h/not%20found");
        let refused = "NOT_ALLOWED - access to vhost 'not found' refused for user 'limit (1)'";
        for (code, text, is_final) in [
            (403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.", true),
            (530, "NOT_ALLOWED - vhost not found not found", true),
            (530, refused, true),
            (530, &format!("{refused} by backend rabbit_auth_backend_http: 'no'"), true),
            (530, &format!("{refused}: connection limit (1) is reached"), false),
            (530, &format!("{refused}: connection limit cannot be queried, timeout"), false),
            (530, &format!("{refused}, backend m returned an error: {{failed,'x'}}"), false),
            (
                530,
                "NOT_ALLOWED - connection refused for user 'limit (1)': user connection limit (1) \
                 is reached",
                false,
            ),
            (530, "NOT_ALLOWED - connection refused: node connection limit (1) is reached", false),
            (541, &format!("{refused}: vhost 'not found' is down"), false),
            (320, "CONNECTION_FORCED - Node was put into maintenance mode", false),
        ] {
            let error = endpoint.explain_refused_login(&close(code, text));
            assert_eq!(matches!(error, Error::Refused(_)), is_final, "{text}: {error:?}");
        }
        let limit = close(530, &format!("{refused}: connection limit (1) is reached"));
        let error = endpoint.explain_refused_login(&limit).to_string();
        assert!(error.contains("as many connections as it may have"), "{error}");
    }

    #[test]
    fn each_condition_of_a_channel_has_its_own_sentence() {
        let endpoint = endpoint("amqp://u:p@h/v");
        let access = "access to queue 'q' in vhost 'v' refused for user 'u'";
        for (method, code, text, words) in [
            (
                BASIC_CONSUME,
                404,
                "NOT_FOUND - home node 'n' of durable queue 'q' in vhost 'v' is down or \
                 inaccessible",
                "too few nodes",
            ),
            (
                BASIC_CONSUME,
                403,
                &format!("ACCESS_REFUSED - read {access}, backend m returned an error: timeout"),
                "cannot find out",
            ),
            (BASIC_CONSUME, 404, "NOT_FOUND - no queue 'q' in vhost 'v'", "said 404"),
            ([0; 4], 406, "PRECONDITION_FAILED - queue limit in vhost 'v' (1) is reached", "raise"),
            (
                [0; 4],
                406,
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (1) is \
                 reached",
                "raise",
            ),
            (
                [0; 4],
                530,
                "NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum \
                 allowed user limit of (1)",
                "as many channels",
            ),
            (
                [0; 4],
                541,
                "INTERNAL_ERROR - Could not declare queue 'q' in vhost 'v' on node 'n' because \
                 the metadata store operation timed out",
                "too few nodes",
            ),
        ] {
            let close = Close { code, text: text.into(), method };
            let error = endpoint.explain_close(&close, "answer requests");
            assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
            assert!(error.to_string().contains(words), "{error}");
        }
        for text in [access, &format!("write {access}"), &format!("{access} by backend m: no")] {
            let refused = close(403, &format!("ACCESS_REFUSED - {text}"));
            let error = endpoint.explain_close(&refused, "answer requests");
            assert!(matches!(error, Error::Refused(_)), "{error:?}");
        }
    }
}
