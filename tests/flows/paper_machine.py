"""A machine on paper: a Shell that understands the commands the catalog sends, and no other.

A command is known by its whole argv, and a program by being the product's own, to the letter.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from blocks.shell import Command, Result
from flows.probes import closure, database, package, started
from flows.reconcile import Change
from flows.resources import apt, files, filesystem, python, sshd, systemd, wheelhouse
from flows.resources.postgres import Schema
from tests.flows.paper_debian import Debian, settings
from tests.flows.paper_disk import Failed, Node, lines, need

_PLACE = python.Installation("1", "/p", "", python.Uv("1", "/u", ""), "/c")
_SCHEMA = Schema("python", "directory", "user", prefect_home="home")
_APT = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", *apt.WAIT_FOR_LOCK, *apt.TRIES)


class Script:
    """Programs that are sent whole."""

    CLOSURE, PACKAGE = inspect.getsource(closure), inspect.getsource(package)
    STARTED, DATABASE = inspect.getsource(started), inspect.getsource(database)
    MIGRATE = _SCHEMA.commands((Change("revision", "head", "empty"),))[0].stdin
    TOOL = python.Tool(_PLACE).probe().argv[2]
    WHEEL = 'base64 -d > "$1"'


class Died(Exception):
    """The process that sent the command was killed."""


@dataclass
class PaperMachine:
    """``probes`` and ``writes`` are the commands so far: a write is all that is no known probe.

    With ``lives``, the sender dies at the write after so many: before it takes effect, or, when
    ``answered``, after it.
    """

    debian: Debian = field(default_factory=Debian)
    probes: list[Command] = field(default_factory=list)
    writes: list[Command] = field(default_factory=list)
    trips: int = 0
    lives: int | None = None
    answered: bool = False

    def run(self, commands: Sequence[Command], *, together: bool = False) -> list[Result]:
        self.trips += 1
        results: list[Result] = []
        for command in commands:
            if act := self._probe(command):
                self.probes.append(command)
                results.append(_result(act))
            else:
                assert not together, f"only probes go together: {command.argv}"
                results.append(self._change(command))
            if results[-1].code and not together:
                break
        return results

    def copy(self) -> PaperMachine:
        """The same Debian, with nothing in the log."""
        return PaperMachine(copy.deepcopy(self.debian))

    def _change(self, command: Command) -> Result:
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
        on, stdin = self.debian, command.stdin
        match command.argv:
            case ("sh", "-c", apt.PROBE, "packages", *names):
                there = ["installed" if n in on.packages else "missing" for n in names]
                return lambda: "\n".join(there)
            case ("sh", "-c", filesystem.ROOM, "sh", "/"):
                return lambda: lines({name: str(size) for name, size in on.room.items()})
            case ("sh", "-c", files.USER, "user", user):
                return lambda: lines(on.users.get(user, {}))
            case ("sh", "-c", files.PATH, "path", path):
                return partial(on.stat, path, stdin)
            case (path, "--version") if path.endswith("/bin/uv"):
                return partial(on.uv_version, path)
            case (interpreter, "-I", "-c", Script.CLOSURE, python.OURS):
                return partial(on.deviations, interpreter, stdin)
            case ("sh", "-c", Script.TOOL, root, path, "-I", "-c", Script.CLOSURE, python.OURS):
                proven = "proven\n" if f"{root}/proven" in on.files else ""
                return lambda: proven + on.deviations(path, stdin)
            case (interpreter, "-I", "-c", Script.PACKAGE):
                return lambda: on.installed(interpreter).get(python.OURS, "")
            case ("sh", "-c", wheelhouse.FILES, "files", path):
                return partial(on.wheels, path)
            case ("sh", "-c", systemd.SERVICE, "service", unit):
                return partial(on.show, unit)
            case ("sh", "-c", sshd.EFFECTIVE):
                return on.configured
            case ("runuser", "-u", user, "--", path, "-I", "-", folder):
                assert stdin == Script.DATABASE, "another program to look at the database with"
                return partial(on.as_server, user, path, folder)
        return None

    def _write(self, command: Command) -> Callable[[], object]:
        on, stdin = self.debian, command.stdin
        if command.argv[: len(_APT)] == _APT:
            return self._apt(command.argv[len(_APT) :])
        match command.argv:
            case ("sh", "-c", filesystem.GROW_PARTITION, "sh", "/"):
                return partial(on.grow, "partition")
            case ("sh", "-c", filesystem.GROW_FILE_SYSTEM, "sh", "/"):
                return partial(on.grow, "filesystem")
            case ("sh", "-c", files.ADD, "user", *who):
                return partial(on.add_user, *who)
            case ("sh", "-c", files.CHANGE, "user", *who):
                return partial(on.change_user, *who)
            case ("install", "-d", "-m", mode, "-o", user, "-g", group, path):
                return partial(on.mkdir, path, mode, f"{user}:{group}")
            case ("install", "-d", path):
                return partial(on.mkdir, path, "755", "root:root")
            case ("sh", "-c", files.WRITE, "write", path, mode, owner):
                return partial(on.put, path, Node("regular file", stdin, mode, owner))
            case ("chmod", mode, path):
                return lambda: setattr(on.files[path], "mode", mode)
            case ("rm", "-rf" | "-f", *paths):
                return partial(on.remove, *paths)
            case (python.INTERPRETER, "-m", "venv", "--clear", "--without-pip", env):
                return partial(on.venv, env)
            case ("sh", "-c", python.PIP, "pip", interpreter):
                return partial(on.pip, interpreter, python.pins(stdin))
            case ("sh", "-c", wheelhouse.RECEIVE, "receive", path) if command.file:
                return partial(on.receive, path, command.file.read_text())
            case ("sh", "-c", python.UNPACK, "unpack", env, wheels, python.INTERPRETER):
                return partial(on.unpack, env, wheels, stdin)
            case ("env", *words) if "--quiet" in words:
                return self._uv(words)
            case ("sh", "-c", Script.WHEEL, "wheel", path):
                return partial(on.put, path, Node(content=stdin))
            case ("sh", "-c", python.SAME, "same", root):
                return partial(on.same, root)
            case ("sh", "-c", python.SMOKE, "smoke", root):
                return partial(on.smoke, root)
            case ("sh", "-c", systemd.CLEAR, "clear", unit, *_):
                return lambda: self._clear(unit)
            case ("systemctl", "daemon-reload"):
                return on.reload
            case ("systemctl", "restart", "systemd-journald.service"):
                return on.restart_journald
            case sshd.VALID:
                return partial(settings, stdin)
            case sshd.RELOAD:
                return on.reload_sshd
            case ("systemctl", "enable", "--quiet", unit):
                return partial(on.enable, unit)
            case ("systemctl", "reset-failed", unit):
                return lambda: need(unit in on.units, f"Unit {unit} not loaded.")
            case ("systemctl", "restart", unit):
                return partial(on.restart, unit)
            case (python.INTERPRETER, "-I", "-c", Script.STARTED, unit, url, _):
                return partial(on.started, unit, url)
            case ("runuser", "-u", user, "--", path, "-I", "-", folder, _):
                assert stdin == Script.MIGRATE, "another program to migrate the database with"
                return partial(on.migrate, user, path, folder)
        raise _unknown(command.argv)

    def _clear(self, unit: str) -> None:
        others = [f"{f}/{unit}" for f in systemd.OTHERS]
        self.debian.remove(f"{systemd.UNITS}/{unit}.d", *others, *(f"{path}.d" for path in others))
        self.debian.unset_variables()

    def _apt(self, does: tuple[str, ...]) -> Callable[[], object]:
        match does:
            case ("update",):
                return self.debian.update
            case ("install", "--yes", "--no-install-recommends", *names):
                return partial(self.debian.install, names)
        raise _unknown(does)

    def _uv(self, words: Sequence[str]) -> Callable[[], object]:
        """``words``: settings, uv, and after ``--quiet`` what it does."""
        on, at = self.debian, words.index("--quiet")
        uv, does = words[at - 1], tuple(words[at + 1 :])
        settings = dict(word.split("=", 1) for word in words[: at - 1])
        tools, bins = settings["UV_TOOL_DIR"], settings["UV_TOOL_BIN_DIR"]

        def sources(act: Callable[..., None], *arguments: str) -> Callable[[], object]:
            def do() -> None:
                on.uv_sources(settings)
                act(*arguments)

            return do

        match does:
            case ("venv", "--allow-existing", "--python", python.INTERPRETER, env):
                return partial(on.uv_venv, uv, env)
            case ("pip", "sync", "--require-hashes", _, "--python", env, lock):
                return sources(on.uv_sync, uv, env, lock)
            case ("tool", "install", "--force", "--no-build", "--with-requirements", lock, *_):
                return sources(on.uv_tool, uv, tools, bins, lock, does[-1])
            case ("pip", "install", "--offline", "--no-deps", "--reinstall", _, "--python", *rest):
                return partial(on.uv_wheel, uv, *rest)
        raise _unknown(does)


def _result(act: Callable[[], object]) -> Result:
    try:
        said = act()
    except Failed as failed:
        return Result(failed.code, "", failed.stderr)
    return Result(0, said if isinstance(said, str) else "", "")


def _unknown(argv: Sequence[str]) -> AssertionError:
    return AssertionError(f"a machine on paper does not know {argv}")
