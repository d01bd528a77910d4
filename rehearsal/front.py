"""The TLS front of an address that speaks gRPC and REST on one port, as Secret Manager does.

It ends TLS and copies bytes to the server for the protocol that TLS negotiated, over unix sockets.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

PROTOCOLS: Final = ("http/1.1", "h2")
"""Our preference. gRPC offers h2 alone; curl offers both, wants REST, and so must get http/1.1."""
CHUNK: Final = 1 << 16


async def serve_front(
    host: str, port: int, context: ssl.SSLContext, backends: Mapping[str, Path]
) -> asyncio.Server:
    """Listen with TLS. ``backends``: the unix socket for each of ``PROTOCOLS``.

    A client that negotiates nothing gets http/1.1. A connection ends when either side ends it, so
    a closed front is done with its connections once its backends are closed. Sets the context's
    ALPN protocols.
    """
    context.set_alpn_protocols(list(PROTOCOLS))

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol() or "http/1.1"
        try:
            backend = await asyncio.open_unix_connection(backends[protocol])
        except OSError:
            writer.close()  # as if nothing listened
            return
        try:
            await asyncio.gather(_copy(reader, backend[1]), _copy(backend[0], writer))
        finally:
            backend[1].close()
            writer.close()

    return await asyncio.start_server(connect, host, port, ssl=context)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until the source ends or either side breaks; then end the sink, so the way back ends.

    No more than the streams' own buffers is held: a slow reader slows down the writer.
    """
    with suppress(OSError):
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():  # TLS cannot: there the end of one direction is the end of both
            sink.write_eof()
            return
    sink.close()
