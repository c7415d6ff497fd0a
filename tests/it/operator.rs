//! How clients and servers name themselves to an operator.

use amiquip::{ConsumerMessage, ConsumerOptions, Publish, QueueDeclareOptions};

use crate::broker::{Broker, queue_name};
use crate::embedded::connect;
use crate::patience::PATIENCE;
use crate::programs::rpc_server;
use crate::queue;

#[test]
fn connections_name_program_host_and_process() {
    let (broker, queue) = (Broker::shared(), queue_name("operator"));
    let server = rpc_server(&queue, &[]);
    let _client = connect(&broker.url(), &queue);

    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let information = |program: &str, process: u32| {
        let version = env!("CARGO_PKG_VERSION");
        format!("{program} (rabbitmq-rpc {version}) on {}, process {process}", host.trim())
    };
    let seen = broker.ctl(&["list_connections", "client_properties"]);
    let server = information("rpc_server", server.pid());
    assert!(seen.contains(&format!("{{\"information\",\"{server}\"}}")), "{server}: {seen}");
    let client = information(&this_program(), std::process::id());
    assert!(seen.contains(&format!("{{\"information\",\"{client}\"}}")), "{client}: {seen}");
}

#[test]
fn requests_and_replies_name_their_program() {
    let broker = Broker::shared();
    let take_one = |queue: &amiquip::Queue<'_>| {
        let options = ConsumerOptions { no_ack: true, ..Default::default() };
        let consumer = queue.consume(options).unwrap();
        let message = consumer.receiver().recv_timeout(PATIENCE).unwrap();
        // amiquip cancels a consumer that is dropped, tells it so, and ends the connection if it is
        // gone by then.
        std::mem::forget(consumer);
        match message {
            ConsumerMessage::Delivery(delivery) => delivery,
            other => panic!("{other:?}"),
        }
    };
    let exclusive = || QueueDeclareOptions { exclusive: true, ..Default::default() };

    let mut connection = queue::connect(&broker.url());
    let channel = connection.open_channel(None).unwrap();
    let requests = channel.queue_declare(queue_name("operator"), exclusive()).unwrap();
    let client = connect(&broker.url(), requests.name());
    let call = client.send("7").unwrap();
    let request = take_one(&requests);
    assert_eq!(request.properties.app_id(), &Some(this_program()));
    drop(call);

    let queue = queue_name("operator");
    let _server = rpc_server(&queue, &[]);
    let replies = channel.queue_declare("", exclusive()).unwrap();
    let properties = request.properties.with_reply_to(replies.name().to_string());
    channel.basic_publish("", Publish::with_properties(b"7", &queue, properties)).unwrap();
    let reply = take_one(&replies);
    assert_eq!(reply.properties.app_id(), &Some("rpc_server".into()));
    assert_eq!(reply.body, b"13");
}

fn this_program() -> String {
    let path = std::env::current_exe().unwrap();
    path.file_name().unwrap().to_string_lossy().into_owned()
}
