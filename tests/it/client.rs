//! The client, and what its tests need: a server that is played by hand, and counters.

mod deadlines;
mod errors;
mod faults;
mod leaks;
mod reconnects;
mod silence;
mod threads;

use std::thread::{self, JoinHandle};

use amiquip::{AmqpProperties, ConsumerMessage, ConsumerOptions, Delivery, Publish};
use crossbeam_channel::{Receiver, Sender, select, unbounded};
use rabbitmq_rpc::{ClientCounters, Error, RpcClient};

use crate::patience::{PATIENCE, await_value};
use crate::proxy::Proxy;
use crate::queue;

/// The counters, once they are as wanted.
fn counters_when(client: &RpcClient, wanted: impl Fn(&ClientCounters) -> bool) -> ClientCounters {
    await_value(|| client.counters(), wanted)
}

/// A server that a test plays by hand, on amiquip alone: it sees the requests as they come over
/// the wire, and answers or not as it likes.
struct HandServer {
    requests: Receiver<Delivery>,
    replies: Option<Sender<(String, AmqpProperties, Vec<u8>)>>,
    serving: Option<JoinHandle<()>>,
}

impl HandServer {
    /// Makes the queue and takes all that comes, until dropped or until the connection ends.
    fn start(url: &str, queue: &str) -> HandServer {
        let (requests_in, requests) = unbounded();
        let (replies, replies_out) = unbounded::<(String, AmqpProperties, Vec<u8>)>();
        queue::declare_durable(url, queue);
        let mut connection = queue::connect(url);
        let queue = queue.to_string();
        let (ready, is_ready) = unbounded();
        let serving = thread::spawn(move || {
            let channel = connection.open_channel(None).unwrap();
            let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
            let consumer = channel.basic_consume(queue, no_ack).unwrap();
            ready.send(()).unwrap();
            loop {
                select! {
                    recv(consumer.receiver()) -> message => match message {
                        Ok(ConsumerMessage::Delivery(delivery)) => {
                            let _ = requests_in.send(delivery);
                        }
                        _ => return,
                    },
                    recv(replies_out) -> reply => match reply {
                        Ok((to, properties, body)) => {
                            let publish = Publish::with_properties(&body, to, properties);
                            channel.basic_publish("", publish).unwrap();
                        }
                        Err(_) => break,
                    },
                }
            }
            let _ = connection.close();
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        HandServer { requests, replies: Some(replies), serving: Some(serving) }
    }

    fn next(&self) -> Delivery {
        self.requests.recv_timeout(PATIENCE).expect("a request was sent")
    }

    fn reply(&self, request: &Delivery, body: &[u8]) {
        self.reply_with(request, AmqpProperties::default(), body);
    }

    /// With these properties, and those that make it that request's reply.
    fn reply_with(&self, request: &Delivery, properties: AmqpProperties, body: &[u8]) {
        let to = request.properties.reply_to().clone().expect("a request has a reply_to");
        let id = request.properties.correlation_id().clone().expect("a request has an id");
        let reply = (to, properties.with_correlation_id(id), body.to_vec());
        self.replies.as_ref().unwrap().send(reply).unwrap();
    }
}

impl Drop for HandServer {
    fn drop(&mut self) {
        drop(self.replies.take());
        let served = self.serving.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(served, Some(Ok(()))), "the server failed");
    }
}

/// Ends every connection there is, and returns once the client has noticed. Whoever calls before
/// that may still lose the call with the connection.
fn cut_under(proxy: &Proxy, client: &RpcClient, server: &HandServer) {
    let call = client.send("lost").unwrap();
    server.next();
    proxy.cut();
    let error = call.wait().unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
    assert!(error.may_have_executed());
}
