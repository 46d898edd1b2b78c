"""The guide lists what there is: every metric, every field, every endpoint, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kit.area import FakeArea, log_record

from fastmesh.agent.admin import ENDPOINTS
from fastmesh.agent.dns.words import Counts
from fastmesh.agent.state import State
from fastmesh.observe.access_log import AccessLog
from fastmesh.observe.metrics import Metrics

GUIDE = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()


def section(title: str) -> str:
    return GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> set[str]:
    """What stands in backquotes in the first column of the tables."""
    rows = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_metrics() -> None:
    area: Any = FakeArea(1)
    state = State()
    worker = {"slot": 0, "pid": 1, "state": "ready", "restarts": 0}
    state.take_status({"workers": [worker], "draining": False})
    services = [{"name": "web", "slot": 0}]
    state.dns = Counts()
    state.take_snapshot({"number": 1, "identity": None, "workers": 1, "services": services})
    text = Metrics(area, state, AccessLog(area, print)).text().decode()
    assert first_cells(section("Metrics")) == set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def test_access_log_fields() -> None:
    text = section("Access log")
    assert first_cells(text) == set(log_record())
    (example,) = re.findall(r"```json\n(.*)\n```", text)
    assert set(json.loads(example)) == set(log_record())


def test_endpoints() -> None:
    assert first_cells(section("Admin API")) == {"/", *ENDPOINTS}
