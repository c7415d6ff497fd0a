"""Sends requests with pika, and prints a line with the body and some properties of each reply."""
import argparse
import uuid

import pika

DIRECT = "amq.rabbitmq.reply-to"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--reply-to", default="", help="default: an exclusive queue of its own")
    parser.add_argument("bodies", nargs="+")
    options = parser.parse_args()

    connection = pika.BlockingConnection(pika.URLParameters(options.url))
    channel = connection.channel()
    direct = options.reply_to == DIRECT
    reply_to = DIRECT if direct else declare(channel, options.reply_to)
    replies = {str(uuid.uuid4()): None for _ in options.bodies}

    def on_reply(_channel, method, properties, body):
        ours = properties.correlation_id in replies
        if ours:
            replies[properties.correlation_id] = (properties, body)
        if not direct:
            # Other replies are for another requester on the same queue. With a prefetch limit the
            # broker would deliver them to us again while the other requester is at its limit.
            settle = channel.basic_ack if ours else channel.basic_nack
            settle(method.delivery_tag)

    # The broker allows direct reply-to only without acknowledgements.
    channel.basic_consume(reply_to, on_reply, auto_ack=direct)
    for correlation_id, body in zip(replies, options.bodies):
        properties = pika.BasicProperties(reply_to=reply_to, correlation_id=correlation_id)
        channel.basic_publish("", options.queue, body, properties)
    while None in replies.values():
        connection.process_data_events(time_limit=None)
    connection.close()

    for properties, body in replies.values():
        status = (properties.headers or {}).get("rpc-status")
        print(f"type={properties.type} rpc-status={status} body={body.decode()}")


def declare(channel, name):
    # A queue with a name is shared by requesters and outlives them.
    return channel.queue_declare(name, durable=bool(name), exclusive=not name).method.queue


main()
