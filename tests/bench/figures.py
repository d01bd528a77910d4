"""From what was measured to the table: medians, ratios, and whether a bound is reached. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

Json = dict[str, Any]
IMPORT = 0.2
"""Seconds that a flow's module may take beyond Prefect's own import."""
CPU = 3.0
"""CPU seconds that a self-check may take beyond the start of its process."""


@dataclass(frozen=True)
class Figure:
    """``value`` must be at most ``factor`` × ``of``; ``shown`` says what was measured."""

    name: str
    shown: str
    bound: str
    value: float
    factor: float
    of: float

    @property
    def ratio(self) -> float:
        return self.value / self.of if self.of else float(self.value > 0)

    @property
    def reached(self) -> bool:
        return self.value <= self.factor * self.of


def middle(found: Json, *path: str) -> float:
    """The median of a list of seconds."""
    for name in path:
        found = found[name]
    values: Sequence[float] = found  # type: ignore[assignment]
    return median(values)


def figures(found: Json) -> list[Figure]:
    """All that can be told from what was measured; a part that was not measured has none."""
    groups = {"rounds": _rounds, "requests": _once, "fleet": _fleet}
    return [each for part, tell in groups.items() if part in found for each in tell(found)]


def _rounds(found: Json) -> list[Figure]:
    near, far = found["near"], found["far"]
    raw, first = middle(near, "raw.sh", "first"), middle(near, "ours", "first")
    again, pyinfra = middle(near, "ours", "again"), middle(near, "pyinfra", "again")
    flow, check = middle(near, "ours", "check's flow"), middle(near, "Ansible", "check")
    others = f"pyinfra {middle(near, 'pyinfra', 'first'):.1f}, Ansible {middle(near, 'Ansible', 'first'):.1f}"
    return [
        Figure("first bootstrap", f"{first:.1f} s; raw.sh {raw:.1f}, {others}", "≤ 1.0 × raw.sh", first, 1.0, raw),
        Figure("rerun with nothing to do", f"{again:.1f} s; pyinfra {pyinfra:.1f}, Ansible {middle(near, 'Ansible', 'again'):.1f}, a flow that does nothing {middle(near, 'ours', 'empty flow'):.1f}", "≤ 1.0 × pyinfra", again, 1.0, pyinfra),
        Figure("drift check, its flow", f"{flow:.1f} s; rerun {again:.1f}; the process {middle(near, 'ours', 'check'):.1f}", "≤ 0.5 × the rerun", flow, 0.5, again),
        Figure("drift check, its flow", f"{flow:.1f} s; Ansible --check {check:.1f}", "≤ 0.2 × Ansible", flow, 0.2, check),
        *_far(far),
    ]  # fmt: skip


def _far(far: Json) -> list[Figure]:
    raw, first = middle(far, "raw.sh", "first"), middle(far, "ours", "first")
    again, pyinfra = middle(far, "ours", "again"), middle(far, "pyinfra", "again")
    return [
        Figure("first bootstrap, 60 ms away", f"{first:.1f} s; raw.sh {raw:.1f}", "≤ 1.2 × raw.sh", first, 1.2, raw),
        Figure("rerun, 60 ms away", f"{again:.1f} s; pyinfra {pyinfra:.1f}", "≤ 1.0 × pyinfra", again, 1.0, pyinfra),
    ]  # fmt: skip


def _once(found: Json) -> list[Figure]:
    requests, trips = found["requests"], found["round_trips"]
    again, checked = requests["again"], requests["check"]
    needless = again["writes"] + again["twice"]
    ours, alone = middle(found, "restart", "bootstrap"), middle(found, "restart", "systemctl")
    check = found["self_check"]
    cpu = check["cpu_seconds"] - check["cpu_seconds_of_an_empty_flow"]
    modules = {name: s for name, s in found["imports"].items() if name != "prefect"}
    slowest = max(modules, key=lambda name: modules[name])
    shown = f"first {requests['first']['requests']}, rerun {again['requests']}, check {checked['requests']}"
    return [
        Figure("requests of Google", f"{shown}; of the rerun's, {again['writes']} write, {again['twice']} come twice (and {again['of_google_auth']} of google-auth's own)", "no write, none twice", needless, 1.0, 0.0),
        Figure("drift check, SSH", f"{trips} round trip", "one", trips, 1.0, 1.0),
        Figure("self-check, CPU", f"{cpu:.1f} s beyond an empty flow's {check['cpu_seconds_of_an_empty_flow']:.1f}; {check['wall_seconds']:.1f} s in all; the worker {check['worker_mb']:.0f} MB", f"≤ {CPU:.0f} s", cpu, 1.0, CPU),
        Figure("restart gap", f"{ours:.1f} s; systemctl restart {alone:.1f}", "≤ 1.0 × systemctl", ours, 1.0, alone),
        Figure("import of a flow", f"{slowest} {modules[slowest]:.2f} s beyond Prefect's {found['imports']['prefect']:.2f}", f"≤ {IMPORT} s", modules[slowest], 1.0, IMPORT),
    ]  # fmt: skip


def _fleet(found: Json) -> list[Figure]:
    fleet = found["fleet"]
    checks = {count: median(seconds) for count, seconds in fleet["check"].items()}
    each = {"bootstrap": _per_server(fleet["bootstrap"]), "check": _per_server(checks)}
    one, eight = (middle(fleet, "again", count) for count in ("1", "8"))
    memory = fleet["worker_mb"]
    return [
        *(_falling(kind, each[kind]) for kind in each),
        Figure("8 reruns", f"{eight:.1f} s; one {one:.1f}", "≤ 3 × one", eight, 3.0, one),
        Figure("laptop, 8 bootstraps", f"the worker {memory['worker']:.0f} MB, with its runs {memory['all']:.0f}", "", 0.0, 1.0, 0.0),
    ]  # fmt: skip


def _per_server(seconds: dict[str, float]) -> dict[int, float]:
    return {int(count): total / int(count) for count, total in seconds.items()}


def _falling(kind: str, each: dict[int, float]) -> Figure:
    """The worst step from one number of servers to the next."""
    counts = sorted(each)
    steps = list(pairwise(counts))
    less, more = max(steps, key=lambda step: each[step[1]] / each[step[0]])
    shown = ", ".join(f"{count}: {each[count]:.1f}" for count in counts)
    return Figure(f"{kind}, s per server", shown, "falls", each[more], 1.0, each[less])


def reasons(found: Json) -> list[str]:
    """Why bounds are missed, each with what was measured."""
    told = []
    if "rounds" in found:
        near, far = found["near"], found["far"]
        first, far_first = (_spans(each, "ours, first") for each in (near, far))
        check, far_check = (_spans(each, "ours, check") for each in (near, far))
        told += [
            f"A first bootstrap: {first}. raw.sh ends where the server answers, and installs no worker.",
            f"The same 60 ms away: {far_first}.",
            f"A drift check: {check}. A rerun that finds nothing is the same look, and its process.",
            f"The same 60 ms away: {far_check}.",
        ]
    if "fleet" in found:
        fleet = found["fleet"]
        cores = fleet["cores"]
        cpu = ", ".join(f"{n}: {s / int(n):.0f}" for n, s in fleet["cpu_seconds"].items())
        busy = fleet["cpu_seconds"]["8"] / fleet["bootstrap"]["8"] / cores
        told.append(
            f"CPU seconds per bootstrap, side by side: {cpu}; for one, the {cores} cores that laptop, "
            f"servers and PostgreSQL share need {fleet['cpu_seconds']['1'] / cores:.0f} s at the least, "
            f"and with 8 they are {busy:.0%} busy."
        )
        one, eight = (middle(fleet, "again_cpu_seconds", count) for count in ("1", "8"))
        slow = max(fleet["check"], key=lambda n: max(fleet["check"][n]) / median(fleet["check"][n]))
        longest, usual = max(fleet["check"][slow]), median(fleet["check"][slow])
        once = f", and a check of {slow} took {longest:.0f} s once" if longest > 2 * usual else ""
        told.append(
            f"Reruns: one takes {one:.1f} CPU seconds, with all that answers it, and 8 {eight:.1f}, for "
            f"which these cores need {eight / cores:.1f} s at the least. The laptop's Prefect gave up "
            f"waiting for its own SQLite {fleet['locked']} times{once}."
        )
    return told


def _spans(seconds: Json, who: str) -> str:
    return ", ".join(f"{name} {median(each):.1f} s" for name, each in seconds[who].items())


def table(found: Json) -> str:
    """Markdown, as the README has it."""
    lines = ["| figure | measured | must reach | |", "|---|---|---|---|"]
    for each in figures(found):
        says = "" if not each.bound else "yes" if each.reached else f"**no**, {each.ratio:.1f} ×"
        lines.append(f"| {each.name} | {each.shown} | {each.bound} | {says} |")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines += ["", *(f"* {reason}" for reason in reasons(found))]
    lines += ["", f"{found['date']}, {found['machine']}; {versions}. Medians."]
    return "\n".join(lines)
