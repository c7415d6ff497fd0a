//! What a login says about this program, and what its failure means.

use std::process;
use std::time::Duration;

use amiquip::{Auth, ConnectionOptions};

use super::ended::Ended;
use super::url::Endpoint;
use crate::error::Error;
use crate::frames::RABBITMQ_FRAME_MAX;

impl Endpoint {
    pub(super) fn options(&self) -> ConnectionOptions<Auth> {
        let auth = match self.external {
            true => Auth::External,
            false => Auth::Plain { username: self.user.clone(), password: self.password.clone() },
        };
        ConnectionOptions::default()
            .auth(auth)
            .virtual_host(&self.vhost)
            .channel_max(self.channel_max)
            .frame_max(RABBITMQ_FRAME_MAX as u32)
            .information(Some(client_information()))
    }
}

/// Converts an error of the handshake. amiquip reports a refused login in the same way as a
/// connection that ends during the login. RabbitMQ waits before it closes the connection of a
/// refused login (`SILENT_CLOSE_DELAY` in its `rabbit_reader`: 3 s). This delay distinguishes a
/// wrong password from a broker that stops during the login.
pub(super) fn explain_handshake(
    error: amiquip::Error,
    endpoint: &Endpoint,
    ended: Option<&Ended>,
    took: Duration,
) -> Error {
    const MIN_REFUSAL_DELAY: Duration = Duration::from_millis(2500);
    let Endpoint { user, vhost, .. } = endpoint;
    match error {
        amiquip::Error::InvalidCredentials
            if !matches!(ended, None | Some(Ended::Peer)) || took < MIN_REFUSAL_DELAY =>
        {
            match ended {
                None | Some(Ended::Peer) => endpoint.unreachable("it hung up during the login"),
                Some(reason) => endpoint.unreachable(reason),
            }
        }
        _ if ended == Some(&Ended::LoginTimedOut) => endpoint.unreachable(Ended::LoginTimedOut),
        amiquip::Error::InvalidCredentials => Error::Refused(match endpoint.external {
            true => format!("{endpoint} refused the client certificate as a login"),
            false => format!(
                "{endpoint} refused the login of user {user:?}: check name and password{}",
                match user.as_str() {
                    "guest" => "; guest may log in from the broker's own machine only",
                    _ => "",
                }
            ),
        }),
        amiquip::Error::UnsupportedAuthMechanism { available, requested } => Error::Refused(
            format!("{endpoint} takes no login by {requested}; it takes {available}"),
        ),
        // A limit on connections is not final: a connection may be available later.
        amiquip::Error::ServerClosedConnection { code: 402 | 403 | 530, message }
            if !message.contains("limit") =>
        {
            Error::Refused(format!(
                "{endpoint} refused user {user:?} the virtual host {vhost:?}: {message}"
            ))
        }
        // The error cannot contain a URL, and so no password: the connection is opened without one.
        error => endpoint.unreachable(ended.map_or_else(|| error.to_string(), Ended::to_string)),
    }
}

/// The connection's client property `information`, which operators see.
fn client_information() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} (rabbitmq-rpc {version}) on {}, process {}", program(), host.trim(), process::id())
}

/// The program's name, for operators and for `app_id`. It has at most 60 characters, because AMQP
/// limits `app_id` to 255 bytes.
pub(crate) fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().unwrap_or_default().to_string_lossy().chars().take(60).collect()
}
