"""Running commands on a machine: on this one, or over SSH (``blocks/ssh.py``).

A ``Command`` is argv and, optionally, stdin; many travel in one round trip, as JSON on stdin, to
``blocks/runner.py`` on the machine. So nothing is quoted twice, nothing but constants is an argument,
and a secret on stdin shows up in no process list and no log. Each round trip is a prefect-shell
operation.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from blocks import runner
from flows.errors import STDERR_CHARACTERS, CommandFailed, Unreachable

LOST = 255
"""The exit status of ssh itself, when there is no connection."""
OUT_OF_TIME = 124
"""The exit status of ``timeout`` and of a command in ``runner`` that took too long."""
OVERHEAD = 30.0
"""Seconds that a round trip may take beyond its commands."""


@dataclass(frozen=True)
class Command:
    """What to run on a machine, as root where it is reached over SSH.

    ``stdin`` may hold a secret, ``argv`` never does. ``seconds`` is all the time it gets. ``file``:
    one of ours that is its stdin instead; only for a command that goes after others, not together.
    """

    argv: tuple[str, ...]
    stdin: str = field(default="", repr=False)
    seconds: float = 60
    cwd: str = "/"
    file: Path | None = None


@dataclass(frozen=True)
class Result:
    """What became of a command. ``code`` 124: out of time; 127: no such command."""

    code: int
    stdout: str
    stderr: str


class Shell(Protocol):
    """A machine that runs commands."""

    def run(self, commands: Sequence[Command], *, together: bool = False) -> list[Result]:
        """Their results, in order, in one round trip: all ``together``, or one after the other up
        to the first that fails. Raises Unreachable when the machine does not answer."""
        ...


class LocalShell:
    """This machine, as the user we are."""

    def run(self, commands: Sequence[Command], *, together: bool = False) -> list[Result]:
        return round_trip([sys.executable, *RUNNER], commands, together, os.environ)


RUNNER = ("-I", "-c", "import json, sys; exec(json.loads(sys.stdin.buffer.readline()))")
"""Runs its first line of stdin: short, for sudo writes every argument to the machine's journal."""


def check(command: Command, result: Result, *, repair: str = "") -> Result:
    """The result, when the command succeeded. Raises CommandFailed."""
    if result.code:
        said = result.stderr.strip() or result.stdout
        raise CommandFailed(_readable_argv(command.argv), result.code, said, repair=repair)
    return result


SCRIPT = '\n"#'


def _readable_argv(argv: Sequence[str]) -> list[str]:
    """A script among the arguments is named by its first line only."""
    return [f"{part.strip(SCRIPT).splitlines()[0]} …" if "\n" in part else part for part in argv]


def round_trip(
    argv: Sequence[str],
    commands: Sequence[Command],
    together: bool,
    env: os._Environ[str] | dict[str, str],
) -> list[Result]:
    """Run the runner with ``argv``, as a prefect-shell operation."""
    times = [command.seconds for command in commands]
    seconds = (max(times, default=0) if together else sum(times)) + OVERHEAD
    with tempfile.TemporaryFile() as stdin, tempfile.NamedTemporaryFile() as stderr:
        for line in (inspect.getsource(runner), _request(commands, together)):
            stdin.write(f"{json.dumps(line)}\n".encode())
        for file in (command.file for command in commands if command.file):
            with file.open("rb") as content:
                shutil.copyfileobj(content, stdin)
        stdin.seek(0)
        timed = shlex.join(["timeout", "--kill-after=5", f"{seconds:.0f}", *argv])
        # Outside the run's context: its log is for what happens, not for every round trip.
        code, output = Context().run(_operate, f"exec {timed} 2>{stderr.name}", stdin, dict(env))
        said = stderr.read().decode(errors="replace").strip()[-STDERR_CHARACTERS:]
    if code in (LOST, OUT_OF_TIME):
        silence = "ssh does not say why" if code == LOST else f"no answer in {seconds:.0f} s"
        raise Unreachable(f"the connection was lost: {said or silence}.")
    if code:
        raise CommandFailed(["commands"], code, said or output)
    return [Result(**result) for result in json.loads(output)]


def _request(commands: Sequence[Command], together: bool) -> dict[str, Any]:
    """As the runner reads it."""
    told = [
        {
            **{name: value for name, value in vars(command).items() if name != "file"},
            "bytes": command.file.stat().st_size if command.file else 0,
        }
        for command in commands
    ]
    assert not (together and any(each["bytes"] for each in told)), "files go one after the other"  # noqa: S101 - a programming error
    return {"together": together, "commands": told}


def _operate(line: str, stdin: IO[bytes], env: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of one line for bash."""
    from prefect_shell.commands import ShellOperation  # it imports Prefect: a second

    for name in ("ShellOperation", "ShellProcess"):
        logging.getLogger(f"prefect.{name}").setLevel(logging.WARNING)
    block: Any = ShellOperation(commands=[line], env=env, stream_output=False)
    with block as operation:
        process = operation.trigger(stdin=stdin)
        # A failure is told by the exit status; the exception's text has no more than that.
        with suppress(RuntimeError):
            process.wait_for_completion()
        return process.return_code or 0, "\n".join(process.fetch_result())
