"""The longer way to a machine, over real sockets on the loopback."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rehearsal.distance import CARRIED, HANDSHAKES, Distance
from rehearsal.relay import Streams

FAR = Distance(round_trip=0.1, rate=1e6)
DATA = random.Random(1).randbytes(300_000)  # noqa: S311 - not a secret


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()
    await writer.wait_closed()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(1) + b" and no more")
    writer.close()


@asynccontextmanager
async def line(serve: object = echo) -> AsyncIterator[Streams]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
    async with server:
        port = server.sockets[0].getsockname()[1]
        near = await FAR.put_between(await asyncio.open_connection("127.0.0.1", port))
        try:
            yield near
        finally:
            near[1].close()
            await near[1].wait_closed()
            await asyncio.gather(*CARRIED)


def test_an_answer_takes_a_round_trip_and_a_connection_some() -> None:
    async def run() -> None:
        began = time.monotonic()
        async with line() as (reader, writer):
            opened = time.monotonic()
            assert opened - began >= HANDSHAKES * FAR.round_trip
            for word in (b"one", b"two"):
                writer.write(word)
                assert await reader.readexactly(3) == word
            assert time.monotonic() - opened >= 2 * FAR.round_trip

    asyncio.run(asyncio.wait_for(run(), 20))


def test_what_is_sent_arrives_whole_and_as_the_line_takes_it() -> None:
    async def run() -> None:
        async with line() as (reader, writer):
            began = time.monotonic()
            writer.write(DATA)
            writer.write_eof()
            assert await reader.read(-1) == DATA  # up to the end, which comes through, too
            assert time.monotonic() - began >= len(DATA) / FAR.rate

    asyncio.run(asyncio.wait_for(run(), 20))


def test_the_last_words_of_who_hangs_up_arrive() -> None:
    async def run() -> None:
        async with line(hang_up) as (reader, writer):
            writer.write(b"a")
            assert await reader.read(-1) == b"a and no more"

    asyncio.run(asyncio.wait_for(run(), 20))
