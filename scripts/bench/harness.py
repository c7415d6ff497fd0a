"""Shared by the measuring scripts: a private node, child processes, CPU clocks, the machine."""
import contextlib
import os
import pathlib
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).absolute().parent
BROKER = HERE.parent / "broker.sh"
START_LIMIT, RUN_LIMIT, STOP_LIMIT = 60, 300, 45  # seconds


def end_in_order():
    """Makes a signal unwind the stack, so that all child processes are stopped."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))


def rotated(cases, round_number):
    turn = round_number % len(cases)
    return cases[turn:] + cases[:turn]


@contextlib.contextmanager
def private_node(*options):
    """The node ends when its standard input closes, so also when this process is killed."""
    with tempfile.TemporaryFile("w+") as errors:
        broker = subprocess.Popen([BROKER, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
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
def certificates():
    """A directory with the files of `broker.sh --tls`, and a client's certificate and key."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    with tempfile.TemporaryDirectory() as directory:
        def openssl(arguments):
            subprocess.run(["openssl", *arguments.split()], cwd=directory, check=True, stderr=subprocess.DEVNULL)

        openssl(f"req -x509 {key} -days 30 -subj /CN=ca -keyout ca-key.pem -out ca.pem")
        for name in ("server", "client"):
            openssl(f"req {key} -subj /CN={name} -addext subjectAltName=IP:127.0.0.1 "
                    f"-keyout {name}-key.pem -out {name}.csr")
            openssl(f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 30 "
                    f"-copy_extensions copy -out {name}.pem")
        yield pathlib.Path(directory)


@contextlib.contextmanager
def child(command, stdin=subprocess.DEVNULL):
    """A process that ends with the block, and, by setpriv, with this process.

    It has a session of its own, so that an interrupt from the keyboard reaches only this
    process, which then ends the others.
    """
    command = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE,
                                   stderr=errors, text=True, start_new_session=True)
        try:
            yield process
        except ChildFailed as failure:
            if failure.process is not process:
                raise
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
            if process.stdin:
                process.stdin.close()


class ChildFailed(Exception):
    def __init__(self, process, text):
        super().__init__(text)
        self.process = process


def line_of(process, limit):
    readable, _, _ = select.select([process.stdout], [], [], limit)
    if not readable:
        raise ChildFailed(process, f"It printed nothing for {limit} s.")
    line = process.stdout.readline()
    if not line:
        raise ChildFailed(process, "It closed its standard output.")
    return line


def wait_for_line(process, start):
    line = line_of(process, START_LIMIT)
    if not line.startswith(start):
        raise ChildFailed(process, f"It did not begin with '{start}' but with '{line.strip()}'.")


def watch(process):
    """Waits until the process ends; returns its CPU seconds and its peak memory in KiB.

    The memory is sampled, because the peak that wait4 reports includes the size of this
    process when it started the child.
    """
    deadline, rss = time.monotonic() + RUN_LIMIT, 0
    end = os.pidfd_open(process.pid)
    try:
        while not select.select([end], [], [], 0.1)[0]:
            rss = max(rss, peak_rss(process.pid))
            if time.monotonic() > deadline:
                raise ChildFailed(process, f"It was not done after {RUN_LIMIT} s.")
    finally:
        os.close(end)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ChildFailed(process, f"It ended with exit code {process.returncode}.")
    return usage.ru_utime + usage.ru_stime, rss


class Meter:
    """The CPU seconds that processes spend after its creation, by role: Meter(server=[pid, pid])."""

    def __init__(self, **pids):
        self.pids, self.before = pids, {role: cpu_seconds(pids[role]) for role in pids}
        self.busy, self.started = busy_seconds(), time.monotonic()

    def read(self, **spent):
        """The CPU seconds by role, together with those of ended processes in `spent`, and the share
        of the machine's time that other processes used."""
        spent |= {role: cpu_seconds(self.pids[role]) - self.before[role] for role in self.pids}
        foreign = busy_seconds() - self.busy - sum(spent.values())
        capacity = (time.monotonic() - self.started) * os.cpu_count()
        return {f"{role}_cpu_seconds": seconds for role, seconds in spent.items()} | {
            "foreign_cpu_share": max(0, foreign / capacity)}


def cpu_seconds(pids):
    # The clock that clock_getcpuclockid(3) names: nanoseconds, not clock ticks.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def busy_seconds():
    """CPU seconds of all processes on all processors since the machine started."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def peak_rss(pid):
    with open(f"/proc/{pid}/status") as status:
        lines = [line.split() for line in status]
    return next((int(words[1]) for words in lines if words[0] == "VmHWM:"), 0)


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
    """Debian's pika needs Debian's Python, which may not be the first in PATH."""
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
