"""What the admin API says of services, and the warning about protocols that could not be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.area import FakeArea

from fastmesh.agent.detection import DetectionWarnings
from fastmesh.agent.services import services
from fastmesh.agent.state import Checked, State
from fastmesh.config import make_snapshot
from fastmesh.config.loader import loads

TEXT = """
listeners: [{name: out, role: outbound, bind: 127.0.0.1:15001, transparent: true}]
services:
  web: {addresses: [10.77.0.2:80], endpoints: ["127.0.0.1:9000", "[::1]:9000"], health_check: {path: /}}
  mail: {endpoints: ["10.0.0.5", "unix:/run/mail"], protocol: tcp}
"""


@pytest.fixture
def state() -> State:
    made = State()
    text = TEXT.replace(", health_check: {path: /}", "").replace(', "unix:/run/mail"', "")
    made.take_snapshot(make_snapshot(loads(text.encode(), Path("/x.yaml")), workers=2))
    return made


def test_services(state: State) -> None:
    area = FakeArea(2)
    checked = Checked("web", "127.0.0.1:9000")
    checked.healthy = False
    state.checked = [checked]
    area.learnt[0] = [("10.77.0.2:80", 0, False, 3, 0), (None, 1, True, 1, 4)]
    area.learnt[1] = [("10.77.0.2:80", 0, True, 1, 2), ("10.9.9.9:1", 77, True, 1, 0)]
    web, mail, rest = services(area, state)  # type: ignore[arg-type]
    assert web == {
        "name": "web",
        "protocol": "auto",
        "tls": "none",
        "addresses": ["10.77.0.2:80"],
        "endpoints": [
            {"address": "127.0.0.1:9000", "healthy": False},
            {"address": "[::1]:9000", "healthy": None},
        ],
        "learned": [
            {"destination": "10.77.0.2:80", "server_speaks_first": True, "timeouts": 4, "skipped": 2}
        ],
    }
    assert mail["endpoints"] == [{"address": "10.0.0.5", "healthy": None}]
    assert mail["learned"] == [
        {"destination": None, "server_speaks_first": True, "timeouts": 1, "skipped": 4}
    ]
    assert (rest["name"], rest["endpoints"]) == ("outbound:passthrough", [])


def test_nothing_is_in_use_yet() -> None:
    assert services(FakeArea(), State()) == []  # type: ignore[arg-type]


def test_a_warning_once_for_each_destination(state: State) -> None:
    area = FakeArea(2)
    said: list[str] = []
    warnings = DetectionWarnings(area, state, said.append)  # type: ignore[arg-type]
    warnings.tick()
    assert said == []
    area.learnt[1] = [("10.77.0.2:80", 0, True, 1, 0)]
    warnings.tick()
    area.learnt[0] = [("10.77.0.2:80", 0, True, 7, 3)]
    warnings.tick()
    (one,) = said
    assert "detect_timeout" in one and "10.77.0.2:80 (service web)" in one and "protocol: tcp" in one
    assert "server speaks first" in one
    area.learnt[0].append((None, 1, False, 1, 0))
    warnings.tick()
    assert "to service mail" in said[1] and "its client was silent" in said[1]
