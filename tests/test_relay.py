"""The relay, through an independent websocket client and over real sockets on the loopback."""

import asyncio
import random
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from rehearsal import relay
from rehearsal.relay import Target
from tests.loopback import Backend, RelayLab, echo, untrusted

QUERY = "project=p&zone=z&instance=vm&interface=nic0&port=22"
MEGABYTE = random.Random(1).randbytes(1 << 20)  # noqa: S311 - not a secret


TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE


def run(coroutine: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


class Lab(RelayLab):
    """Clients name themselves in a header."""

    def __init__(self, backend: Backend, grace: float) -> None:
        refused = {33: (4033, "not authorized")}
        super().__init__(backend, lambda request: request.headers.get("caller"), grace, refused)
        self.clients: list[Client] = []

    def client(self, caller: str = "alice") -> "Client":
        self.clients.append(Client(self.url, caller))
        return self.clients[-1]


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's context, with a certificate that nobody trusts."""
    return untrusted(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def lab(
    backend: Backend = echo, grace: float = 5, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Lab]:
    it = Lab(backend, grace)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    app = web.Application()
    app.router.add_get("/{path:.*}", it.relay.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        it.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{runner.addresses[0][1]}"
        yield it
    finally:
        await it.relay.close()
        await until(lambda: it.opened == it.ended)
        for client in it.clients:
            await client.hang_up()
        await runner.cleanup()
        server.close()


class Client:
    """The other side of the protocol, written from Google's client and not from our relay."""

    def __init__(self, url: str, caller: str) -> None:
        self.url, self.headers = url, {"caller": caller} if caller else {}
        self.ws: ClientConnection
        self.dialled: list[ClientConnection] = []
        self.acks: set[asyncio.Task[None]] = set()
        self.sid = ""
        self.received = bytearray()
        self.acked = self.confirmed = 0
        self.reconnects = 0

    async def dial(self, path: str) -> ClientConnection:
        self.ws = await connect(
            self.url + path,
            additional_headers=self.headers,
            subprotocols=[Subprotocol("relay.tunnel.cloudproxy.app")],
            compression=None,
            ssl=TRUSTING if self.url.startswith("wss:") else None,
            proxy=None,
        )
        self.dialled.append(self.ws)
        return self.ws

    async def hang_up(self) -> None:
        for ws in self.dialled:
            ws.transport.abort()
            await ws.wait_closed()

    async def recv(self) -> bytes:
        message = await self.ws.recv()
        assert isinstance(message, bytes)
        return message

    async def open(self, query: str = QUERY) -> "Client":
        await self.dial(f"/v4/connect?{query}")
        hello = await self.recv()
        assert struct.unpack(">HI", hello[:6]) == (1, len(hello) - 6)
        self.sid = hello[6:].decode()
        return self

    async def reopen(self) -> None:
        query = f"sid={self.sid}&ack={len(self.received)}&newWebsocket=True&zone=z"
        await self.dial(f"/v4/reconnect?{query}")
        tag, self.confirmed = struct.unpack(">HQ", await self.recv())
        assert tag == 2
        self.acked = len(self.received)
        self.reconnects += 1

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 16384):
            part = data[start : start + 16384]
            await self.ws.send(struct.pack(">HI", 4, len(part)) + part)

    async def step(self, *, ack: bool = True) -> None:
        """Take one frame."""
        frame = await self.recv()
        if frame[:2] == b"\0\x04":
            assert len(frame) == 6 + struct.unpack(">I", frame[2:6])[0] <= 6 + 16384
            self.received += frame[6:]
            if ack and len(self.received) - self.acked > 2 * 16384:
                self.acked = len(self.received)
                task = asyncio.create_task(self.ack(self.acked))
                self.acks.add(task)  # not awaited here: two full pipes would wait for each other
                task.add_done_callback(self.acks.discard)
        else:
            tag, self.confirmed = struct.unpack(">HQ", frame)
            assert tag == 7

    async def ack(self, total: int) -> None:
        with suppress(ConnectionClosed):  # there may be more to read
            await self.ws.send(struct.pack(">HQ", 7, total))

    async def read(self, count: int, *, ack: bool = True) -> bytes:
        while len(self.received) < count:
            await self.step(ack=ack)
        return bytes(self.received)

    async def closed(self) -> tuple[int | None, str | None]:
        """Read on until the relay closes: its code and reason."""
        with suppress(ConnectionClosed):
            while True:
                await self.step()
        return self.ws.close_code, self.ws.close_reason

    async def exchange(self, data: bytes, after: Callable[[int], None]) -> None:
        """Send ``data`` and read as much, on as many websockets as it takes."""
        while True:
            sender = asyncio.create_task(self.send(data[self.confirmed :]))
            try:
                while len(self.received) < len(data):
                    await self.step()
                    after(len(self.received))
                return await sender
            except ConnectionClosed:
                for task in (sender, *self.acks):
                    task.cancel()
                await asyncio.gather(sender, *self.acks, return_exceptions=True)
                await self.reopen()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - it looks at what happens in the relay
        await asyncio.sleep(0.01)


def test_echo() -> None:
    async def scenario() -> None:
        async with lab() as it:
            client = await it.client().open()
            await client.send(b"hello")
            assert await client.read(5) == b"hello"
            assert client.ws.subprotocol == "relay.tunnel.cloudproxy.app"
            assert it.targets == [Target("p", "z", "vm", "nic0", 22, "alice")]
            await client.ws.close()
            await until(lambda: it.ended == 1)

    run(scenario())


@pytest.mark.parametrize("megabytes", [8, 48], ids=["8 MB", "more than all buffers hold"])
def test_data_arrives_unchanged_and_is_acknowledged(megabytes: int) -> None:
    data = MEGABYTE * megabytes

    async def scenario() -> None:
        async with lab() as it:
            client = await it.client().open()
            await client.exchange(data, lambda total: None)
            assert client.received == data
            assert client.reconnects == 0
            assert client.confirmed >= len(data) - 3 * 16384

    run(scenario())


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_a_transfer_survives_five_network_failures(secure: bool, tls: ssl.SSLContext) -> None:
    data = MEGABYTE * 8

    async def scenario() -> None:
        async with lab(tls=tls if secure else None) as it:
            client = await it.client().open()
            cuts = [1_000_000, 2_000_000, 2_100_000, 5_000_000, 7_999_999]

            def cut(total: int) -> None:
                if cuts and total >= cuts[0] and it.relay.cut():
                    cuts.pop(0)

            await client.exchange(data, cut)
            assert client.received == data
            assert client.reconnects == 5
            assert it.opened == 1

    run(scenario())


def test_a_client_that_went_away_itself_may_come_back() -> None:
    async def scenario() -> None:
        async with lab() as it:
            client = await it.client().open()
            await client.send(MEGABYTE)
            client.ws.transport.abort()
            await client.reopen()
            await client.exchange(MEGABYTE, lambda total: None)
            assert client.received == MEGABYTE

    run(scenario())


def test_bytes_sent_before_a_normal_close_reach_the_backend() -> None:
    got = bytearray()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            got.extend(data)
            await asyncio.sleep(0.001)

    async def scenario() -> None:
        async with lab(collect, grace=60) as it:
            client = await it.client().open()
            await client.send(MEGABYTE)
            await client.ws.close()
            await until(lambda: it.ended == 1)
            assert got == MEGABYTE
            with pytest.raises(ConnectionClosed):
                await client.reopen()
            assert client.ws.close_code == 4001

    run(scenario())


def test_the_end_of_the_backend_comes_after_its_last_byte() -> None:
    async def farewell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(MEGABYTE * 3)

    async def scenario() -> None:
        async with lab(farewell) as it:
            client = await it.client().open()
            assert await client.closed() == (1000, "")
            assert client.received == MEGABYTE * 3

    run(scenario())


def test_the_last_bytes_survive_a_network_failure() -> None:
    async def farewell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(MEGABYTE[:50_000])

    async def scenario() -> None:
        async with lab(farewell) as it:
            client = await it.client().open()
            client.ws.transport.pause_reading()
            await client.send(b"?")
            await until(lambda: it.ended == 1)
            await asyncio.sleep(0.1)  # the relay has sent its close
            client.ws.transport.abort()
            await asyncio.sleep(0.1)  # and knows that nobody got it
            await client.reopen()
            assert await client.closed() == (1000, "")
            assert client.received == MEGABYTE[:50_000]

    run(scenario())


@pytest.mark.parametrize(
    ("port", "answer"),
    [(9, (4003, "failed to connect to backend")), (33, (4033, "not authorized"))],
)
def test_a_refusal_is_a_close_code(port: int, answer: tuple[int, str]) -> None:
    async def scenario() -> None:
        async with lab() as it:
            client = it.client()
            with pytest.raises(ConnectionClosed):
                await client.open(QUERY.replace("port=22", f"port={port}"))
            assert (client.ws.close_code, client.ws.close_reason) == answer

    run(scenario())


@pytest.mark.parametrize(
    ("caller", "path", "status"),
    [
        ("", f"/v4/connect?{QUERY}", 401),
        ("alice", f"/v3/connect?{QUERY}", 404),
        ("alice", "/v4/connect?project=p&zone=z&instance=vm", 400),
        ("alice", "/v4/connect?project=p&zone=z&instance=vm&port=ssh", 400),
        ("alice", "/v4/connect?project=p&zone=z&instance=vm&port=70000", 400),
        ("alice", "/v4/connect?project=p&zone=&instance=vm&port=22", 400),
        ("alice", "/v4/connect?project=p&zone=z&port=22", 400),
        ("alice", "/v4/reconnect?ack=0", 400),
        ("alice", "/v4/reconnect?sid=s&ack=x", 400),
    ],
)
def test_a_bad_request_gets_no_websocket(caller: str, path: str, status: int) -> None:
    async def scenario() -> None:
        async with lab() as it:
            with pytest.raises(InvalidStatus) as error:
                await it.client(caller).dial(path)
            assert error.value.response.status_code == status
            assert it.opened == 0

    run(scenario())


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_a_lost_session_lets_go_of_its_backend(secure: bool, tls: ssl.SSLContext) -> None:
    async def scenario() -> None:
        async with lab(grace=0.3, tls=tls if secure else None) as it:
            client = await it.client().open()
            it.relay.cut()
            await asyncio.sleep(0.1)
            assert it.ended == 0
            await asyncio.wait_for(until(lambda: it.ended == 1), 0.5)
            with pytest.raises(ConnectionClosed):
                await client.reopen()
            assert client.ws.close_code == 4001

    run(scenario())


def test_a_reconnected_session_outlives_the_grace() -> None:
    async def scenario() -> None:
        async with lab(grace=0.2) as it:
            client = await it.client().open()
            it.relay.cut()
            await client.reopen()
            await asyncio.sleep(0.4)
            await client.send(b"still here")
            assert await client.read(10) == b"still here"

    run(scenario())


@pytest.mark.parametrize(
    ("caller", "sid", "code"),
    [("alice", "guess", 4001), ("mallory", "", 4001), ("alice", "", 4002)],
    ids=["unknown", "another caller", "in use"],
)
def test_a_session_is_not_taken_from_its_client(caller: str, sid: str, code: int) -> None:
    async def scenario() -> None:
        async with lab() as it:
            owner = await it.client().open()
            other = it.client(caller)
            other.sid = sid or owner.sid
            with pytest.raises(ConnectionClosed):
                await other.reopen()
            assert other.ws.close_code == code
            await owner.send(b"mine")
            assert await owner.read(4) == b"mine"

    run(scenario())


def test_of_two_reconnects_one_succeeds() -> None:
    async def scenario() -> None:
        async with lab() as it:
            clients = [await it.client().open(), it.client()]
            clients[1].sid = clients[0].sid
            it.relay.cut()
            results = await asyncio.gather(*(c.reopen() for c in clients), return_exceptions=True)
            assert sorted(type(result).__name__ for result in results) == [
                "ConnectionClosedError",
                "NoneType",
            ]

    run(scenario())


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", 1002),
        (b"\0", 1002),
        (b"\0\4\0\0", 1002),
        (b"\0\4\0\0\0\5four", 1002),
        (b"\0\4\0\0\x40\1" + bytes(16385), 1002),
        (b"\0\7\0\0", 1002),
        (b"\0\7" + bytes(7) + b"\1", 4006),
        (bytes(100_000), 1009),
        ("text", 1003),
    ],
)
def test_a_malformed_message_ends_the_session(message: bytes | str, code: int) -> None:
    async def scenario() -> None:
        async with lab() as it:
            client = await it.client().open()
            await client.ws.send(message)
            assert (await client.closed())[0] == code
            await until(lambda: it.ended == 1)

    run(scenario())


def test_an_ack_does_not_go_backwards() -> None:
    async def scenario() -> None:
        async with lab() as it:
            client = await it.client().open()
            await client.send(b"hello")
            await client.read(5)
            await client.ack(4)
            await client.ack(3)
            assert (await client.closed())[0] == 4005

    run(scenario())


def test_an_ack_may_end_within_a_frame() -> None:
    async def scenario() -> None:
        async with lab() as it:
            client = await it.client().open()
            await client.send(b"hello")
            assert await client.read(5) == b"hello"
            await client.ack(2)
            del client.received[3:]
            it.relay.cut()
            await client.reopen()
            assert await client.read(5) == b"hello"

    run(scenario())


def test_unknown_tags_and_empty_data_are_ignored() -> None:
    async def scenario() -> None:
        async with lab() as it:
            client = await it.client().open()
            for message in (b"\0\x63whatever", b"\0\1\0\0\0\1x", b"\0\4\0\0\0\0"):
                await client.ws.send(message)
            await client.ws.send(b"\0\4\0\0\0\2hi and more")
            assert await client.read(2) == b"hi"

    run(scenario())


def test_a_client_that_does_not_acknowledge_stops_the_backend() -> None:
    sent = 0

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        for _ in range(20 * 16):
            writer.write(MEGABYTE[: 1 << 16])
            await writer.drain()
            sent += 1 << 16

    async def scenario() -> None:
        async with lab(source) as it:
            client = await it.client().open()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.read(20 << 20, ack=False), 0.7)
            assert relay.WINDOW <= len(client.received) <= relay.WINDOW + 16384
            assert sent < 20 << 20
            await client.ack(len(client.received))
            assert len(await client.read(20 << 20)) == 20 << 20

    run(scenario())


def test_a_backend_that_does_not_read_stops_the_client() -> None:
    go = asyncio.Event()

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        while await reader.read(1 << 20):
            pass

    async def scenario() -> None:
        async with lab(sink) as it:
            client = await it.client().open()
            sending = asyncio.create_task(client.send(MEGABYTE * 64))
            await asyncio.wait([sending], timeout=1)
            assert not sending.done()
            go.set()
            await sending
            it.relay.cut()

    run(scenario())


def test_a_client_that_vanishes_before_a_stuck_backend_is_noticed() -> None:
    go = asyncio.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.transport.abort()

    async def scenario() -> None:
        async with lab(stuck, grace=0.2) as it:
            client = await it.client().open()
            sending = asyncio.create_task(client.send(MEGABYTE * 64))
            await asyncio.wait([sending], timeout=0.5)
            client.ws.transport.abort()
            await asyncio.gather(sending, return_exceptions=True)
            await asyncio.sleep(1)
            with pytest.raises(ConnectionClosed):
                await client.reopen()
            assert client.ws.close_code == 4001
            go.set()

    run(scenario())


def test_close_ends_every_session() -> None:
    async def scenario() -> None:
        async with lab() as it:
            clients = [await it.client().open() for _ in range(3)]
            ends = [asyncio.create_task(client.closed()) for client in clients]
            await it.relay.close()
            assert await asyncio.gather(*ends) == [(1001, "relay is closing")] * 3
            await until(lambda: it.ended == 3)

    run(scenario())
