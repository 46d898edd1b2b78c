"""What a snapshot says where connections come by interception; for others it says nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmesh.config import make_snapshot
from fastmesh.config.loader import loads
from fastmesh.config.snapshot import needs_identity

BOTH = """
workload: svc-a
trust_domain: mesh.local
pki: pki
intercept: {inbound: {ports: [8080, 5432]}}
listeners:
  - {name: out, role: outbound, bind: 127.0.0.1:15001, transparent: true, ports: {5432: tcp}}
  - {name: out6, role: outbound, bind: "[::1]:15001", transparent: true, unknown: reject}
  - {name: in, role: inbound, bind: 0.0.0.0:15006, transparent: true, tls: permissive, ports: {5432: tcp}}
services:
  svc-b: {addresses: [10.77.0.2:80, "[fd00::2]:80"], endpoints: [10.77.0.2:15006], tls: mesh}
  svc-c: {endpoints: [10.77.0.3, "[fd00::3]"], protocol: tcp}
"""


def snapshot(text: str, **options: Any) -> dict[str, Any]:
    return make_snapshot(loads(text.encode(), Path("x.yaml")), identity=False, **options)


def test_destinations_and_made_services() -> None:
    made = snapshot(BOTH)
    out, out6, inbound = made["listeners"]
    b, c, app, db, rest = made["services"]
    assert made["mark"] == 0x0FA5
    assert [one["name"] for one in made["services"][2:]] == [
        "inbound:8080",
        "inbound:5432",
        "outbound:passthrough",
    ]
    assert [one["host"] for one in b["addresses"]] == ["10.77.0.2", "fd00::2"]
    assert [(one["host"], one["port"], one["keep_port"]) for one in c["endpoints"]] == [
        ("10.77.0.3", 0, True),
        ("fd00::3", 0, True),
    ]
    assert [(one["host"], one["port"]) for one in db["endpoints"]] == [("127.0.0.1", 5432), ("::1", 5432)]
    assert app["local"] and rest["original"] and rest["endpoints"] == []
    assert out["ports"] == [{"port": 5432, "protocol": "tcp", "service": -1}]
    assert (out["protocol"], out["unknown"], out6["unknown"]) == ("auto", "passthrough", "reject")
    assert inbound["ports"] == [
        {"port": 5432, "protocol": "tcp", "service": 3},
        {"port": 8080, "protocol": "auto", "service": 2},
    ]
    assert inbound["direct"] == -1, "two ports: nobody knows which is meant"
    assert len({one["slot"] for one in made["services"]}) == 5


def test_what_is_made_to_the_listener_itself() -> None:
    one = snapshot(BOTH.replace("[8080, 5432]", "[5432]"))
    assert one["services"][one["listeners"][2]["direct"]]["name"] == "inbound:5432"
    named = snapshot(BOTH.replace("tls: permissive", "tls: permissive, to: svc-c"))
    assert named["services"][named["listeners"][2]["direct"]]["name"] == "svc-c"


def test_made_services_keep_their_rows() -> None:
    before = snapshot(BOTH)
    rows = {one["name"]: one["slot"] for one in before["services"]}
    after = snapshot(BOTH.replace("[8080, 5432]", "[5432, 8080]").replace("svc-c:", "svc-d:"), slots=rows)
    now = {one["name"]: one["slot"] for one in after["services"]}
    assert {name: row for name, row in now.items() if name in rows} == {
        name: row for name, row in rows.items() if name in now
    }


def test_sockets_of_tproxy() -> None:
    made = snapshot(BOTH.replace("{inbound", "{method: tproxy, mark: 7, inbound"))
    assert [one["bind"].get("transparent") for one in made["listeners"]] == [True, True, True]
    assert made["mark"] == 7


def test_others_are_told_nothing() -> None:
    made = snapshot("listeners: [{name: a, bind: '127.0.0.1:1', to: w}]\nservices: {w: {endpoints: []}}\n")
    assert "mark" not in made
    assert not {"transparent", "unknown", "direct", "ports"} & made["listeners"][0].keys()
    assert "addresses" not in made["services"][0]


def test_an_opaque_service_needs_no_detection() -> None:
    text = (
        "listeners: [{name: a, bind: '127.0.0.1:1', to: w}]\nservices: {w: {endpoints: [], protocol: tcp}}\n"
    )
    assert snapshot(text)["listeners"][0]["protocol"] == "tcp"


def test_identity_is_needed_as_ever() -> None:
    assert needs_identity(loads(BOTH.encode(), Path("x.yaml")).config)
