//! What the broker's refusals mean, and what to change.

use super::url::Endpoint;
use crate::error::Error;
use crate::frames::Close;

impl Endpoint {
    /// Converts the reason that the broker gave for closing a channel ([Access
    /// control](https://www.rabbitmq.com/docs/access-control)).
    pub(crate) fn explain_close(&self, close: &Close, doing: &str) -> Error {
        let Endpoint { user, vhost, .. } = self;
        match close.code {
            403 => Error::Refused(format!(
                "user {user:?} lacks the permission in virtual host {vhost:?} to {doing}: {} \
                 (rabbitmqctl set_permissions)",
                close.text
            )),
            _ => self.unreachable(format!("cannot {doing}: the broker said {close}")),
        }
    }
}
