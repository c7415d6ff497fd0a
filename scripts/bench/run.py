#!/usr/bin/env python3
"""Measures this crate's RPC against other blocking clients on one private node.

Every round runs every case once, in an order rotated by one from round to
round, and compares each peer with this crate's program of the same round: what
disturbs a machine for seconds then disturbs both sides of a ratio.
"""
import argparse
import collections
import contextlib
import json
import os
import pathlib
import platform
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import report

HERE = pathlib.Path(__file__).absolute().parent
BROKER = HERE.parent / "broker.sh"
START_LIMIT, RUN_LIMIT, STOP_LIMIT = 60, 300, 45  # seconds
SLOW, MANY = 25, 64  # a slow peer's share of the requests; calls in flight

Peer = collections.namedtuple("Peer", "key label server client in_flight slow", defaults=[False])


def peers(target):
    """Who is measured; the first is the one the others are compared with."""
    release, bench = target / "release", target / "bench"
    examples = release / "examples"
    ours = [release / "rpc_server"], [release / "rpc_bench", "--timeout", "30"]
    threads = ours[0], ours[1] + ["--threads", MANY]
    c = [bench / "librabbitmq_server"], [bench / "librabbitmq_client"]
    amiquip = [examples / "amiquip_tutorial_server"], [examples / "amiquip_tutorial_client"]
    nodelay = [side + ["--nodelay"] for side in amiquip]
    python = [[python_with_pika(), HERE / f"tutorial_six_{side}.py"] for side in ("server", "client")]
    return [
        Peer("ours", "rabbitmq-rpc", *ours, (1, MANY)),
        Peer("ours-threads", "rabbitmq-rpc, 64 threads", *threads, (MANY,)),
        Peer("c", "librabbitmq (C)", *c, (1, MANY)),
        Peer("nodelay", "amiquip + TCP_NODELAY", *nodelay, (1, MANY)),
        Peer("python", "pika (Python)", *python, (1,)),
        Peer("amiquip", "amiquip as it comes", *amiquip, (1,), slow=True),
    ]


def main():
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    options = arguments()
    chosen = [peer for peer in peers(options.target) if peer.key in options.peers]
    cases = [(peer, in_flight) for in_flight in (1, MANY) for peer in chosen if in_flight in peer.in_flight]
    runs = []
    with private_node() as facts:
        # A fresh node loads code at its first calls: they are made, not counted.
        run_case(facts, *cases[0], 500, options.n)
        for round_number in range(options.rounds):
            turn = round_number % len(cases)
            for peer, in_flight in cases[turn:] + cases[:turn]:
                requests = max(1, requests_of(peer, in_flight, options.requests))
                result = run_case(facts, peer, in_flight, requests, options.n)
                runs.append({"round": round_number + 1, "peer": peer.key, "in_flight": in_flight} | result)
                tell(runs[-1], options.rounds)

    results = {
        "machine": machine(facts),
        "options": {"rounds": options.rounds, "requests": options.requests, "n": options.n},
        "foreign_cpu_share": statistics.median(run["foreign_cpu_share"] for run in runs),
        "summary": report.summarize(runs, [(peer.key, peer.label) for peer in chosen]),
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
    parser.add_argument("--requests", type=int, default=4000, help="calls of a sequential run; "
                        f"a run with {MANY} in flight makes 5 times as many, a slow peer 1/{SLOW}")
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


def requests_of(peer, in_flight, requests):
    if peer.slow:
        return requests // SLOW
    return requests * 5 if in_flight > 1 else requests


def run_case(facts, peer, in_flight, requests, n):
    """One fresh server, one client; what the client says and what it cost."""
    place = ["--url", facts["url"], "--queue", f"bench.{peer.key}.{in_flight}"]
    load = ["--requests", requests, "--n", n, "--json"]
    if in_flight > 1:
        load += ["--in-flight", in_flight]
    with child(peer.server + place + ["--prefetch", in_flight]) as server:
        wait_for_line(server, "Awaiting RPC requests")
        pids = server.pid, int(facts["pid.0"])
        before = [cpu_seconds(pid) for pid in pids]
        busy, started = busy_seconds(), time.monotonic()
        with child(peer.client + place + load) as client:
            client_cpu, client_rss = watch(client)
            answer = client.stdout.read()
        server_cpu, broker_cpu = (cpu_seconds(pid) - start for pid, start in zip(pids, before))
        server_rss = peak_rss(server.pid)
        foreign = busy_seconds() - busy - client_cpu - server_cpu - broker_cpu
        capacity = (time.monotonic() - started) * os.cpu_count()
    result = json.loads(answer)
    if result["ok"] != requests:
        raise SystemExit(f"{peer.label}: {result['ok']} right answers to {requests} requests.")
    return result | {
        "client_cpu_seconds": client_cpu,
        "server_cpu_seconds": server_cpu,
        "broker_cpu_seconds": broker_cpu,
        "client_max_rss_kib": client_rss,
        "server_max_rss_kib": server_rss,
        "foreign_cpu_share": max(0, foreign / capacity),
    }


@contextlib.contextmanager
def private_node():
    """The node ends when its standard input closes, so also when this is killed."""
    with tempfile.TemporaryFile("w+") as errors:
        broker = subprocess.Popen([BROKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=errors, text=True, start_new_session=True)
        try:
            facts = {}
            while (line := broker.stdout.readline().strip()) != "ready":
                if not line and broker.poll() is not None:
                    errors.seek(0)
                    raise SystemExit(f"{BROKER} failed:\n{errors.read()}")
                key, _, value = line.partition("=")
                facts[key] = value
            yield facts
        finally:
            broker.stdin.close()
            broker.wait(STOP_LIMIT)


@contextlib.contextmanager
def child(command):
    """A process that ends with the block, and, by setpriv, with this process.

    It has a session of its own: an interrupt from the keyboard reaches this
    process alone, which then ends the others in order.
    """
    command = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=errors, text=True, start_new_session=True)
        try:
            yield process
        except (ChildFailed, TimeoutError) as failure:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command[3:])}\n{failure}\n{errors.read()[-2000:]}") from None
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            process.stdout.close()


class ChildFailed(Exception):
    pass


def wait_for_line(process, start):
    readable, _, _ = select.select([process.stdout], [], [], START_LIMIT)
    line = process.stdout.readline() if readable else ""
    if not line.startswith(start):
        raise ChildFailed(f"It did not begin with '{start}' but with '{line.strip()}'.")


def watch(process):
    """Waits for the end; returns the CPU seconds and the peak memory in KiB.

    The memory is sampled, because what wait4 reports as the peak includes the
    size this process had when it started the child.
    """
    deadline, rss = time.monotonic() + RUN_LIMIT, 0
    end = os.pidfd_open(process.pid)
    try:
        while not select.select([end], [], [], 0.1)[0]:
            rss = max(rss, peak_rss(process.pid))
            if time.monotonic() > deadline:
                raise TimeoutError(f"It was not done after {RUN_LIMIT} s.")
    finally:
        os.close(end)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ChildFailed(f"It ended with exit code {process.returncode}.")
    return usage.ru_utime + usage.ru_stime, rss


def cpu_seconds(pid):
    # The clock that clock_getcpuclockid(3) names: nanoseconds, not clock ticks.
    return time.clock_gettime((~pid << 3) | 2)


def busy_seconds():
    """What all processors together have worked, in whatever process, since the start."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def peak_rss(pid):
    with open(f"/proc/{pid}/status") as status:
        lines = [line.split() for line in status]
    return next((int(words[1]) for words in lines if words[0] == "VmHWM:"), 0)


def tell(run, rounds):
    print(f"round {run['round']}/{rounds}  {run['peer']:<12} {run['in_flight']:>2} in flight "
          f"{run['calls_per_second']:>8.0f} calls/s  p50 {run['latency_us']['p50']:>7.0f} µs  "
          f"{run['foreign_cpu_share']:>4.0%} of the CPU went elsewhere",
          file=sys.stderr)


def machine(facts):
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "rabbitmq": facts.get("version") or package("rabbitmq-server"),
        "librabbitmq": package("librabbitmq4") or package("librabbitmq-dev"),
        "pika": package("python3-pika"),
        "rustc": first_line(["rustc", "--version"]),
        "python": first_line([python_with_pika(), "--version"]),
    }


def package(name):
    return first_line(["dpkg-query", "-W", "-f", "${Version}", name])


def python_with_pika():
    """Debian's pika belongs to Debian's Python, which may not come first in PATH."""
    for python in ("python3", "/usr/bin/python3"):
        if first_line([python, "-c", "import pika; print(1)"]):
            return shutil.which(python)
    return "/usr/bin/python3"


def first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.partition("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    main()
