//! A connection that is well, and through which no reply comes.

use std::thread;
use std::time::Duration;

use rabbitmq_rpc::{Error, RpcClient};

use super::{HandServer, declare};
use crate::broker::{Broker, queue_name};
use crate::embedded::connect;
use crate::patience::await_value;

const SECOND: Duration = Duration::from_secs(1);

/// The broker's process for the client's requests stands still, as one does whose quorum queue
/// has lost its leader.
#[test]
fn a_channel_that_stands_still_is_left_for_another_connection() {
    const OTHERS: &str = "persistent_term:put(others, rabbit_channel:list()).";
    let ours = |what: &str| {
        format!(
            "[sys:{what}(Channel) || Channel <- rabbit_channel:list() -- persistent_term:get(others), \
             rabbit_channel:info(Channel, [consumer_count]) == [{{consumer_count, 0}}]]."
        )
    };
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("still"));
    let server = HandServer::start(&url, &queue);
    broker.ctl(&["eval", OTHERS]);
    let client = connect(&url, &queue);
    let early = client.send("early").unwrap();
    let request = server.next();

    broker.ctl(&["eval", &ours("suspend")]);
    let mut lost = 0;
    let call = loop {
        let call = client.send_timeout("7", 2 * SECOND).unwrap();
        // A client that goes on with another connection gets its request through.
        match server.requests.recv_timeout(3 * SECOND / 2) {
            Ok(request) => {
                server.reply(&request, b"13");
                break call;
            }
            Err(_) => {
                let error = call.wait().unwrap_err();
                assert!(matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
                lost += 1;
                assert!(lost <= 3, "{lost} calls were lost");
            }
        }
    };
    assert_eq!(call.wait().unwrap(), b"13");
    assert!(lost >= 1, "nothing stood still");
    let counters = client.counters();
    assert_eq!((counters.reconnects, counters.in_flight), (1, 1));

    // What was in flight there is waited for, and then that connection is closed.
    server.reply(&request, b"5");
    assert_eq!(early.wait().unwrap(), b"5");
    assert_eq!(client.counters().in_flight, 0);
    broker.ctl(&["eval", "[sys:resume(Channel) || Channel <- rabbit_channel:list()]."]);
    let connections = || broker.ctl(&["list_connections", "pid", "--no-table-headers", "-q"]);
    await_value(connections, |connections| connections.lines().count() == 2);
}

#[test]
fn time_outs_that_another_connection_would_not_spare_change_nothing() {
    let broker = Broker::shared();
    let time_out = |client: &RpcClient| {
        let error = client.call_timeout("7", SECOND).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    };

    // Nobody serves.
    let unserved = queue_name("unserved");
    let mut connection = amiquip::Connection::insecure_open(&broker.url()).unwrap();
    declare(&mut connection, &unserved);
    connection.close().unwrap();
    let client = connect(&broker.url(), &unserved);
    thread::scope(|scope| {
        // So many at a time that not each of them gets to ask the broker.
        for _ in 0..16 {
            scope.spawn(|| (0..5).for_each(|_| time_out(&client)));
        }

        // Other calls are answered.
        let queue = queue_name("half-served");
        let server = HandServer::start(&broker.url(), &queue);
        let client = connect(&broker.url(), &queue);
        for _ in 0..5 {
            let call = client.send("8").unwrap();
            server.reply(&server.next(), b"21");
            assert_eq!(call.wait().unwrap(), b"21");
            time_out(&client);
            server.next();
        }
        assert_eq!(client.counters().reconnects, 0);
    });
    assert_eq!(client.counters().reconnects, 0);
}
