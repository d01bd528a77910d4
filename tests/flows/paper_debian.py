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
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from flows.probes import closure, package
from flows.resources import python
from flows.resources.shell import pairs
from flows.resources.systemd import UNITS

JOURNALD = "/etc/systemd/journald.conf.d/prefect.conf"
_FACTS = Path(__file__).parent / "data"


class Failed(Exception):
    """The command ends with ``code`` and says ``stderr``."""

    def __init__(self, stderr: str, code: int = 1) -> None:
        super().__init__(stderr)
        self.stderr, self.code = stderr, code


def need(condition: object, otherwise: str, code: int = 1) -> None:
    if not condition:
        raise Failed(otherwise, code)


@dataclass
class Node:
    """What lies at a path; ``kind`` as ``stat`` says it."""

    kind: str = "regular file"
    content: str = ""
    mode: str = "644"
    owner: str = "root:root"


@dataclass
class Unit:
    """What systemd knows of a unit beside its files."""

    enabled: bool = False
    loaded: tuple[object, ...] = ()
    """The unit file and its drop-ins, as they were at the last reload."""
    running: dict[str, str] = field(default_factory=dict)
    """Path → content of the configuration it was started with; empty: not running."""


_directory = partial(Node, "directory", mode="755")


def _database(which: str) -> dict[str, Any]:
    """What the probe says of a database, ``empty`` or at ``head``; recorded."""
    found: dict[str, Any] = json.loads((_FACTS / f"database_{which}.json").read_text())
    return found


@dataclass
class Debian:
    """Freshly booted, beside an empty database."""

    packages: set[str] = field(default_factory=set)
    indexed: bool = False
    users: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, Node] = field(default_factory=lambda: {UNITS: _directory()})
    units: dict[str, Unit] = field(default_factory=dict)
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
            name: (unit.enabled, self._current(name), unit.loaded == self._unit(name))
            for name, unit in self.units.items()
        }
        return self.packages, self.users, kept, units, self.database

    # Debian

    def install(self, names: Sequence[str]) -> None:
        need(self.indexed, "E: Unable to locate package", 100)
        self.packages |= set(names)

    def user(self, options: Sequence[str], user: str) -> None:
        told = dict(zip(options[::2], options[1::2], strict=True))
        home, shell = told["--home-dir"], told["--shell"]
        self.users[user] = {"home": home, "shell": shell, "group": told.get("--gid", user)}

    # Files

    def stat(self, path: str, content: str) -> str:
        node = self.files.get(path)
        if node is None:
            return ""
        shown = lines({"kind": node.kind, "mode": node.mode, "owner": node.owner})
        if node.kind != "regular file":
            return shown
        return f"{shown}\ncontent={'same' if node.content == content else 'other'}"

    def put(self, path: str, node: Node) -> None:
        parent = self.files.get(str(PurePosixPath(path).parent))
        need(parent and parent.kind == "directory", f"{path}: No such file or directory")
        user = node.owner.partition(":")[0]
        need(user in {"root", *self.users}, f"invalid user: {user}")
        there = self.files.get(path)
        need(not there or there.kind != "directory", f"{path}: Is a directory")
        self.files[path] = node

    def mkdir(self, path: str, mode: str, owner: str) -> None:
        user, there = owner.partition(":")[0], self.files.get(path)
        need(user in {"root", *self.users}, f"invalid user: {user}")
        need(there is None or there.kind == "directory", f"{path} exists but is not a directory")
        for parent in PurePosixPath(path).parents:
            self.files.setdefault(str(parent), _directory())
        self.files[path] = Node("directory", "", mode, owner)

    def remove(self, *paths: str) -> None:
        for path in paths:
            for there in [p for p in self.files if f"{p}/".startswith(f"{path}/")]:
                del self.files[there]

    def needs(self, *paths: str) -> None:
        for path in paths:
            need(path in self.files, f"{path}: No such file or directory", 127)

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
        shown = {
            "UnitFileState": state.get(str(kind), "masked"),
            "ActiveState": "active" if unit.running else "inactive",
            "SubState": "running" if unit.running else "dead",
            "DropInPaths": " ".join(map(str, unit.loaded[2:])),
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
        unit.running = {}
        need(kind == "regular file", f"Unit {name} not found or masked")
        said = pairs(str(text))
        words = shlex.split(said["ExecStartPre"])[-1].split()
        recorded = words[words.index("sha256sum") + 1 : words.index(">")]
        program, toml = said["ExecStart"].split()[0], f"{said['WorkingDirectory']}/prefect.toml"
        for path in (program, toml, *recorded):
            need(path in self.files, f"Job for {name} failed: {path}")
        unit.running = {path: self.files[path].content for path in recorded}

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


def lines(values: dict[str, str]) -> str:
    return "\n".join(f"{name}={value}" for name, value in values.items())
