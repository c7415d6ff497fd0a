//! The client: deadlines, errors, many callers, faults, leaks.

mod deadlines;
mod errors;
mod faults;
mod leaks;
mod reconnects;
mod silence;
mod threads;

use rabbitmq_rpc::{ClientCounters, Error, RpcClient};

use crate::manual_server::ManualServer;
use crate::patience::await_value;
use crate::proxy::Proxy;

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
