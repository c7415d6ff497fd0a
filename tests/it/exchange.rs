//! Services behind an exchange of their own.

use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, Failure, Request, RpcClient, RpcServer, ServerOptions, Status,
};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect, connect_with};
use crate::few_channels::connect_with_few_channels;
use crate::raw::{Properties, Raw, Verdict};

fn behind(exchange: &str) -> ServerOptions {
    ServerOptions { exchange: Some(exchange.into()), ..Default::default() }
}

#[test]
fn server_declares_its_exchange_and_binds_its_queue() {
    let queue = queue_name("bound");
    let exchange = format!("of {queue}");
    let mut raw = Raw::connect(Broker::shared().port(0));
    let reply_to = raw.reply_queue();
    for _ in 0..2 {
        let serving = Serving::start(&url(), &queue, behind(&exchange), |n| Ok(n.to_vec()));
        let request = Properties::default().reply_to(reply_to.as_bytes());
        let sent = raw.publish(&exchange, queue.as_bytes(), &request, b"7");
        assert_eq!((sent, raw.reply().body), (Verdict::Confirmed, b"7".to_vec()));
        serving.stop();
    }
    let kinds = Broker::shared().ctl(&["list_exchanges", "name", "type", "durable"]);
    assert!(kinds.contains(&format!("{exchange}\tdirect\ttrue")), "{kinds}");
}

/// An exchange of another type is used as it is: this one takes every routing key.
#[test]
fn server_uses_an_exchange_that_exists_whatever_its_type() {
    let queue = queue_name("fanned");
    let mut raw = Raw::connect(Broker::shared().port(0));
    let declared = Serving::echo(&url(), &queue);
    let exchange = raw.fanout_to(&queue);
    declared.stop();
    let _serving = Serving::start(&url(), &queue, behind(&exchange), |n| Ok(n.to_vec()));
    let reply_to = raw.reply_queue();
    let request = Properties::default().reply_to(reply_to.as_bytes());
    assert_eq!(raw.publish(&exchange, b"any", &request, b"7"), Verdict::Confirmed);
    assert_eq!(raw.reply().body, b"7");
}

#[test]
fn exchange_that_cannot_be_named_is_refused_before_anything_is_sent() {
    for (exchange, named) in [("", "empty"), ("a\nb", "line break"), (&*"x".repeat(256), "256")] {
        let brokers = Brokers::parse("amqp://127.0.0.1:1").unwrap();
        let error = RpcServer::connect(brokers, "q", behind(exchange)).unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains(named)), "{error:?}");
    }
    let long = || Some("x".repeat(256));
    for (exchange, key, named) in
        [(None, Some("1".into()), "needs an exchange"), (Some("x".into()), long(), "key has 256")]
    {
        let brokers = Brokers::parse("amqp://127.0.0.1:1").unwrap();
        let options = ServerOptions { exchange, binding_key: key, ..Default::default() };
        let error = RpcServer::connect(brokers, "q", options).unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains(named)), "{error:?}");
    }
}

#[test]
fn client_reaches_the_service_behind_its_exchange() {
    let queue = queue_name("behind");
    let exchange = format!("of {queue}");
    let _serving = Serving::start(&url(), &queue, behind(&exchange), |n| Ok(n.to_vec()));
    let options = ClientOptions { exchange: Some(exchange.clone()), ..Default::default() };
    let client = connect_with(&url(), &queue, options);
    let calls: Vec<_> = (0..100).map(|n| (n, client.send(n.to_string()).unwrap())).collect();
    for (n, call) in calls {
        assert_eq!(call.wait().unwrap(), n.to_string().into_bytes());
    }
    // On one call of another client, and with a routing key that no queue is bound with.
    let other = connect(&url(), &queue);
    assert_eq!(other.request("7").exchange(&exchange).call().unwrap(), b"7");
    let error = other.request("7").exchange(&exchange).routing_key("x").call().unwrap_err();
    assert!(matches!(&error, Error::Unroutable { .. }), "{error:?}");
    let unbound = client.for_queue("orders").unwrap().call("7").unwrap_err();
    assert!(matches!(&unbound, Error::Unroutable { .. }), "{unbound:?}");
}

/// The broker closes the channel of a request whose exchange does not exist, or whose `user_id` is
/// not the user's.
#[test]
fn request_that_the_broker_refuses_ends_no_other_call() {
    let queue = queue_name("no-exchange");
    let _serving = Serving::echo(&url(), &queue);
    let client = connect(&url(), &queue);
    for _ in 0..10 {
        let others: Vec<_> = (0..8).map(|_| client.send("8").unwrap()).collect();
        let refused = client.request("7").exchange("there is none").call().unwrap_err();
        assert_eq!(refused, Error::Unroutable { queue: "there is none".into() });
        assert!(!refused.may_have_executed());
        for other in others {
            assert_eq!(other.wait().unwrap(), b"8");
        }
    }
    assert_eq!(client.counters().reconnects, 0);
}

#[test]
fn handler_learns_which_user_calls() {
    let queue = queue_name("user");
    let only_guest = |request: &Request| match request.user_id() {
        Some("guest") => Ok("welcome"),
        who => Err(Failure::new(Status::PermissionDenied, format!("{who:?} may not"))),
    };
    let _serving = Serving::requests(&url(), &queue, ServerOptions::default(), only_guest);
    let identified = ClientOptions { identify: true, ..Default::default() };
    assert_eq!(connect_with(&url(), &queue, identified).call("").unwrap(), b"welcome");
    let anonymous = connect(&url(), &queue).call("").unwrap_err();
    assert_eq!(anonymous.kind(), "PERMISSION_DENIED");
    // AMQP has no room for this name.
    let brokers =
        Brokers::parse(&url().replace("guest:", &format!("{}:", "g".repeat(256)))).unwrap();
    let identified = ClientOptions { identify: true, ..Default::default() };
    let error = RpcClient::connect(brokers, &queue, identified).unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.contains("256 bytes")), "{error:?}");
}

/// The permissions of the guide's table, and no more.
#[test]
fn client_that_may_write_to_one_exchange_reaches_no_other_queue() {
    let broker = Broker::shared();
    let (prices, orders) = (queue_name("prices"), queue_name("orders"));
    let exchange = format!("of {prices}");
    let (server, caller) = (queue_name("answerer"), queue_name("caller"));
    let both = format!("^({prices}|{exchange})$");
    let write = format!("^(amq\\.default|{prices})$");
    let of_caller = ["^amq\\.gen-".into(), format!("^{exchange}$"), "^amq\\.gen-".into()];
    for (user, [configure, write, read]) in
        [(&server, [both.clone(), write, both]), (&caller, of_caller)]
    {
        broker.ctl(&["add_user", user, "secret"]);
        broker.ctl(&["set_permissions", user, &configure, &write, &read]);
    }
    let as_user = |user: &str| url().replace("guest:guest", &format!("{user}:secret"));
    let _prices = Serving::start(&as_user(&server), &prices, behind(&exchange), |n| Ok(n.to_vec()));
    let _orders = Serving::echo(&url(), &orders);

    let options = ClientOptions { exchange: Some(exchange), ..Default::default() };
    let client = connect_with(&as_user(&caller), &prices, options);
    assert_eq!(client.call("7").unwrap(), b"7");
    let beyond = client.for_queue(&orders).unwrap().call("7").unwrap_err();
    assert!(matches!(&beyond, Error::Unroutable { .. }), "{beyond:?}");
    let other = ClientOptions { exchange: Some("amq.direct".into()), ..Default::default() };
    let refused = connect_with(&as_user(&caller), &orders, other).call("7").unwrap_err();
    assert!(matches!(&refused, Error::Refused(_)), "{refused:?}");
    let by_default = connect(&as_user(&caller), &orders).call("7").unwrap_err();
    assert!(matches!(&by_default, Error::Refused(_)), "{by_default:?}");
    assert_eq!(client.call("8").unwrap(), b"8");
}

/// The broker closes a connection that opens more channels than it allows the user. A request with
/// an exchange has a channel of its own if it can.
#[test]
fn limit_of_channels_costs_no_connection_twice() {
    let broker = Broker::shared();
    let queue = queue_name("few-channels");
    let exchange = format!("of {queue}");
    let _serving = Serving::start(&url(), &queue, behind(&exchange), |n| Ok(n.to_vec()));
    for (limit, costs_one) in [(2, false), (3, true)] {
        let client = connect_with_few_channels(broker, &queue, limit);
        let reconnects = [(); 4].map(|()| {
            let call = client.request("7").exchange(&exchange).idempotent(true);
            assert_eq!(call.call().unwrap(), b"7");
            client.counters().reconnects
        });
        // For a moment, the broker still counts the channels of the connection that it has closed.
        let expected = if costs_one { 1..=2 } else { 0..=0 };
        assert!(expected.contains(&reconnects[0]), "{limit} channels: {reconnects:?}");
        assert_eq!(reconnects[3], reconnects[0], "{limit} channels");
    }
}
