"""Measured against what a user would pick instead: ``make bench``.

One rehearsal, several rounds in each of which everybody has a turn. The figures go to docs/bench.json
and, as a plot, to docs/bench.svg; the table is printed, as the README has it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rehearsal.errors import Json
from tests.bench import figures, measures, peers
from tests.bench.lab import Lab, moment, opened
from tests.bench.measures import Seconds, add
from tests.bench.peers import Peer
from tests.conftest import ROOT

FAR = (60.0, 20.0)
"""Milliseconds there and back, and Mbit/s: IAP from another continent."""
RAW, PYINFRA, ANSIBLE, OURS = "raw.sh", "pyinfra", "Ansible", "ours"
FILES = {RAW: "raw", PYINFRA: "pyinfra", ANSIBLE: "ansible"}
PARTS = ("rounds", "once", "fleet")
AGAIN = 3
"""Reruns in a round."""


def turn(lab: Lab, seconds: Seconds, who: str) -> None:
    """First install, reruns and checks of one, on a machine as new as the database."""
    lab.fresh()
    if who == OURS:
        return ours(lab, seconds)
    peer = Peer(lab, FILES[who])
    peer.forget()
    add(seconds, who, "first", peer.run().seconds)
    if who == RAW:
        return None
    for _ in range(AGAIN):
        add(seconds, who, "again", peer.run().seconds)
        if who == ANSIBLE:
            add(seconds, who, "check", peer.run(check=True).seconds)
    return None


def ours(lab: Lab, seconds: Seconds) -> None:
    found = measures.first(lab)
    add(seconds, OURS, "first", found["seconds"])
    for name, taken in found["spans"].items():
        add(seconds, f"{OURS}, first", name, taken)
    for name, taken in measures.check_spans(lab).items():
        add(seconds, f"{OURS}, check", name, taken)
    for _ in range(AGAIN):
        add(seconds, OURS, "again", measures.ours(lab, "bootstrap"))
        add(seconds, OURS, "check", measures.ours(lab, "drift"))
        add(seconds, OURS, "empty flow", measures.empty(lab))
        run = lab.last("check-drift")
        add(seconds, OURS, "check's flow", moment(run, "end_time") - moment(run, "start_time"))


def rounds(lab: Lab, number: int) -> Json:
    """Near and far, everybody in turn; the one who begins changes."""
    near: Seconds = {}
    far: Seconds = {}
    order = [RAW, PYINFRA, ANSIBLE, OURS]
    for each in range(number):
        print(f"round {each + 1} of {number}", flush=True)
        for who in order[each % 4 :] + order[: each % 4]:
            turn(lab, near, who)
        lab.far(*FAR)
        for who in (RAW, PYINFRA, OURS):
            turn(lab, far, who)
        lab.far(0, 0)
    return {"near": near, "far": far}


def once(lab: Lab, number: int) -> Json:
    """What does not depend on others, on a new server."""
    lab.fresh()
    requests = {"first": measures.asked(lab, lambda: measures.first(lab))}
    for what, module in {"again": "bootstrap", "check": "drift"}.items():
        requests[what] = measures.asked(lab, partial(measures.ours, lab, module))
    trips = measures.round_trips(lab, lambda: measures.ours(lab, "drift"))
    print(requests, trips, flush=True)
    restarts = measures.restarts(lab, number)
    print(restarts, flush=True)
    check = measures.self_check(lab, AGAIN)
    print(check, flush=True)
    return {
        "requests": requests,
        "round_trips": trips,
        "restart": restarts,
        "self_check": check,
        "imports": measures.imports(7),
    }


def about() -> Json:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} × {cpu[0].partition(': ')[2]}, {memory:.0f} GiB, "
        f"Linux {platform.release()}",
        "versions": {
            "prefect": version("prefect"),
            "prefect-gcp": version("prefect-gcp"),
            **peers.versions(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--json", type=Path, default=ROOT / "docs/bench.json")
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    parts: dict[str, Callable[[Lab], Json]] = {
        "rounds": lambda lab: {"rounds": args.rounds, **rounds(lab, args.rounds)},
        "once": lambda lab: once(lab, args.rounds),
        "fleet": lambda lab: {"fleet": measures.fleet(lab, AGAIN)},
    }
    began = time.monotonic()
    with opened() as lab:
        for part in (part for part in PARTS if part in args.only):
            found |= {**about(), **parts[part](lab)}
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"measured in {(time.monotonic() - began) / 60:.0f} minutes\n\n{figures.table(found)}")


if __name__ == "__main__":
    main()
