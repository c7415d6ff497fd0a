//! Services behind an exchange of their own.

use rabbitmq_rpc::{Brokers, Error, RpcServer, ServerOptions};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::Serving;
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
}
