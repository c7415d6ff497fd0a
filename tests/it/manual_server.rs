//! A server whose replies the test sends itself.

use std::thread::{self, JoinHandle};

use amiquip::{AmqpProperties, ConsumerMessage, ConsumerOptions, Delivery, Publish};
use crossbeam_channel::{Receiver, Sender, select, unbounded};
use rabbitmq_rpc::RpcClient;

use crate::patience::PATIENCE;
use crate::queue;

/// A server on amiquip alone. It gives each request to the test as it arrives, and sends nothing
/// by itself.
pub struct ManualServer {
    pub requests: Receiver<Delivery>,
    replies: Option<Sender<Message>>,
    serving: Option<JoinHandle<()>>,
}

impl ManualServer {
    /// Declares the queue and takes all requests, until it is dropped or its connection ends.
    pub fn start(url: &str, queue: &str) -> ManualServer {
        let (requests_in, requests) = unbounded();
        let (replies, replies_out) = unbounded::<Message>();
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
        ManualServer { requests, replies: Some(replies), serving: Some(serving) }
    }

    /// The next request.
    pub fn next(&self) -> Delivery {
        self.requests.recv_timeout(PATIENCE).expect("a request was sent")
    }

    /// Answers one call of this client. Returns where the reply went.
    pub fn answer_call(&self, client: &RpcClient) -> String {
        let call = client.send("7").unwrap();
        let request = self.next();
        self.reply(&request, b"13");
        assert_eq!(call.wait().unwrap(), b"13");
        request.properties.reply_to().clone().expect("a request has a reply_to")
    }

    pub fn reply(&self, request: &Delivery, body: &[u8]) {
        self.reply_with(request, AmqpProperties::default(), body);
    }

    /// Replies with these properties, and with those that make it the request's reply.
    pub fn reply_with(&self, request: &Delivery, properties: AmqpProperties, body: &[u8]) {
        let id = request.properties.correlation_id().clone().expect("a request has an id");
        self.send_to_requester(request, properties.with_correlation_id(id), body);
    }

    /// Sends a message to the request's reply queue, with no correlation id but one in `properties`.
    pub fn send_to_requester(&self, request: &Delivery, properties: AmqpProperties, body: &[u8]) {
        let to = request.properties.reply_to().clone().expect("a request has a reply_to");
        self.replies.as_ref().unwrap().send((to, properties, body.to_vec())).unwrap();
    }
}

impl Drop for ManualServer {
    fn drop(&mut self) {
        drop(self.replies.take());
        let served = self.serving.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(served, Some(Ok(()))), "the server failed");
    }
}

/// Routing key, properties and body.
type Message = (String, AmqpProperties, Vec<u8>);
