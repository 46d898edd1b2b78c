"""The HTTP/1 corpus: whole, split at every byte, and against llhttp."""

from __future__ import annotations

import json

import pytest
from kit.http1 import CORPUS, Case, Reading, differences, every_cut, judge, load, plain, read

from fastmesh import _http1

VALID = load("valid")
INVALID = load("invalid")
STRICTER = json.loads((CORPUS / "stricter.json").read_text())


def expected(case: Case) -> Reading:
    rest = case.doc.get("rest", "").encode("latin-1")
    messages = [plain({**message, "forward": ""}) for message in case.doc["messages"]]
    return Reading(messages, case.doc.get("incomplete", ""), "", rest)


def shown(reading: Reading) -> Reading:
    reading.messages = [*map(plain, reading.messages)]
    for message in reading.messages:
        # an expectation without a phrase has no key for it
        if "status" not in message:
            message.pop("reason", None)
        if message["framing"] == "none" or message.get("length") is None:
            message.pop("length", None)
    return reading


def test_there_are_enough_cases() -> None:
    assert len(VALID) >= 120
    assert len(INVALID) >= 120
    assert {case.kind for case in VALID} == {case.kind for case in INVALID} == {"request", "response"}


@pytest.mark.parametrize("case", VALID, ids=str)
def test_valid(case: Case) -> None:
    assert shown(read(case.data, case.kind, case.method)) == expected(case)


@pytest.mark.parametrize("case", VALID, ids=str)
def test_valid_in_pieces(case: Case) -> None:
    data = case.data
    whole = read(data, case.kind, case.method)
    for cuts in every_cut(len(data)):
        assert read(data, case.kind, case.method, cuts) == whole, cuts


@pytest.mark.parametrize("case", VALID, ids=str)
def test_valid_for_llhttp(case: Case) -> None:
    """Never laxer than llhttp, and never another reading."""
    assert not differences(case.data, case.kind, read(case.data, case.kind, case.method), case.method)


@pytest.mark.parametrize("case", VALID, ids=str)
def test_forwarded(case: Case) -> None:
    """What the next hop gets: the first line, and the fields that go on as they were received."""
    data, message = case.data, case.doc["messages"][0]
    response = case.kind == "response"
    if "forward" in message:
        line = _http1.first_line(data, response, case.method)
        assert line.decode("latin-1") == message["forward"] + "\r\n"
    head = data[message.get("skipped", 0) :]
    lines = head[: head.index(b"\r\n\r\n") + 2].split(b"\r\n")[1:-1]
    hop = list(message.get("hop", []))
    kept = b""
    for line in lines:
        name = line.partition(b":")[0].decode("latin-1")
        if hop and name == hop[0]:
            hop.pop(0)
        else:
            kept += line + b"\r\n"
    assert not hop, "an expectation names a field that is not there"
    assert _http1.copy_fields(data, response, case.method) == kept
    assert _http1.copy_fields(data, response, case.method, skip=[]) == kept


@pytest.mark.parametrize("case", INVALID, ids=str)
def test_invalid(case: Case) -> None:
    reading = read(case.data, case.kind, case.method)
    assert (reading.refused, len(reading.messages)) == (case.doc["reason"], case.doc.get("messages", 0))


@pytest.mark.parametrize("case", INVALID, ids=str)
def test_invalid_in_pieces(case: Case) -> None:
    """The reason does not depend on how the bytes arrive."""
    data = case.data
    whole = read(data, case.kind, case.method)
    for cuts in every_cut(len(data)):
        assert read(data, case.kind, case.method, cuts) == whole, cuts


@pytest.mark.parametrize("case", INVALID, ids=str)
def test_stricter_than_llhttp_is_listed(case: Case) -> None:
    """Where llhttp accepts what is refused here, stricter.json says why; where it does not, it is silent."""
    verdict = judge(case.data, case.kind)
    accepts = not verdict.error
    listed = [entry["why"] for entry in STRICTER if case.name in entry["cases"]]
    assert len(listed) == accepts, f"llhttp: {verdict.error or 'accepts it'}; listed: {listed}"


def test_stricter_lists_only_cases() -> None:
    names = [name for entry in STRICTER for name in entry["cases"]]
    assert len(names) == len(set(names))
    assert set(names) <= {case.name for case in INVALID}
    assert all(len(entry["why"]) > 20 for entry in STRICTER)
