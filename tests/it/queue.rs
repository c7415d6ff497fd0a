//! A queue as another program declares, inspects and deletes it.

use amiquip::{Connection, FieldTable, QueueDeclareOptions};

use crate::patience::await_value;

/// A connection of another program.
pub fn connect(url: &str) -> Connection {
    Connection::insecure_open(url).unwrap()
}

/// Declares a request queue as the server does by default.
pub fn declare_durable(url: &str, queue: &str) {
    declare(url, queue, true, FieldTable::new());
}

pub fn declare(url: &str, queue: &str, durable: bool, arguments: FieldTable) {
    let mut connection = connect(url);
    let channel = connection.open_channel(None).unwrap();
    let options = QueueDeclareOptions { durable, arguments, ..Default::default() };
    channel.queue_declare(queue, options).unwrap();
    connection.close().unwrap();
}

/// Deletes a queue with its messages.
pub fn delete(url: &str, queue: &str) {
    let mut connection = connect(url);
    let channel = connection.open_channel(None).unwrap();
    channel.queue_delete(queue, Default::default()).unwrap();
    connection.close().unwrap();
}

/// Waits until consumers have taken every request that the broker has confirmed.
pub fn wait_until_taken(url: &str, queue: &str) {
    let mut connection = connect(url);
    let channel = connection.open_channel(None).unwrap();
    let look = || {
        let looked = channel.queue_declare_passive(queue).unwrap();
        (looked.declared_message_count(), looked.declared_consumer_count())
    };
    // The broker sends no event when a queue runs empty.
    await_value(look, |(ready, consumers)| *ready == Some(0) && *consumers > Some(0));
    connection.close().unwrap();
}

/// Waits until so many requests wait in the queue.
pub fn wait_for_requests(url: &str, queue: &str, count: u32) {
    let mut connection = connect(url);
    let channel = connection.open_channel(None).unwrap();
    let waiting = || channel.queue_declare_passive(queue).unwrap().declared_message_count();
    // The broker sends no event when a queue gets a message.
    await_value(waiting, |waiting| *waiting == Some(count));
    connection.close().unwrap();
}
