"""The tunnel, against the stand-in relay over real sockets on the loopback."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from blocks import iap
from blocks.iap import IapError, IapTarget, tunnel
from rehearsal.relay import End, Link, Session, Target
from tests.conftest import ROOT
from tests.loopback import Backend, RelayLab, echo

TARGET = IapTarget("p", "z", "vm")
MEGABYTE = random.Random(1).randbytes(1 << 20)  # noqa: S311 - not a secret
FORTY = MEGABYTE * 40
LAST = 100_000
REFUSED = {port: (4000 + port, "as the test wants it") for port in (33, 47)}


def run(coroutine: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 15))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the network we are in does not lead to our loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - it looks at what happens in the relay
        await asyncio.sleep(0.01)


class Lab(RelayLab):
    """Tunnels to a relay, whose callers prove themselves by a token."""

    def __init__(self, backend: Backend, grace: float) -> None:
        super().__init__(backend, self.caller, grace, REFUSED)
        self.tokens = {"good"}
        self.runner = web.AppRunner(self.app())
        self.requests: list[web.Request] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.relay.handle(request)

    def caller(self, request: web.BaseRequest) -> str | None:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        return "alice" if token in self.tokens else None

    @property
    def session(self) -> Session:
        (session,) = self.relay._sessions.values()
        return session

    @asynccontextmanager
    async def tunnel(
        self, target: IapTarget = TARGET, *, token: iap.Token | None = None, **options: Any
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.Task[None]]]:
        """The near end of a tunnel, and the task that runs it."""

        async def good() -> str:
            return "good"

        ours, theirs = socket.socketpair()
        near = await asyncio.open_connection(sock=ours)
        far = await asyncio.open_connection(sock=theirs)
        task = asyncio.create_task(tunnel(target, token or good, *far, url=self.url, **options))
        task.add_done_callback(lambda done: far[1].close())
        try:
            yield *near, task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for writer in (near[1], far[1]):
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()


@asynccontextmanager
async def lab(backend: Backend = echo, grace: float = 5) -> AsyncIterator[Lab]:
    it = Lab(backend, grace)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    await it.runner.setup()
    try:
        await web.TCPSite(it.runner, "127.0.0.1", 0).start()
        it.url = f"ws://127.0.0.1:{it.runner.addresses[0][1]}"
        yield it
    finally:
        await it.relay.close()
        await until(lambda: it.opened == it.ended)
        await it.runner.cleanup()
        server.close()


async def give(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), 1 << 16):
        writer.write(data[start : start + (1 << 16)])
        await writer.drain()


def md5(data: bytes | bytearray) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_a_round_trip_and_the_names_it_goes_by() -> None:
    async def scenario() -> None:
        async with lab() as it, it.tunnel() as (reader, writer, task):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert it.targets == [Target("p", "z", "vm", "nic0", 22, "alice")]
            assert it.requests[0].headers["Origin"] == "bot:iap-tunneler"
            writer.write_eof()
            await task
            await until(lambda: it.ended == 1)
            assert not it.relay._sessions

    run(scenario())


def cutter(it: Lab, cuts: list[int]) -> Callable[[int], None]:
    def cut(total: int) -> None:
        if cuts and total >= cuts[0] and it.relay.cut():
            cuts.pop(0)

    return cut


def test_40_mb_up_survive_five_cuts_and_arrive_before_the_end() -> None:
    digest, cuts = hashlib.md5(usedforsecurity=False), [1, 4_000_000, 4_100_000, 20_000_000]

    async def scenario() -> None:
        async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            total = 0
            while data := await reader.read(1 << 16):
                digest.update(data)
                total += len(data)
                cut(total)

        async with lab(sink) as it, it.tunnel() as (_, writer, task):
            cut = cutter(it, cuts)
            await give(writer, FORTY[:-LAST])
            it.relay.cut()
            await give(writer, FORTY[-LAST:])
            writer.write_eof()
            await task
            await until(lambda: it.ended == 1)
            assert len(it.requests) == 6
        assert digest.hexdigest() == md5(FORTY)
        assert cuts == []

    run(scenario())


def test_40_mb_down_survive_five_cuts_and_arrive_before_the_end() -> None:
    cuts = [1, 4_000_000, 4_100_000, 20_000_000, len(FORTY) - 4_000_000]

    async def scenario() -> None:
        async def source(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await give(writer, FORTY)

        async with lab(source) as it, it.tunnel() as (reader, _, task):
            cut, got = cutter(it, cuts), bytearray()
            while data := await reader.read(1 << 16):
                got += data
                cut(len(got))
            await task
            assert md5(got) == md5(FORTY)
            assert cuts == []
            assert len(it.requests) == 6

    run(scenario())


@pytest.mark.parametrize("megabytes", [8, 48], ids=["8 MB", "more than all buffers hold"])
def test_both_ways_at_once_do_not_wait_for_each_other(megabytes: int) -> None:
    async def scenario() -> None:
        async with lab() as it, it.tunnel() as (reader, writer, _):
            giving = asyncio.create_task(give(writer, MEGABYTE * megabytes))
            assert await reader.readexactly(megabytes << 20) == MEGABYTE * megabytes
            await giving
            assert len(it.requests) == 1

    run(scenario())


@pytest.mark.parametrize(
    ("port", "token", "kind", "code", "repair"),
    [
        (9, "good", iap.BackendUnreachable, 4003, "35.235.240.0/20"),
        (33, "good", iap.NotAuthorized, 4033, "roles/iap.tunnelResourceAccessor"),
        (22, "bad", iap.NotAuthorized, 401, "roles/iap.tunnelResourceAccessor"),
        (47, "good", iap.NoSuchInstance, 4047, "project, zone and instance"),
    ],
)
def test_a_refusal_has_its_own_type_and_repair(
    port: int, token: str, kind: type[IapError], code: int, repair: str
) -> None:
    async def provide() -> str:
        return token

    async def scenario() -> None:
        target = IapTarget("p", "z", "vm", port)
        async with lab() as it, it.tunnel(target, token=provide) as (_, _, task):
            with pytest.raises(kind, match=re.escape(repair)) as caught:
                await task
            assert type(caught.value) is kind
            assert caught.value.code == code
            assert repair in caught.value.repair
            assert len(it.requests) == 1

    run(scenario())


def test_every_error_has_an_exit_status_of_its_own_and_help_names_it() -> None:
    kinds = IapError.__subclasses__()
    assert len({kind.status for kind in kinds}) == len(kinds) == 5
    for kind in kinds:
        assert f"{kind.status} {kind.__name__}" in (iap.__doc__ or "")


def test_a_relay_that_stays_away_is_given_up_in_time() -> None:
    async def scenario() -> None:
        async with lab() as it, it.tunnel(patience=0.6) as (reader, writer, task):
            writer.write(b"x")
            await reader.readexactly(1)
            for site in list(it.runner.sites):
                await site.stop()
            it.relay.cut()
            began = time.monotonic()
            with pytest.raises(iap.RelayUnreachable):
                await task
            assert 0.4 < time.monotonic() - began < 2

    run(scenario())


def test_a_relay_that_accepts_and_says_nothing_is_given_up_in_time() -> None:
    async def scenario() -> None:
        hung_up = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
            hung_up.set()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        it = Lab(echo, 1)
        it.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with it.tunnel(patience=0.3) as (_, _, task):
            with pytest.raises(iap.RelayUnreachable):
                await task
            await hung_up.wait()
        server.close()

    run(scenario())


def test_a_session_the_relay_has_forgotten_is_lost() -> None:
    async def scenario() -> None:
        async with lab(grace=0.01) as it, it.tunnel() as (reader, writer, task):
            writer.write(b"x")
            await reader.readexactly(1)
            it.relay.cut()
            with pytest.raises(iap.SessionLost) as caught:
                await task
            assert caught.value.code == 4001

    run(scenario())


def test_when_asked_to_authenticate_again_it_takes_a_new_token() -> None:
    issued = iter(["first", "second"])

    async def provide() -> str:
        return next(issued)

    async def scenario() -> None:
        async with lab() as it:
            it.tokens = {"first"}
            async with it.tunnel(token=provide) as (reader, writer, _):
                writer.write(b"x")
                await reader.readexactly(1)
                it.tokens = {"second"}
                await it.session.link.close(End(4004, "reauthenticate"), 1)
                writer.write(b"y")
                assert await reader.readexactly(1) == b"y"
                assert it.opened == 1

    run(scenario())


def test_a_session_said_to_be_in_use_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, True]
    monkeypatch.setattr(
        Link, "alive", property(lambda link: bool(answers) and answers.pop()), raising=True
    )

    async def scenario() -> None:
        async with lab() as it, it.tunnel() as (reader, writer, _):
            writer.write(b"x")
            await reader.readexactly(1)
            it.session.link.abort()
            writer.write(b"y")
            assert await reader.readexactly(1) == b"y"
            assert len(it.requests) == 4

    run(scenario())


def test_a_websocket_that_goes_silent_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iap, "PING", 0.2)

    async def scenario() -> None:
        async with lab() as it, it.tunnel() as (reader, writer, _):
            writer.write(b"x")
            await reader.readexactly(1)
            await asyncio.sleep(0.6)
            assert len(it.requests) == 1  # the relay answers pings
            transport = it.requests[0].transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            monkeypatch.setattr(Link, "alive", False)  # or else it is in use
            writer.write(b"y")
            assert await reader.readexactly(1) == b"y"
            assert len(it.requests) == 2

    run(scenario())


def test_a_local_side_that_does_not_listen_keeps_its_websocket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(iap, "PING", 0.1)

    async def scenario() -> None:
        async def source(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await give(writer, MEGABYTE * 8)

        async with lab(source) as it, it.tunnel() as (reader, _, task):
            await asyncio.sleep(1)
            assert await reader.read() == MEGABYTE * 8
            await task
            assert len(it.requests) == 1

    run(scenario())


def test_a_slow_local_reader_slows_the_instance_down() -> None:
    given = 0

    async def scenario() -> None:
        async def source(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal given
            for given in range(64):  # noqa: B007 - how far it came
                await give(writer, MEGABYTE)

        async with lab(source) as it, it.tunnel() as (reader, _, _):
            await asyncio.sleep(0.7)
            assert given < 24
            assert await reader.readexactly(1 << 20) == MEGABYTE

    run(scenario())


def test_a_slow_instance_slows_the_local_writer_down() -> None:
    given = 0
    go = asyncio.Event()

    async def scenario() -> None:
        async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            writer.transport.abort()

        async def fill(writer: asyncio.StreamWriter) -> None:
            nonlocal given
            for given in range(64):  # noqa: B007
                await give(writer, MEGABYTE)

        async with lab(deaf, grace=0.1) as it, it.tunnel() as (_, writer, _):
            filling = asyncio.create_task(fill(writer))
            await asyncio.sleep(0.7)
            assert given < 24
            filling.cancel()
            go.set()
            await until(lambda: it.ended == 1)

    run(scenario())


def test_a_local_side_that_goes_away_ends_the_session() -> None:
    async def scenario() -> None:
        async def source(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await give(writer, FORTY)

        async with lab(source, grace=60) as it, it.tunnel() as (reader, writer, task):
            await reader.readexactly(10)
            writer.transport.abort()
            await task
            await until(lambda: not it.relay._sessions)

    run(scenario())


def test_cancelling_ends_the_session_at_once() -> None:
    async def scenario() -> None:
        async with lab(grace=60) as it, it.tunnel() as (reader, writer, task):
            writer.write(b"x")
            await reader.readexactly(1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: it.ended == 1)

    run(scenario())


def test_no_log_level_shows_the_token(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with lab() as it, it.tunnel() as (reader, writer, _):
            writer.write(b"x")
            await reader.readexactly(1)

    with caplog.at_level(logging.DEBUG):
        run(scenario())
    assert "good" not in caplog.text


# The ProxyCommand

HERE = "import sys; from blocks.iap import main; sys.exit(main(sys.argv[2:], url=sys.argv[1]))"


async def proxy_command(
    url: str, port: str, token: str, tmp_path: Path
) -> asyncio.subprocess.Process:
    (tmp_path / "token").write_text(f"{token}\n")
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", HERE, url, "p", "z", "vm", port),
        cwd=ROOT,
        env={**os.environ, "IAP_TUNNEL_TOKEN_FILE": str(tmp_path / "token")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_proxy_command_copies_stdin_and_stdout(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with lab() as it:
            process = await proxy_command(it.url, "22", "good", tmp_path)
            assert process.stdin
            assert process.stdout
            assert process.stderr
            giving = asyncio.create_task(give(process.stdin, MEGABYTE * 4))
            assert await process.stdout.readexactly(4 << 20) == MEGABYTE * 4
            await giving
            process.stdin.close()
            assert await process.stderr.read() == b""
            assert await process.wait() == 0

    run(scenario())


def test_the_proxy_command_writes_all_the_instance_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def source(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await give(writer, MEGABYTE * 4)

        async with lab(source) as it:
            process = await proxy_command(it.url, "22", "good", tmp_path)
            assert process.stdout
            assert process.stderr
            await asyncio.sleep(0.5)
            assert await process.stdout.read() == MEGABYTE * 4
            assert await process.stderr.read() == b""
            assert await process.wait() == 0  # though stdin is open

    run(scenario())


@pytest.mark.parametrize(
    ("port", "token", "status", "begin"),
    [
        ("9", "good", 44, "failed to connect to backend [4003]. "),
        ("33", "good", 45, "as the test wants it [4033]. "),
        ("22", "bad", 45, "the relay refused [401]. "),
        ("47", "good", 46, "as the test wants it [4047]. "),
    ],
)
def test_the_proxy_command_says_why_in_one_line(
    port: str, token: str, status: int, begin: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with lab() as it:
            process = await proxy_command(it.url, port, token, tmp_path)
            assert process.stderr
            words = (await process.stderr.read()).decode()
            assert words.startswith(begin)
            assert words.count("\n") == 1
            assert words.endswith(".\n")
            assert token not in words
            assert await process.wait() == status

    run(scenario())


def test_the_proxy_command_without_a_network_or_a_token(tmp_path: Path) -> None:
    """And with /dev/null as stdin, which cannot be waited for."""
    token = tmp_path / "token"
    for status in (45, 47):
        done = subprocess.run(
            [sys.executable, "-c", HERE, "ws://127.0.0.1:1", "p", "z", "vm", "22"],
            cwd=ROOT,
            env={**os.environ, "IAP_TUNNEL_TOKEN_FILE": str(token)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert done.stderr.count("\n") == 1
        token.write_text("good")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_the_session_at_once(number: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with lab(grace=60) as it:
            process = await proxy_command(it.url, "22", "good", tmp_path)
            assert process.stdin
            assert process.stdout
            assert process.stderr
            process.stdin.write(b"x")
            await process.stdout.readexactly(1)
            process.send_signal(number)
            assert await process.wait() == 0
            assert await process.stderr.read() == b""
            await until(lambda: it.ended == 1)

    run(scenario())


def test_help_comes_at_once() -> None:
    """A tunnel for every ssh must not cost what importing Prefect or Google's clients costs."""
    code = "import sys, blocks.iap; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert not {"prefect", "google.auth", "googleapiclient", "requests"} & set(done.stdout.split())
    done = subprocess.run(
        [sys.executable, "-m", "blocks.iap", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert "ProxyCommand" in done.stdout
