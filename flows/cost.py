"""What a server costs in a month, from a table of Google's list prices: an estimate, for people.

Not in it: tax, discounts, what goes through the NAT or out of the region, and the database.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from flows.resources.router import Router, routers
from flows.spec import ServerSpec

HOURS = 730
"""Of a month, as Google counts."""
SOURCE = "cloud.google.com/compute/all-pricing"


def prices() -> dict[str, Any]:
    """The table, as flows/prices.toml explains it."""
    return tomllib.loads((Path(__file__).parent / "prices.toml").read_text())


def has_nat(spec: ServerSpec) -> bool:
    """Whether a NAT is made for the server."""
    return any(isinstance(router, Router) for router in routers(spec))


def monthly(spec: ServerSpec, cpus: float, memory_mb: int) -> float | None:
    """US dollars for a machine with so many cores and so much memory, its disk, and its NAT where it
    has one of its own; None where a price is not known, as of a custom type."""
    table, type_ = prices(), spec.machine.type
    region, family = table["regions"].get(spec.region, {}), type_.partition("-")[0]
    if family not in region or "custom" in type_:
        return None
    core, gb = region[family]
    machine = table["cores"].get(type_, cpus) * core + memory_mb / 1024 * gb
    nat = table["nat"]["gateway"] + table["nat"]["address"] if has_nat(spec) else 0
    hourly: float = machine + nat
    return HOURS * hourly + float(spec.machine.disk_gb * region["disk"])
