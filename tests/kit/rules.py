"""The table of rules and requests (`cases.yaml`), through the real loader into what the engine takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from fastmesh import _policy
from fastmesh.config import make_snapshot
from fastmesh.config.loader import loads

TABLE = Path(__file__).parent.parent / "policy" / "cases.yaml"


@dataclass
class Case:
    """One line of the table."""

    line: str
    outcome: str
    who: str | None
    method: str
    target: str
    forwarded: str
    host: str = "h"
    source: str = "192.0.2.1"
    port: int = 8080
    rule: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def identity(self) -> str | None:
        if self.who is None or self.who.startswith("spiffe:"):
            return self.who
        return f"spiffe://mesh.local/{self.who}"

    @property
    def head(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


@dataclass
class Group:
    """Rules, and requests that meet them."""

    about: str
    config: dict[str, Any]
    cases: list[Case]


def parse(line: str) -> Case:
    outcome, who, method, target, *rest = line.split(" ")
    case = Case(line, outcome, None if who == "-" else who, method, target, target)
    for part in rest:
        key, _, value = part.partition("=")
        if key == "as":
            case.forwarded = value
        elif key == "src":
            case.source = value
        elif key.startswith("h:"):
            case.headers.append((key[2:], value))
        else:
            setattr(case, key, int(value) if key == "port" else value)
    if target.startswith("http://") and case.forwarded == target:
        case.forwarded = urlsplit(target)._replace(scheme="", netloc="").geturl() or "/"
    return case


def groups() -> list[Group]:
    return [
        Group(
            entry["about"],
            {key: entry[key] for key in ("allow", "deny", "mode", "listener") if key in entry},
            [parse(line) for line in entry["cases"]],
        )
        for entry in yaml.safe_load(TABLE.read_text())
    ]


def configuration(rules: dict[str, Any], **listener: Any) -> dict[str, Any]:
    """A configuration with these rules on an inbound listener."""
    more = {key: value for key, value in rules.items() if key != "listener"} | rules.get("listener", {})
    one = {"name": "in", "bind": "127.0.0.1:0", "role": "inbound", "tls": "permissive", "to": "app"}
    return {
        "workload": "svc-b",
        "trust_domain": "mesh.local",
        "pki": "pki",
        "listeners": [one | more | listener],
        "services": {"app": {"endpoints": ["127.0.0.1:9"]}},
    }


def listener_of(config: dict[str, Any]) -> dict[str, Any]:
    """The listener of a configuration as the snapshot has it."""
    text = yaml.dump(config, Dumper=Quoted, sort_keys=False)
    snapshot = make_snapshot(loads(text.encode(), Path("/x.yaml")), identity=False)
    listener: dict[str, Any] = snapshot["listeners"][0]
    return listener


class Quoted(yaml.SafeDumper):
    """Without anchors, so that the text is what a person would write."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def engine(rules: dict[str, Any]) -> _policy.Engine:
    return _policy.Engine(listener_of(configuration(rules)))
