"""Running commands on an instance: over SSH, through IAP.

One connection serves a whole run: a ControlMaster whose far end waits for our end of its stdin, so
it is gone when this process is, however that ended. The host's keys come from its guest attributes,
and no other key is accepted.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from typing import IO, Self

from blocks import iap
from blocks.shell import RUNNER, Command, Result, round_trip
from blocks.unreached import (
    HostKeyMismatch,
    KeyRefused,
    NoAnswer,
    NoGcloud,
    NotBooted,
    Tunnel,
    by_tunnel,
)
from flows.errors import BootstrapError, Unreachable

PAUSE = 0.5
"""Seconds between tries to connect."""
DIAL = 30.0
"""Seconds for one try to connect."""
SETTLES = 10.0
"""Seconds in which a first boot may still exchange the host's keys."""
# Leaves the last host key that was shown in a file. ssh runs it without a shell, before it judges.
NOTE = """/bin/sh -c 'case $1 in NONE) ;; *) echo "$1 $2" > "$0";; esac' {} %t %K"""


@dataclass
class SshShell:
    """An instance, by its name, as root by sudo; connects when entered.

    ``host_keys`` reads the host's public keys, empty while it has not published them; ``status`` what
    Compute Engine says of it; ``token`` is an access token that is valid now. Raises Unreachable
    after ``patience`` seconds, Final at once where waiting would not help.
    """

    target: iap.IapTarget
    user: str
    private_key: str = field(repr=False)
    host_keys: Callable[[], Sequence[str]]
    status: Callable[[], str]
    token: Callable[[], str] = field(repr=False)
    patience: float = 180.0
    tunnel: Tunnel = "iap"
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
        return round_trip([*self._ssh(), remote], commands, together, self._environment())

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
            except (Unreachable, HostKeyMismatch) as error:
                if isinstance(error, HostKeyMismatch):
                    deadline = min(deadline, time.monotonic() + SETTLES)
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)

    def _dial(self) -> subprocess.Popen[bytes]:
        keys = self.host_keys()
        if not keys:
            raise NotBooted(self.target.instance, self.status())
        self._write("known_hosts", "".join(f"{self.target.instance} {key}\n" for key in keys))
        self._write("shown", "")
        if self.tunnel == "iap":
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
            try:
                connected = _ready(master.stdout)
            except BaseException:  # such as the signal that ends a run
                _end(master)
                raise
            if connected:
                return master
            _end(master)
            stderr.seek(0)
            said = " ".join(stderr.read().decode(errors="replace").split())
        raise self._failure(keys, said or f"no answer in {DIAL:.0f} s")

    def _failure(self, keys: Sequence[str], said: str) -> BootstrapError:
        """Why a dial did not succeed; ``said`` are the words of ssh."""
        name, shown = self.target.instance, self._path("shown").read_text().strip()
        if shown and shown not in keys:
            return HostKeyMismatch(name, shown)
        if failure := self._tunnel_failure():
            return failure
        if shown:
            return KeyRefused(name, self.user, said.rstrip("."))
        return NoAnswer(f"{name} does not answer as its sshd would: {said}")

    def _tunnel_failure(self) -> BootstrapError | None:
        """What keeps the tunnel from opening, if that is it."""
        try:
            probe = subprocess.run(
                self._proxy(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=DIAL, env=self._environment(),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return NoAnswer(f"IAP does not answer in {DIAL:.0f} s.")
        except FileNotFoundError:
            return NoGcloud()
        name = self.target.instance
        return by_tunnel(name, self.tunnel, probe.returncode, probe.stderr, self.status)

    def _proxy(self) -> list[str]:
        to = self.target
        if self.tunnel == "gcloud":
            where = (f"--project={to.project}", f"--zone={to.zone}", "--verbosity=warning")
            start = ("gcloud", "compute", "start-iap-tunnel", to.instance, str(to.port))
            return [*start, "--listen-on-stdin", *where]
        where = (to.project, to.zone, to.instance)
        return [sys.executable, "-m", "blocks.iap", *where, str(to.port)]

    def _ssh(self, *options: str) -> list[str]:
        settings = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": self._path("key"),
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": self._path("known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            "KnownHostsCommand": NOTE.format(shlex.quote(str(self._path("shown")))),
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
        """Ours, so that our proxy finds its module and its token; gcloud needs neither."""
        if self.tunnel == "gcloud":
            return dict(os.environ)
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
