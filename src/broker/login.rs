//! What a login needs, what it says about this program, and what its failure means.

use std::process;

use amiquip::{Auth, ConnectionOptions};

use super::ended::Ended;
use super::tls::Connector;
use super::url::Endpoint;
use crate::error::{Error, one_line};
use crate::frames::RABBITMQ_FRAME_MAX;

/// How to log in to a broker.
pub(super) struct Login<'a> {
    pub(super) endpoint: &'a Endpoint,
    /// That of the endpoint, or of the file in its place.
    pub(super) password: String,
    pub(super) tls: Option<Connector>,
    /// The interval in seconds that this side asks for.
    pub(super) heartbeat: u16,
}

impl Login<'_> {
    pub(super) fn options(&self) -> ConnectionOptions<Auth> {
        let Endpoint { user, vhost, external, channel_max, .. } = self.endpoint;
        let auth = match external {
            true => Auth::External,
            false => Auth::Plain { username: user.clone(), password: self.password.clone() },
        };
        ConnectionOptions::default()
            .auth(auth)
            .virtual_host(vhost)
            .channel_max(*channel_max)
            .frame_max(RABBITMQ_FRAME_MAX as u32)
            .heartbeat(self.heartbeat)
    }
}

/// Converts an error of amiquip's handshake. amiquip reports a refused login in the same way as a
/// connection that ends during the login, so the reason for the end counts first.
pub(super) fn explain_handshake(
    error: amiquip::Error,
    endpoint: &Endpoint,
    ended: Option<&Ended>,
) -> Error {
    match (ended, error) {
        (Some(Ended::Closed(close)), _) => endpoint.explain_refused_login(close),
        (_, amiquip::Error::UnsupportedAuthMechanism { available, requested }) => Error::Refused(
            format!("{endpoint} takes no login by {requested}; it takes {available:?}"),
        ),
        (Some(Ended::Peer), _) => endpoint.unreachable("it hung up during the login"),
        // The error cannot contain a URL, and so no password: the connection is opened without one.
        // It may contain what the peer sent, such as its locales.
        (None | Some(Ended::ThisSide), error) => endpoint.unreachable(one_line(&error.to_string())),
        (Some(reason), _) => endpoint.unreachable(reason),
    }
}

/// The connection's client property `information`, which operators see.
pub(super) fn client_information() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("{} (rabbitmq-rpc {version}) on {}, process {}", program(), host(), process::id())
}

/// The name of this machine, for operators; empty if it cannot be read.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_string()
}

/// The program's name, for operators and for `app_id`. It has at most 60 characters, because AMQP
/// limits `app_id` to 255 bytes.
pub(crate) fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().unwrap_or_default().to_string_lossy().chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_peer_that_refuses_the_login_stays_one_line() {
        let (available, requested) = ("\u{1b}[2J\r\nERROR".into(), "en_US".into());
        let error = amiquip::Error::UnsupportedLocale { available, requested };
        let text = explain_handshake(error, &Endpoint::default(), None).to_string();
        assert!(text.contains("ERROR") && !text.contains(char::is_control), "{text:?}");
    }
}
