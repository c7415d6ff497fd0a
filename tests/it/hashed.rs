//! Many queues behind one consistent-hash exchange.

use std::collections::{BTreeMap, BTreeSet};

use amiquip::{AmqpValue, ExchangeDeclareOptions, ExchangeType, FieldTable};
use rabbitmq_rpc::{Brokers, ClientOptions, Error, RpcServer, ServerOptions};

use crate::broker::Broker;
use crate::embedded::{Serving, connect_with};
use crate::programs::{rpc_server_at, run_client, stop};
use crate::queue;

/// As an operator declares it.
fn declare(url: &str, exchange: &str, arguments: FieldTable) {
    let mut connection = queue::connect(url);
    let channel = connection.open_channel(None).unwrap();
    let kind = ExchangeType::Custom("x-consistent-hash".into());
    let options = ExchangeDeclareOptions { durable: true, arguments, ..Default::default() };
    channel.exchange_declare(kind, exchange, options).unwrap();
    connection.close().unwrap();
}

/// A server of each queue behind the exchange, which answers with the queue's name.
fn serve(url: &str, exchange: &str, queues: &[&'static str]) -> Vec<Serving> {
    let options = || ServerOptions {
        exchange: Some(exchange.into()),
        binding_key: Some("1".into()),
        prefetch: 64,
        ..Default::default()
    };
    let serve = |queue: &&'static str| {
        let name = *queue;
        Serving::start(url, name, options(), move |_| Ok(name.as_bytes().to_vec()))
    };
    queues.iter().map(serve).collect()
}

#[test]
fn requests_spread_over_the_queues_and_those_of_one_key_stay_together() {
    let broker = Broker::with(&["--plugin", "rabbitmq_consistent_hash_exchange"]);
    let url = broker.url();
    declare(&url, "work", FieldTable::new());
    let _servers = serve(&url, "work", &["work-0", "work-1"]);
    let options = || ClientOptions { exchange: Some("work".into()), ..Default::default() };
    let client = connect_with(&url, "work-0", options());
    let mut of_tenant: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for n in 0..200 {
        let tenant = format!("tenant {}", n % 20);
        let server = client.request("7").routing_key(&tenant).call().unwrap();
        of_tenant.entry(tenant).or_default().insert(server);
    }
    assert!(of_tenant.values().all(|servers| servers.len() == 1), "{of_tenant:?}");
    let servers: BTreeSet<_> = of_tenant.into_values().flatten().collect();
    assert_eq!(servers, [&b"work-0"[..], b"work-1"].map(<[u8]>::to_vec).into());

    // By their ids: the key is the same for all.
    let mut arguments = FieldTable::new();
    arguments.insert("hash-property".into(), AmqpValue::LongString("message_id".into()));
    declare(&url, "by id", arguments);
    let _servers = serve(&url, "by id", &["id-0", "id-1"]);
    let client =
        connect_with(&url, "id-0", ClientOptions { exchange: Some("by id".into()), ..options() });
    let calls: Vec<_> = (0..200).map(|_| client.send("7").unwrap()).collect();
    let mut counts: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    calls.into_iter().for_each(|call| *counts.entry(call.wait().unwrap()).or_default() += 1);
    assert!(counts.len() == 2 && counts.values().all(|count| *count > 50), "{counts:?}");

    // The programs do the same.
    let args = ["--exchange", "work", "--binding-key", "1"];
    let mut third = rpc_server_at(&url, "work-2", &[&args[..], &["--", "echo", "work-2"]].concat());
    let found = (0..100).any(|n| {
        let key = n.to_string();
        let args = ["--url", &url, "--queue", "work-0", "--exchange", "work", "--body", "7"];
        run_client(&[&args[..], &["--routing-key", &key]].concat()).stdout == b"work-2\n"
    });
    assert!(found, "no key of a hundred leads to the third queue");
    stop(&mut third);
    drop(client);

    // The queue's name is no weight.
    let options = ServerOptions { exchange: Some("work".into()), ..Default::default() };
    let server = RpcServer::connect(Brokers::parse(&url).unwrap(), "work-3", options);
    let error = server.unwrap_err();
    let Error::QueueRefused { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.contains("takes no binding with the key \"work-3\""), "{reason}");
}
