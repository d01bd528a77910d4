"""A run that is cancelled in the midst of a wait ends at once, and leaves no process behind.

The run is a process as the worker starts it, and gets the signal that the worker sends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.types.entrypoint import EntrypointType

from tests.flows.waiting import waiting
from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]

ROOT = Path(__file__).parent.parent.parent
SECONDS = 5.0
SSH = """#!/bin/sh
# As ssh does it: the proxy is the master's child, and who goes through the master ends with it.
case "$*" in
*dialling@*)
    touch "$WAITS"
    exec sleep 1000
    ;;
*" -M "*)
    echo $$ >"$WAITS.master"
    sleep 1000 & proxy=$!
    trap 'kill $proxy' EXIT
    echo ready
    cat >/dev/null
    ;;
*)
    touch "$WAITS"
    while kill -0 "$(cat "$WAITS.master")" 2>/dev/null; do sleep 0.1; done
    exit 255
    ;;
esac
"""


@dataclass
class Google:
    """Answers only that an operation is running, or 503; what waits longer gets no answer."""

    url: str
    asked: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    status: int = 200


@pytest.fixture
def google() -> Iterator[Google]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.set()
            served.over.wait(60)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            if "/wait" in self.path:
                return self.do_GET()
            body = json.dumps({"name": "operation-1", "status": "RUNNING"}).encode()
            self.send_response(served.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            if served.status != 200:
                served.asked.set()
            return None

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        served = Google(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield served
        served.over.set()
        server.shutdown()


def processes(mark: str) -> list[str]:
    """The command lines of those that have the mark in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture(scope="module")
def deployment(request: pytest.FixtureRequest) -> uuid.UUID:
    request.getfixturevalue("prefect_api")
    made: Any = waiting.to_deployment("waiting", entrypoint_type=EntrypointType.MODULE_PATH)
    saved: uuid.UUID = made.apply()
    return saved


CASES = [
    ("reading", 200),
    ("operation", 200),
    ("operation", 503),
    ("dialling", 200),
    ("shell", 200),
    ("beside", 200),
]


@pytest.mark.parametrize(("where", "status"), CASES)
def test_a_cancelled_run_ends_at_once_and_leaves_nothing_behind(
    deployment: uuid.UUID, google: Google, tmp_path: Path, where: str, status: int
) -> None:
    google.status = status
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    parameters = {"where": where, "url": google.url}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    mark, waits = uuid.uuid4().hex, tmp_path / "waits"
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PREFECT_API_URL": str(client.api_url),
        "WAITS": str(waits),
        "MARK": mark,
    }
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect.engine", str(run.id)],
        cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (google.asked.is_set() or waits.exists()):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.wait(30)
        took = time.monotonic() - began
        while processes(mark) and time.monotonic() < began + SECONDS:
            time.sleep(0.05)
        assert processes(mark) == []
        assert took < SECONDS, (tmp_path / "log").read_text()
    finally:
        log.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
