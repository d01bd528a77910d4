"""A longer way between the relay and its machines, as IAP has it from another continent.

The kernel may lack netem, so the relay imposes it: what goes in arrives half a round trip later, and
no faster than the line takes it, each direction by itself. A connection costs ``HANDSHAKES`` round
trips before its first byte.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from rehearsal.relay import Streams

HANDSHAKES = 3
"""Of TCP, TLS 1.3 and the websocket."""
CHUNK = 1 << 14
LINE = 256
"""As many chunks are on their way, in one direction; then the sender has to wait."""
CARRIED = set[asyncio.Task[None]]()
"""The open lines: asyncio itself would forget them."""


@dataclass(frozen=True)
class Distance:
    """Seconds there and back, and bytes a second."""

    round_trip: float
    rate: float

    async def put_between(self, far: Streams) -> Streams:
        """The near end of the line, once it is open; it ends when ``far`` does, and the reverse."""
        await asyncio.sleep(HANDSHAKES * self.round_trip)
        ends = socket.socketpair()
        near, middle = [await asyncio.open_connection(sock=end) for end in ends]
        task = asyncio.create_task(self._carry(middle, far))
        CARRIED.add(task)
        task.add_done_callback(CARRIED.discard)
        return near

    async def _carry(self, middle: Streams, far: Streams) -> None:
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._one_way(middle[0], far[1]))
                both.create_task(self._one_way(far[0], middle[1]))
        except* OSError:  # one end is gone, and so the line
            pass
        finally:
            for _, writer in (middle, far):
                writer.close()

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.Queue[tuple[float, bytes]](LINE)
        now = asyncio.get_running_loop().time

        async def send() -> None:
            free = now()
            while True:
                data = await reader.read(CHUNK)
                free = max(free, now()) + len(data) / self.rate
                await line.put((free + self.round_trip / 2, data))
                if not data:
                    return

        async def arrive() -> None:
            while True:
                due, data = await line.get()
                await asyncio.sleep(due - now())
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(send())
            both.create_task(arrive())
