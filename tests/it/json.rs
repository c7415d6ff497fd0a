//! Handlers and functions whose requests and replies are JSON.

use std::time::Duration;

use rabbitmq_rpc::{Error, Failure, Methods, Request, RpcClient, ServerOptions, Status, json};
use serde::{Deserialize, Serialize};

use crate::broker::{queue_name, url};
use crate::embedded::{Serving, connect};
use crate::patience::PATIENCE;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Item {
    name: String,
    count: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    total: u64,
    tenant: Option<String>,
}

fn buy(order: Order, request: &Request) -> Result<Receipt, Failure> {
    let tenant = request.header("tenant").map(str::to_string);
    match order.items.iter().map(|item| item.count).sum() {
        0 => Err(Failure::new(Status::NotFound, "nothing is bought")),
        total => Ok(Receipt { total, tenant }),
    }
}

fn shop(test: &str) -> (RpcClient, Serving) {
    let queue = queue_name(test);
    let methods = Methods::new().on("buy", json(buy)).on("none", json(|(), _| Ok([(); 0])));
    let server = Serving::requests(&url(), &queue, ServerOptions::default(), methods);
    (connect(&url(), &queue), server)
}

fn order(count: u64) -> Order {
    Order { items: vec![Item { name: "bölts".into(), count }] }
}

#[test]
fn function_takes_and_returns_values_in_each_way_of_calling() {
    let (client, _server) = shop("functions");
    let buy = client.function::<Order, Receipt>("buy");
    let receipt = |total, tenant: Option<&str>| Receipt { total, tenant: tenant.map(Into::into) };
    assert_eq!(buy.call(&order(3)), Ok(receipt(3, None)));
    let call = buy.request(&order(4)).header("tenant", "7").timeout(PATIENCE);
    assert_eq!(call.call(), Ok(receipt(4, Some("7"))));
    let (one, mut two) = (buy.send(&order(1)).unwrap(), buy.send(&order(2)).unwrap());
    assert_eq!(two.wait_timeout(PATIENCE), Ok(Some(receipt(2, None))));
    assert_eq!(one.wait(), Ok(receipt(1, None)));
    assert_eq!(client.function::<(), Vec<()>>("none").call(&()), Ok(vec![]));

    let failure = Failure::new(Status::NotFound, "nothing is bought");
    assert_eq!(buy.call(&order(0)), Err(Error::Remote(failure)));
    let late = buy.request(&order(1)).timeout(Duration::ZERO).call();
    assert!(matches!(late, Err(Error::TimedOut { sent: false, .. })), "{late:?}");
}

#[test]
fn bodies_are_bare_json() {
    let (client, _server) = shop("bare-json");
    let call = client.request(r#" {"items": [{"name": "nuts", "count": 2}]} "#).method("buy");
    let reply = call.reply().unwrap();
    assert_eq!(reply.body(), br#"{"total":2,"tenant":null}"#);
    assert_eq!(reply.content_type(), Some("application/json"));

    let queue = queue_name("what-arrives");
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), |request| {
        let body = String::from_utf8_lossy(request.body());
        let seen = format!("{body} {:?} {:?}", request.method(), request.content_type());
        Ok(format!("{seen:?}"))
    });
    let seen = connect(&url(), &queue).function::<str, String>("say").call("hi").unwrap();
    assert_eq!(seen, r#""hi" Some("say") Some("application/json")"#);
}

#[test]
fn body_that_does_not_fit_is_refused_with_field_and_position() {
    let (client, server) = shop("misfits");
    for (body, why) in [
        (&br#"{"items": [{"name": "nuts", "count": "two"}]}"#[..], "items[0].count: invalid type"),
        (br#"{"items": [{"name": "nuts"}]}"#, "items[0]: missing field `count` at line 1 column"),
        (br#"{"items": []} {}"#, "trailing characters at line 1 column"),
        (b"", "EOF while parsing a value at line"),
        (b"\xff\xfe", "expected value at line 1 column"),
        (&[b'['; 100_000], "invalid type: sequence"),
    ] {
        match client.request(body).method("buy").call() {
            Err(Error::Remote(Failure { status: Status::InvalidArgument, message, .. })) => {
                assert!(message.contains(why), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.stop().failed, 6);
}

#[test]
fn reply_that_does_not_fit_is_a_bad_reply() {
    let (client, _server) = shop("bad-reply");
    let error = client.function::<Order, Vec<u64>>("buy").call(&order(1)).unwrap_err();
    assert!(matches!(&error, Error::BadReply(text) if text.contains("invalid type: map")));
    assert!(error.may_have_executed());
}

#[test]
fn argument_that_is_no_json_costs_its_own_call_alone() {
    let (client, server) = shop("no-json");
    let keys = std::collections::HashMap::from([((1, 2), 3)]);
    let function = client.function::<_, ()>("buy");
    for error in [function.call(&keys).unwrap_err(), function.send(&keys).unwrap_err()] {
        assert!(matches!(&error, Error::Config(text) if text.contains("key must be a string")));
    }
    assert!(client.function::<Order, Receipt>("buy").call(&order(1)).is_ok());
    assert_eq!(server.stop().served, 1);
}
