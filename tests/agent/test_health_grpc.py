"""The messages of gRPC's health protocol, against those of grpcio-health-checking, and what is none."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st

from fastmesh.agent.health.grpc import judge, request, response
from fastmesh.agent.health.http2 import Answer
from fastmesh.agent.health.words import HEALTHY, UNHEALTHY, AnswerError


@given(st.text(max_size=300))
def test_request(service: str) -> None:
    assert request(service) == health_pb2.HealthCheckRequest(service=service).SerializeToString()


@pytest.mark.parametrize("status", range(4))
def test_response(status: int) -> None:
    assert response(health_pb2.HealthCheckResponse(status=status).SerializeToString()) == status


@pytest.mark.parametrize(
    "message",
    [
        b"\x12\x03abc\x08\x01",  # a string, field 2
        b"\x08\x02\x08\x01",  # the last counts
        b"\x11" + bytes(8) + b"\x08\x01",
        b"\x15" + bytes(4) + b"\x08\x01",
        b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x08\x01",
    ],
)
def test_what_later_versions_may_send(message: bytes) -> None:
    assert response(message) == 1


@given(st.binary(max_size=64))
def test_any_bytes(message: bytes) -> None:
    """A number or AnswerError, nothing else, and the number that protobuf finds."""
    parsed = health_pb2.HealthCheckResponse()
    try:
        found = response(message)
    except AnswerError:
        return
    try:
        parsed.ParseFromString(message)
    except Exception:
        return  # stricter than we are: field number 0, unfinished groups
    assert found & 0xFFFFFFFF == parsed.status & 0xFFFFFFFF


@pytest.mark.parametrize("message", [b"\x08", b"\x12\x05abc", b"\x0b", b"\x08" + b"\xff" * 11, b"\x11\0"])
def test_cut_and_wrong(message: bytes) -> None:
    with pytest.raises(AnswerError):
        response(message)


def answer(
    body: bytes = b"\0\0\0\0\x02\x08\x01", head: dict[str, str] | None = None, **trailers: str
) -> Answer:
    made = Answer()
    made.fields = {":status": "200", "content-type": "application/grpc"} if head is None else head
    made.body += body
    made.trailers = {name.replace("_", "-"): value for name, value in trailers.items()}
    return made


def test_verdicts() -> None:
    assert judge(answer(grpc_status="0")).result == HEALTHY
    assert judge(answer(b"\0\0\0\0\x02\x08\x02", grpc_status="0")) == (UNHEALTHY, "is NOT_SERVING")
    assert judge(answer(b"\0\0\0\0\x00", grpc_status="0")) == (UNHEALTHY, "is UNKNOWN")
    assert judge(answer(b"\0\0\0\0\x02\x08\x07", grpc_status="0")) == (UNHEALTHY, "is 7")
    no_service = judge(answer(b"", grpc_status="12"))
    assert no_service.result == UNHEALTHY
    assert no_service.reason.startswith("answered UNIMPLEMENTED: the server has no health service")
    assert judge(answer(b"", grpc_status="99")) == (UNHEALTHY, "answered code 99")
    only = {":status": "200", "content-type": "application/grpc+proto", "grpc-status": "5"}
    assert judge(answer(b"", head=only)).reason.startswith("answered NOT_FOUND")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (answer(), "no grpc-status"),
        (answer(grpc_status="-1"), "no grpc-status"),
        (answer(grpc_status="٠"), "no grpc-status"),
        (answer(b"", grpc_status="0"), "not one message"),
        (answer(b"\0\0\0\0\x03\x08\x01", grpc_status="0"), "not one message"),
        (answer(b"\0\0\0\0\x02\x08\x01" * 2, grpc_status="0"), "not one message"),
        (answer(b"\1\0\0\0\x02\x08\x01", grpc_status="0"), "compressed"),
        (answer(head={":status": "404", "content-type": "application/grpc"}, grpc_status="0"), "not gRPC"),
        (answer(head={":status": "200", "content-type": "text/html"}, grpc_status="0"), "not gRPC"),
        (answer(head={}, grpc_status="0"), "not gRPC"),
    ],
)
def test_no_answers(wrong: Answer, why: str) -> None:
    with pytest.raises(AnswerError, match=why):
        judge(wrong)
