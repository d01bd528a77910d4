"""The frames of Google's relay for IAP TCP forwarding, version 4. Pure.

A binary message is one frame, big endian, its tag first:

    1 CONNECT_SUCCESS_SID    u32 length, session id         relay → client
    2 RECONNECT_SUCCESS_ACK  u64 bytes received so far      relay → client
    4 DATA                   u32 length, up to 16384 bytes  both ways
    7 ACK                    u64 bytes received so far      both ways
"""

from __future__ import annotations

import struct

SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
MAX_DATA = 16384


def connect_success(sid: str) -> bytes:
    return struct.pack(">HI", 1, len(sid)) + sid.encode()


def reconnect_success(total: int) -> bytes:
    return struct.pack(">HQ", 2, total)


def data_frame(payload: bytes) -> bytes:
    return struct.pack(">HI", 4, len(payload)) + payload


def ack_frame(total: int) -> bytes:
    return struct.pack(">HQ", 7, total)


def decode(message: bytes) -> memoryview | int | None:
    """The bytes of DATA, the total of ACK, None for other tags; ValueError if cut short.

    What follows the frame is ignored, as gcloud does it.
    """
    try:
        (tag,) = struct.unpack_from(">H", message)
        if tag == 7:
            return int(struct.unpack_from(">Q", message, 2)[0])
        if tag != 4:
            return None
        (length,) = struct.unpack_from(">I", message, 2)
    except struct.error:
        raise ValueError("frame is cut short") from None
    if length > min(MAX_DATA, len(message) - 6):
        raise ValueError("DATA is cut short or too long")
    return memoryview(message)[6 : 6 + length]
