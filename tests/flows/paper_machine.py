"""A Debian on paper: a Shell that understands the commands the catalog sends, and no other.

Each command acts wholly or fails as the real one would. What lies on the disk is in ``files``, also
environments: a distribution is the file ``<environment>/lib/<name>``, with its version in it.
"""

from __future__ import annotations

import base64
import copy
import inspect
import io
import itertools
import json
import shlex
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from blocks.shell import Command, Result
from flows.probes import closure, database, migrate, package, started
from flows.reconcile import Change, diff
from flows.resources import apt, files, python, systemd
from flows.resources.postgres import Schema
from flows.resources.shell import pairs

FACTS = Path(__file__).parent / "data"
_PLACE = python.Installation("1", "/p", "", python.Uv("1", "/u", ""), "/c")
_SCHEMA = Schema("python", "directory", "user", prefect_home="home")
JOURNALD = "/etc/systemd/journald.conf.d/prefect.conf"
APT = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", *apt.WAIT_FOR_LOCK, *apt.TRIES)


class Script:
    """Programs that are sent whole."""

    CLOSURE, PACKAGE = inspect.getsource(closure), inspect.getsource(package)
    STARTED, DATABASE = inspect.getsource(started), inspect.getsource(database)
    MIGRATE = _SCHEMA.commands((Change("revision", "head", "empty"),))[0].stdin
    TOOL = python.Tool(_PLACE).probe().argv[2]
    WHEEL = 'base64 -d > "$1"'


class Died(Exception):
    """The process that sent the command was killed."""


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


def _directory() -> Node:
    return Node("directory", mode="755")


def _empty() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FACTS / "database_empty.json").read_text())
    return found


@dataclass
class PaperMachine:
    """A freshly booted machine beside an empty database.

    ``probes`` and ``writes`` are the commands so far: a write is all that is no known probe. With
    ``lives``, the sender dies at the write after so many: before it acts, or, when ``answered``,
    after it.
    """

    packages: set[str] = field(default_factory=set)
    indexed: bool = False
    users: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, Node] = field(
        default_factory=lambda: {p: _directory() for p in ("/etc/systemd/system", "/opt")}
    )
    units: dict[str, Unit] = field(default_factory=dict)
    journald: str = ""
    """The configuration that journald was started with."""
    database: dict[str, Any] = field(default_factory=_empty)
    probes: list[Command] = field(default_factory=list)
    writes: list[Command] = field(default_factory=list)
    trips: int = 0
    lives: int | None = None
    answered: bool = False
    _proofs: Iterator[int] = field(default_factory=itertools.count)

    def run(self, commands: Sequence[Command], *, together: bool = False) -> list[Result]:
        self.trips += 1
        results: list[Result] = []
        for command in commands:
            if act := self._probe(command):
                self.probes.append(command)
                results.append(_result(act))
            else:
                assert not together, f"not a probe: {command.argv}"
                results.append(self._do(command))
            if results[-1].code and not together:
                break
        return results

    def forget(self) -> None:
        """Start the log anew."""
        self.probes, self.writes, self.trips = [], [], 0

    def copy(self) -> PaperMachine:
        return copy.deepcopy(self)

    @property
    def state(self) -> object:
        """Everything that a run leaves behind. Of what is new with every installation, only whether
        the services run with it."""
        kept = {p: n for p, n in self.files.items() if not p.endswith("/proven")}
        units = {
            name: (unit.enabled, self._current(name), unit.loaded == self._unit(name))
            for name, unit in self.units.items()
        }
        journald = self.journald == self.files[JOURNALD].content
        return self.packages, self.users, kept, units, journald, self.database

    def _do(self, command: Command) -> Result:
        act = self._write(command)
        dies = self.lives is not None and len(self.writes) >= self.lives
        if dies and not self.answered:
            raise Died
        self.writes.append(command)
        result = _result(act)
        if dies:
            raise Died
        return result

    def _probe(self, command: Command) -> Callable[[], str] | None:
        stdin = command.stdin
        match command.argv:
            case ("sh", "-c", apt.PROBE, "packages", *names):
                there = ["installed" if n in self.packages else "missing" for n in names]
                return lambda: "\n".join(there)
            case ("sh", "-c", files.USER, "user", user):
                return lambda: _lines(self.users.get(user, {}))
            case ("sh", "-c", files.PATH, "path", path):
                return partial(self._stat, path, stdin)
            case (path, "--version") if path.endswith("/bin/uv"):
                return partial(self._uv_version, path)
            case (interpreter, "-I", "-c", Script.CLOSURE, python.OURS):
                return partial(self._deviations, interpreter, stdin)
            case ("sh", "-c", Script.TOOL, root, path, "-I", "-c", Script.CLOSURE, python.OURS):
                proven = "proven\n" if f"{root}/proven" in self.files else ""
                return lambda: proven + self._deviations(path, stdin)
            case (interpreter, "-I", "-c", Script.PACKAGE):
                return lambda: self._installed(interpreter).get(python.OURS, "")
            case ("sh", "-c", systemd.SERVICE, "service", unit):
                return partial(self._show, unit)
            case ("runuser", "-u", user, "--", path, "-I", "-", folder):
                assert stdin == Script.DATABASE
                return partial(self._as_server, user, path, folder, lambda: self.database)
        return None

    def _write(self, command: Command) -> Callable[[], object]:
        stdin = command.stdin
        match command.argv:
            case (*start, "update") if tuple(start) == APT:
                return lambda: setattr(self, "indexed", True)
            case (*start, "install", "--yes", "--no-install-recommends", *_) if tuple(start) == APT:
                return partial(self._install, command.argv[len(APT) + 3 :])
            case ("useradd", "--system", "--user-group", "--no-create-home", *options, user):
                return partial(self._user, options, "--gid", user, user)
            case ("usermod", *options, user):
                return partial(self._user, options, user)
            case ("install", "-d", "-m", mode, "-o", user, "-g", group, path):
                return partial(self._mkdir, path, mode, f"{user}:{group}")
            case ("install", "-d", path):
                return partial(self._mkdir, path, "755", "root:root")
            case ("sh", "-c", files.WRITE, "write", path, mode, owner):
                return partial(self._put, path, Node("regular file", stdin, mode, owner))
            case ("rm", "-rf", *paths):
                return lambda: [self._remove(path) for path in paths]
            case (python.INTERPRETER, "-m", "venv", "--clear", env):
                return partial(self._venv, env)
            case (pip, "install", *_, "--require-hashes", "--requirement", "/dev/stdin"):
                return partial(self._pip, pip, python.pins(stdin))
            case ("env", *variables, uv, "--quiet", _, _, _, _, *_) if uv.endswith("/bin/uv"):
                raise AssertionError(variables)
            case ("env", *_):
                return partial(self._uv, command.argv[1:])
            case ("sh", "-c", Script.WHEEL, "wheel", path):
                return partial(self._put, path, Node(content=stdin))
            case ("sh", "-c", python.SAME, "same", root):
                return partial(self._same, root)
            case ("sh", "-c", python.SMOKE, "smoke", root):
                return partial(self._smoke, root)
            case ("sh", "-c", systemd.CLEAR, "clear", unit):
                return lambda: self._remove(f"{systemd.UNITS}/{unit}.d")
            case ("systemctl", "daemon-reload"):
                return self._reload
            case ("systemctl", "restart", "systemd-journald.service"):
                return lambda: setattr(self, "journald", self.files[JOURNALD].content)
            case ("systemctl", "enable", "--quiet", unit):
                return partial(self._enable, unit)
            case ("systemctl", "reset-failed", unit):
                return lambda: need(unit in self.units, f"Unit {unit} not loaded.")
            case ("systemctl", "restart", unit):
                return partial(self._restart, unit)
            case (python.INTERPRETER, "-I", "-c", Script.STARTED, unit, url, _):
                return partial(self._started, unit, url)
            case ("runuser", "-u", user, "--", path, "-I", "-", folder, _):
                assert stdin == Script.MIGRATE
                return partial(self._as_server, user, path, folder, self._migrate)
        raise AssertionError(f"a machine on paper does not know {command.argv}")
