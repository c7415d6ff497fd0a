//! kombu, the library of Celery, as client and server.

use std::time::Duration;

use super::*;
use crate::embedded::{TRACE, connect};

const REQUESTER: &str = "tests/it/interop/kombu_requester.py";
const SERVER: &str = "tests/it/interop/kombu_server.py";

#[test]
fn kombu_client_calls_our_server() {
    let queue = queue_name("kombu-client");
    let _server = rpc_server(&queue, &[]);
    let requester = |bodies: &[&str]| python(REQUESTER, &queue, bodies);
    assert_eq!(replies(requester(&REQUESTS)), REPLIES);
    assert_eq!(replies(requester(&["0", "1", "2", "3", "4", "5", "6"])), numbers(7));
}

#[test]
fn our_client_calls_kombu_server() {
    let queue = queue_name("kombu-server");
    let _server = python_server(SERVER, &queue, &[]);
    let output = rpc_client(&queue, &["0", "7", "187", "186"]);
    let expected = "0\n13\n332825110087067562321196029789634457848\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");

    // This server sends an error reply by the wire contract.
    let expected = "n = 187: OUT_OF_RANGE: 187 is too large for this server";
    assert!(String::from_utf8_lossy(&output.stderr).contains(expected), "{output:?}");
    assert_eq!(output.status.code(), Some(65));
}

/// This server sends no keep-alives, so the call continues until its deadline.
#[test]
fn kombu_server_serves_request_with_deadline_headers_and_trace() {
    let queue = queue_name("kombu-headers");
    let mut server = python_server(SERVER, &queue, &[]);
    let client = connect(&Broker::shared().url(), &queue);
    let call = client.request("7").header("tenant", "blue").header("traceparent", TRACE);
    assert_eq!(call.keep_alive(Duration::from_secs(1)).call().unwrap(), b"13");
    let seen = server.wait_for_line("headers", PATIENCE);
    for header in ["rpc-deadline=1", "rpc-keep-alive=1000", "tenant=blue", TRACE] {
        assert!(seen.contains(header), "no {header} in {seen}");
    }
}
