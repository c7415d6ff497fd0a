#!/usr/bin/env python3
"""RabbitMQ's tutorial six, server side, on pika.

https://www.rabbitmq.com/tutorials/tutorial-six-python
"""
import argparse

import pika


def fib(n):
    # The tutorial recurses, to be slow on purpose. This program measures the RPC layer.
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def on_request(channel, method, properties, body):
    channel.basic_publish(
        exchange="",
        routing_key=properties.reply_to,
        properties=pika.BasicProperties(correlation_id=properties.correlation_id),
        body=str(fib(int(body))),
    )
    channel.basic_ack(delivery_tag=method.delivery_tag)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="amqp://guest:guest@localhost:5672/%2f")
    parser.add_argument("--queue", default="rpc_queue")
    parser.add_argument("--queue-type", help="the tutorial of today says quorum")
    parser.add_argument("--prefetch", type=int, default=1)
    options = parser.parse_args()

    connection = pika.BlockingConnection(pika.URLParameters(options.url))
    channel = connection.channel()
    arguments = {"x-queue-type": options.queue_type} if options.queue_type else None
    channel.queue_declare(queue=options.queue, durable=True, arguments=arguments)
    channel.basic_qos(prefetch_count=options.prefetch)
    channel.basic_consume(queue=options.queue, on_message_callback=on_request)
    print(f"Awaiting RPC requests on {options.queue}", flush=True)
    channel.start_consuming()


if __name__ == "__main__":
    main()
