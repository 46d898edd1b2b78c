"""Runs the cases of the HTTP/2 corpus against a server, whichever it is.

    PYTHONPATH=tests python -m kit.http2_corpus HOST PORT [--tls] [--dribble] [--upstream PORT] [NAME...]

prints what each case came to, and ends with 1 if one failed. `--upstream` starts the corpus' own HTTP/1.1
server there, for a proxy at HOST PORT that forwards to it, and checks what it got.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import ssl
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial

from kit import http2
from kit.http2 import Code, Setting
from kit.http2_case import Case, Condition, load
from kit.http2_client import Answer, Client, dial
from kit.http2_upstream import AFTER, SMALL, CorpusUpstream
from kit.wire import Address

FLOOD = 64 << 20  # bytes after which a server that takes them all goes by no window


@dataclass
class Outcome:
    """What a case came to. `complaint` is empty if that is one of the expectations."""

    events: list[str] = field(default_factory=list)
    complaint: str = ""
    departs: bool = False  # it is one of what the case tolerates
    missing: str = ""  # what the server has not, so that the case says nothing about it

    def __str__(self) -> str:
        word = (
            f"skipped, no {self.missing}" if self.missing else self.complaint and f"WRONG: {self.complaint}"
        )
        return f"{word or 'ok'} [{'; '.join(self.events)}]"


class Target:
    """A server: its address, how to reach it, and what stands behind it."""

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None = None,
        name: str | None = None,
        upstream: CorpusUpstream | None = None,
    ) -> None:
        self.address = address
        self.context = context
        self.name = name
        self.upstream = upstream

    def run(self, case: Case, *, dribble: bool = False) -> Outcome:
        """Run one case on a connection of its own."""
        if "proxy" in case.requires and self.upstream is None:
            return Outcome(missing="upstream of ours")
        for what, there in (("plaintext", self.context is None), ("tls", self.context is not None)):
            if what in case.requires and not there:
                return Outcome(missing=what)
        if "whole" in case.requires and dribble:
            return Outcome(missing="whole frames")
        mark = self.upstream.mark() if self.upstream else 0
        with dial(self.address, self.context, self.name) as client:
            run = _Run(case, client, "https" if self.context else "http", dribble)
            try:
                outcome = run.run()
            except AssertionError as error:
                outcome = Outcome(run.events(), str(error))
        if self.upstream and not outcome.missing:
            try:
                self._fence()
            except AssertionError as error:
                outcome.complaint = outcome.complaint or f"no exchange on another connection: {error}"
            outcome.complaint = outcome.complaint or self.upstream.complaint(case, mark)
        return outcome

    def _fence(self) -> None:
        """A whole exchange: what came before it on this listener has arrived at the upstream by now."""
        with dial(self.address, self.context, self.name) as client:
            client.open()
            scheme = "https" if self.context else "http"
            assert client.ask(1, http2.request(path=AFTER, scheme=scheme)).status == 200


class _Run:
    def __init__(self, case: Case, client: Client, scheme: str, dribble: bool) -> None:
        self.case = case
        self.client = client
        self.scheme = scheme
        self.dribble = dribble
        self.next = 1  # the first stream that the case has not used
        self.after: int | None = None  # the stream of the request afterwards

    def run(self) -> Outcome:
        client, case = self.client, self.case
        if case.start == "settings":
            client.send(http2.PREFACE, http2.settings(), dribble=self.dribble)
        extended = case.requires & {"extended-connect", "no-extended-connect"}
        if extended:
            assert client.until(lambda: client.settings_seen > 0, "SETTINGS")
            offered = client.settings.get(Setting.ENABLE_CONNECT_PROTOCOL) == 1
            if offered != ("extended-connect" in extended):
                return Outcome(missing="extended CONNECT" if not offered else "lack of extended CONNECT")
        for step in case.steps(self.scheme):
            if step.send is None:
                self.act(*step.words)
                continue
            if isinstance(step.send, http2.Frame):
                stream = step.send.stream
                if stream % 2 and step.send.type != http2.Type.PRIORITY:
                    client.answer(stream)
                    self.next = max(self.next, stream + 2)
            client.send(step.send, dribble=self.dribble)
        self.settle()
        if self.any_holds(case.expect):
            return Outcome(self.events())
        complaint, departs = "", self.any_holds(case.departs)
        if not departs:
            expected = " | ".join(", ".join(map(str, one)) for one in case.expect)
            complaint = f"expected {expected}"
        return Outcome(self.events(), complaint, departs)

    def any_holds(self, alternatives: list[list[Condition]]) -> bool:
        return any(all(map(self.holds, conditions)) for conditions in alternatives)

    def act(self, what: str, *words: str) -> None:
        """A line that sends no frame of the case. The end of the connection ends every wait: what is
        expected afterwards decides whether that was right."""
        client = self.client
        if what == "WAIT":
            kind, *rest = words
            if kind == "settings":
                client.until(lambda: client.settings_seen > 0, "SETTINGS")
            elif kind == "ack":
                count = int(rest[0]) if rest else 1
                client.until(lambda: client.acks >= count, "the acknowledgement of SETTINGS")
            elif kind == "pong":
                content = bytes.fromhex(rest[0])
                client.until(lambda: content in client.pongs, "the answer to a PING")
            elif kind == "close":
                client.until_closed()
            else:
                answer = client.answer(int(rest[0]))
                size = int(rest[1]) if len(rest) > 1 else 0
                done = {
                    "head": lambda: answer.final or answer.over,
                    "end": lambda: answer.over,
                    "reset": lambda: answer.reset is not None,
                    "data": lambda: len(answer.body) >= size or answer.over,
                }[kind]
                client.until(done, " ".join(words))
        elif what == "HELD":
            stream, most = int(words[0]), int(words[1])
            client.fence(b"held now")
            count = len(client.answer(stream).body)
            assert count <= most, f"{count} bytes of stream {stream} instead of {most} at most"
        elif what == "CLOSE":
            with contextlib.suppress(OSError):
                client.conn.shutdown()
        elif what == "OVERFLOW":
            self.overflow(int(words[0]))
        elif what == "UPLOAD":
            self.upload(int(words[0]), int(words[1]))
        elif what == "EXCEED":
            self.exceed()

    def overflow(self, stream: int) -> None:
        """DATA without regard to any window until the server says something about it."""
        client = self.client
        sent = 0
        while not (client.goaways or client.answer(stream).over or client.closed) and sent < FLOOD:
            client.send(http2.data(stream, bytes(http2.FRAME_MAX)))
            sent += http2.FRAME_MAX
            while not client.closed and (
                len(client.conn.buffer) >= 9 or select.select([client.conn.sock], [], [], 0)[0]
            ):
                client.next()

    def upload(self, stream: int, left: int) -> None:
        """The rest of a request's body, within the windows that the server gives."""
        client = self.client
        assert client.until(lambda: client.settings_seen > 0, "SETTINGS")
        answer = client.answer(stream)
        sent = 0
        while left and not answer.over:

            def room() -> int:
                window = client.settings.get(Setting.INITIAL_WINDOW_SIZE, http2.WINDOW)
                own = window + client.credit.get(stream, 0)
                return min(own, http2.WINDOW + client.credit.get(0, 0)) - sent  # noqa: B023

            if not client.until(lambda: room() > 0 or answer.over, "a window"):
                return
            size = min(left, room(), http2.FRAME_MAX)
            left -= size
            sent += size
            client.send(http2.data(stream, bytes(size), end=not left))

    def exceed(self) -> None:
        """One request more than SETTINGS_MAX_CONCURRENT_STREAMS allows at once; then all others end."""
        client = self.client
        assert client.until(lambda: client.settings_seen > 0, "SETTINGS")
        most = client.settings.get(Setting.MAX_CONCURRENT_STREAMS)
        assert most is not None and most <= 10_000, f"no sensible limit is announced: {most}"
        streams = range(self.next, self.next + 2 * most + 2, 2)
        self.next = streams[-1] + 2
        for stream in streams:
            client.answer(stream)
            client.send(http2.headers(stream, http2.request("POST", scheme=self.scheme)))
        refused = client.answer(streams[-1])
        client.until(lambda: refused.over or bool(client.goaways), "what is said about one stream too many")
        if client.goaways:
            return
        assert refused.reset in (Code.REFUSED_STREAM, Code.PROTOCOL_ERROR), refused.reset
        early = [stream for stream in streams[:-1] if client.answer(stream).over]
        assert not early, f"answered or refused as well: {early}"
        for stream in streams[:-1]:
            client.send(http2.data(stream, end=True))
        for stream in streams[:-1]:
            assert client.until_over(stream).reset is None, f"stream {stream}: {client.answer(stream).reset}"

    def settle(self) -> None:
        """Until what the server says about the case has been read."""
        client, case = self.client, self.case
        if case.after == "close":
            client.until_closed()
            return
        client.fence()
        conditions = [one for conditions in case.expect + case.departs for one in conditions]
        open_ended = any(one.what in ("ignored", "served") for one in conditions)
        ending = {one.stream for one in conditions if one.what == "answered" or not open_ended}
        for stream in ending - {0}:
            over = partial(self.over, client.answer(stream))
            client.until(over, f"the end of stream {stream}")
        if case.after == "request" and not self.given_up():
            self.after = self.next
            fields = http2.request(path=AFTER, scheme=self.scheme)
            answer = client.answer(self.after)
            client.send(http2.headers(self.after, fields, end=True))
            if answer.window < len(SMALL):
                client.send(http2.window_update(self.after, 1000))
            if client.window < len(SMALL):
                client.send(http2.window_update(0, 1000))
            client.until(partial(self.over, answer), "the answer to a request afterwards")
            client.fence(b"at last.")
        if self.given_up():
            client.until_closed()

    def over(self, answer: Answer) -> bool:
        return answer.over or self.given_up()

    def given_up(self) -> bool:
        """The connection has ended, or is about to."""
        return self.client.closed or (bool(self.client.goaways) and self.case.after == "request")

    def holds(self, one: Condition) -> bool:
        client = self.client
        if one.what == "connection":
            return client.closed and bool(client.goaways) and client.goaways[-1][1] in one.codes
        if one.what == "closed":
            return client.closed
        if not self.alive():
            return False
        if one.what == "served":
            return True
        answer = client.answer(one.stream) if one.stream else None
        if one.what == "ignored":
            return all(other.reset is None for other in client.answers.values())
        assert answer is not None
        if one.what == "stream":
            return answer.reset in one.codes
        if one.what == "interim":
            return one.value in [dict(head)[":status"] for head in answer.heads[:-1]]
        if one.what == "trailer":
            return tuple(one.value.split("=")) in (answer.trailers or [])
        if one.what == "body":
            return len(answer.body) == int(one.value)
        if one.what == "malformed":
            # RFC 9113 8.1.1: a stream error, before which a server may send a response
            refused = answer.status is not None and 400 <= answer.status < 500
            return (
                refused and answer.ended and answer.reset in (None, Code.NO_ERROR, Code.PROTOCOL_ERROR)
            ) or (answer.reset == Code.PROTOCOL_ERROR and (answer.status is None or refused))
        if not answer.ended or answer.reset not in (None, Code.NO_ERROR):
            return False
        if one.value == "any":
            return answer.status is not None
        return str(answer.status) in (one.value or "200").split("/")

    def alive(self) -> bool:
        """The connection was not given up, and served the request afterwards."""
        if self.case.after != "request":
            return True
        return not self.given_up() and self.after is not None and self.client.answer(self.after).status == 200

    def events(self) -> list[str]:
        """What the server said, in short."""
        told = []
        for stream, answer in sorted(self.client.answers.items())[:8]:
            parts = [str(answer.status)] if answer.final else []
            parts += [f"{len(answer.body)} bytes"] if answer.body else []
            parts += ["ended"] if answer.ended else []
            parts += [f"RST {_name(answer.reset)}"] if answer.reset is not None else []
            told.append(f"{stream}: {', '.join(parts) or 'nothing'}")
        told += [
            f"GOAWAY {last} {_name(code)} {debug.decode('latin-1')}"
            for last, code, debug in self.client.goaways
        ]
        told += [f"HTTP/1: {self.client.http1[:30]!r}"] if self.client.http1 else []
        return told + (["closed"] if self.client.closed else [])


def _name(code: int) -> str:
    return Code(code).name if code in set(Code) else hex(code)


def main() -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="kit.http2_corpus", description="Run the HTTP/2 corpus.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("names", nargs="*", help="patterns of case names; all without one")
    parser.add_argument("--tls", action="store_true", help="TLS with ALPN; certificates are not checked")
    parser.add_argument("--dribble", action="store_true", help="send byte by byte")
    parser.add_argument("--upstream", type=int, help="port on which to be the server behind a proxy")
    parser.add_argument("--wrong", action="store_true", help="show only what is wrong")
    options = parser.parse_intermixed_args()
    context = None
    if options.tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    upstream = CorpusUpstream(("127.0.0.1", options.upstream)) if options.upstream else None
    target = Target((options.host, options.port), context, "test", upstream)
    wrong = 0
    for case in load():
        if options.names and not any(fnmatch(str(case), pattern) for pattern in options.names):
            continue
        outcome = target.run(case, dribble=options.dribble)
        wrong += bool(outcome.complaint)
        if outcome.complaint or not options.wrong:
            print(f"{case}: {outcome}", flush=True)
    if upstream is not None:
        upstream.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
