"""The database: what it has to bear, and how it answers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from blocks.shell import Command, Result
from flows.checks.check import Check, least, most, since
from flows.errors import BootstrapError
from flows.probes import pressure
from flows.reconcile import Change, State
from flows.resources.postgres import PostgresKind, with_database
from flows.spec import SelfCheck

MB = 1e6
FEW = 100_000
"""So few dead rows are not worth a vacuum."""
ANSWER = "Look at the load of the database's machine, and at the network between."
CONNECTIONS = "See who holds them (pg_stat_activity), or raise max_connections."
GROWTH = "Look at the largest tables, and keep events and flow runs for fewer days in the spec."
TRANSACTION = "End it: see xact_start in pg_stat_activity, and pg_terminate_backend()."
DEAD = "Let autovacuum work harder, or run VACUUM on the largest tables."


class Pressure(PostgresKind):
    """The figures of ``flows.probes.pressure``: a kind that is only looked at, so that its program
    travels with the catalog's probes. Reading raises as of the catalog's database."""

    name = "pressure"

    def desired(self) -> State:
        return {}

    def probe(self) -> Command:
        return self._program(with_database(inspect.getsource(pressure)))

    def parse(self, result: Result) -> State:
        return self._found(result)

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        return ()


def judged(found: Mapping[str, Any], before: dict[str, float], bounds: SelfCheck) -> list[Check]:
    """The figures of ``Pressure``; ``before``: those of the last check."""
    most_open = found["max_connections"]
    free = 100 * (most_open - found["connections"]) / most_open
    dead = 100 * found["dead"] / max(found["dead"] + found["live"], 1)
    return [
        most("database: answer", found["seconds"], bounds.answer_seconds, "s", ANSWER),
        least(
            "database: connections", free, bounds.connections_free_percent, "% free", CONNECTIONS
        ),
        Check("database: size", "healthy", f"{found['size'] / MB:.1f} MB", value=found["size"]),
        _growth(since(before, "database: size", found["size"]), bounds.growth_mb),
        most(
            "database: oldest transaction",
            found["transaction"],
            bounds.transaction_seconds,
            "s",
            TRANSACTION,
        ),
        most(
            "database: dead rows",
            dead if found["dead"] > FEW else 0.0,
            bounds.dead_percent,
            "%",
            DEAD,
            worst="degraded",
        ),
        Check("database: largest tables", "healthy", ", ".join(found["largest"])),
    ]


def _growth(grown: float | None, bound: int) -> Check:
    name = "database: growth"
    if grown is None:
        said = "not known before the next check"
        return Check(name, "healthy", said, f"at most {bound} MB")
    return most(name, max(grown / MB, 0.0), bound, "MB", GROWTH, worst="degraded")


def refused(error: BootstrapError) -> list[Check]:
    """A database that says no, or nothing, is not one that could not be looked at."""
    said = str(error).removesuffix(error.repair).strip()
    return [Check("database: answer", "unhealthy", said, "an answer", error.repair)]
