"""gRPC's health protocol (grpc.health.v1, `Check`): the two messages, and what an answer means.

The messages are a string and an enum: written and read here by the rules of Protocol Buffers, whose library
would be larger than all the rest of the agent.
"""

from __future__ import annotations

from typing import Final

from fastmesh.agent.health.http2 import Answer, exchange, request_line
from fastmesh.agent.health.words import AGENT, HEALTHY, UNHEALTHY, AnswerError, Outcome, Peer

PATH: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = 1
_STATUS: Final = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_MEANT: Final = {
    "UNIMPLEMENTED": "the server has no health service (grpc.health.v1.Health)",
    "NOT_FOUND": "the health service of the server does not know this service",
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


async def ask_grpc(peer: Peer, service: str, timeout_ms: int) -> Outcome:
    """Ask how `service` is (empty: the whole server). Raises AnswerError."""
    head = [
        *request_line("POST", peer, PATH),
        ("te", "trailers"),
        ("grpc-timeout", f"{min(timeout_ms, 99_999_999)}m"),  # at most 8 digits
        ("content-type", "application/grpc"),
        ("user-agent", AGENT),
    ]
    message = request(service)
    body = b"\0" + len(message).to_bytes(4) + message
    return judge(await exchange(peer, head, body))


def request(service: str) -> bytes:
    """A HealthCheckRequest: `string service = 1`."""
    name = service.encode()
    return b"\x0a" + _varint(len(name)) + name if name else b""


def judge(answer: Answer) -> Outcome:
    """What an answer says. Raises AnswerError if it is none."""
    kind = answer.fields.get("content-type", "")
    if answer.status != 200 or not kind.startswith("application/grpc"):
        raise AnswerError(f"the answer is not gRPC (status {answer.status}, content-type {kind[:64]!r})")
    # Without a message the status stands in the head: "Trailers-Only".
    fields = answer.trailers or answer.fields
    code = fields.get("grpc-status", "")
    if not (code.isascii() and code.isdigit() and len(code) <= 3):
        raise AnswerError("the answer has no grpc-status")
    if code != "0":
        name = _CODES[int(code)] if int(code) < len(_CODES) else f"code {int(code)}"
        meant = _MEANT.get(name)
        return Outcome(UNHEALTHY, f"answered {name}" + (f": {meant}" if meant else ""))
    if len(answer.body) < 5 or len(answer.body) != 5 + int.from_bytes(answer.body[1:5]):
        raise AnswerError("the answer is not one message")
    if answer.body[0]:
        raise AnswerError("the answer is compressed, which nobody asked for")
    status = response(bytes(answer.body[5:]))
    name = _STATUS.get(status, str(status))
    return Outcome(HEALTHY) if status == _SERVING else Outcome(UNHEALTHY, f"is {name}")


def response(message: bytes) -> int:
    """The status in a HealthCheckResponse: `ServingStatus status = 1`; fields that later versions may have
    are skipped, of several the last counts. Raises AnswerError.
    """
    status = at = 0
    try:
        while at < len(message):
            tag, at = _read_varint(message, at)
            if tag >> 3 == 1 and tag & 7 == _VARINT:
                status, at = _read_varint(message, at)
            else:
                at = _skip(message, at, tag & 7)
    except IndexError:
        raise AnswerError("the answer is no message of the health protocol") from None
    return status


def _skip(message: bytes, at: int, kind: int) -> int:
    """Behind a field. Raises IndexError where it is none."""
    if kind == _VARINT:
        return _read_varint(message, at)[1]
    if kind == _BYTES:
        length, at = _read_varint(message, at)
        at += length
    elif kind in (_FIXED64, _FIXED32):
        at += 8 if kind == _FIXED64 else 4
    else:
        raise IndexError
    if at > len(message):
        raise IndexError
    return at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of at most 64 bits and where it ends. Raises IndexError if there is none."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise IndexError
