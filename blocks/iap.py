"""A TCP connection to an instance through Identity-Aware Proxy: the native tunnel of ``gcloud``.

    ssh -o ProxyCommand="python -m blocks.iap PROJECT ZONE INSTANCE 22" …

Credentials are the Application Default Credentials. Whoever has a token already names a file that
holds it in ``IAP_TUNNEL_TOKEN_FILE``; it is read again for every websocket, so it can be renewed.
(Not a descriptor: ssh closes those before it runs a ProxyCommand.) No secret is an argument.

Protocol v4, big endian, one frame a binary message: 1 CONNECT_SUCCESS (u32 length, session id),
2 RECONNECT_SUCCESS and 7 ACK (u64: all bytes received so far), 4 DATA (u32 length, ≤ 16384 bytes).
A session outlives its websockets: both sides keep what the other has not confirmed and send it
again on the next one. An ACK is sent by the task that sends the data, never by the one that
receives: two full pipes would wait for each other. Source: gcloud, ``api_lib/compute/iap_tunnel_*``.

An error is one line on stderr and an exit status (the relay's close codes are in brackets):
44 BackendUnreachable [4003], 45 NotAuthorized [4033, HTTP 4xx], 46 NoSuchInstance [4047],
47 RelayUnreachable (network, or no reconnect within a minute), 48 SessionLost [4001, others].
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Origin, Subprotocol

URL = "wss://tunnel.cloudproxy.app"
TOKEN_FILE = "IAP_TUNNEL_TOKEN_FILE"  # noqa: S105 - the name of a variable
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
MAX_DATA = 16384
ACK_AFTER = 2 * MAX_DATA  # bytes received before they are acknowledged, as gcloud does it
WINDOW = 1 << 20  # local bytes that wait for the relay's ACK
PING = 20.0  # seconds between pings, and for the answer
DELAY, SLOWEST = 0.2, 5.0  # seconds before the first reconnect, and between any two
GOODBYE = 1.0  # seconds to tell the relay that we go
TOKENLESS = logging.getLogger("blocks.iap.websocket")
TOKENLESS.setLevel(logging.INFO)  # whatever others set: at DEBUG, websockets logs the token


class IapError(Exception):
    """Why there is no tunnel. ``code``: close code or HTTP status, 0 where there is neither."""

    status, repair = 1, ""

    def __init__(self, what: str, code: int = 0) -> None:
        super().__init__(f"{what.rstrip('.')}{f' [{code}]' if code else ''}. {self.repair}")
        self.code = code


class BackendUnreachable(IapError):
    """Worth another try while the instance boots."""

    status = 44
    repair = "Check that the instance has booted, that sshd runs, and that a firewall rule allows tcp:22 from 35.235.240.0/20."


class NotAuthorized(IapError):
    status = 45
    repair = "Grant the account roles/iap.tunnelResourceAccessor, and check that its credentials are valid."


class NoSuchInstance(IapError):
    status = 46
    repair = "Check the names of project, zone and instance: there is no such instance."


class RelayUnreachable(IapError):
    """Worth another try."""

    status = 47
    repair = "Check that this machine reaches tunnel.cloudproxy.app:443, then connect again."


class SessionLost(IapError):
    """The connection to the instance is gone; a new one may well succeed."""

    status = 48
    repair = "Connect again."


KINDS: dict[int, type[IapError]] = {4003: BackendUnreachable, 4033: NotAuthorized}
KINDS |= {4047: NoSuchInstance, 4004: NotAuthorized}
KINDS[4002] = RelayUnreachable  # SID_IN_USE: the end of our last websocket is not yet known there
REAUTHENTICATE = 4004  # resumable, with a new token

Token = Callable[[], Awaitable[str]]
"""An access token that is valid now; asked for every websocket. OSError when it cannot be had yet."""


@dataclass(frozen=True)
class IapTarget:
    """A port of an instance, by names: the instance needs no address."""

    project: str
    zone: str
    instance: str
    port: int = 22
    interface: str = "nic0"


async def tunnel(
    target: IapTarget,
    token: Token,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    url: str = URL,
    patience: float = 60.0,
) -> None:
    """Copy bytes both ways until either side ends; all of the instance's are then in ``writer``.

    The protocol knows no half close: at the end of ``reader`` the session ends, after its last
    byte. A failing network is survived for ``patience`` seconds, the first dial is not repeated.
    Cancelling ends the session. Raises IapError.
    """
    clock = asyncio.get_running_loop().time
    session = _Session(target, reader, writer, patience)
    filling = asyncio.create_task(session.fill())
    deadline, delay = clock() + patience, DELAY
    try:
        while True:
            moved, up = session.received + session.confirmed, float("inf")
            try:
                async with asyncio.timeout_at(deadline):
                    ws = await session.dial(url, await token())
                up = clock()
                await session.carry(ws)
                return
            except (OSError, WebSocketException) as error:
                failure = _failure(error)
                if session.closing and failure.code == 4001:
                    return  # our goodbye has arrived, and only its answer was lost
                if session.received + session.confirmed > moved or clock() - up > SLOWEST:
                    deadline, delay = clock() + patience, DELAY  # that websocket was of use
                again = isinstance(failure, RelayUnreachable) or failure.code == REAUTHENTICATE
                if not (session.sid and again and clock() < deadline):
                    raise failure from error
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter is no secret
            delay = min(delay * 2, SLOWEST)
    finally:
        filling.cancel()


def _failure(error: Exception) -> IapError:
    """What the end of a dial or a websocket means."""
    if isinstance(error, InvalidStatus):
        code = error.response.status_code
        refused = 400 <= code < 500 and code != 429
        return (NotAuthorized if refused else RelayUnreachable)("the relay refused", code)
    if isinstance(error, ConnectionClosed) and error.rcvd is not None:
        code, reason = error.rcvd.code, error.rcvd.reason
        kind = KINDS.get(code, SessionLost if code >= 4000 else RelayUnreachable)
        return kind(reason or "the relay closed", code)
    return RelayUnreachable(str(error) or type(error).__name__)


class _Session:
    """What survives a websocket: the session's id, the counts, and what is not yet confirmed."""

    def __init__(
        self,
        target: IapTarget,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        patience: float,
    ) -> None:
        self.target, self.reader, self.writer, self.patience = target, reader, writer, patience
        self.sid = ""
        self.received = self.acked = 0  # bytes from the instance, and how many we acknowledged
        self.sent = self.confirmed = 0  # bytes to the instance, and how many the relay has
        self.pending = bytearray()  # of the local stream, from the first unconfirmed byte on
        self.ended = self.closing = False  # the local stream; and the relay has been told
        self.stalled = False  # the local side does not take what we have for it
        self.wake, self.room = asyncio.Event(), asyncio.Event()

    async def fill(self) -> None:
        """Read the local stream, never more than ``WINDOW`` ahead of the relay."""
        with suppress(OSError):  # a broken stream has ended
            while chunk := await self.reader.read(MAX_DATA):
                self.pending += chunk
                self.wake.set()
                while len(self.pending) >= WINDOW:
                    self.room.clear()
                    await self.room.wait()
        self.ended = True
        self.wake.set()

    async def dial(self, url: str, token: str) -> ClientConnection:
        """Begin the session, or take it up where it was."""
        again = {"sid": self.sid, "ack": self.received, "zone": self.target.zone}
        query = {**(again if self.sid else vars(self.target)), "newWebsocket": "True"}
        ws = await connect(
            f"{url}/v4/{'reconnect' if self.sid else 'connect'}?{urlencode(query)}",
            origin=Origin("bot:iap-tunneler"),
            subprotocols=[Subprotocol("relay.tunnel.cloudproxy.app")],
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,
            open_timeout=None,  # the caller's deadline counts
            close_timeout=self.patience,  # what was sent before goes first
            ping_interval=None,  # see watch
            logger=TOKENLESS,
        )
        try:
            hello = await ws.recv(decode=False)
            if self.sid:
                self._confirm(int.from_bytes(hello[2:10]))
        except BaseException:
            ws.transport.abort()  # a proper close would end the session
            raise
        self.sid = self.sid or hello[6:].decode()
        self.sent, self.acked = self.confirmed, self.received
        return ws

    async def carry(self, ws: ClientConnection) -> None:
        """Returns when either side has ended; raises ConnectionClosed when the network has."""
        helpers = [asyncio.create_task(self._send(ws)), asyncio.create_task(self._watch(ws))]
        try:
            await self._receive(ws)
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != 1000:
                raise
        except OSError:
            pass  # nobody is there to write to
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await ws.close()
            ws.transport.abort()

    async def _receive(self, ws: ClientConnection) -> None:
        while True:
            frame = await ws.recv(decode=False)
            if frame[:2] == b"\0\4":
                data = frame[6 : 6 + int.from_bytes(frame[2:6])]
                self.writer.write(data)
                self.received += len(data)
                if self.received - self.acked >= ACK_AFTER:
                    self.wake.set()
                self.stalled = True
                await self.writer.drain()
                self.stalled = False
            elif frame[:2] == b"\0\7":
                self._confirm(int.from_bytes(frame[2:10]))

    async def _send(self, ws: ClientConnection) -> None:
        with suppress(ConnectionClosed):  # _receive tells why, when it has read what came before
            while True:
                self.wake.clear()
                if self.received - self.acked >= ACK_AFTER:
                    self.acked = self.received
                    await ws.send(b"\0\7" + self.acked.to_bytes(8))
                elif data := self._next():
                    self.sent += len(data)
                    await ws.send(b"\0\4" + len(data).to_bytes(4) + data)
                elif self.ended:
                    self.closing = True
                    return await ws.close()
                else:
                    await self.wake.wait()

    async def _watch(self, ws: ClientConnection) -> None:
        """Abort a websocket that answers no ping, unless it is we who do not listen."""
        while True:
            await asyncio.sleep(PING)
            try:
                async with asyncio.timeout(PING):
                    await (await ws.ping())
            except TimeoutError:
                if not self.stalled:
                    ws.transport.abort()

    def _next(self) -> bytearray:
        start = self.sent - self.confirmed
        return self.pending[start : start + MAX_DATA]

    def _confirm(self, total: int) -> None:
        if not self.confirmed <= total <= self.sent:
            raise SessionLost("the relay confirms what was not sent")
        del self.pending[: total - self.confirmed]
        self.confirmed = total
        self.room.set()


async def _token() -> str:
    """What ``IAP_TUNNEL_TOKEN_FILE`` names, else the Application Default Credentials."""
    try:
        if path := os.environ.get(TOKEN_FILE):
            return (await asyncio.to_thread(Path(path).read_text)).strip()
    except OSError as error:
        raise NotAuthorized(f"no token: {error}") from error
    return await asyncio.to_thread(_application_default)


def _application_default() -> str:
    from google.auth import default, exceptions  # half a second, which a token file saves
    from google.auth.transport.requests import Request

    try:
        with warnings.catch_warnings(action="ignore"):  # of a missing quota project: we need none
            credentials, _ = default(scopes=[SCOPE])
        credentials.refresh(Request())  # type: ignore[no-untyped-call] # google-auth is half typed
    except exceptions.TransportError as error:
        raise ConnectionError(f"no token: {error}") from error
    except exceptions.GoogleAuthError as error:
        raise NotAuthorized(f"no token: {error}") from error
    return str(credentials.token)


def _stdin() -> IO[bytes]:
    """Stdin, or for what cannot be waited for, such as /dev/null, a pipe from it."""
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(0):
        return sys.stdin.buffer
    out, into = os.pipe()
    subprocess.Popen(["cat"], stdout=into)
    os.close(into)
    return os.fdopen(out, "rb")


async def _proxy(target: IapTarget, url: str) -> None:
    """The tunnel between the instance and stdin and stdout."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    source, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), _stdin())
    sink, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), sys.stdout.buffer
    )
    writer = asyncio.StreamWriter(sink, protocol, None, loop)
    task = asyncio.create_task(tunnel(target, _token, reader, writer, url=url))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # ssh ends us with SIGHUP
        loop.add_signal_handler(number, task.cancel)
    try:
        with suppress(asyncio.CancelledError, OSError):  # told to end; nobody reads
            await task
            writer.close()
            await writer.wait_closed()
    finally:
        source.close()
        writer.close()


def main(argv: Sequence[str] | None = None, *, url: str = URL) -> int:
    """Be a ProxyCommand. Returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m blocks.iap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("project", "zone", "instance"):
        parser.add_argument(name)
    parser.add_argument("port", type=int)
    target = IapTarget(**vars(parser.parse_args(argv)))
    if stat.S_ISREG(os.fstat(1).st_mode):
        parser.error("stdout is a file, which cannot be waited for: write to a pipe")
    # It warns of what is written to a websocket that is being cut, which is sent again on the next.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    try:
        asyncio.run(_proxy(target, url))
    except IapError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
