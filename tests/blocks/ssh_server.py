"""An sshd in process, behind a relay like Google's, for the real ssh and our tunnel to talk to."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
from aiohttp import web

from blocks.iap import IapTarget
from blocks.ssh import SshShell
from tests.loopback import RelayLab

HERE = "import sys; from blocks.iap import main; sys.exit(main(sys.argv[2:], url=sys.argv[1]))"
AS_ROOT = "sudo -n /usr/bin/python3"
REFUSED = {33: (4033, "not authorized"), 47: (4047, "no such instance")}


@dataclass
class Near(SshShell):
    """A shell whose tunnel begins at the relay of a test."""

    url: str = ""

    def _proxy(self) -> list[str]:
        if self.tunnel == "gcloud":
            return super()._proxy()
        to = self.target
        where = (to.project, to.zone, to.instance, str(to.port))
        return [sys.executable, "-c", HERE, self.url, *where]


@dataclass
class Host(asyncssh.SSHServer):
    """``keys``: the public keys it lets in. ``tried``: who has asked to be let in."""

    keys: set[str] = field(default_factory=set)
    tried: list[str] = field(default_factory=list)
    host_key: asyncssh.SSHKey = field(
        default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519")
    )
    cuts: list[int] = field(default_factory=list)
    """Bytes from the client after which its websocket is cut, in order."""
    silent: bool = False
    """It hangs up on everybody."""
    tls: ssl.SSLContext | None = None
    """Of the relay; without, it speaks plainly."""
    url: str = ""
    received = 0
    requests = 0

    @property
    def published(self) -> list[str]:
        return [self.host_key.export_public_key().decode().strip()]

    def begin_auth(self, username: str) -> bool:
        self.tried.append(username)
        return True

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return " ".join(key.export_public_key().decode().split()[:2]) in self.keys

    def shell(self, private_key: str, **other: object) -> Near:
        """A shell for it that knows what it publishes; ``other`` fields than the usual."""
        usual: dict[str, object] = {
            "target": IapTarget("p", "z", "vm"),
            "user": "bootstrap",
            "private_key": private_key,
            "host_keys": lambda: self.published,
            "status": lambda: "RUNNING",
            "token": lambda: "good",
            "patience": 0.0,
            "url": self.url,
        }
        return Near(**{**usual, **other})  # type: ignore[arg-type] # a test's choice

    @contextmanager
    def up(self) -> Iterator[Host]:
        """Serve in a thread of its own."""
        loop, ready = asyncio.new_event_loop(), threading.Event()
        stop = asyncio.Event()
        task = loop.create_task(self._serve(ready, stop))
        thread = threading.Thread(target=loop.run_until_complete, args=[task])
        thread.start()
        try:
            assert ready.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            loop.close()

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        lab = RelayLab(self._backend, _caller, 5, REFUSED)
        sshd = await asyncssh.create_server(
            lambda: self, "127.0.0.1", 0, server_host_keys=[self.host_key],
            process_factory=_execute, encoding=None,
        )  # fmt: skip
        self._port, self._cut = sshd.get_port(), lab.relay.cut
        server = await asyncio.start_server(lab.serve, "127.0.0.1", 0)
        lab.port = server.sockets[0].getsockname()[1]

        async def handle(request: web.Request) -> web.StreamResponse:
            self.requests += 1
            return await lab.relay.handle(request)

        app = web.Application()
        app.router.add_get("/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.tls).start()
        self.url = f"ws{'s' if self.tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await lab.relay.close()
        while lab.opened != lab.ended:  # noqa: ASYNC110 - the backends of what was closed
            await asyncio.sleep(0.01)
        await runner.cleanup()
        server.close()
        sshd.close()
        await sshd.wait_closed()

    async def _backend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From the relay to sshd and back."""
        if self.silent:
            return
        back, there = await asyncio.open_connection("127.0.0.1", self._port)
        answering = asyncio.create_task(_copy(back, writer))
        while data := await reader.read(1 << 16):
            self.received += len(data)
            there.write(data)
            await there.drain()
            if self.cuts and self.received >= self.cuts[0] and self._cut():
                self.cuts.pop(0)
        there.close()
        await asyncio.gather(answering, return_exceptions=True)


def _caller(request: web.BaseRequest) -> str | None:
    return "alice" if request.headers["Authorization"] == "Bearer good" else None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _execute(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """The command, as whom we are, with our Python."""
    line = (process.command or "").replace(AS_ROOT, sys.executable)
    running = await asyncio.create_subprocess_shell(
        line,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path("/"),
    )
    assert running.stdin
    assert running.stdout
    assert running.stderr
    # By hand: redirected, the end of the output closes the channel before the exit status is told.
    feeding = asyncio.create_task(_feed(process.stdin, running.stdin))
    await asyncio.gather(
        _answer(running.stdout, process.stdout), _answer(running.stderr, process.stderr)
    )
    process.exit(await running.wait())
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)


async def _feed(reader: asyncssh.SSHReader[bytes], writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # the command has ended
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncssh.SSHWriter[bytes]) -> None:
    with suppress(OSError):  # nobody listens any more
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
