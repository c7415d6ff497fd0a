"""Sends requests with kombu, and prints a line with the body and some properties of each reply."""
import argparse

import kombu


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("bodies", nargs="+")
    options = parser.parse_args()
    replies = {kombu.uuid(): None for _ in options.bodies}

    def on_reply(message):
        if message.properties.get("correlation_id") in replies:
            replies[message.properties["correlation_id"]] = message

    with kombu.Connection(options.url) as connection:
        queue = kombu.Queue(kombu.uuid(), exclusive=True)
        with connection.Consumer(queue, on_message=on_reply, no_ack=True):
            producer = connection.Producer()
            for correlation_id, body in zip(replies, options.bodies):
                producer.publish(
                    body,
                    exchange="",
                    routing_key=options.queue,
                    reply_to=queue.name,
                    correlation_id=correlation_id,
                )
            while None in replies.values():
                connection.drain_events()

    for message in replies.values():
        kind, status = message.properties.get("type"), message.headers.get("rpc-status")
        print(f"type={kind} rpc-status={status} body={message.payload}")


main()
