"""What gRPC clients and services do with each other, as data: each scenario is two programs.

The client's program runs in `kit.grpc_client` or in `grpc-js/client.js`, the service's in `kit.grpc_service`
or `grpc-js/service.js`: it travels with the call as metadata. Any client thus meets any service. A program is
a list of steps; both ends agree on what happens next, so nothing here waits for time to pass but a deadline.

Messages: text, or a number: that many bytes of a fixed pattern. Values of metadata: text, or `{"b64": ...}`.

Steps of a client                              Steps of a service
  send MESSAGE [TIMES]                           initial [[KEY, VALUE], ...]  initial metadata, now
  half_close      (a call with one message       read            one message
                  does so by itself)             read_all        up to the client's half-close
  initial         wait for initial metadata      send MESSAGE [TIMES]
  recv            one message, or the end        echo            read one, send it back
  recv_all        up to the end                  echo_all        the same for all that come
  ping_pong N MESSAGE   N times send and recv    trailers [[KEY, VALUE], ...]
  cancel                                         compress NAME   of what is sent from here on
  idle SECONDS    nothing but keep-alive         status CODE DETAILS    the end
                                                 wait_cancel     until the client or its deadline ends it
                                                 cancel          the service takes the call back
                                                 raise           the application fails
A program that ends without `status` ends the call with OK.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from kit.limits import PATIENCE

Message = str | int
Step = list[Any]
Pairs = list[list[Any]]

SERVICE = "/fastmesh.test.Script"
METHODS = {
    "unary": f"{SERVICE}/Unary",
    "client_stream": f"{SERVICE}/ClientStream",
    "server_stream": f"{SERVICE}/ServerStream",
    "bidi": f"{SERVICE}/Bidi",
}
MIB = 1024 * 1024
NOT_A_TOKEN = 'what\'s "100%"? naïve €\u2028\r\n\t\x01 done%20'  # most of it is percent-encoded on the wire


def binary(data: bytes) -> dict[str, str]:
    """A value of metadata whose key ends in -bin."""
    return {"b64": base64.b64encode(data).decode()}


@dataclass(frozen=True)
class Scenario:
    """`loose`: what of the observation two runs of the very same may differ in (`code`, `trailing`, ...)."""

    name: str
    kind: str
    client: list[Step]
    service: list[Step] = field(default_factory=list)
    path: str | None = None  # a method that is not one of METHODS
    metadata: Pairs = field(default_factory=list)
    deadline: float | None = None  # seconds
    compression: str | None = None  # of the client's messages
    keepalive: float | None = None  # seconds between the client's PINGs
    code: str = "OK"  # how it ends
    parallel: int = 1  # as many calls at once on one channel
    recorded: bool = True  # does the service's program see it?
    loose: tuple[str, ...] = ()
    only: tuple[str, ...] = ("grpcio", "grpc-js")  # services that can do this

    def data(self) -> dict[str, Any]:
        """For another process."""
        script = json.dumps(self.service)  # ASCII, as metadata are
        return {**asdict(self), "path": self.path or METHODS[self.kind], "script": script}


DETAILS_BIN = (
    # google.rpc.Status{code: 5, message: "gone", details: [Any{type_url: "x.test/T", value: bytes}]}
    b"\x08\x05\x12\x04gone\x1a\x12\x0a\x08x.test/T\x12\x06\x00\xff\x80\x7f,;"
)
METADATA: Pairs = [
    ["x-one", "1"],
    ["x-twice", "first"],
    ["x-twice", "second, with a comma"],
    ["x-twice", "third"],
    ["x-marks", "!#$%&'()*+-./:;<=>?@[]^_`{|}~ \"\\ %41 %zz"],
    ["x-empty", ""],
    ["x.dots_and-lines", "v"],
    ["x-long", "long " * 600 + "."],
    ["x-all-bin", binary(bytes(range(256)))],
    ["x-none-bin", binary(b"")],
    ["x-pads-bin", binary(b"a")],
    ["x-pads-bin", binary(b"\xff\xfe")],
    ["x-pads-bin", binary(b"\x00\x00\x00")],
    ["x-utf8-bin", binary("naïve €".encode())],
]
CODES = (
    *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
    *("UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
SHORT = 0.5 * PATIENCE

CALLS = [
    Scenario("unary", "unary", [["send", "hello"], ["recv"]], [["echo"]]),
    Scenario("unary-empty", "unary", [["send", ""], ["recv"]], [["echo"]]),
    Scenario(
        "client-stream",
        "client_stream",
        [["send", "a"], ["send", ""], ["send", "c"], ["half_close"], ["recv"]],
        [["read_all"], ["send", "three"]],
    ),
    Scenario(
        "client-stream-of-nothing", "client_stream", [["half_close"], ["recv"]], [["read_all"], ["send", "0"]]
    ),
    Scenario(
        "server-stream",
        "server_stream",
        [["send", "x"], ["recv_all"]],
        [["read"], ["send", "x", 3], ["send", ""]],
    ),
    Scenario("server-stream-of-nothing", "server_stream", [["send", ""], ["recv_all"]], [["read"]]),
    Scenario(
        "bidi",
        "bidi",
        [["send", "a"], ["send", "b"], ["half_close"], ["recv_all"]],
        [["read_all"], ["send", "c", 2]],
    ),
    Scenario("bidi-of-nothing", "bidi", [["half_close"], ["recv_all"]], [["read_all"]]),
    Scenario("ping-pong", "bidi", [["ping_pong", 200, "ball"], ["half_close"], ["recv_all"]], [["echo_all"]]),
    Scenario(
        "ping-pong-of-blocks",
        "bidi",
        [["ping_pong", 20, 40_000], ["half_close"], ["recv_all"]],
        [["echo_all"]],
    ),
    Scenario(
        "many-up",
        "client_stream",
        [["send", "m", 2000], ["half_close"], ["recv"]],
        [["read_all"], ["send", "ok"]],
    ),
    Scenario("many-down", "server_stream", [["send", "m"], ["recv_all"]], [["read"], ["send", "m", 2000]]),
    Scenario("large-unary", "unary", [["send", 4 * MIB], ["recv"]], [["echo"]]),
    Scenario("large-stream", "bidi", [["send", 2 * MIB, 3], ["half_close"], ["recv_all"]], [["echo_all"]]),
    Scenario("at-once", "unary", [["send", 1000], ["recv"]], [["echo"]], parallel=50),
    Scenario(
        "streams-at-once",
        "bidi",
        [["ping_pong", 10, 3000], ["half_close"], ["recv_all"]],
        [["echo_all"]],
        parallel=20,
    ),
]

ENDS = [
    Scenario(
        "initial-metadata-first",
        "bidi",
        [["initial"], ["send", "now"], ["recv"], ["half_close"], ["recv_all"]],
        [["initial", [["x-early", "1"]]], ["echo_all"]],
    ),
    Scenario(
        "answer-before-any-message",
        "bidi",
        [["recv"], ["send", "then"], ["recv"], ["half_close"], ["recv_all"]],
        [["send", "unasked"], ["echo_all"]],
    ),
    Scenario(
        "half-close-then-answers",
        "bidi",
        [["send", "a"], ["recv"], ["half_close"], ["recv_all"]],
        [["echo"], ["read_all"], ["send", "after", 50]],
    ),
    Scenario(
        "service-ends-first",
        "bidi",
        [["send", "a"], ["recv_all"]],
        [["read"], ["send", "enough"], ["trailers", [["x-end", "early"]]]],
    ),
    Scenario(
        "service-refuses-a-stream",
        "client_stream",
        [["send", "a"], ["recv"]],
        [["read"], ["status", 8, "enough"]],
        code="RESOURCE_EXHAUSTED",
    ),
    Scenario(
        "service-ends-during-a-large-upload",
        "client_stream",
        [["send", MIB, 8], ["half_close"], ["recv"]],
        [["read"], ["status", 8, "too much"]],
        loose=("service.half_closed",),
        code="RESOURCE_EXHAUSTED",
    ),
    Scenario(
        "fails-in-the-middle",
        "server_stream",
        [["send", "go"], ["recv_all"]],
        [["read"], ["send", "part", 2], ["trailers", [["x-why", "broken"]]], ["status", 13, "broke off"]],
        code="INTERNAL",
    ),
    Scenario(
        "fails-in-the-middle-of-large-messages",
        "server_stream",
        [["send", "go"], ["recv_all"]],
        [["read"], ["send", MIB, 2], ["status", 15, "lost"]],
        code="DATA_LOSS",
    ),
    Scenario(
        "application-raises", "unary", [["send", "go"], ["recv"]], [["read"], ["raise"]], code="UNKNOWN"
    ),
    Scenario(
        "client-cancels",
        "bidi",
        [["send", "a"], ["recv"], ["cancel"]],
        [["echo"], ["wait_cancel"]],
        code="CANCELLED",
    ),
    Scenario(
        "client-cancels-before-any-message",
        "server_stream",
        [["send", "a"], ["initial"], ["cancel"]],
        [["initial", [["x-early", "1"]]], ["read"], ["wait_cancel"]],
        code="CANCELLED",
    ),
    Scenario(
        "service-cancels",
        "bidi",
        [["send", "a"], ["recv"], ["recv_all"]],
        [["echo"], ["cancel"]],
        only=("grpcio",),
        loose=("details",),
        code="CANCELLED",
    ),
    Scenario("deadline-in-time", "unary", [["send", "a"], ["recv"]], [["echo"]], deadline=60),
    Scenario("deadline-far-away", "unary", [["send", "a"], ["recv"]], [["echo"]], deadline=100_000),
    Scenario(
        "deadline-exceeded",
        "unary",
        [["send", "a"], ["recv"]],
        [["read"], ["wait_cancel"]],
        deadline=SHORT,
        loose=("details", "initial", "trailing"),
        code="DEADLINE_EXCEEDED",
    ),
    Scenario(
        "deadline-exceeded-in-a-stream",
        "bidi",
        [["ping_pong", 2, "a"], ["recv_all"]],
        [["echo"], ["echo"], ["wait_cancel"]],
        deadline=SHORT,
        loose=("details", "trailing"),
        code="DEADLINE_EXCEEDED",
    ),
    Scenario(
        "keep-alive",
        "bidi",
        [["send", "a"], ["recv"], ["idle", 0.4], ["send", "b"], ["recv"], ["half_close"], ["recv_all"]],
        [["echo_all"]],
        keepalive=0.05,
    ),
]

STATUS = [
    Scenario(
        f"status-{code}",
        "unary",
        [["send", "a"], ["recv"]],
        [["read"], ["trailers", [["x-code", str(code)]]], ["status", code, f"{code}: {NOT_A_TOKEN}"]],
        code=name,
    )
    for code, name in enumerate(CODES, 1)
] + [
    Scenario(
        "status-at-once", "bidi", [["recv_all"]], [["status", 9, "not like this"]], code="FAILED_PRECONDITION"
    ),
    Scenario(
        "status-without-details",
        "unary",
        [["send", "a"], ["recv"]],
        [["read"], ["status", 10, ""]],
        code="ABORTED",
    ),
    Scenario(
        "status-with-much-to-say",
        "unary",
        [["send", "a"], ["recv"]],
        [["status", 2, "é" * 400]],
        code="UNKNOWN",
    ),
    Scenario(
        "rich-status",
        "unary",
        [["send", "a"], ["recv"]],
        [["read"], ["trailers", [["grpc-status-details-bin", binary(DETAILS_BIN)]]], ["status", 5, "gone"]],
        code="NOT_FOUND",
    ),
    Scenario(
        "unimplemented-method",
        "unary",
        [["send", "a"], ["recv"]],
        path=f"{SERVICE}/Nothing",
        code="UNIMPLEMENTED",
        recorded=False,
    ),
    Scenario(
        "unimplemented-service",
        "bidi",
        [["recv_all"]],
        path="/no.such.Service/At.All",
        code="UNIMPLEMENTED",
        recorded=False,
    ),
]

FIELDS = [
    Scenario("metadata-up", "unary", [["send", "a"], ["recv"]], [["echo"]], metadata=METADATA),
    Scenario(
        "metadata-down",
        "unary",
        [["send", "a"], ["recv"]],
        [["initial", METADATA], ["echo"], ["trailers", METADATA]],
    ),
    Scenario(
        "metadata-of-a-failure",
        "server_stream",
        [["send", "a"], ["recv_all"]],
        [["initial", METADATA], ["read"], ["trailers", METADATA], ["status", 3, "no"]],
        code="INVALID_ARGUMENT",
    ),
    Scenario(
        "metadata-of-a-trailers-only-answer",
        "server_stream",
        [["send", "a"], ["recv_all"]],
        [["trailers", METADATA], ["status", 3, "no"]],
        code="INVALID_ARGUMENT",
    ),
    *(
        Scenario(
            f"compression-{name}",
            "bidi",
            [["send", 100_000], ["send", ""], ["send", "short"], ["half_close"], ["recv_all"]],
            [["compress", name], ["echo_all"]],
            compression=name,
        )
        for name in ("gzip", "deflate", "identity")
    ),
    Scenario(
        "compression-one-way",
        "unary",
        [["send", 100_000], ["recv"]],
        [["compress", "gzip"], ["echo"]],
    ),
]

SCENARIOS = {scenario.name: scenario for scenario in [*CALLS, *ENDS, *STATUS, *FIELDS]}

# Statuses are all alike to a proxy: where clients and services are many, a few stand for all.
FEW = [name for name in SCENARIOS if not name.startswith("status-") or name in ("status-5", "status-at-once")]
