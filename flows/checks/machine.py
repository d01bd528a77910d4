"""The machine that the server runs on: what it has left, and what has gone wrong on it."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blocks.shell import Command, Result, check
from flows.checks.check import Check, Verdict, least, most, since
from flows.probes import machine
from flows.reconcile import Change, State
from flows.spec import SelfCheck

MISHAPS = 3
"""As often as something bad may happen from one check to the next and be but a mishap."""
PROCESSES = (
    "Look at what uses it (ps aux --sort=-rss), or choose a larger machine type in the spec."
)
DISK = "Look at what fills it (du -x /), or raise disk_gb in the spec and run bootstrap-server."
CLOCK = "Start chrony, and see why with: chronyc tracking."
JOURNAL = "See its journal: journalctl --unit {}."
CERTIFICATE = (
    "Renew it; or, where this machine cannot reach that address, set certificate_days to 0."
)


@dataclass(frozen=True)
class Vitals:
    """The figures of ``flows.probes.machine``: a kind that is only looked at, so that its program
    travels with the catalog's probes."""

    units: tuple[str, ...]
    url: str
    """Whose certificate is looked at, when it is https."""
    name = "vitals"

    def desired(self) -> State:
        return {}

    def probe(self) -> Command:
        arguments = [*self.units, *([self.url] if self.url.startswith("https://") else [])]
        return Command((sys.executable, "-I", "-", *arguments), inspect.getsource(machine))

    def parse(self, result: Result) -> State:
        found: State = json.loads(check(self.probe(), result).stdout)
        return found

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        return ()


def judged(
    found: Mapping[str, Any], ahead: float | None, before: dict[str, float], bounds: SelfCheck
) -> list[Check]:
    """The figures of ``Vitals``. ``ahead``: seconds by which the clock is ahead of the database's,
    None when that is not known; ``before``: the figures of the last check."""
    free, left, load = bounds.disk_free_percent, bounds.memory_free_percent, bounds.load_per_cpu
    judges: dict[str, Callable[[], list[Check]]] = {
        "disk": lambda: [
            least("machine: disk", found["disk"], free, "% free", DISK),
            least("machine: inodes", found["inodes"], free, "% free", DISK),
        ],
        "memory": lambda: [
            least("machine: memory", found["memory"], left, "% available", PROCESSES)
        ],
        "load": lambda: [
            most("machine: load", found["load"], load, "a CPU", PROCESSES, worst="degraded")
        ],
        "clock": lambda: [_clock(found["clock"], ahead, bounds.clock_seconds)],
        "kills": lambda: [_happened("killed for memory", found["kills"], before, PROCESSES)],
        "units": lambda: _units(found, before),
        "certificate": lambda: _certificate(found, bounds.certificate_days),
    }
    checks: list[Check] = []
    for name, judge in judges.items():
        if error := found.get(f"{name} error"):
            repair = CERTIFICATE if name == "certificate" else ""
            checks.append(Check(f"machine: {name}", "could not check", error, repair=repair))
        else:
            checks += judge()
    return checks


def _clock(offset: float | str, ahead: float | None, bound: int) -> Check:
    """By chrony where it runs, and otherwise by the clock of the database."""
    if isinstance(offset, float):
        return most("machine: clock", offset, bound, "s off", CLOCK)
    if offset:
        return Check("machine: clock", "degraded", offset, "synchronised", CLOCK)
    if ahead is None:
        said = "chrony does not run, and the database's clock is not known"
        return Check("machine: clock", "could not check", said, f"at most {bound} s off", CLOCK)
    return most("machine: clock", abs(ahead), bound, "s off the database's", CLOCK)


def _units(found: Mapping[str, Any], before: dict[str, float]) -> list[Check]:
    failed = found["failed"]
    repair = JOURNAL.format(failed[0]) if failed else ""
    verdict: Verdict = "degraded" if failed else "healthy"
    restarted = {key: JOURNAL.format(key.split()[-1]) for key in found if key.startswith("restart")}
    return [
        Check("machine: failed units", verdict, ", ".join(failed) or "none", "none", repair),
        *(_happened(key, found[key], before, repair) for key, repair in restarted.items()),
    ]


def _happened(what: str, times: int, before: dict[str, float], repair: str) -> Check:
    """What must not happen from one check to the next; a count that has shrunk began anew."""
    name = f"machine: {what}"
    new = since(before, name, times)
    if new is None:
        return Check(name, "healthy", "not known before the next check", "none", repair, times)
    new = times if new < 0 else new
    verdict: Verdict = "unhealthy" if new > MISHAPS else "degraded" if new else "healthy"
    return Check(name, verdict, f"{new:.0f} since the last check", "none", repair, times)


def _certificate(found: Mapping[str, Any], bound: int) -> list[Check]:
    """Nothing where there is none to look at."""
    if "certificate" not in found:
        return []
    days = least("machine: certificate", found["certificate"], bound, "days", CERTIFICATE)
    fault = found.get("certificate fault")
    return [replace(days, figure=fault) if fault else days]
