"""The gRPC client of `kit.grpc_scenarios` on grpcio: `python -m kit.grpc_client`.

Each line on stdin is a job, each line on stdout what was observed:
`{"scenario": ..., "target": "HOST:PORT", "control": "HOST:PORT", "authority": "NAME"}`. `target` is what is
tested: the service, or a proxy on the way to it. `control` is the service itself: it is asked there what it
saw. Every job has a channel, hence a connection, of its own. A call that hangs is cancelled by a watchdog and
shows as CANCELLED.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import grpc

from kit.grpc_messages import COMPRESSION, OPTIONS, digest, encode, from_pairs, to_pairs
from kit.grpc_service import CONTROL
from kit.limits import DEADLINE


class Call:
    """One call by a scenario's program."""

    def __init__(self, channel: grpc.Channel, scenario: dict[str, Any]) -> None:
        self.scenario = scenario
        self.name = uuid.uuid4().hex
        self.events: list[str] = []
        self.requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        make = {
            "unary": channel.unary_unary,
            "client_stream": channel.stream_unary,
            "server_stream": channel.unary_stream,
            "bidi": channel.stream_stream,
        }[scenario["kind"]]
        self.method = make(scenario["path"])
        self.one_up = scenario["kind"] in ("unary", "server_stream")
        self.one_down = scenario["kind"] in ("unary", "client_stream")
        self.call: Any = None
        self.cancelled = False
        if not self.one_up:
            self.start(iter(self.requests.get, None))

    def start(self, requests: bytes | Iterator[bytes]) -> None:
        metadata = from_pairs(self.scenario["metadata"])
        own = (("x-script", self.scenario["script"]), ("x-call", self.name))
        compression = self.scenario["compression"]
        begin = self.method.future if self.one_down else self.method
        self.call = begin(
            requests,
            timeout=self.scenario["deadline"],
            metadata=metadata + own,
            compression=COMPRESSION[compression] if compression else None,
        )

    def run(self) -> dict[str, Any]:
        """The program, then the end of the call; what the client saw of both."""
        watchdog = threading.Timer(DEADLINE, self.do_cancel)
        watchdog.start()
        try:
            for name, *arguments in self.scenario["client"]:
                getattr(self, f"do_{name}")(*arguments)
            return {
                "events": self.events,
                "code": self.call.code().name,
                "details": self.call.details(),
                "initial": to_pairs(self.call.initial_metadata()),
                "trailing": to_pairs(self.call.trailing_metadata()),
            }
        finally:
            watchdog.cancel()
            self.requests.put(None)

    def do_send(self, message: str | int, times: int = 1) -> None:
        data = encode(message)
        if self.one_up:
            self.start(data)
        else:
            for _ in range(times):
                self.requests.put(data)

    def do_half_close(self) -> None:
        self.requests.put(None)

    def do_initial(self) -> None:
        # Where the call ends instead, its metadata tell that.
        self.call.initial_metadata()
        self.events.append("initial metadata")

    def do_recv(self) -> bool:
        try:
            message = self.call.result() if self.one_down else next(self.call)
        except (grpc.RpcError, grpc.FutureCancelledError, StopIteration):
            self.events.append("end")
            return False
        self.events.append(digest(message))
        return True

    def do_recv_all(self) -> None:
        while self.do_recv():
            pass

    def do_ping_pong(self, times: int, message: str | int) -> None:
        for _ in range(times):
            self.do_send(message)
            if not self.do_recv():
                return

    def do_cancel(self) -> None:
        self.call.cancel()

    def do_idle(self, seconds: float) -> None:
        """Time passes without a message: what a keep-alive is for."""
        threading.Event().wait(seconds)


def observe(job: dict[str, Any]) -> dict[str, Any]:
    """Run the scenario of a job, as often at once as it says."""
    scenario = job["scenario"]
    options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", job["authority"])]
    if scenario["keepalive"]:
        period = int(scenario["keepalive"] * 1000)
        # Without data pings only go on where both limits are lifted.
        options += [
            ("grpc.keepalive_time_ms", period),
            ("grpc.keepalive_timeout_ms", int(DEADLINE * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    with grpc.insecure_channel(job["target"], options) as channel:
        calls = [Call(channel, scenario) for _ in range(scenario["parallel"])]
        seen: list[Any] = [None] * len(calls)

        def one(index: int) -> None:
            seen[index] = calls[index].run()

        threads = [threading.Thread(target=one, args=(index,)) for index in range(1, len(calls))]
        for thread in threads:
            thread.start()
        one(0)
        for thread in threads:
            thread.join()
    if scenario["recorded"]:
        with grpc.insecure_channel(job["control"], OPTIONS) as channel:
            ask = channel.unary_unary(CONTROL)
            for call, one_seen in zip(calls, seen, strict=True):
                answer = ask(call.name.encode(), timeout=2 * DEADLINE, wait_for_ready=True)
                one_seen["service"] = json.loads(answer)
    return {"calls": seen}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(observe(json.loads(line))), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
