"""Frames between the supervisor and its children, over a socket pair.

A frame is four bytes of length (big endian) and a JSON object with a "type", at most 64 MiB. Descriptors
travel with SCM_RIGHTS on the first byte of their frame. A frame that carries a snapshot is made by
`snapshot_frame`: exactly the keys "type" and "snapshot" in this order, so that its inside can be taken out
and passed on as it stands.

Nothing here blocks: `send` queues and writes what the kernel takes, `flush` writes on, `receive` returns the
frames that are whole. A peer that stops reading must not make the other side grow without bound: a frame
sent with a `key` replaces the one of the same key that has not started to leave.

A channel owns its socket and nothing else: descriptors given to `send` stay the caller's, descriptors in a
received frame are the receiver's to close.
"""

from __future__ import annotations

import json
import os
import socket
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

MAX_FRAME = 64 * 1024 * 1024
# What the kernel passes in one message (SCM_MAX_FD).
MAX_DESCRIPTORS = 253
_READ = 256 * 1024
_HEADER = 4
_SNAPSHOT = b'{"type":"snapshot","snapshot":'


class ChannelError(Exception):
    """The peer does not speak this protocol: the channel is of no further use."""


class Frame:
    """One received frame: `body` as it came, `message` and `type` in it, the descriptors that came with it.

    Raises ChannelError if the body is no object with a type.
    """

    __slots__ = ("body", "descriptors", "message", "type")

    def __init__(self, body: bytes, descriptors: list[int]) -> None:
        try:
            message = json.loads(body)
        except ValueError as error:
            raise ChannelError(f"a frame that is no JSON: {error}") from error
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ChannelError("a frame that is no object with a type")
        self.body = body
        self.message: dict[str, Any] = message
        self.type: str = message["type"]
        self.descriptors = descriptors


def encode(message: Mapping[str, object]) -> bytes:
    """The body of a frame: compact JSON."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def snapshot_frame(snapshot: bytes, kind: str = "snapshot", **more: object) -> bytes:
    """The body of a frame that carries a snapshot, given as JSON text, after `more`."""
    return b'%s,"snapshot":%s}' % (encode({"type": kind, **more})[:-1], snapshot)


def snapshot_bytes(frame: Frame) -> bytes:
    """The JSON text of the snapshot in a snapshot frame."""
    if frame.body.startswith(_SNAPSHOT):
        return frame.body[len(_SNAPSHOT) : frame.body.rindex(b"}")]
    return encode(frame.message["snapshot"])


class _Outgoing:
    __slots__ = ("data", "descriptors", "key", "offset")

    def __init__(self, body: bytes, descriptors: Sequence[int], key: str | None) -> None:
        self.data = len(body).to_bytes(_HEADER, "big") + body
        self.key = key
        self.offset = 0
        # Our own copies: the caller may close its descriptors before the frame has left.
        self.descriptors: list[int] = []
        try:
            for fd in descriptors:
                self.descriptors.append(os.dup(fd))
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []


class Channel:
    """One end of a channel, non-blocking from the moment it is made.

    `closed` is true once the peer has gone; what it sent before is still returned by that call of `receive`.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._out: list[_Outgoing] = []
        self._in = bytearray()
        # Descriptors, each with the stream position of a byte of the frame it came with.
        self._descriptors: list[tuple[int, int]] = []
        self._received = 0
        self.closed = False

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """A new channel, and the socket of its other end for the child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(ours), theirs

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """The channel on an inherited descriptor, which programs started from here no longer inherit."""
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def waiting(self) -> bool:
        """True while frames wait for the peer to read: poll for writing, then `flush`."""
        return bool(self._out)

    def send(
        self,
        message: Mapping[str, object] | bytes,
        *,
        descriptors: Sequence[int] = (),
        key: str | None = None,
    ) -> None:
        """Queue one frame and write what can be written. To a peer that has gone it does nothing.

        A `bytes` message is a body already encoded. Raises ValueError for a frame that is too large, OSError
        if `descriptors` cannot be copied; then nothing has been queued.
        """
        body = message if isinstance(message, bytes) else encode(message)
        if len(body) > MAX_FRAME:
            raise ValueError(f"a frame of {len(body)} bytes: at most {MAX_FRAME} can be sent")
        if len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError(f"{len(descriptors)} descriptors: at most {MAX_DESCRIPTORS} travel in a frame")
        if self.closed:
            return
        if key is not None:
            for item in [item for item in self._out if item.key == key and not item.offset]:
                item.release()
                self._out.remove(item)
        self._out.append(_Outgoing(body, descriptors, key))
        self.flush()

    def flush(self) -> None:
        """Write what the kernel takes."""
        while self._out:
            item = self._out[0]
            view = memoryview(item.data)[item.offset :]
            try:
                if item.descriptors:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", item.descriptors))
                    item.offset += self._sock.sendmsg([view], [rights])
                    item.release()
                else:
                    item.offset += self._sock.send(view)
            except BlockingIOError:
                return
            except OSError:
                # The peer has gone. What it sent before is still to be read: `receive` says closed, not this.
                self._drop_outgoing()
                return
            if item.offset == len(item.data):
                self._out.pop(0)

    def receive(self) -> list[Frame]:
        """The frames that are whole by now; reads all there is and sets `closed` at the end of the stream.

        Raises ChannelError if the peer sends something else than frames.
        """
        frames: list[Frame] = []
        while not self.closed:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(
                    _READ, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            except OSError:
                data, ancillary = b"", []
            self.closed = not data
            self._received += len(data)
            self._in += data
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    # Linux may put bytes sent before in front of them, but ends the read at the message that
                    # carries descriptors: they belong to the frame of the last byte.
                    fds = array("i")
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                    self._descriptors += [(self._received - 1, fd) for fd in fds]
            frames += self._whole_frames()
        return frames

    def _whole_frames(self) -> list[Frame]:
        frames: list[Frame] = []
        start = 0
        while len(self._in) - start >= _HEADER:
            length = int.from_bytes(self._in[start : start + _HEADER], "big")
            if length > MAX_FRAME:
                raise ChannelError(f"a frame of {length} bytes: at most {MAX_FRAME} are allowed")
            end = start + _HEADER + length
            if len(self._in) < end:
                break
            position = self._received - len(self._in) + end
            fds = [fd for at, fd in self._descriptors if at < position]
            self._descriptors = [(at, fd) for at, fd in self._descriptors if at >= position]
            frames.append(Frame(bytes(self._in[start + _HEADER : end]), fds))
            start = end
        del self._in[:start]
        return frames

    def _drop_outgoing(self) -> None:
        for item in self._out:
            item.release()
        self._out.clear()

    def close(self) -> None:
        """Close the socket and every descriptor received but not handed out. May be called twice."""
        for _, fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()
        self._drop_outgoing()
        self.closed = True
        self._sock.close()
