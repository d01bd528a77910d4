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
OTHERS = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/system",
)
"""Where a unit of ours has no file: what is there is an override, and hides or changes ours."""
OURS = "PREFECT_HOME"
"""The one setting that our units give as a variable."""
# Drop-ins also where systemd has not read them yet. Of variables only the names: those the process
# was started with, and those it would be started with. Its directory is gone where it was made anew.
SERVICE = f"""
set -e
shown=$(systemctl show --property=UnitFileState,ActiveState,SubState,FragmentPath,DropInPaths,NeedDaemonReload,MainPID "$1")
echo "$shown"
pid=/proc/$(echo "$shown" | sed -n 's/^MainPID=//p')
case $(readlink "$pid/cwd") in
*"(deleted)") ;;
*) ! sha256sum --check --status "/run/${{1%.service}}/configuration" 2>/dev/null || echo configuration=current ;;
esac
echo "DropIns="$(for folder in {UNITS} {" ".join(OTHERS)}; do find "$folder/$1.d" -name '*.conf' 2>/dev/null || true; done)
echo "Variables="$({{
    grep --null-data --text --only-matching --ignore-case '^PREFECT_[^=]*' "$pid/environ" 2>/dev/null | tr '\\0' '\\n'
    systemctl show-environment | grep --only-matching --ignore-case '^PREFECT_[^=]*'
}} | sort -u)
"""
# Overrides of every kind, and variables for every service; our own unit file stays.
CLEAR = f"""
unit=$1; shift
rm -rf "{UNITS}/$unit.d"
for folder; do rm -rf "$folder/$unit" "$folder/$unit.d"; done
names=$(systemctl show-environment | grep --only-matching --ignore-case '^PREFECT_[^=]*')
[ -z "$names" ] || systemctl unset-environment $names
"""


@dataclass(frozen=True)
class Service:
    """A service: enabled, running, with today's configuration, and nothing that beats it."""

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
            "settings from the environment": (),
            "configuration": "current",
        }

    def probe(self) -> Command:
        return Command(("sh", "-c", SERVICE, "service", self.unit))

    def parse(self, result: Result) -> State:
        """The configuration is told of a service that runs and could run again, else it is moot."""
        said = pairs(check(self.probe(), result).stdout)
        boot = said["UnitFileState"]
        overrides = {*said["DropInPaths"].split(), *said["DropIns"].split()}
        if not _masked(boot) and said["FragmentPath"] not in ("", f"{UNITS}/{self.unit}"):
            overrides.add(said["FragmentPath"])
        # An override that waits for systemd to read it is told as one, not as a unit file that does.
        read = said["NeedDaemonReload"] == "no" or overrides
        current = said.get("configuration") == "current" and read
        moot = said["ActiveState"] != "active" or _masked(boot)
        return {
            "at boot": boot or "no unit",
            "state": f"{said['ActiveState']} ({said['SubState']})",
            "overrides": tuple(sorted(overrides)),
            "settings from the environment": tuple(
                name for name in said["Variables"].split() if name != OURS
            ),
            "configuration": "current" if current or moot else "older",
        }

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        actual = {change.attribute: change.actual for change in changes}
        commands = [Command(("systemctl", "daemon-reload"))]
        if actual.keys() & {"at boot", "overrides", "settings from the environment"}:
            commands.insert(0, Command(("sh", "-c", CLEAR, "clear", self.unit, *OTHERS)))
        if "at boot" in actual:
            commands.append(Command(("systemctl", "enable", "--quiet", self.unit)))
        if actual.keys() - {"at boot"} or _masked(actual["at boot"]):
            wait = (INTERPRETER, "-I", "-c", inspect.getsource(started))
            commands += [
                Command(("systemctl", "reset-failed", self.unit)),
                Command(("systemctl", "restart", self.unit), seconds=90),
                Command((*wait, self.unit, self.url, str(self.seconds)), seconds=self.seconds + 30),
            ]
        return commands


def _masked(state: object) -> bool:
    return str(state).startswith("masked")
