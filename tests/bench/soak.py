"""Self-checks back to back, on the server of a rehearsal that has been run: what grows?

``python -m tests.bench.soak --runs 1000 --json FILE``. Each is a run of the deployment, as its
schedule starts it. Server and worker are measured on the machine, the database by PostgreSQL.
``--abreast`` lets more than one run at a time, which the deployment's own limit forbids.

Time goes about a hundred times as fast: what comes every five minutes comes every few seconds, so a
day for which events are kept is over in a quarter of an hour, and what cleans up every hour does so
twice a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from rehearsal import follow, laptop
from rehearsal.errors import Json
from tests.conftest import Cloud

NAME = "prefect-1"
HEALTH, BOOTSTRAP = f"check-health/{NAME}", f"bootstrap-server/{NAME}"
FASTER = {
    "prefect-server": {
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "PT14M24S",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "36",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ORPHAN_CLEANUP_LOOP_SECONDS": "864",
    },
    "prefect-worker": {"PREFECT_WORKER_QUERY_SECONDS": "1"},
}
"""Unit → what beats its prefect.toml; the spec says that this may differ."""
IGNORED = [
    ("service prefect-*", "overrides"),
    ("service prefect-*", "settings from the environment"),
    ("server's answers", "server.events.retention_period"),
    (f"deployment {HEALTH}", "at once"),
]
SPEED_UP = """
mkdir -p "/etc/systemd/system/$1.service.d"
printf '[Service]\\n%s' "$2" > "/etc/systemd/system/$1.service.d/soak.conf"
systemctl daemon-reload
systemctl restart "$1"
"""
EMPTY = "empty/empty"
FLOW = """
from prefect import flow


@flow
def empty() -> None:
    pass
"""
WORKER_HOME = "/var/lib/prefect/worker"
COST_RUNS = 3
SECONDS = 120.0
"""For one check, and for a server that starts."""
WORKER = "worker=$(systemctl show --value --property=MainPID prefect-worker)\n"
CPU = """awk -v hertz="$(getconf CLK_TCK)" '{print ($16 + $17) / hertz}' "/proc/$worker/stat"\n"""
"""Of all processes that it has started and that have ended, and of theirs."""
MEASURE = (
    WORKER
    + """
rss() { ps -o rss= -p "$(systemctl show --value --property=MainPID "$1")" | tr -d ' '; }
echo "$(rss prefect-server) $(rss prefect-worker) $(df --output=used --block-size=1K / | tail -1)"
"""
    + CPU
)
ALL_ENDED = 'while [ -n "$(pgrep -P "$worker")" ]; do sleep 0.1; done\n'


@dataclass(frozen=True)
class Sample:
    """After so many runs: MB of memory (resident), of the database and of the disk."""

    runs: int
    minutes: float
    server_mb: float
    worker_mb: float
    database_mb: float
    disk_mb: float
    seconds: float
    """For one run, on the median since the last sample: from its order to its end."""
    cpu_seconds: float
    """For one run, since the last sample: of its process, from its start to its end."""
    unhealthy: int
    """Runs since the last sample that did not end as Completed."""


def rehearsal(*argv: str) -> str:
    return Cloud().ctl(*argv).stdout


def measure(
    runs: int, began: float, seconds: Sequence[float], cpu: float, unhealthy: int
) -> tuple[Sample, float]:
    """The sample, and the CPU seconds of all runs until now; ``cpu``: at the last sample."""
    found = map(float, rehearsal("root", NAME, "--", "sh", "-c", MEASURE).split())
    server, worker, disk, now = found
    size = "SELECT pg_database_size(current_database())"
    database = int(rehearsal("database", "psql", "-qAtc", size))
    sample = Sample(
        runs,
        round((time.monotonic() - began) / 60, 1),
        round(server / 1024, 1),
        round(worker / 1024, 1),
        round(database / 1024**2, 1),
        round(disk / 1024, 1),
        round(statistics.median(seconds), 2) if seconds else 0.0,
        round((now - cpu) / len(seconds), 2) if seconds else 0.0,
        unhealthy,
    )
    return sample, now


def server() -> httpx.Client:
    """A client of the new server's API."""
    status = json.loads(rehearsal("status", "--json"))
    auth = ("gcloud", "secrets", "versions", "access", "latest", "--secret=prefect-auth")
    return follow.api(status["server"], rehearsal("exec", "--", *auth))


def cost(client: httpx.Client, deployment: str) -> float:
    """CPU seconds of a run through the worker, its supervisor's and the start of both among them; the
    least of some, for the schedule may start another beside one."""
    return round(min(_cost(client, deployment) for _ in range(COST_RUNS)), 2)


def _cost(client: httpx.Client, deployment: str) -> float:
    ended_all = ("root", NAME, "--", "sh", "-c", WORKER + ALL_ENDED + CPU)
    before = float(rehearsal(*ended_all))
    ended(client, follow.start(client, deployment))
    return float(rehearsal(*ended_all)) - before


def deploy_empty(client: httpx.Client) -> None:
    """A flow that does nothing, for the server's worker: what each run costs before it checks."""
    put = f'echo "$1" > {WORKER_HOME}/empty.py'
    rehearsal("root", NAME, "--", "sh", "-c", put, "sh", FLOW)
    flow = follow.ask(client, "POST", "/flows/", {"name": "empty"})
    deployment = {
        "name": "empty",
        "flow_id": flow["id"],
        "work_pool_name": follow.found(client, HEALTH)["work_pool_name"],
        "entrypoint": "empty.py:empty",
        "path": WORKER_HOME,
    }
    follow.ask(client, "POST", "/deployments/", deployment)


def speed_up() -> None:
    """Let time go faster on the server, with its spec's consent, so that its checks stay healthy."""
    status = json.loads(rehearsal("status", "--json"))
    ignore = [{"resource": r, "attribute": a, "reason": "soak"} for r, a in IGNORED]
    with follow.api(status["laptop"]) as client:
        spec = follow.found(client, BOOTSTRAP)["parameters"]["server"]
        server = {**spec.get("server", {}), "events_days": 1}
        order = {"server": {**spec, "ignore": ignore, "server": server}}
        run = follow.start(client, BOOTSTRAP, order)
        state = follow.follow(client, run, 300, lambda _tasks: None)
        if state["type"] != "COMPLETED":
            raise SystemExit(f"{BOOTSTRAP} ended {follow.said(state)}")
    for unit, settings in FASTER.items():
        lines = "".join(f"Environment={name}={value}\n" for name, value in settings.items())
        rehearsal("root", NAME, "--", "sh", "-c", SPEED_UP, "sh", unit, lines)
    deadline = time.monotonic() + SECONDS
    while not laptop.answers(status["server"]):
        if time.monotonic() > deadline:
            raise SystemExit("the server does not answer")
        time.sleep(0.5)


def ended(client: httpx.Client, run: str) -> Json:
    """The state in which it ended, or is when time is over."""
    deadline = time.monotonic() + SECONDS
    while True:
        state: Json = follow.ask(client, "GET", f"/flow_runs/{run}")["state"]
        if state["type"] in follow.OVER or time.monotonic() > deadline:
            return state
        time.sleep(0.5)  # to ask takes the server's time


def once(client: httpx.Client) -> tuple[float, Json]:
    """A self-check: seconds from its order to its end, and how it ended."""
    start = time.monotonic()
    run = follow.start(client, HEALTH)
    state = ended(client, run)
    return time.monotonic() - start, state


def soak(runs: int, minutes: float, every: int, abreast: int) -> list[Sample]:
    """Samples, the first before the first run. Ends by itself after so many minutes."""
    began, unhealthy, seconds = time.monotonic(), 0, list[float]()
    sample, cpu = measure(0, began, seconds, 0.0, unhealthy)
    samples = [sample]
    with server() as client, ThreadPoolExecutor(abreast) as pool:
        deployment = follow.found(client, HEALTH)["id"]
        limit = {"concurrency_limit": abreast}
        client.patch(f"/deployments/{deployment}", json=limit).raise_for_status()
        orders = [pool.submit(once, client) for _ in range(runs)]
        for done, order in enumerate(orders, 1):
            took, state = order.result()
            seconds.append(took)
            if state["name"] != "Completed":
                unhealthy += 1
                print(follow.said(state), flush=True)
            over = time.monotonic() - began > 60 * minutes
            if done % every == 0 or done == runs or over:
                sample, cpu = measure(done, began, seconds, cpu, unhealthy)
                samples.append(sample)
                print(sample, flush=True)
                seconds, unhealthy = [], 0
            if over:
                pool.shutdown(cancel_futures=True)
                break
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=180)
    parser.add_argument("--every", type=int, default=25, help="runs from one sample to the next")
    parser.add_argument("--abreast", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", type=Path, help="write the samples there")
    args = parser.parse_args()
    with server() as client:
        deploy_empty(client)
        print(f"{EMPTY}: {cost(client, EMPTY)} s of CPU a run", flush=True)
        print(f"{HEALTH}: {cost(client, HEALTH)} s of CPU a run", flush=True)
    speed_up()
    samples = soak(args.runs, args.minutes, args.every, args.abreast)
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in samples], indent=1) + "\n")


if __name__ == "__main__":
    main()
