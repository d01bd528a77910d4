"""Running commands on a machine: over SSH through IAP, or on this one.

A ``Command`` is argv and, optionally, stdin; many travel in one round trip, as JSON on stdin, to
``blocks/runner.py`` on the machine. So nothing is quoted twice, nothing but constants is an argument,
and a secret on stdin shows up in no process list and no log. Each round trip is a prefect-shell
operation.

One connection serves a whole run: a ControlMaster whose far end waits for our end of its stdin, so
it is gone when this process is, however that ended. The host's keys come from its guest attributes,
and no other key is accepted.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from typing import IO, Any, Protocol, Self

from blocks import iap, runner
from flows.errors import STDERR_CHARACTERS, CommandFailed, Final, Unreachable

LOST = 255
"""The exit status of ssh itself, when there is no connection."""
OUT_OF_TIME = 124
"""The exit status of ``timeout`` and of a command in ``runner`` that took too long."""
OVERHEAD = 30.0
"""Seconds that a round trip may take beyond its commands."""
PAUSE = 0.5
"""Seconds between tries to connect."""
DIAL = 30.0
"""Seconds for one try to connect."""
NO_TUNNEL = {kind.status: kind for kind in iap.IapError.__subclasses__()}
WORTH_ANOTHER_TRY = (iap.BackendUnreachable, iap.RelayUnreachable, iap.SessionLost)


@dataclass(frozen=True)
class Command:
    """What to run on a machine, as root where it is reached over SSH.

    ``stdin`` may hold a secret, ``argv`` never does. ``seconds`` is all the time it gets.
    """

    argv: tuple[str, ...]
    stdin: str = field(default="", repr=False)
    seconds: float = 60
    cwd: str = "/"


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
        return _round_trip([sys.executable, *RUNNER], commands, together, os.environ)


RUNNER = ("-I", "-c", "import json, sys; exec(json.loads(sys.stdin.readline()))")
"""Runs its first line of stdin: short, for sudo writes every argument to the machine's journal."""


@dataclass
class SshShell:
    """An instance, by its name, as root by sudo; connects when entered.

    ``host_keys`` reads the host's public keys, empty while it has not published them; ``token`` is
    an access token that is valid now. Raises Unreachable after ``patience`` seconds, Final at once
    where waiting would not help.
    """

    target: iap.IapTarget
    user: str
    private_key: str = field(repr=False)
    host_keys: Callable[[], Sequence[str]]
    token: Callable[[], str] = field(repr=False)
    patience: float = 180.0
    _master: subprocess.Popen[bytes] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="ssh-")  # short: a socket's path is too
        try:
            self._write("key", self.private_key)
            self.connection()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._master:
            _end(self._master)
            self._master = None
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    def run(self, commands: Sequence[Command], *, together: bool = False) -> list[Result]:
        self.connection()
        remote = shlex.join(["sudo", "-n", "/usr/bin/python3", *RUNNER])
        return _round_trip([*self._ssh(), remote], commands, together, self._environment())

    @contextmanager
    def forward(self, port: int, local: int = 0) -> Iterator[int]:
        """A port of the machine's loopback as one of ours; any free one unless ``local`` says."""
        with socket.create_server(("127.0.0.1", local)) as free:
            local = free.getsockname()[1]
        rule = ["-L", f"127.0.0.1:{local}:127.0.0.1:{port}"]
        made = self._control("forward", *rule)
        if made.returncode:
            raise Unreachable(f"port {port} of {self.target.instance}: {made.stderr.strip()}")
        try:
            yield local
        finally:
            with suppress(subprocess.TimeoutExpired):
                self._control("cancel", *rule)

    def connection(self) -> int:
        """Which connection this is, made anew where the last one has ended, and with it all that it
        forwarded."""
        if self._master is None or self._master.poll() is not None:
            self._master = self._connect()
        return self._master.pid

    def wait(self) -> None:
        """Return when the connection has ended."""
        if self._master:
            self._master.wait()

    def _connect(self) -> subprocess.Popen[bytes]:
        """Connect, trying again while the machine boots."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return self._dial()
            except Unreachable as error:
                if time.monotonic() > deadline:
                    raise Unreachable(
                        f"{self.target.instance} cannot be reached over SSH: {error}"
                    ) from error
            time.sleep(PAUSE)

    def _dial(self) -> subprocess.Popen[bytes]:
        keys = self.host_keys()
        if not keys:
            raise Unreachable(
                "it has not published its host keys.",
                repair="Look at its serial console: it has not booted, or runs no guest agent.",
            )
        self._write("known_hosts", "".join(f"{self.target.instance} {key}\n" for key in keys))
        self._write("token", self.token())
        with self._path("stderr").open("w+b") as stderr:
            master = subprocess.Popen(
                [*self._ssh("-M"), "echo ready; exec cat >/dev/null"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self._environment(),
                start_new_session=True,
            )
            if _ready(master.stdout):
                return master
            _end(master)
            stderr.seek(0)
            said = stderr.read().decode(errors="replace").strip()
        self._probe_tunnel()
        raise Unreachable(
            said or f"no answer in {DIAL:.0f} s.",
            repair="Check that its metadata has the ssh-keys of the block, and its guest agent runs.",
        )

    def _probe_tunnel(self) -> None:
        """Raise what keeps the tunnel from opening, if that is it: ssh does not tell its causes."""
        try:
            probe = subprocess.run(
                self._proxy(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=DIAL, env=self._environment(),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Unreachable(f"IAP does not answer in {DIAL:.0f} s.") from None
        if kind := NO_TUNNEL.get(probe.returncode):
            again = issubclass(kind, WORTH_ANOTHER_TRY)
            raise (Unreachable if again else Final)(f"IAP: {probe.stderr.strip()}")

    def _proxy(self) -> list[str]:
        where = (self.target.project, self.target.zone, self.target.instance, self.target.port)
        return [sys.executable, "-m", "blocks.iap", *map(str, where)]

    def _ssh(self, *options: str) -> list[str]:
        settings = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": self._path("key"),
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": self._path("known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            "CheckHostIP": "no",
            "ControlPath": self._path("control"),
            "ServerAliveInterval": 15,
            "ServerAliveCountMax": 4,
            "LogLevel": "ERROR",
            "ProxyCommand": shlex.join(self._proxy()).replace("%", "%%"),
        }
        pairs = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", *pairs, *options, f"{self.user}@{self.target.instance}"]

    def _control(self, *order: str) -> subprocess.CompletedProcess[str]:
        argv = [*self._ssh("-O", *order)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=DIAL)

    def _environment(self) -> dict[str, str]:
        """Ours, so that the proxy finds its module and its token."""
        path = [str(Path(iap.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            iap.TOKEN_FILE: str(self._path("token")),
        }

    def _path(self, name: str) -> Path:
        assert self._folder is not None, "not entered"  # noqa: S101 - a programming error
        return Path(self._folder.name) / name

    def _write(self, name: str, text: str) -> None:
        path = self._path(name)
        path.touch(mode=0o600)
        path.write_text(text)


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


def _round_trip(
    argv: Sequence[str],
    commands: Sequence[Command],
    together: bool,
    env: os._Environ[str] | dict[str, str],
) -> list[Result]:
    """Run the runner with ``argv``, as a prefect-shell operation."""
    times = [command.seconds for command in commands]
    seconds = (max(times, default=0) if together else sum(times)) + OVERHEAD
    request = {"together": together, "commands": [vars(command) for command in commands]}
    with tempfile.TemporaryFile() as stdin, tempfile.NamedTemporaryFile() as stderr:
        for line in (inspect.getsource(runner), request):
            stdin.write(f"{json.dumps(line)}\n".encode())
        stdin.seek(0)
        timed = shlex.join(["timeout", "--kill-after=5", f"{seconds:.0f}", *argv])
        # Outside the run's context: its log is for what happens, not for every round trip.
        code, output = Context().run(_operate, f"exec {timed} 2>{stderr.name}", stdin, dict(env))
        said = stderr.read().decode(errors="replace").strip()[-STDERR_CHARACTERS:]
    if code in (LOST, OUT_OF_TIME):
        raise Unreachable(f"the connection was lost: {said or f'no answer in {seconds:.0f} s'}.")
    if code:
        raise CommandFailed(["commands"], code, said or output)
    return [Result(**result) for result in json.loads(output)]


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


def _ready(stream: IO[bytes] | None) -> bool:
    """Whether the far end's first line came in time."""
    return stream is not None and bool(select([stream], [], [], DIAL)[0] and stream.readline())


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream:
            with suppress(OSError):
                stream.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
