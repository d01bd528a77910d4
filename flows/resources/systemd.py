"""A service that runs what its files say now.

A unit writes the digests of its configuration where it is started (``ExecStartPre``). They are
compared with the files of today, so a restart that was lost with the run that owed it is still seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from blocks.shell import Command, Result, check
from flows.probes import started
from flows.reconcile import Change, State
from flows.resources.python import INTERPRETER
from flows.resources.shell import pairs

UNITS = "/etc/systemd/system"
SERVICE = """
set -e
systemctl show --property=UnitFileState,ActiveState,SubState,DropInPaths,NeedDaemonReload "$1"
! sha256sum --check --status "/run/${1%.service}/configuration" 2>/dev/null || echo configuration=current
"""
# Overrides of every kind; our own unit file stays.
CLEAR = """
for folder in /etc/systemd/system /run/systemd/system /etc/systemd/system.control /run/systemd/system.control
do rm -rf "$folder/$1.d"; done
"""


@dataclass(frozen=True)
class Service:
    """A service: enabled, running, with today's configuration and no override."""

    unit: str
    url: str = ""
    """What answers with 200 when it is up; empty: it only has to stay up."""
    seconds: float = 120.0
    """How long it may take to start."""

    @property
    def name(self) -> str:
        return f"service {self.unit.removesuffix('.service')}"

    def desired(self) -> State:
        return {
            "at boot": "enabled",
            "state": "active (running)",
            "overrides": (),
            "configuration": "current",
        }

    def probe(self) -> Command:
        return Command(("sh", "-c", SERVICE, "service", self.unit))

    def parse(self, result: Result) -> State:
        said = pairs(check(self.probe(), result).stdout)
        current = said.get("configuration") == "current" and said["NeedDaemonReload"] == "no"
        return {
            "at boot": said["UnitFileState"] or "no unit",
            "state": f"{said['ActiveState']} ({said['SubState']})",
            "overrides": tuple(said["DropInPaths"].split()),
            "configuration": "current" if current else "older",
        }

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        differs = {change.attribute for change in changes}
        clear = ("sh", "-c", CLEAR, "clear", self.unit)  # also what systemd has not read yet
        commands = [Command(clear), Command(("systemctl", "daemon-reload"))]
        if "at boot" in differs:
            commands.append(Command(("systemctl", "enable", "--quiet", self.unit)))
        if differs - {"at boot"}:
            wait = (INTERPRETER, "-I", "-c", inspect.getsource(started))
            commands += [
                Command(("systemctl", "reset-failed", self.unit)),
                Command(("systemctl", "restart", self.unit), seconds=90),
                Command((*wait, self.unit, self.url, str(self.seconds)), seconds=self.seconds + 30),
            ]
        return commands
