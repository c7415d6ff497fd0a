#!/usr/bin/env python3
"""Measures this crate's RPC against other blocking clients on one private node.

Every round runs every case once, in an order rotated by one from round to
round, and compares each peer with the C pair of the same round. A disturbance of
the machine for some seconds then affects both sides of a ratio.

With its defaults it takes some four minutes: a round is 20 runs of a few
seconds at most. It writes results.json, table.md and latency.svg.
"""
import argparse
import collections
import contextlib
import json
import pathlib
import select
import statistics
import subprocess
import sys
import time

import report
from harness import (HERE, START_LIMIT, Meter, certificates, child, end_in_order, machine, peak_rss, private_node,
                     python_with_pika, rotated, wait_for_line, watch)

SLOW = 25  # a slow peer makes this many times fewer calls
STARTS = 10  # processes started one by one for one measurement

# The load of a peer: calls in flight, the prefetch of each server, and by which factor it has
# more requests than a sequential run, so that it runs long enough.
Panel = collections.namedtuple("Panel", "in_flight prefetch times")
PANELS = {
    "one": Panel(1, 1, 1),
    "many": Panel(64, 64, 5),
    "servers": Panel(64, 1, 2),
}
Peer = collections.namedtuple("Peer", "key label server client panels servers tls slow start",
                              defaults=[1, False, False, None])


def peers(target):
    """The peers to measure. The first has the boldest line; all are compared with the one called `c`."""
    release, bench = target / "release", target / "bench"
    examples = release / "examples"
    ours = [release / "rpc_server"], [release / "rpc_bench", "--timeout", "30"]
    threads = ours[0], ours[1] + ["--threads", PANELS["many"].in_flight]
    first_answer = [release / "rpc_client", "7"]
    c = [bench / "librabbitmq_server"], [bench / "librabbitmq_client"]
    lean = [side + ["--lean"] for side in c]
    amiquip = [examples / "amiquip_tutorial_server"], [examples / "amiquip_tutorial_client"]
    nodelay = [side + ["--nodelay"] for side in amiquip]
    python = [[python_with_pika(), HERE / f"tutorial_six_{side}.py"] for side in ("server", "client")]
    # Servers that share a queue get the same load from the C client, which costs least.
    workers = ours[0] + ["--workers", "4"], c[1]
    return [
        Peer("ours", "rabbitmq-rpc", *ours, ("one", "many"), start=first_answer),
        Peer("ours-tls", "rabbitmq-rpc, TLS", *ours, ("one",), tls=True, start=first_answer),
        Peer("ours-threads", "rabbitmq-rpc, 64 threads", *threads, ("many",)),
        Peer("ours-workers", "rabbitmq-rpc, 4 workers on one connection", *workers, ("servers",)),
        Peer("c", "librabbitmq (C)", *c, ("one", "many"), start=c[1] + ["--requests", "1"]),
        Peer("c-tls", "librabbitmq (C), TLS", *c, ("one",), tls=True),
        Peer("c-lean", "librabbitmq (C), tutorial's properties alone", *lean, ("one", "many")),
        Peer("c-processes", "librabbitmq (C), 4 processes", *c, ("servers",), servers=4),
        Peer("nodelay", "amiquip + TCP_NODELAY", *nodelay, ("one", "many")),
        Peer("python", "pika (Python)", *python, ("one",)),
        Peer("amiquip", "amiquip as it comes", *amiquip, ("one",), slow=True),
    ]


def main():
    end_in_order()
    options = arguments()
    chosen = [peer for peer in peers(options.target) if peer.key in options.peers]
    cases = [(panel, peer) for panel in PANELS for peer in chosen if panel in peer.panels]
    cases += [("start", peer) for peer in chosen if peer.start]
    runs = []
    with certificates() as tls, private_node("--tls", tls) as facts:
        facts["tls"] = tls
        # A new node loads code during its first calls, so these are not counted.
        run_case(facts, *cases[0], 500, options.n)
        for round_number in range(options.rounds):
            for panel, peer in rotated(cases, round_number):
                if panel == "start":
                    result = first_answers(facts, peer, chosen[0].server)
                else:
                    requests = options.requests * PANELS[panel].times // (SLOW if peer.slow else 1)
                    result = run_case(facts, panel, peer, max(1, requests), options.n)
                runs.append({"round": round_number + 1, "panel": panel, "peer": peer.key} | result)
                print_progress(runs[-1], options.rounds)

    calls = [run for run in runs if run["panel"] != "start"]
    labels = {peer.key: peer.label for peer in chosen}
    results = {
        "machine": machine(facts),
        "options": {"rounds": options.rounds, "requests": options.requests, "n": options.n, "starts": STARTS},
        "foreign_cpu_share": statistics.median(run["foreign_cpu_share"] for run in calls),
        "summary": report.summarize(calls, labels),
        "start": report.summarize_starts([run for run in runs if run["panel"] == "start"], labels),
        "tls": [report.compared(calls, "one", f"{side}-tls", side) for side in ("ours", "c")],
        "runs": runs,
    }
    bench = options.target / "bench"
    (bench / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (bench / "table.md").write_text(report.markdown(results))
    (bench / "latency.svg").write_text(report.svg(results))
    print(report.markdown(results))
    print(f"Written: results.json, table.md and latency.svg in {bench}", file=sys.stderr)


def arguments():
    parser = argparse.ArgumentParser(prog="bench.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4000, help="calls of a sequential run; with "
                        f"{PANELS['many'].in_flight} in flight it is {PANELS['many'].times} times as many, "
                        f"to 4 servers {PANELS['servers'].times} times, by a slow peer 1/{SLOW}")
    parser.add_argument("--n", type=int, default=7, help="which Fibonacci number, at most 186")
    keys = [peer.key for peer in peers(pathlib.Path())]
    parser.add_argument("--peers", type=lambda text: text.split(","), default=keys,
                        help="some of " + ",".join(keys))
    parser.add_argument("--target", type=pathlib.Path, default=pathlib.Path("target"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.peers) - set(keys)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.requests < 1 or not 0 <= options.n <= 186:
        parser.error("it takes one round and one request at least, and an n from 0 to 186")
    return options


def place(facts, queue, tls):
    if not tls:
        return ["--url", facts["url"], "--queue", queue]
    files = {"ca": "ca.pem", "cert": "client.pem", "key": "client-key.pem"}
    url = f"amqps://guest:guest@127.0.0.1:{facts['tls_port.0']}/%2f"
    return ["--url", url, "--queue", queue] + [
        word for name, file in files.items() for word in (f"--tls-{name}", facts["tls"] / file)]


def run_case(facts, panel, peer, requests, n):
    """Starts servers and one client; returns the client's report and the costs."""
    in_flight, prefetch, _ = PANELS[panel]
    where = place(facts, f"bench.{peer.key}.{panel}", peer.tls)
    load = ["--requests", requests, "--n", n, "--json"]
    if in_flight > 1:
        load += ["--in-flight", in_flight]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(child(peer.server + where + ["--prefetch", prefetch]))
                   for _ in range(peer.servers)]
        for server in servers:
            wait_for_line(server, "Awaiting RPC requests")
        pids = [server.pid for server in servers]
        meter = Meter(server=pids, broker=[int(facts["pid.0"])])
        with child(peer.client + where + load) as client:
            client_cpu, client_rss = watch(client)
            answer = client.stdout.read()
        spent = meter.read(client=client_cpu)
        server_rss = sum(map(peak_rss, pids))
    result = json.loads(answer)
    if result["ok"] != requests:
        raise SystemExit(f"{peer.label}: {result['ok']} right answers to {requests} requests.")
    return result | spent | {"client_max_rss_kib": client_rss, "server_max_rss_kib": server_rss}


def first_answers(facts, peer, server):
    """Measures the time from the start of a client process until it prints its first answer."""
    queue = f"bench.{peer.key}.start"
    times = []
    with child(server + place(facts, queue, tls=False)) as process:
        wait_for_line(process, "Awaiting RPC requests")
        command = list(map(str, peer.start + place(facts, queue, peer.tls)))
        for _ in range(STARTS):
            times.append(first_answer(command))
    return {"first_answer_us": times}


def first_answer(command):
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        readable, _, _ = select.select([process.stdout], [], [], START_LIMIT)
        seconds = time.perf_counter() - started
        if not readable:
            process.kill()
        if not process.stdout.readline() or process.wait(START_LIMIT) != 0:
            raise SystemExit(f"{' '.join(command)}\nIt gave no answer.")
    return seconds * 1e6


def print_progress(run, rounds):
    head = f"round {run['round']}/{rounds}  {run['panel']:<7} {run['peer']:<12}"
    if run["panel"] == "start":
        print(f"{head} {statistics.median(run['first_answer_us']) / 1000:.1f} ms to the first answer", file=sys.stderr)
        return
    print(f"{head} {run['calls_per_second']:>8.0f} calls/s  p50 {run['latency_us']['p50']:>7.0f} µs  "
          f"{run['foreign_cpu_share']:>4.0%} of the CPU went elsewhere",
          file=sys.stderr)


if __name__ == "__main__":
    main()
