"""A Debian on paper: what lies on its disk, what runs, and what each command does to it.

A command acts wholly, or fails as the real one would. An environment of Python's is a few of
``files``: a distribution is ``<environment>/lib/<name>``, with its version as the content.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.probes import closure, package
from flows.resources import python, systemd
from flows.resources.shell import pairs
from flows.resources.systemd import UNITS
from tests.flows.paper_disk import Disk, Node, lines, need

JOURNALD = "/etc/systemd/journald.conf.d/prefect.conf"
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
class Debian(Disk):
    """Freshly booted, beside an empty database."""

    packages: set[str] = field(default_factory=set)
    indexed: bool = False
    units: dict[str, Unit] = field(default_factory=dict)
    variables: frozenset[str] = frozenset()
    """Names of those that systemd starts every service with."""
    kept_variables: frozenset[str] = frozenset()
    """Of these, those in a file of systemd's own, which ``unset-environment`` does not reach."""
    journald: str = ""
    """The configuration that journald was started with."""
    database: dict[str, Any] = field(default_factory=lambda: _database("empty"))
    proofs: int = 0

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
        return self.packages, self.users, kept, units, self.variables, self.database

    # Debian

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

    # Python

    def installed(self, interpreter: str) -> dict[str, str]:
        """Name → version."""
        self.needs(interpreter)
        lib = interpreter.replace("/bin/python", "/lib/")
        return {p.removeprefix(lib): n.content for p, n in self.files.items() if p.startswith(lib)}

    def deviations(self, interpreter: str, stdin: str) -> str:
        lock = dict(line.split("==") for line in stdin.split())
        there = self.installed(interpreter)
        return "\n".join(closure.deviations(lock, there, {python.OURS}))

    def venv(self, env: str) -> None:
        self.remove(env)
        self._fill(env, {})

    def _fill(self, env: str, distributions: dict[str, str]) -> None:
        """Make an environment of just these."""
        self.remove(f"{env}/lib")
        self.files[f"{env}/bin/python"] = Node()
        for name, version in distributions.items():
            self.files[f"{env}/lib/{name}"] = Node(content=version)
            if name in ("uv", "prefect"):
                self.files[f"{env}/bin/{name}"] = Node(content=version)

    def pip(self, interpreter: str, pins: dict[str, str]) -> None:
        need("python3-venv" in self.packages, "no pip in /usr/share/python-wheels", 2)
        self._fill(interpreter.removesuffix("/bin/python"), self.installed(interpreter) | pins)

    def uv_version(self, path: str) -> str:
        self.needs(path)
        return f"uv {self.files[path].content} (x86_64-unknown-linux-gnu)"

    def uv_venv(self, uv: str, env: str) -> None:
        self.needs(uv)
        self.files.setdefault(f"{env}/bin/python", Node())

    def uv_sync(self, uv: str, env: str, lock: str) -> None:
        """Just what the lock says: whatever else is there goes."""
        self.needs(uv, lock, f"{env}/bin/python")
        self._fill(env, python.pins(self.files[lock].content))

    def uv_tool(self, uv: str, tools: str, bins: str, lock: str, requirement: str) -> None:
        self.needs(uv, lock)
        name, _, version = requirement.partition("==")
        pins = python.pins(self.files[lock].content)
        need(pins[name] == version, f"{requirement} is not in the lock")
        self._fill(f"{tools}/{name}", pins)
        self.files[f"{bins}/{name}"] = Node(content=version)

    def uv_wheel(self, uv: str, env: str, wheel: str) -> None:
        self.needs(uv, wheel, f"{env}/bin/python")
        self.files[f"{env}/lib/{python.OURS}"] = Node(content=_digest(self.files[wheel].content))

    def same(self, root: str) -> None:
        tool = self.installed(f"{root}/tools/prefect/bin/python")
        need(tool == self.installed(f"{root}/worker/bin/python"), "Files differ")

    def smoke(self, root: str) -> None:
        self.needs(f"{root}/bin/prefect")
        self.proofs += 1
        self.files[f"{root}/proven"] = Node(content=str(self.proofs))

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


@cache
def _digest(wheel: str) -> str:
    """What the probe says of a wheel that is installed; ``wheel`` in base64."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(base64.b64decode(wheel))).extractall(folder)
        return package.digest(Path(folder))
