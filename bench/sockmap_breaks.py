"""What an application meets on a connection that sockmap moves, beside the same by TCP.

Each check has two connected sockets and says in a few words what it saw.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

LIMIT: Final = 256 << 20  # bytes that a reader who reads nothing is sent at most
QUIET_SECONDS: Final = 1.0  # a sender that was not taken anything off for so long is stopped
DEADLINE: Final = 20.0
CHUNK: Final = bytes(1 << 20)
PIPE: Final = 1 << 20
BYTES_ACKED: Final = 120  # offset of tcpi_bytes_acked in struct tcp_info

Check = Callable[[socket.socket, socket.socket], str]


def stalled(sender: socket.socket, reader: socket.socket) -> str:
    """How much can be sent to somebody who does not read."""
    count = accepted(sender)
    return f"all of {count >> 20} MiB" if count >= LIMIT else f"{count / (1 << 20):.0f} MiB"


def accepted(sender: socket.socket) -> int:
    """Bytes that a socket takes before it blocks for good, LIMIT at most."""
    count = 0
    sender.setblocking(False)
    while count < LIMIT and select.select([], [sender], [], QUIET_SECONDS)[1]:
        with contextlib.suppress(BlockingIOError):
            count += sender.send(CHUNK)
    return count


def spliced(sender: socket.socket, reader: socket.socket) -> str:
    """splice(2) from the socket into a pipe, as forwarders do."""
    wanted = 60_000
    sender.sendall(bytes(wanted))
    if not _readable(reader):
        return "never readable"
    reader.setblocking(False)
    out, into = os.pipe()
    try:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while count < wanted:
                moved = os.splice(reader.fileno(), into, wanted - count, flags=os.SPLICE_F_NONBLOCK)
                count += moved
                os.read(out, PIPE)
        left = "" if count == wanted or not _readable(reader) else ", still readable"
    finally:
        os.close(out)
        os.close(into)
    return f"{count} of {wanted} bytes{left}"


def low_water_mark(sender: socket.socket, reader: socket.socket) -> str:
    """SO_RCVLOWAT of 1000: is a reader woken by 10 bytes?"""
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    sender.sendall(bytes(10))
    return "woken too early" if _readable(reader, 0.2) else "kept"


def urgent(sender: socket.socket, reader: socket.socket) -> str:
    """MSG_OOB: one byte that is no part of the stream."""
    sender.sendall(b"ab")
    sender.send(b"!", socket.MSG_OOB)
    _readable(reader)
    return f"stream {_all(reader, 2)!r}"


def counted(sender: socket.socket, reader: socket.socket) -> str:
    """What TCP_INFO says was acknowledged, as `ss -i` shows it."""
    sender.sendall(bytes(10_000))
    _all(reader, 10_000)
    info = sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    # The SYN counts as one.
    return "right" if struct.unpack_from("Q", info, BYTES_ACKED)[0] >= 10_000 else "nothing"


CHECKS: Final[dict[str, Check]] = {
    "sent to a reader that does not read": stalled,
    "splice(2) from the socket": spliced,
    "SO_RCVLOWAT": low_water_mark,
    "MSG_OOB after b'ab'": urgent,
    "bytes in TCP_INFO": counted,
}


def _readable(reader: socket.socket, seconds: float = DEADLINE) -> bool:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _all(reader: socket.socket, count: int) -> bytes:
    """Until `count` bytes are there, and what came with them."""
    got = b""
    end = time.monotonic() + DEADLINE
    while len(got) < count and time.monotonic() < end:
        got += reader.recv(1 << 16)
    return got
