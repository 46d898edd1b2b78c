"""The gRPC service of `kit.grpc_scenarios` on grpcio: `python -m kit.grpc_service [HOST:PORT]`.

It runs outside the test process, because grpcio's threads and descriptors belong to nobody there. It says
`{"port": N}` on stdout once it listens, and it ends with its standard input: gracefully, calls that are under
way may end, when a line "drain" comes first. A call brings its program as metadata `x-script`; under its
`x-call` the service remembers what it saw, and gives that out once through `/fastmesh.test.Control/Seen`,
which waits until the call has ended here.

Beside the programs there is `/fastmesh.test.Script/Who`: it answers with the port that was asked.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from kit.grpc_messages import COMPRESSION, OPTIONS, digest, encode, from_pairs, to_pairs
from kit.grpc_scenarios import METHODS
from kit.limits import DEADLINE

CONTROL = "/fastmesh.test.Control/Seen"
WHO = "/fastmesh.test.Script/Who"
FOREVER = 1e12  # seconds; grpcio's word for no deadline is a number beyond it
OWN = ("x-script", "x-call")  # metadata of the harness: no part of what is compared


@dataclass
class Seen:
    """What the service saw of one call."""

    method: str
    authority: str
    metadata: list[list[Any]]
    deadline: float | None
    messages: list[str] = field(default_factory=list)
    half_closed: bool = False
    cancelled: bool = False
    ended: bool = False


class Records:
    """What was seen of each call, until somebody asks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seen: dict[str, Seen] = {}

    def begin(self, call: str, seen: Seen) -> None:
        with self._changed:
            self._seen[call] = seen

    def end(self, seen: Seen) -> None:
        with self._changed:
            seen.ended = True
            self._changed.notify_all()

    def take(self, call: str) -> dict[str, Any] | None:
        """What was seen of a call that has ended; None if it never came, or never ends."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: call in self._seen and self._seen[call].ended, DEADLINE)
            return vars(self._seen.pop(call)) if arrived else None


class Program:
    """One call: the steps that its client wants of us."""

    def __init__(self, records: Records, requests: Iterator[bytes], context: Any) -> None:
        self.records, self.requests, self.context = records, requests, context
        metadata = context.invocation_metadata()
        fields = dict(metadata)
        self.steps = json.loads(fields.get("x-script", "[]"))
        # The one place where grpcio's server tells :authority.
        details = context._rpc_event.call_details
        self.seen = Seen(
            details.method.decode(),
            details.host.decode(),
            to_pairs(pair for pair in metadata if pair[0] not in OWN),
            left if (left := context.time_remaining()) is not None and left < FOREVER else None,
        )
        self.over = threading.Event()
        if "x-call" in fields:
            records.begin(fields["x-call"], self.seen)
        if not context.add_callback(self.over.set):
            self.over.set()

    def read(self) -> bytes | None:
        message = next(self.requests, None)
        if message is None:
            self.seen.half_closed = not self.over.is_set()
        else:
            self.seen.messages.append(digest(message))
        return message

    def run(self) -> Iterator[bytes]:
        """The messages to send; ends the call by an exception where it does not end with OK."""
        try:
            for name, *arguments in self.steps:
                yield from getattr(self, f"do_{name}")(*arguments)
        finally:
            # grpcio ends a call only when we have returned: who ended it before was the client.
            self.seen.cancelled = self.seen.cancelled or self.over.is_set()
            self.records.end(self.seen)

    def do_initial(self, pairs: list[list[Any]]) -> Iterator[bytes]:
        self.context.send_initial_metadata(from_pairs(pairs))
        yield from ()

    def do_trailers(self, pairs: list[list[Any]]) -> Iterator[bytes]:
        self.context.set_trailing_metadata(from_pairs(pairs))
        yield from ()

    def do_compress(self, name: str) -> Iterator[bytes]:
        self.context.set_compression(COMPRESSION[name])
        yield from ()

    def do_read(self) -> Iterator[bytes]:
        self.read()
        yield from ()

    def do_read_all(self) -> Iterator[bytes]:
        while self.read() is not None:
            pass
        yield from ()

    def do_send(self, message: str | int, times: int = 1) -> Iterator[bytes]:
        for _ in range(times):
            yield encode(message)

    def do_echo(self) -> Iterator[bytes]:
        message = self.read()
        if message is not None:
            yield message

    def do_echo_all(self) -> Iterator[bytes]:
        while (message := self.read()) is not None:
            yield message

    def do_status(self, code: int, details: str) -> Iterator[bytes]:
        yield from ()
        self.context.abort(next(status for status in grpc.StatusCode if status.value[0] == code), details)

    def do_wait_cancel(self) -> Iterator[bytes]:
        self.over.wait(DEADLINE)
        yield from ()

    def do_cancel(self) -> Iterator[bytes]:
        self.context.cancel()
        self.over.wait(DEADLINE)
        yield from ()

    def do_raise(self) -> Iterator[bytes]:
        yield from ()
        raise RuntimeError("the application fails")


class Script(grpc.GenericRpcHandler):
    """The four kinds of calls, by the same programs."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.port = 0
        self.handlers = {
            METHODS["unary"]: grpc.unary_unary_rpc_method_handler(self.unary),
            METHODS["client_stream"]: grpc.stream_unary_rpc_method_handler(self.client_stream),
            METHODS["server_stream"]: grpc.unary_stream_rpc_method_handler(self.server_stream),
            METHODS["bidi"]: grpc.stream_stream_rpc_method_handler(self.bidi),
            WHO: grpc.unary_unary_rpc_method_handler(self.who),
            CONTROL: grpc.unary_unary_rpc_method_handler(self.control),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self.handlers.get(handler_call_details.method)

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return self.client_stream(iter([request]), context)

    def client_stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return b"".join(Program(self.records, requests, context).run())

    def server_stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        return self.bidi(iter([request]), context)

    def bidi(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        program = Program(self.records, requests, context)
        with contextlib.closing(program.run()) as messages:
            yield from messages

    def who(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return str(self.port).encode()

    def control(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return json.dumps(self.records.take(request.decode())).encode()


def main(address: str = "127.0.0.1:0") -> None:
    script = Script(Records())
    # As many threads as calls at once, and theirs who ask what was seen.
    server = grpc.server(
        ThreadPoolExecutor(96),
        handlers=[script],
        options=[
            *OPTIONS,
            # Clients that send PINGs often are what one scenario is about.
            ("grpc.http2.min_ping_interval_without_data_ms", 10),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.so_reuseport", 0),
        ],
    )
    script.port = server.add_insecure_port(address)
    server.start()
    print(json.dumps({"port": script.port}), flush=True)
    grace = DEADLINE if sys.stdin.readline() == "drain\n" else None
    server.stop(grace).wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
