//! The exchange of a service: clients that may write to it reach the queues bound there, and no
//! other queue of the virtual host.

use std::sync::Arc;
use std::time::Instant;

use crate::broker::{CallError, DataPlane, Limit};
use crate::error::{Error, Result};
use crate::frames::Method;

/// Makes sure that the exchange exists, and binds the queue with this key. Does not block beyond
/// `until`. An exchange that exists is used as it is, whatever its type.
pub(super) fn ensure_bound(
    data_plane: &Arc<DataPlane>,
    exchange: &str,
    queue: &str,
    key: &str,
    until: Instant,
) -> Result<()> {
    // A refusal closes the channel, so each method has its own.
    let ask = |method| {
        let channel = data_plane.open_channel(Limit::Until(until), Arc::default(), |_, _| {})?;
        channel.call(method, Limit::Until(until)).map(drop)
    };
    match ask(Method::FindExchange(exchange)) {
        Err(CallError::Closed(close)) if close.code == 404 => {
            ask(Method::DeclareExchange(exchange))
                .inspect(|()| log::info!("declared the exchange {exchange:?}"))
        }
        found => found,
    }
    .map_err(|error| data_plane.explain(error, &format!("declare the exchange {exchange:?}")))?;
    ask(Method::Bind { key, queue, exchange }).map_err(|error| match error {
        CallError::Closed(close) if close.code == 406 => Error::QueueRefused {
            queue: queue.into(),
            reason: format!(
                "the exchange {exchange:?} takes no binding with the key {key:?}; set another \
                 binding key ({close})"
            ),
        },
        error => data_plane.explain(error, &format!("bind queue {queue:?} to {exchange:?}")),
    })
}
