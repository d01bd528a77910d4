"""Debian packages that must be there, at whatever version Debian has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blocks.shell import Command, Result
from flows.reconcile import Change, State

# The names that follow $0 are told "installed" or "missing", a line each.
PROBE = """
for package; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)
    [ "$status" = installed ] && echo installed || echo missing
done
"""
WAIT_FOR_LOCK = (
    "-o",
    "DPkg::Lock::Timeout=120",
)  # of unattended-upgrades, on a machine's first boot
TRIES = ("-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20")


@dataclass(frozen=True)
class Packages:
    """Packages that are installed; those that come with them are theirs to choose."""

    packages: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"packages {' '.join(self.packages)}"

    def desired(self) -> State:
        return dict.fromkeys(self.packages, "installed")

    def probe(self) -> Command:
        return Command(("sh", "-c", PROBE, "packages", *self.packages))

    def parse(self, result: Result) -> State:
        return dict(zip(self.packages, result.stdout.split(), strict=True))

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        missing = [change.attribute for change in changes]
        apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", *WAIT_FOR_LOCK, *TRIES)
        return [
            Command((*apt, "update"), seconds=180),
            Command((*apt, "install", "--yes", "--no-install-recommends", *missing), seconds=420),
        ]
