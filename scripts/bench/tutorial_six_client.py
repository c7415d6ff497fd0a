#!/usr/bin/env python3
"""RabbitMQ's tutorial six, client side, on pika, calling again and again.

https://www.rabbitmq.com/tutorials/tutorial-six-python
"""
import argparse
import json
import sys
import time
import uuid

import pika


class FibonacciRpcClient:
    def __init__(self, url, queue):
        self.queue = queue
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        result = self.channel.queue_declare(queue="", exclusive=True)
        self.callback_queue = result.method.queue
        self.channel.basic_consume(
            queue=self.callback_queue,
            on_message_callback=self.on_response,
            auto_ack=True,
        )
        self.response = None
        self.corr_id = None

    def on_response(self, channel, method, properties, body):
        if self.corr_id == properties.correlation_id:
            self.response = body

    def call(self, n):
        self.response = None
        self.corr_id = str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key=self.queue,
            properties=pika.BasicProperties(
                reply_to=self.callback_queue,
                correlation_id=self.corr_id,
            ),
            body=str(n),
        )
        while self.response is None:
            self.connection.process_data_events(time_limit=None)
        return int(self.response)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="amqp://guest:guest@localhost:5672/%2f")
    parser.add_argument("--queue", default="rpc_queue")
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--n", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    client = FibonacciRpcClient(options.url, options.queue)
    expected = fib(options.n)
    ok, latencies = 0, []
    started = time.perf_counter()
    for _ in range(options.requests):
        before = time.perf_counter()
        ok += client.call(options.n) == expected
        latencies.append((time.perf_counter() - before) * 1e6)
    seconds = time.perf_counter() - started
    client.connection.close()

    report = {
        "requests": options.requests,
        "ok": ok,
        "errors": options.requests - ok,
        "seconds": seconds,
        "calls_per_second": ok / seconds,
        "latency_us": summary(latencies),
    }
    if options.json:
        print(json.dumps(report))
    else:
        print(f"{ok} right of {options.requests}, {ok / seconds:.0f} calls/s")
    return 0 if ok == options.requests else 1


def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def summary(latencies):
    latencies.sort()
    last = len(latencies) - 1

    def at(share):
        return latencies[min(last, int(share * len(latencies)))]

    return {
        "mean": sum(latencies) / len(latencies),
        "p50": at(0.5),
        "p90": at(0.9),
        "p99": at(0.99),
        "p999": at(0.999),
        "max": latencies[last],
    }


if __name__ == "__main__":
    sys.exit(main())
