"""A stand-in relay on loopback in front of one backend, for tests of both its ends."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

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


def untrusted(folder: Path) -> ssl.SSLContext:
    """A server's context, with a certificate that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    file = folder / "server.pem"
    file.write_bytes(
        builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
