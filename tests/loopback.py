"""A stand-in relay on loopback in front of one backend, for tests of both its ends."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from aiohttp import web

from rehearsal.relay import Refused, Relay, Streams, Target

Backend = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


class RelayLab:
    """``refused`` are ports with close code and reason; port 22 leads to the backend, every other to
    nobody. ``targets`` are the connections asked for; ``opened`` and ``ended`` count the backend's.
    """

    def __init__(
        self,
        backend: Backend,
        caller: Callable[[web.BaseRequest], str | None],
        grace: float,
        refused: Mapping[int, tuple[int, str]],
    ) -> None:
        self.backend, self.refused = backend, refused
        self.relay = Relay(self.connect, caller, grace=grace)
        self.url = ""
        self.port = 0
        self.targets: list[Target] = []
        self.opened = self.ended = 0

    async def connect(self, target: Target) -> Streams:
        self.targets.append(target)
        if refused := self.refused.get(target.port):
            raise Refused(*refused)
        return await asyncio.open_connection("127.0.0.1", self.port if target.port == 22 else 1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        with suppress(ConnectionError):
            await self.backend(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.ended += 1
