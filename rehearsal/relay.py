"""Google's relay for IAP TCP forwarding: a websocket in, a TCP connection out.

Clients speak the frames of ``relay_frames``: ``/v4/connect`` opens a session, ``/v4/reconnect``
takes it up again on a new websocket after a network failure.

A ``Session`` outlives its websockets. It owns the backend connection, counts what the client sent,
and keeps what the backend sent until the client confirms it. With ``WINDOW`` bytes unconfirmed it
reads no more, so the backend feels the client's pace. On a websocket run two pumps, ``_receive``
and ``_send``. They stop by raising ``End``, whose code says what becomes of the session: after LOST
it waits for a reconnect; with any other code websocket, session and backend connection are closed.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from aiohttp import WebSocketError, WSMsgType, web

from rehearsal.relay_frames import (
    MAX_DATA,
    SUBPROTOCOL,
    ack_frame,
    connect_success,
    data_frame,
    decode,
    reconnect_success,
)

CHUNK = MAX_DATA - 6  # up to 16384 bytes with its header, a frame leaves in one write
ACK_AFTER = 2 * MAX_DATA  # bytes received before they are acknowledged, as gcloud does it
WINDOW = 1 << 20  # bytes of the backend that wait for the client's ACK
# An ACK queues behind the client's own data. When the backend does not take that data because we
# do not read what it writes (an echo is enough), the window must give, or all wait for ever. What
# the two sockets between client and relay can hold is the most that may stand before the ACK.
LIMIT = 1 << 24
BACKLOG = 1 << 16  # bytes that wait for the backend
LOST = 1006  # RFC 6455: no close frame was seen

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class End(Exception):
    """The end of a websocket: close code and reason."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class Refused(End):
    """No session for this client, such as 4003 (no backend) or 4033 (not authorized)."""


@dataclass(frozen=True)
class Target:
    """Where a client wants to go, and who it is."""

    project: str
    zone: str
    instance: str
    interface: str
    port: int
    caller: str | None


def parse_target(query: Mapping[str, str], caller: str) -> Target:
    """KeyError or ValueError for a bad query."""
    project, zone, instance = (query[name] for name in ("project", "zone", "instance"))
    port = int(query["port"])
    if not (project and zone and instance and 0 < port < 65536):
        raise ValueError("empty, or no such port")
    return Target(project, zone, instance, query.get("interface", "nic0"), port, caller)


class Link:
    """One websocket and the socket under it."""

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self.ws, self._transport = ws, transport
        self._socket: socket.socket = transport.get_extra_info("socket")

    @property
    def alive(self) -> bool:
        """Asks the kernel: while back pressure stops our reading, asyncio does not notice an end."""
        if self._transport.is_closing() or self._socket.fileno() == -1:
            return False
        state = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state == 1  # TCP_ESTABLISHED

    def abort(self) -> None:
        _abort(self._transport, self._socket)

    async def close(self, end: End, patience: float) -> None:
        """Close and await the answer: a socket closed while data comes in loses what goes out."""
        if end.code != LOST:
            closing = asyncio.create_task(self.ws.close(code=end.code, message=end.reason.encode()))
            await asyncio.wait([closing], timeout=patience)
            closing.cancel()
            await asyncio.wait([closing])
        if LOST in (end.code, self.ws.close_code):
            self.abort()


class Session:
    """One backend connection, and what must survive the websockets that carry it."""

    def __init__(self, caller: str | None, streams: Streams, link: Link, grace: float) -> None:
        self.sid, self.caller = secrets.token_urlsafe(32), caller
        self.link, self._grace = link, grace  # link: the newest
        self.end: End | None = None  # set when the backend has ended, sent after its last byte
        self.lock = asyncio.Lock()  # of the link that carries the session
        self.reaper: asyncio.TimerHandle | None = None
        self._reader, self._writer = streams
        self._pumps: list[asyncio.Task[None]] = []
        self._received = self._acked = 0  # bytes from the client
        self._read = self._sent = self._confirmed = 0  # bytes from the backend
        self._unsent, self._unconfirmed = deque[bytes](), deque[bytes]()
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._blocked = False  # the client's data waits for the backend
        self._filler = asyncio.create_task(self._fill())

    def claim(self, link: Link) -> None:
        """Take the session over. Nothing is awaited, so of two reconnects only one succeeds."""
        if self.link.alive:
            raise Refused(4002, "session is in use")
        if self.reaper is not None:
            self.reaper.cancel()
        self.release()
        self.link.abort()
        self.link = link

    def release(self) -> None:
        """Stop the pumps; ``carry`` then returns."""
        for pump in self._pumps:
            pump.cancel()

    def close(self, grace: float) -> None:
        """Part from the backend, which has ``grace`` seconds to take what the client has sent."""
        self._filler.cancel()
        transport = self._writer.transport
        transport.close()
        backend = transport.get_extra_info("socket")
        asyncio.get_running_loop().call_later(grace, _abort, transport, backend)

    async def carry(self, ws: web.WebSocketResponse, ack: int | None) -> End:
        """Run on this websocket until it or the session ends. ``ack``: None the first time."""
        try:
            hello = connect_success(self.sid) if ack is None else self._resume(ack)
        except End as end:
            return end
        self._pumps = [
            asyncio.create_task(self._receive(ws)),
            asyncio.create_task(self._send(ws, hello)),
        ]
        try:
            await asyncio.wait(self._pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self.release()
            results = await asyncio.gather(*self._pumps, return_exceptions=True)
        for result in results:  # the client's word counts before the backend's
            if isinstance(result, End):
                return result
            if isinstance(result, Exception):
                raise result
        return self.end or End(LOST)

    def _resume(self, ack: int) -> bytes:
        """Go back to the first byte the client lacks. Returns the frame to begin with."""
        self._confirm(ack)
        self._unsent.extendleft(reversed(self._unconfirmed))
        self._unconfirmed.clear()
        self._sent, self._acked = self._confirmed, self._received
        return reconnect_success(self._received)

    async def _fill(self) -> None:
        try:
            while chunk := await self._reader.read(CHUNK):
                self._read += len(chunk)
                self._unsent.append(chunk)
                self._wake.set()
                while self._read - self._confirmed >= (LIMIT if self._blocked else WINDOW):
                    self._room.clear()
                    await self._room.wait()
            self.end = End(1000)
        except OSError:
            self.end = End(4010, "failed to read from backend")
        self._wake.set()

    async def _send(self, ws: web.WebSocketResponse, hello: bytes) -> None:
        with suppress(ConnectionError):  # _receive judges: the client's last words may be unread
            await ws.send_bytes(hello)
            while self.end is None or self._unsent:
                self._wake.clear()
                if self._received - self._acked > ACK_AFTER:
                    self._acked = self._received
                    await ws.send_bytes(ack_frame(self._acked))
                if self._unsent:
                    chunk = self._unsent.popleft()
                    self._unconfirmed.append(chunk)
                    self._sent += len(chunk)
                    await ws.send_bytes(data_frame(chunk))
                else:
                    await self._wake.wait()
            raise self.end

    async def _receive(self, ws: web.WebSocketResponse) -> None:
        while (message := await ws.receive()).type is WSMsgType.BINARY:
            self._accept(message.data)
            if self._writer.transport.get_write_buffer_size() > BACKLOG:
                await self._drain()
        if message.type is WSMsgType.TEXT:
            raise End(1003, "frames are binary")
        if isinstance(message.data, WebSocketError):
            raise End(message.data.code)
        # gcloud says 1000 when its own side has ended; 0 stands for a close frame without a code
        goodbye = message.type is WSMsgType.CLOSE and message.data in (0, 1000, 1001)
        raise End(1000 if goodbye else LOST)

    async def _drain(self) -> None:
        self._blocked = True
        self._room.set()
        drain = asyncio.gather(self._writer.drain(), return_exceptions=True)  # _fill reports errors
        try:
            while not (await asyncio.wait([drain], timeout=self._grace))[0]:
                if not self.link.alive:  # who does not read is not told
                    raise End(LOST)
        finally:
            self._blocked = False
            drain.cancel()

    def _accept(self, message: bytes) -> None:
        try:
            frame = decode(message)
        except ValueError as error:
            raise End(1002, str(error)) from None
        if isinstance(frame, int):
            self._confirm(frame)
        elif frame and not self._writer.is_closing():
            self._writer.write(frame)
            self._received += len(frame)
            if self._received - self._acked > ACK_AFTER:
                self._wake.set()

    def _confirm(self, total: int) -> None:
        if total < self._confirmed:
            raise End(4005, "ACK goes backwards")
        if total > self._sent:
            raise End(4006, "ACK of bytes that were not sent")
        while count := total - self._confirmed:
            chunk = self._unconfirmed.popleft()
            if count < len(chunk):
                self._unconfirmed.appendleft(chunk[count:])
            self._confirmed += min(count, len(chunk))
        self._room.set()


class Relay:
    """``connect`` leads to the backend or raises ``Refused``; ``caller`` names who asks, or None.

    A session lives ``grace`` seconds without a websocket.
    """

    def __init__(
        self,
        connect: Callable[[Target], Awaitable[Streams]],
        caller: Callable[[web.BaseRequest], str | None],
        *,
        grace: float = 10.0,
    ) -> None:
        self._connect, self._caller, self._grace = connect, caller, grace
        self._sessions: dict[str, Session] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer /v4/connect and /v4/reconnect; what Google refuses, it accepts and then closes."""
        if request.path not in ("/v4/connect", "/v4/reconnect"):
            raise web.HTTPNotFound
        if (caller := self._caller(request)) is None:
            raise web.HTTPUnauthorized
        begin: Callable[[Link], Awaitable[None]]
        try:
            if request.path == "/v4/connect":
                begin = partial(self._begin, parse_target(request.query, caller))
            else:
                sid, ack = request.query["sid"], int(request.query["ack"])
                begin = partial(self._resume, sid, ack, caller)
        except (KeyError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"bad query: {error}") from None
        ws = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,), compress=False, timeout=self._grace, max_msg_size=1 << 16
        )
        await ws.prepare(request)
        if request.transport is not None:  # else the client has gone
            link = Link(ws, request.transport)
            try:
                await begin(link)
            except Refused as refused:
                await link.close(refused, self._grace)
        return ws

    async def close(self) -> None:
        """End every session."""
        sessions = list(self._sessions.values())
        for session in sessions:
            session.end = End(1001, "relay is closing")
            session.release()
        for session in sessions:
            async with session.lock:  # free when the websocket has been closed
                self._sessions.pop(session.sid, None)
                session.close(grace=0)

    def cut(self) -> int:
        """Abort every websocket, as a failing network would. Returns how many."""
        links = [session.link for session in self._sessions.values() if session.link.alive]
        for link in links:
            link.abort()
        return len(links)

    async def _begin(self, target: Target, link: Link) -> None:
        try:
            streams = await self._connect(target)
        except OSError:
            raise Refused(4003, "failed to connect to backend") from None
        session = Session(target.caller, streams, link, self._grace)
        self._sessions[session.sid] = session
        await self._serve(session, link, None)

    async def _resume(self, sid: str, ack: int, caller: str, link: Link) -> None:
        session = self._sessions.get(sid)
        if session is None or session.caller != caller:
            raise Refused(4001, "session is unknown")
        session.claim(link)
        await self._serve(session, link, ack)

    async def _serve(self, session: Session, link: Link, ack: int | None) -> None:
        end = End(LOST)
        try:
            async with session.lock:
                end = await session.carry(link.ws, ack)
                await link.close(end, self._grace)
        finally:
            # An answered close tells that the backend's last bytes have arrived.
            lost = end.code == LOST or (end is session.end and link.ws.close_code == LOST)
            if session.link is link:  # nobody took the session over
                if lost and session.sid in self._sessions:
                    loop = asyncio.get_running_loop()
                    session.reaper = loop.call_later(self._grace, self._drop, session)
                else:
                    self._drop(session)

    def _drop(self, session: Session) -> None:
        self._sessions.pop(session.sid, None)
        session.close(self._grace)


def _abort(transport: asyncio.WriteTransport, sock: socket.socket) -> None:
    if sock.fileno() != -1:  # abort() fails on a transport that has closed after its last flush
        transport.abort()
