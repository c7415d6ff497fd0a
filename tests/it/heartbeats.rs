//! A broker that is silent is noticed by the heartbeat that both sides have agreed on.

use std::time::Instant;

use rabbitmq_rpc::Error;

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::patience::{AT_ONCE, PATIENCE};
use crate::proxy::{Mode, Proxy};

#[test]
fn silent_broker_is_noticed_whatever_heartbeat_it_suggests() {
    let broker = Broker::fragile();
    let suggest = |seconds: u16| {
        broker.ctl(&["eval", &format!("application:set_env(rabbit, heartbeat, {seconds}).")]);
    };
    let queue = queue_name("heartbeats");
    let server = Serving::echo(&broker.url(), &queue);
    // 0 suggests none, so that of this side counts. Otherwise the lower one counts.
    for (suggested, ours) in [(0, 1), (1, 30), (60, 1)] {
        suggest(suggested);
        let proxy = Proxy::to(broker.port(0));
        let client = connect(&format!("{}?heartbeat={ours}", proxy.url()), &queue);
        assert_eq!(client.call("7"), Ok(b"7".to_vec()));

        proxy.set(Mode::Stall);
        let began = Instant::now();
        let error = client.call_timeout("7", PATIENCE).expect_err("nothing arrives");
        let took = began.elapsed();
        println!("suggested {suggested}, ours {ours}: noticed after {took:?}");
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
        assert!(error.to_string().contains("silent for two heartbeats"), "{error}");
        assert!(took < AT_ONCE, "{suggested} and {ours}: {took:?}");
        proxy.set(Mode::Forward);
    }
    suggest(60);
    server.stop();
}
