//! The methods that a server answers itself, whatever its handler: their names begin with `rpc.`.

use std::process;
use std::time::UNIX_EPOCH;

use super::state::ServerState;
use crate::broker::host;
use crate::error::{Failure, Result};
use crate::wire::{OWN_METHODS, Reply, Request};

/// The answer to a request for one of the server's own methods; `None` if it is for the handler.
pub(super) fn answer(request: &Request, state: &ServerState) -> Option<Result<Reply, Failure>> {
    let method = request.method().filter(|method| method.starts_with(OWN_METHODS))?;
    let since = state.serving_since.get()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(match method {
        "rpc.ping" => Ok(pong(state, since.as_secs())),
        _ => Err(Failure::unimplemented(format!("the server has no method {method:?}"))),
    })
}

fn pong(state: &ServerState, since: u64) -> Reply {
    let version = state.options.version.as_deref().map_or("null".into(), quote);
    let counters = state.counters();
    let fields = [
        ("program", quote(&state.app_id)),
        ("version", version),
        ("host", quote(&host())),
        ("pid", process::id().to_string()),
        ("serving_since", since.to_string()),
        ("served", counters.served.to_string()),
        ("failed", counters.failed.to_string()),
        ("in_progress", counters.in_progress.to_string()),
        ("library", quote(concat!("rabbitmq-rpc ", env!("CARGO_PKG_VERSION")))),
    ];
    let fields = fields.map(|(name, value)| format!("{name:?}:{value}")).join(",");
    Reply::from(format!("{{{fields}}}")).with_content_type("application/json")
}

/// A text as JSON.
fn quote(text: &str) -> String {
    let escape = |character: char| match character {
        '"' | '\\' => format!("\\{character}"),
        '\0'..' ' => format!("\\u{:04x}", character as u32),
        _ => character.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_json() {
        assert_eq!(quote("bölts \"7\" \\ \n\u{1}"), r#""bölts \"7\" \\ \u000a\u0001""#);
    }
}
