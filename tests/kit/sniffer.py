"""What passes between hosts: every frame that a switch (`kit.netns.plug_in`) sees, put together to streams.

Nothing runs meanwhile: the kernel keeps the frames, which are read when a test asks for them. A frame that it
had to drop fails the test.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from kit.netns import Namespace

_EVERYTHING = 3  # ETH_P_ALL
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ROOM = 64 << 20
_TCP, _SYN = 6, 0x02
_RECORDS = {20: "change_cipher_spec", 21: "alert", 22: "handshake", 23: "application_data"}

End = tuple[str, int]


@dataclass
class Stream:
    """One direction of a TCP connection."""

    source: End
    to: End
    start: int | None = None  # the sequence number of the first byte
    segments: list[tuple[int, bytes]] = field(default_factory=list)

    def data(self) -> bytes:
        """All bytes, each once and in order."""
        if not self.segments:
            return b""
        assert self.start is not None, f"{self.source} to {self.to}: its begin was not seen"
        out = bytearray()
        for at, payload in sorted(((seq - self.start) % (1 << 32), data) for seq, data in self.segments):
            assert at <= len(out), f"{self.source} to {self.to}: {at - len(out)} bytes are missing"
            out += payload[len(out) - at :]
        return bytes(out)


class Sniffer:
    """All frames from its making on."""

    def __init__(self, switch: Namespace) -> None:
        with switch.inside():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._sock.setblocking(False)
        self._streams: dict[tuple[End, End, int], Stream] = {}
        self.frames: list[bytes] = []
        self.others: list[bytes] = []  # IP packets that are neither TCP nor how hosts find each other

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def streams(self) -> list[Stream]:
        """What has passed so far, connections' beginnings first."""
        for frame in self._read():
            self.frames.append(frame)
            self._sort(frame)
        _, dropped = struct.unpack("II", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert dropped == 0, f"the kernel dropped {dropped} frames"
        return [stream for stream in self._streams.values() if stream.segments]

    def _read(self) -> Iterator[bytes]:
        while True:
            try:
                frame, address = self._sock.recvfrom(1 << 17)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENETDOWN:
                    continue
                raise
            # On its way out it is the same one again.
            if address[2] != socket.PACKET_OUTGOING:
                yield frame

    def _sort(self, frame: bytes) -> None:
        kind, packet = int.from_bytes(frame[12:14]), frame[14:]
        if kind == 0x0800:
            size, protocol = (packet[0] & 15) * 4, packet[9]
            family, addresses, length = socket.AF_INET, packet[12:20], int.from_bytes(packet[2:4])
        elif kind == 0x86DD:
            size, protocol = 40, packet[6]
            family, addresses, length = socket.AF_INET6, packet[8:40], 40 + int.from_bytes(packet[4:6])
        else:
            assert kind == 0x0806, f"neither IP nor ARP: {frame[:40].hex()}"
            return
        if protocol != _TCP:
            if protocol not in (socket.IPPROTO_ICMPV6, 0):
                self.others.append(packet)
            return
        half = len(addresses) // 2
        source, to = (socket.inet_ntop(family, part) for part in (addresses[:half], addresses[half:]))
        self._add(source, to, packet[size:length])

    def _add(self, source: str, to: str, segment: bytes) -> None:
        source_port, to_port, seq = struct.unpack("!HHI", segment[:8])
        ends = ((source, source_port), (to, to_port))
        payload, flags = segment[(segment[12] >> 4) * 4 :], segment[13]
        number = len([key for key in self._streams if key[:2] == ends])
        stream = self._streams.get((*ends, number - 1))
        begin = (seq + 1) % (1 << 32)
        if stream is None or (flags & _SYN and stream.start is not None and stream.start != begin):
            stream = self._streams[(*ends, number)] = Stream(*ends)
        if flags & _SYN:
            stream.start = begin
        elif payload:
            stream.segments.append((seq, payload))


def tls_records(data: bytes) -> list[str]:
    """The names of the records in a stream; AssertionError where it is anything but TLS."""
    found = []
    at = 0
    while at < len(data):
        assert len(data) - at >= 5, f"{data[at:]!r} is no TLS record"
        kind, version, size = struct.unpack("!BHH", data[at : at + 5])
        assert kind in _RECORDS and version in (0x0301, 0x0303) and 0 < size <= 16384 + 256, (
            f"no TLS record at {at}: {data[at : at + 60]!r}"
        )
        at += 5 + size
        assert at <= len(data), "the last TLS record is not whole"
        found.append(_RECORDS[kind])
    return found


def plaintext(data: bytes, *words: bytes) -> list[bytes]:
    """Those of the words that can be read there."""
    return [word for word in words if word in data]
