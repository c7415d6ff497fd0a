"""Runs the guide's client against a server of Fibonacci numbers, after messages that it must survive."""

import argparse
import re

import pika

parser = argparse.ArgumentParser()
parser.add_argument("--url")
parser.add_argument("--queue")
parser.add_argument("guide")
args = parser.parse_args()

with open(args.guide) as guide:
    exec(re.search(r"```python\n(.*?)```", guide.read(), re.DOTALL).group(1))

connection = pika.BlockingConnection(pika.URLParameters(args.url))
client = RpcClient(connection, args.queue)  # noqa: F821 (the guide defines it)


def outcome(call):
    try:
        return call()
    except (RuntimeError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"


def receive(body, **properties):
    """Has the client receive this message, as a reply to the call that it has just made."""
    client.outcome = None
    properties.setdefault("correlation_id", client.correlation_id)
    client.on_reply(client.channel, None, pika.BasicProperties(**properties), body)
    return client.outcome


print(outcome(lambda: client.call("7")))
print(outcome(lambda: client.call("7", headers={"rpc-keep-alive": 100})))
print(outcome(lambda: client.call("187")))
print(repr(receive(b"of an earlier call", correlation_id="7")), repr(receive(b"", type="keep-alive")))
print(receive(b"no header \xff", type="error"))
client.queue = args.queue + "-none"
print(outcome(lambda: client.call("7", timeout=0.1)))
