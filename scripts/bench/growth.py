#!/usr/bin/env python3
"""Measures how the rate of calls and their CPU time grow, compared with librabbitmq's C pair.

Each side is an echo server and clients that call it: with more and more calls in
flight on one thread, with larger and larger bodies, and from more and more
client processes. Clients connect and make a call before the clock starts, and
disconnect after it has stopped, so that only calls count. The prefetch of both
servers is the number of calls in flight over all clients, at most 256: a larger
prefetch does not raise the rate and only queues requests in one server.

Every round runs every point once for each side, one right after the other, in
an order rotated by one from round to round; ratios compare within a round.

With its defaults it takes some six minutes: 5 rounds of 26 runs of 2 s and
their start. It writes growth.json, growth.md and growth.svg.
"""
import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys

import growth_report
from harness import (RUN_LIMIT, START_LIMIT, ChildFailed, Meter, child, end_in_order, line_of, machine, peak_rss,
                     private_node, rotated, wait_for_line)

MOST_PREFETCH = 256
KIB, MIB = 1 << 10, 1 << 20

# On each axis everything else is 1. All three axes begin with the same case, which runs once.
AXES = {
    "in_flight": [1, 4, 16, 64, 256, 1024],
    "body_size": [1, KIB, 64 * KIB, MIB, 16 * MIB],
    "processes": [1, 4, 16, 64],
}


def peers(target):
    """Server and client of each side; the first is compared with the second."""
    echo = target / "release" / "examples" / "echo"
    c = target / "bench"
    return {
        "ours": ([echo, "server"], [echo, "client"]),
        "c": ([c / "librabbitmq_server", "--echo"], [c / "librabbitmq_client"]),
    }


def main():
    end_in_order()
    options = arguments()
    points = [{axis: 1 for axis in AXES}]
    points += [points[0] | {axis: value} for axis in AXES for value in AXES[axis][1:]]
    sides = list(peers(options.target))
    runs = []
    with private_node() as facts:
        # A new node loads code during its first calls, so these are not counted.
        run_case(facts, options, points[0], sides[0])
        for round_number in range(options.rounds):
            cases = [(point, peer) for point in rotated(points, round_number) for peer in rotated(sides, round_number)]
            for point, peer in cases:
                result = run_case(facts, options, point, peer)
                runs.append({"round": round_number + 1, "peer": peer} | point | result)
                print_progress(runs[-1], options.rounds)

    results = {
        "machine": machine(facts),
        "options": {"rounds": options.rounds, "seconds": options.seconds, "most_prefetch": MOST_PREFETCH},
        "foreign_cpu_share": statistics.median(run["foreign_cpu_share"] for run in runs),
        "summary": growth_report.summarize(runs, AXES),
        "runs": runs,
    }
    bench = options.target / "bench"
    (bench / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    (bench / "growth.md").write_text(growth_report.markdown(results))
    (bench / "growth.svg").write_text(growth_report.svg(results))
    print(growth_report.markdown(results))
    print(f"Written: growth.json, growth.md and growth.svg in {bench}", file=sys.stderr)


def arguments():
    parser = argparse.ArgumentParser(prog="bench.sh --growth", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="how long each run makes calls")
    parser.add_argument("--target", type=pathlib.Path, default=pathlib.Path("target"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1 or not 0 < options.seconds <= RUN_LIMIT / 2:
        parser.error(f"it takes one round at least, and more than 0 s, but at most {RUN_LIMIT // 2} s")
    return options


def run_case(facts, options, point, peer):
    """Starts a server and clients; returns the calls of all clients and the costs."""
    server_command, client_command = peers(options.target)[peer]
    queue = "growth." + ".".join([peer, *map(str, point.values())])
    place = ["--url", facts["url"], "--queue", queue]
    prefetch = min(point["in_flight"] * point["processes"], MOST_PREFETCH)
    load = ["--in-flight", point["in_flight"], "--body-size", point["body_size"],
            "--seconds", options.seconds, "--on-cue", "--json"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(child(server_command + place + ["--prefetch", prefetch]))
        wait_for_line(server, "Awaiting RPC requests")
        clients = [stack.enter_context(child(client_command + place + load, stdin=subprocess.PIPE))
                   for _ in range(point["processes"])]
        for client in clients:
            wait_for_line(client, "ready")
        pids = [client.pid for client in clients]
        meter = Meter(client=pids, server=[server.pid], broker=[int(facts["pid.0"])])
        for client in clients:
            client.stdin.write("\n")
            client.stdin.flush()
        lines = [line_of(client, RUN_LIMIT) for client in clients]
        spent = meter.read()
        memory = {"client_max_rss_kib": max(map(peak_rss, pids)), "server_max_rss_kib": peak_rss(server.pid)}
        for client in clients:
            client.stdin.close()
            if client.wait(START_LIMIT) != 0:
                raise ChildFailed(client, f"It ended with exit code {client.returncode}.")
    answers = [json.loads(line) for line in lines]
    requests, ok = (sum(answer[key] for answer in answers) for key in ("requests", "ok"))
    if ok != requests:
        raise SystemExit(f"{peer} at {point}: {ok} right answers to {requests} requests.")
    return spent | memory | {
        "requests": requests,
        "prefetch": prefetch,
        "calls_per_second": requests / max(answer["seconds"] for answer in answers),
        # The median of all clients.
        "latency_us": {name: statistics.median(answer["latency_us"][name] for answer in answers)
                       for name in answers[0]["latency_us"]},
    }


def print_progress(run, rounds):
    where = ", ".join(f"{axis} {run[axis]:,}" for axis in AXES if run[axis] > 1) or "all 1"
    print(f"round {run['round']}/{rounds}  {where:<21} {run['peer']:<5} {run['calls_per_second']:>8.0f} calls/s  "
          f"{run['foreign_cpu_share']:>4.0%} of the CPU went elsewhere", file=sys.stderr)


if __name__ == "__main__":
    main()
