"""What is measured once: requests, the restart's gap, the self-check, imports, a fleet."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from rehearsal import follow, laptop, story
from rehearsal.cgroups import Cgroup
from rehearsal.errors import Json
from tests.bench import soak
from tests.bench.lab import FLEET, NAME, Lab, moment, timed
from tests.conftest import ROOT

READS = {"get", "list", "aggregatedList", "getGuestAttributes", "access", "token", "tunnel"}
"""How the names of methods end that change nothing."""
REGIONS = "getAllowedLocations"
"""What google-auth asks by itself, for every client that it gives a token."""
MODULES = ("bootstrap", "drift", "preflight", "outside", "health", "connect")
PREFECT = "from prefect import State, flow, get_run_logger, task"
"""What every flow's file begins with."""
UNTIL = {
    "files, uv, the worker's environment": "machine: worker's environment",
    "schema": "database: schema",
    "server": "prefect: service prefect-server",
    "what it holds, worker": "prefect: worker ",
    "self-check": "prefect: self-check",
}
"""Names of the parts of a first bootstrap, and the task with which each ends."""
IMPORT = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
EMPTY = """
from prefect import flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

@flow
def empty():
    pass

with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
    empty()
"""
# Prints the seconds for which 4200 gave no good answer: the longest time between two, until stdin ends.
POLL = """
import select, sys, time, urllib.request
last, longest = time.monotonic(), 0.0
while not select.select([sys.stdin], [], [], 0.01)[0]:
    try:
        with urllib.request.urlopen("http://127.0.0.1:4200/api/health", timeout=1) as answer:
            good = answer.status == 200
    except OSError:
        good = False
    if good:
        now = time.monotonic()
        longest, last = max(longest, now - last), now
print(longest)
"""
Seconds = dict[str, dict[str, list[float]]]


def add(seconds: Seconds, who: str, what: str, taken: float) -> None:
    """Note one more measurement, and say it."""
    seconds.setdefault(who, {}).setdefault(what, []).append(round(taken, 2))
    print(f"{taken:7.2f} s  {who}: {what}", flush=True)


def ours(lab: Lab, module: str, names: Sequence[str] = (NAME,)) -> float:
    """Seconds of ``python -m flows.…`` for servers, a whole process."""
    command = (sys.executable, "-m", f"flows.{module}", "--server", *names)
    return timed(*command, cwd=lab.folder).well().seconds


def empty(lab: Lab) -> float:
    """Seconds of a process that runs a flow of Prefect's that does nothing."""
    (lab.folder / "empty.py").write_text(EMPTY)
    return timed(sys.executable, "empty.py", cwd=lab.folder).well().seconds


def first(lab: Lab) -> Json:
    """A bootstrap as the laptop's worker runs it: seconds from the order to the end, and in ``spans``
    up to the end of each of UNTIL."""
    [run] = lab.ordered([f"bootstrap-server/{NAME}"])
    every = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = follow.ask(lab.client, "POST", "/task_runs/filter", every)
    began = min(moment(task, "start_time") for task in tasks)
    ends = [
        max(moment(task, "end_time") for task in tasks if task["name"].startswith(name))
        for name in UNTIL.values()
    ]
    marks = [moment(run, "created"), moment(run, "start_time"), began, *ends]
    spans = [round(after - before, 2) for before, after in pairwise(marks)]
    return {
        "seconds": moment(run, "end_time") - marks[0],
        "spans": dict(
            zip(["the worker's poll and the process", "plan", *UNTIL], spans, strict=True)
        ),
    }


def check_spans(lab: Lab) -> Json:
    """Where a drift check's seconds go."""
    command = (sys.executable, "-m", "tests.bench.spans", "--server", NAME)
    last = timed(*command, cwd=lab.folder, env={"PYTHONPATH": str(ROOT)}).well().output
    found: Json = json.loads(last.splitlines()[-1])
    return found


def asked(lab: Lab, action: Callable[[], object]) -> dict[str, int]:
    """Google's APIs meanwhile: requests, those that change something, and those that are made twice."""
    before = len(lab.requests())
    action()
    every = [each for each in lab.requests()[before:] if each["method"] != "iap.tunnel"]
    new = [each for each in every if not str(each["method"]).endswith(REGIONS)]
    counts = Counter((each["method"], each["request"]) for each in new)
    writes = [each for each in new if str(each["method"]).rpartition(".")[2] not in READS]
    return {
        "requests": len(new),
        "writes": len(writes),
        "twice": sum(count - 1 for count in counts.values()),
        "of_google_auth": len(every) - len(new),
    }


def round_trips(lab: Lab, action: Callable[[], object]) -> int:
    """How often the machine was asked over SSH meanwhile: sudo writes each into its journal."""
    count = "journalctl --quiet _COMM=sudo --grep COMMAND= | wc -l"
    before = int(lab.root(count))
    action()
    return int(lab.root(count)) - before


@contextmanager
def polled(found: list[float]) -> Iterator[None]:
    """Meanwhile the server is asked on its machine; the longest gap is added to ``found``."""
    command = [sys.executable, "-m", "rehearsal", "root", NAME, "--", "python3", "-c", POLL]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        time.sleep(2)  # until it polls
        yield
        time.sleep(1)
        found.append(float(process.communicate(timeout=60)[0]))


def restarts(lab: Lab, rounds: int) -> dict[str, list[float]]:
    """Seconds without a good answer: of a bootstrap with a changed setting, of systemctl alone."""
    found: dict[str, list[float]] = {"bootstrap": [], "systemctl": []}
    spec, *others = lab.specs
    for number in range(rounds):
        with polled(found["bootstrap"]):
            lab.write([{**spec, "server": {"events_days": 8 + number}}, *others])
            ours(lab, "bootstrap")
        with polled(found["systemctl"]):
            lab.root("systemctl restart prefect-server")
            time.sleep(15)
    lab.write([spec, *others])
    ours(lab, "bootstrap")
    return found


def self_check(lab: Lab, runs: int) -> Json:
    """CPU seconds through the worker, an empty flow's too, wall seconds, and the worker's memory."""
    with follow.api(story.reach(ROOT), lab.auth) as client:
        soak.deploy_empty(client)
        empty, whole = (soak.cost(client, each) for each in (soak.EMPTY, soak.HEALTH))
        wall = [soak.once(client)[0] for _ in range(runs)]
        sample, _ = soak.measure(0, time.monotonic(), [], 0.0, 0)
    laptop.TUNNEL.end()
    return {
        "cpu_seconds": whole,
        "cpu_seconds_of_an_empty_flow": empty,
        "wall_seconds": statistics.median(wall),
        "worker_mb": sample.worker_mb,
        "server_mb": sample.server_mb,
    }


def imports(tries: int) -> dict[str, float]:
    """Seconds, on the median: of Prefect alone, and of each module beyond that."""

    def seconds(lines: str) -> float:
        done = timed(sys.executable, "-c", IMPORT.format(lines), cwd=ROOT).well()
        return float(done.output)

    def beyond(module: str) -> float:
        both = f"{PREFECT}; began = time.perf_counter(); import flows.{module}"
        return statistics.median(seconds(both) for _ in range(tries))

    alone = statistics.median(seconds(PREFECT) for _ in range(tries))
    return {"prefect": alone, **{module: beyond(module) for module in MODULES}}


# Many servers


def fleet(lab: Lab, tries: int) -> Json:
    """Bootstraps of 1, 2, 4 and 8 servers from nothing, by the worker, while no other server runs, for
    all have this machine's cores; then checks and reruns among sixteen, ``tries`` of each, each in one
    process. Seconds in all."""
    lab.fresh()
    first(lab)
    every = [NAME, *FLEET]
    bootstraps, cpu, memory = dict[str, float](), dict[str, float](), Json()
    found: Seconds = {}
    locked = _locked()
    for count in (1, 2, 4, 8):
        for name in every[count // 2 : count]:  # those of before
            lab.root("systemctl stop prefect-worker prefect-server", name)
        began, busy = time.monotonic(), _busy()
        with weighed(memory):  # the last are the eight
            lab.ordered([f"bootstrap-server/{name}" for name in every[count : 2 * count]])
        bootstraps[str(count)] = time.monotonic() - began
        cpu[str(count)] = _busy() - busy
        print(f"{count} servers: {bootstraps[str(count)]:.1f} s", flush=True)
    for four in (every[:4], every[4:8]):  # which are stopped
        ours(lab, "bootstrap", four)
    for _ in range(tries):
        for count in (1, 4, 16):
            add(found, "check", str(count), ours(lab, "drift", every[:count]))
        for count in (1, 8):
            busy = _busy()
            add(found, "again", str(count), ours(lab, "bootstrap", every[:count]))
            add(found, "again_cpu_seconds", str(count), _busy() - busy)
    return {
        **found,
        "bootstrap": bootstraps,
        "cpu_seconds": cpu,
        "cores": os.cpu_count(),
        "worker_mb": memory,
        "locked": _locked() - locked,
    }


def _locked() -> int:
    """How often the laptop's Prefect has given up waiting for its SQLite so far."""
    return laptop.SERVER.log.read_text().count("sqlite3.OperationalError: database is locked")


def _busy() -> float:
    """CPU seconds of this whole machine so far: the laptop, the servers and their PostgreSQL."""
    user, nice, system, _idle, _wait, irq, soft = Path("/proc/stat").read_text().split()[1:8]
    ticks = sum(map(int, (user, nice, system, irq, soft)))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def weighed(found: Json) -> Iterator[None]:
    """``found`` gets the most memory in MB, meanwhile, of the laptop's worker alone and with all that
    it runs (proportional: what processes share is counted once)."""
    over = threading.Event()

    def watch() -> None:
        group = Cgroup(f"laptop-{laptop.WORKER.name}")
        while not over.wait(1):
            sizes = {each: _pss(each) for each in group.processes()}
            worker = int((laptop.FOLDER / "worker.pid").read_text())
            found["worker"] = max(found.get("worker", 0.0), sizes.get(worker, 0.0))
            found["all"] = max(found.get("all", 0.0), sum(sizes.values()))

    thread = threading.Thread(target=watch)
    found.clear()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _pss(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
