"""HTTP/2 connections that do a bit of everything by chance, and some that are shown what nobody should send.

    python -m kit.http2_chaos SEED ROUNDS

Whatever happens, the memory is all given back: that is asserted here. In a build with assertions
FASTMESH_FAULT=N makes one allocation in N fail; what the codec says then is counted and printed.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from functools import partial

from fastmesh import _http2 as http2
from kit.http2_codec import GET, POST, PREFACE, Peer, frame, goaway, ping, rst_stream, settings, window_update

REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"HEAD /x HTTP/1.1\r\nHost: a.example\r\nCookie: a=b\r\nX-Y: z\r\n\r\n",
    b"GET http://a.example?q HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\n",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 15_000 + b"\r\nX: " + b"z" * 9000 + b"\r\n\r\n",
)
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
)
TRAILERS = (b"", b"x-sum: 1\r\n\r\n", b"X-Sum:1\r\nX-More: " + b"y" * 3000 + b"\r\n\r\n")


class Chaos:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.worker = http2.Worker()
        self.refusals: Counter[str] = Counter()

    def attempt(self, call, *args):  # type: ignore[no-untyped-def]
        try:
            return call(*args)
        except http2.Refused as refused:
            self.refusals[refused.args[0]] += 1
            return None

    def step(self, conn: http2.Conn, role: int) -> None:
        """One thing that an owner may do, on any stream."""
        pick = self.random
        stream = pick.choice(conn.known) if conn.known else 0
        what = pick.randrange(12)
        if role == http2.CLIENT and (what < 4 or not stream):
            if conn.may_open:
                self.attempt(conn.request, pick.choice(REQUESTS), pick.random() < 0.5)
        elif not stream:
            pass
        elif role == http2.SERVER and what < 4:
            self.attempt(conn.respond, stream, pick.choice(RESPONSES), pick.random() < 0.4)
        elif what < 7:
            self.attempt(conn.data, stream, bytes(pick.randrange(9000)), pick.random() < 0.5)
        elif what == 7:
            self.attempt(conn.finish, stream, pick.choice(TRAILERS))
        elif what == 8:
            (conn.reset if pick.random() < 0.8 else conn.reset_behind)(stream)
        elif what == 9:
            conn.consume(stream, pick.randrange(20_000))
        elif what == 10:
            self.attempt(conn.ping)
        elif pick.random() < 0.02:
            conn.goaway(pick.choice((0, 0, 2)))

    def react(self, conn: http2.Conn, role: int, event: tuple) -> None:
        """Inside a hook."""
        if self.random.random() < 0.3:
            self.step(conn, role)

    def carry(self, a: http2.Conn, b: http2.Conn) -> bool:
        """Whether both go on."""
        try:
            data = a.pack(self.random.choice((100, 20_000, 1 << 20)))
        except http2.Refused as refused:
            self.refusals[refused.args[0]] += 1
            return False
        while data:
            step = self.random.choice((1, 10, 1000, 1 << 20))
            try:
                b.receive(data[:step])
            except http2.Refused as refused:
                self.refusals[refused.args[0]] += 1
                return False
            data = data[step:]
        return True

    def pair(self, steps: int) -> None:
        """Two connections of the codec's own."""
        conns: list[http2.Conn] = []
        try:
            for role in (http2.CLIENT, http2.SERVER):
                conns.append(http2.Conn(self.worker, role, stream_window=20_000, max_streams=20))
        except http2.Refused as refused:
            self.refusals[refused.args[0]] += 1
        if len(conns) == 2:
            for conn, role in zip(conns, (http2.CLIENT, http2.SERVER), strict=True):
                conn.react = partial(self.react, conn, role)
            for number in range(steps):
                role = number % 2
                self.step(conns[role], http2.SERVER if role else http2.CLIENT)
                if self.random.random() < 0.5 and not self.carry(conns[role], conns[1 - role]):
                    break
        for conn in conns:
            conn.react = None
            conn.close()
        self.balance()

    def frame(self, peer: Peer, stream: int) -> bytes:
        """Any frame on `stream`, most likely one that is allowed."""
        pick = self.random
        end = pick.random() < 0.4
        match pick.randrange(9):
            case 0:
                crumbs = ((b"cookie", b"a"), (b"x", b"y"), (b"cookie", b"b"))
                return peer.headers(
                    stream, (*pick.choice((GET, POST)), *crumbs), end, pieces=pick.choice((1, 1, 2))
                )
            case 1:
                return peer.headers(stream, ((b":status", b"200"), (b"x", bytes(pick.randrange(100)))), end)
            case 2:
                return peer.data(stream, bytes(pick.randrange(300)), end)
            case 3:
                return rst_stream(stream)
            case 4:
                return window_update(pick.choice((0, stream)), pick.choice((1, 1000, 1 << 30)))
            case 5:
                return settings((pick.randrange(10), pick.choice((0, 1, 100, 65_535, 1 << 20))))
            case 6:
                return ping(ack=end)
            case 7:
                return goaway(pick.choice((0, 5))) if pick.random() < 0.2 else b""
        return frame(pick.randrange(12), pick.randrange(256), stream, bytes(pick.randrange(20)))

    def noise(self) -> bytes:
        """Frames that mostly make sense, some of their bytes changed."""
        pick = self.random
        peer = Peer()
        out = bytearray()
        for number in range(30):
            stream = pick.choice((1, 3, 5, 7, number * 2 + 1))
            out += self.frame(peer, stream)
        for _ in range(pick.choice((0, 0, 1, 3, 20))):
            out[pick.randrange(len(out))] = pick.randrange(256)
        return bytes(out)

    def shown(self, role: int) -> None:
        """A connection that is shown noise in pieces, and whose owner does anything in between."""
        try:
            conn = http2.Conn(self.worker, role, max_streams=10)
        except http2.Refused as refused:
            self.refusals[refused.args[0]] += 1
            return
        conn.react = partial(self.react, conn, role)
        data = (PREFACE if role == http2.SERVER else b"") + settings() + self.noise()
        try:
            for _ in range(3 if role == http2.CLIENT else 0):
                conn.request(self.random.choice(REQUESTS), False)
            while data:
                step = self.random.choice((1, 5, 50, 500))
                conn.receive(data[:step])
                data = data[step:]
                if self.random.random() < 0.3:
                    conn.pack()
            conn.pack()
        except http2.Refused as refused:
            self.refusals[refused.args[0]] += 1
        conn.react = None
        conn.close()
        self.balance()

    def balance(self) -> None:
        left = (self.worker.blocks, self.worker.bytes, self.worker.buffers)
        assert left == (0, 0, 0), f"not given back: {left}"


def run(seed: int, rounds: int) -> Counter[str]:
    chaos = Chaos(seed)
    for _ in range(rounds):
        chaos.pair(120)
        chaos.shown(http2.SERVER)
        chaos.shown(http2.CLIENT)
    return chaos.refusals


if __name__ == "__main__":
    for reason, count in run(int(sys.argv[1]), int(sys.argv[2])).most_common():
        print(reason, count)
