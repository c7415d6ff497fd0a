"""Tutorial six, server side, on kombu, with this crate's error replies."""
import argparse

import kombu


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--queue", required=True)
    options = parser.parse_args()

    with kombu.Connection(options.url) as connection:
        producer = connection.Producer()

        def on_request(message):
            headers = sorted(message.headers.items())
            print("headers", *(f"{name}={value}" for name, value in headers), flush=True)
            try:
                answer(producer, message, fib(int(message.body)))
            except OverflowError as error:
                error_type = {"type": "error", "headers": {"rpc-status": "OUT_OF_RANGE"}}
                answer(producer, message, str(error), **error_type)
            message.ack()

        queue = kombu.Queue(options.queue, durable=True)
        with connection.Consumer(queue, on_message=on_request, prefetch_count=1):
            print(f"Awaiting RPC requests on {options.queue}", flush=True)
            while True:
                connection.drain_events()


def answer(producer, request, body, **properties):
    producer.publish(
        body,
        exchange="",
        routing_key=request.properties["reply_to"],
        correlation_id=request.properties["correlation_id"],
        **properties,
    )


def fib(n):
    if n > 186:
        raise OverflowError(f"{n} is too large for this server")
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


main()
