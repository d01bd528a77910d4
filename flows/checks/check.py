"""A check: what was measured, its bound, and the verdict. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Verdict = Literal["healthy", "degraded", "could not check", "unhealthy"]
"""From good to bad."""
Row = dict[str, Any]
"""As in the table: ``check``, ``verdict``, ``figure``, ``bound``, ``repair`` and ``value``."""
NAMED = 5
"""As many checks as a summary names."""


@dataclass(frozen=True)
class Check:
    """One figure of one group of checks."""

    name: str
    """Unique in a run, such as "database: size"."""
    verdict: Verdict
    figure: str
    bound: str = ""
    repair: str = ""
    """One sentence on what to do; for the one who reads of a bad verdict."""
    value: float | None = None
    """The figure as a number, from which the next check says what has changed."""

    def row(self) -> Row:
        repair = "" if self.verdict == "healthy" else self.repair
        return {
            "check": self.name,
            "verdict": self.verdict,
            "figure": self.figure,
            "bound": self.bound,
            "repair": repair,
            "value": self.value,
        }

    def __str__(self) -> str:
        bound = f" (bound: {self.bound})" if self.bound and self.verdict != "healthy" else ""
        return f"{self.name}: {self.figure}{bound}"


def most(
    name: str, value: float, bound: float, unit: str, repair: str, *, worst: Verdict = "unhealthy"
) -> Check:
    """Degraded past the bound, and ``worst`` past twice as much."""
    verdict: Verdict = "healthy" if value <= bound else "degraded"
    if value > 2 * bound:
        verdict = worst
    return Check(name, verdict, _shown(value, unit), f"at most {bound} {unit}", repair, value)


def least(name: str, value: float, bound: float, unit: str, repair: str) -> Check:
    """Degraded below the bound, and unhealthy below half of it."""
    verdict: Verdict = "healthy" if value >= bound else "degraded"
    if value < bound / 2:
        verdict = "unhealthy"
    return Check(name, verdict, _shown(value, unit), f"at least {bound} {unit}", repair, value)


def _shown(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if abs(value) < 100 else f"{value:.0f} {unit}"


def worst(checks: Iterable[Check]) -> Verdict:
    """The verdict on them all; of nothing it is that nothing was checked."""
    verdicts = [check.verdict for check in checks]
    return max(verdicts, key=get_args(Verdict).index, default="could not check")


def summary(checks: Sequence[Check]) -> str:
    """One line: the worst by name, or how many are healthy."""
    order = get_args(Verdict).index
    bad = [check for check in checks if check.verdict != "healthy"]
    bad.sort(key=lambda check: -order(check.verdict))
    if not bad:
        return f"All {len(checks)} figures are healthy."
    named = "; ".join(f"{check.verdict}: {check}" for check in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{named}{more}."


def since(before: dict[str, float], name: str, value: float) -> float | None:
    """By how much a figure has grown since the last check; None at the first one."""
    return value - before[name] if name in before else None


def values(rows: Iterable[Row]) -> dict[str, float]:
    """Name → number, of the rows of a table."""
    return {row["check"]: row["value"] for row in rows if row.get("value") is not None}
