//! The client: deadlines, errors, many callers, faults, leaks.

mod alarms;
mod deadlines;
mod errors;
mod faults;
mod leaks;
mod local;
mod looks;
mod reconnects;
mod silence;
mod slots;
mod suspicion;
mod threads;

use std::fmt::Debug;
use std::time::Instant;

use rabbitmq_rpc::{ClientCounters, Error, RpcClient};

use crate::manual_server::ManualServer;
use crate::patience::{SECOND, await_value};
use crate::proxy::Proxy;

/// Runs a call that fails at a deadline of one second, and returns its error. A busy machine may
/// make the call late, but by less than a second: a step that waited for the whole deadline again
/// would make it later.
fn fails_at_deadline<T: Debug>(call: impl FnOnce() -> Result<T, Error>) -> Error {
    let began = Instant::now();
    let error = call().unwrap_err();
    let took = began.elapsed();
    assert!(SECOND <= took && took < 2 * SECOND, "{took:?}: {error}");
    error
}

/// The counters, once they are as wanted.
fn counters_when(client: &RpcClient, wanted: impl Fn(&ClientCounters) -> bool) -> ClientCounters {
    await_value(|| client.counters(), wanted)
}

/// Ends every connection of the proxy, and returns when the client has noticed. A call before that
/// could be lost with the connection.
fn cut_under(proxy: &Proxy, client: &RpcClient, server: &ManualServer) {
    let call = client.send("lost").unwrap();
    server.next();
    proxy.cut();
    let error = call.wait().unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
    assert!(error.may_have_executed());
}
