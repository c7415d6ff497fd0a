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
use std::time::{Duration, Instant};

use rabbitmq_rpc::{ClientCounters, Error, RpcClient};

use crate::manual_server::ManualServer;
use crate::patience::await_value;
use crate::proxy::Proxy;

/// The deadline of calls that end at it. A busy machine may make a call late, but by less than this
/// time: a step that waited for the whole deadline again would make it later.
const DEADLINE: Duration = Duration::from_secs(3);

/// Runs a call that fails at [`DEADLINE`], and returns its error.
fn fails_at_deadline<T: Debug>(call: impl FnOnce() -> Result<T, Error>) -> Error {
    let began = Instant::now();
    let error = call().unwrap_err();
    let took = began.elapsed();
    assert!((DEADLINE..2 * DEADLINE).contains(&took), "{took:?}: {error}");
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

/// Waits until the client has noticed that its connection has ended. A call before that could be
/// lost with the connection.
fn wait_until_lost(client: &RpcClient) {
    await_value(|| client.status().is_ready(), |is_ready| !is_ready);
}
