"""A Debian on paper: what lies on its disk, what runs, and what each command does to it.

A command acts wholly, or fails as the real one would.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.resources import systemd
from flows.resources.shell import pairs
from flows.resources.systemd import UNITS
from tests.flows.paper_disk import Node, lines, need
from tests.flows.paper_python import Pythons

JOURNALD = "/etc/systemd/journald.conf.d/prefect.conf"
SSHD = "/etc/ssh/sshd_config.d/00-prefect.conf"
_FACTS = Path(__file__).parent / "data"


@dataclass
class Unit:
    """What systemd knows of a unit beside its files."""

    enabled: bool = False
    loaded: tuple[object, ...] = ()
    """The unit file and its drop-ins, as they were at the last reload."""
    running: dict[str, str] = field(default_factory=dict)
    """Path → content of the configuration it was started with; empty: not running."""
    variables: frozenset[str] = frozenset()
    """Names of those it was started with."""


def _database(which: str) -> dict[str, Any]:
    """What the probe says of a database, ``empty`` or at ``head``; recorded."""
    found: dict[str, Any] = json.loads((_FACTS / f"database_{which}.json").read_text())
    return found


@dataclass
class Debian(Pythons):
    """Freshly booted, beside an empty database."""

    indexed: bool = False
    units: dict[str, Unit] = field(default_factory=dict)
    variables: frozenset[str] = frozenset()
    """Names of those that systemd starts every service with."""
    kept_variables: frozenset[str] = frozenset()
    """Of these, those in a file of systemd's own, which ``unset-environment`` does not reach."""
    journald: str = ""
    """The configuration that journald was started with."""
    sshd: str = ""
    """What sshd does since it was told to read its configuration."""
    database: dict[str, Any] = field(default_factory=lambda: _database("empty"))
    room: dict[str, int] = field(default_factory=lambda: {"partition": 0, "filesystem": 0})
    """Bytes behind the root's partition, and behind its file system."""

    @property
    def state(self) -> object:
        """Everything that a run leaves behind. Of what is new with every installation, only whether
        the services run with it."""
        kept = {p: n for p, n in self.files.items() if not p.endswith("/proven")}
        units = {
            name: (
                unit.enabled,
                self._current(name),
                unit.loaded == self._unit(name),
                unit.variables,
            )
            for name, unit in self.units.items()
        }
        on_disk = self.users, kept, self.room
        return self.packages, on_disk, units, self.variables, self.database

    # Debian

    def grow(self, what: str) -> None:
        """The room behind a partition becomes room in it."""
        if what == "partition":
            self.room["filesystem"] += self.room["partition"]
        self.room[what] = 0

    def update(self) -> None:
        need(self.online, "E: Unable to fetch some archives", 100)
        self.indexed = True

    def install(self, names: Sequence[str]) -> None:
        need(self.indexed, "E: Unable to locate package", 100)
        self.packages |= set(names)

    def add_user(self, user: str, home: str, shell: str) -> None:
        need(user not in self.users, f"useradd: user '{user}' already exists", 9)
        self._stop()
        self.users[user] = {"home": home, "shell": shell, "group": user}
        for path in self.files:
            if f"{path}/".startswith(f"{home}/"):
                self.files[path].owner = f"{user}:{user}"

    def change_user(self, user: str, home: str, shell: str) -> None:
        if self.users[user]["home"] != home:
            self._stop()
        self.users[user].update(home=home, shell=shell, group=user)

    def _stop(self) -> None:
        for unit in self.units.values():
            unit.running, unit.variables = {}, frozenset()

    def unset_variables(self) -> None:
        self.variables &= self.kept_variables

    # systemd

    def _unit(self, name: str) -> tuple[object, ...]:
        """The unit file as it is now, and the paths of its drop-ins."""
        folder = f"{UNITS}/{name}.d/"
        node = self.files.get(f"{UNITS}/{name}", Node("absent"))
        return node.kind, node.content, *(p for p in self.files if p.startswith(folder))

    def _current(self, name: str) -> bool:
        running = self.units[name].running
        now = {path: self.files[path].content for path in running if path in self.files}
        return bool(running) and running == now

    def show(self, name: str) -> str:
        unit, (kind, *_) = self.units.get(name, Unit()), self._unit(name)
        known = name in self.units
        state = {"regular file": "enabled" if unit.enabled else "disabled", "absent": ""}
        hidden = [f for f in systemd.OTHERS if f"{f}/{name}" in self.files]
        drop_ins = [
            path
            for folder in (UNITS, *systemd.OTHERS)
            for path in self.files
            if path.startswith(f"{folder}/{name}.d/")
        ]
        shown = {
            "UnitFileState": "masked" if hidden else state.get(str(kind), "masked"),
            "ActiveState": "active" if unit.running else "inactive",
            "SubState": "running" if unit.running else "dead",
            "FragmentPath": f"{(hidden or [UNITS])[0]}/{name}",
            "DropInPaths": " ".join(map(str, unit.loaded[2:])),
            "DropIns": " ".join(drop_ins),
            "Variables": " ".join(sorted(unit.variables | self.variables)),
            "NeedDaemonReload": "yes" if known and unit.loaded != self._unit(name) else "no",
            "configuration": "current" if known and self._current(name) else "none",
        }
        return lines(shown)

    def reload(self) -> None:
        for path in self.files:
            folder, _, name = path.rpartition("/")
            if folder == UNITS and name.endswith(".service"):
                self.units.setdefault(name, Unit())
        for name, unit in self.units.items():
            unit.loaded = self._unit(name)

    def restart_journald(self) -> None:
        self.journald = self.files[JOURNALD].content

    def enable(self, name: str) -> None:
        need(self._unit(name)[0] == "regular file", f"Unit file {name} does not exist or is masked")
        self.units[name].enabled = True

    def restart(self, name: str) -> None:
        unit = self.units[name]
        kind, text, *_ = unit.loaded
        unit.running, unit.variables = {}, frozenset()
        hidden = [f for f in systemd.OTHERS if f"{f}/{name}" in self.files]
        need(not hidden, f"Unit {name} is masked")
        need(kind == "regular file", f"Unit {name} not found or masked")
        said = pairs(str(text))
        words = shlex.split(said["ExecStartPre"])[-1].split()
        recorded = words[words.index("sha256sum") + 1 : words.index("$(find")]
        program, toml = said["ExecStart"].split()[0], f"{said['WorkingDirectory']}/prefect.toml"
        for path in (program, toml, *recorded):
            need(path in self.files, f"Job for {name} failed: {path}")
        stray = f"{said['WorkingDirectory']}/.env"
        recorded += [stray] * (stray in self.files)
        unit.running = {path: self.files[path].content for path in recorded}
        unit.variables = self.variables | {systemd.OURS}

    def started(self, name: str, url: str) -> None:
        running = self.units[name].running
        need(running, f"{name} crashes again and again; its journal is above.")
        if url:
            [toml] = [text for path, text in running.items() if path.endswith("prefect.toml")]
            port = tomllib.loads(toml)["server"]["api"]["port"]
            need(urlsplit(url).port == port, f"{name} does not answer; it listens on {port}")

    # sshd

    def configured(self) -> str:
        """What sshd would do, a setting a line, with the first value of each. It is told no default:
        none is ours."""
        folder = SSHD.rpartition("/")[0]
        files = sorted(path for path in self.files if path.startswith(f"{folder}/"))
        text = "\n".join(self.files[path].content for path in files)
        found: dict[str, str] = {}
        for keyword, value in settings(text):
            found.setdefault(keyword.lower(), value)
        return "\n".join(f"{keyword} {value}" for keyword, value in found.items())

    def reload_sshd(self) -> None:
        self.sshd = self.configured()

    # The database

    def as_server(self, user: str, interpreter: str, folder: str) -> str:
        """What the probe says of the database."""
        need(user in self.users, f"runuser: user {user} does not exist")
        self.needs(interpreter)
        need(f"{folder}/prefect.toml" in self.files, f"no {folder}/prefect.toml")
        return json.dumps(self.database)

    def migrate(self, user: str, interpreter: str, folder: str) -> None:
        self.as_server(user, interpreter, folder)
        self.database = _database("head")


def settings(text: str) -> list[tuple[str, str]]:
    """Those of a file of sshd's; the command fails where sshd would not start with it."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    need(all(len(line) == 2 for line in lines), "sshd: bad configuration option", 255)
    return [(keyword, value) for keyword, value in lines]
