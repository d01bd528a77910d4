"""The command line's side of the daemon: start it, ask it, and end what a cloud has left."""

from __future__ import annotations

import fcntl
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from rehearsal import config, host, image
from rehearsal.cgroups import DAEMON
from rehearsal.errors import Json

UP_SECONDS = 90.0
LOCK = Path(f"/run/lock/{config.NAME}")
out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)


class Failed(Exception):
    """What went wrong and the repair, in one sentence."""


def ask(verb: str, path: str, body: Json | None = None, seconds: float = 60) -> Json | None:
    """Ask the daemon; None when there is none."""
    connection = http.client.HTTPConnection("rehearsal", timeout=seconds)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(seconds)
    try:
        connection.sock.connect(str(config.CONTROL))
        connection.request(verb, path, json.dumps(body) if body is not None else None)
        response = connection.getresponse()
        answer: Json = json.loads(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise Failed(f"the daemon does not answer ({error}): python -m rehearsal up") from error
    finally:
        connection.close()
    if response.status != 200:
        raise Failed(answer["error"])
    return answer


def told(verb: str, path: str, body: Json | None = None) -> Json:
    """Ask the daemon, which must be there."""
    answer = ask(verb, path, body)
    if answer is None:
        raise Failed(f"{config.TITLE} is not up: python -m rehearsal up")
    return answer


def is_up() -> bool:
    try:
        status = ask("GET", "/status", seconds=15)
    except Failed:
        return False
    return bool(status and status["up"])


@contextmanager
def alone() -> Iterator[None]:
    """One command that starts or ends the cloud at a time, on a host that can run it."""
    if lacks := host.missing():
        raise Failed("the rehearsal cloud cannot run here: " + "; ".join(lacks))
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            err.print("another command starts or ends the cloud; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def start(beside: Callable[[], object] = lambda: None) -> None:
    """Start a cloud in place of whatever an earlier one has left; building its image comes first.

    ``beside`` is called while the daemon starts. Returns when the cloud is up.
    """
    started = time.monotonic()
    host.clean()
    if not image.built():
        with err.status("building the machine image, once: about 40 seconds"):
            try:
                image.build()
            except image.ImageFailed as error:
                raise Failed(f"the machine image could not be built: {error}") from error
    with err.status("starting the cloud"):
        _start_daemon(beside)
    err.print(f"{config.TITLE} is up ({time.monotonic() - started:.1f} s)")


def others() -> list[str]:
    """The names of the other clouds that are up, or starting."""
    states = Path("/run").glob("rehearsal*/daemon.log")
    return sorted(log.parent.name for log in states if log.parent != config.STATE)


def _start_daemon(beside: Callable[[], object]) -> None:
    for folder in (config.STATE, config.DISKS):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    DAEMON.create()
    log = config.STATE / "daemon.log"
    with log.open("ab") as output:
        daemon = subprocess.Popen(
            [
                *DAEMON.enter(),
                *(sys.executable, "-m", "rehearsal.daemon"),
                config.NAME,  # for those who look at ps
            ],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    beside()
    deadline = time.monotonic() + UP_SECONDS
    while not (config.STATE / "ready").exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace").strip()[-2000:]
            host.clean()
            raise Failed(f"the cloud did not start: {tail or 'no word from the daemon'}")
        time.sleep(0.05)
