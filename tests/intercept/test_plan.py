"""What a configuration and a selection come to: plans and their rules, without a kernel."""

from __future__ import annotations

import base64
import re
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kit.intercept import configuration

from fastmesh.config import load
from fastmesh.config.intercept_values import ROUTE_MARKS
from fastmesh.host.intercept import InterceptError, Plan, Selection, apply, ruleset, words
from fastmesh.host.intercept.plan import check_against, make_plan, unheard
from fastmesh.host.intercept.selection import is_ours, route_mark, table_of

EVERYBODY = Selection()
ALL = "outbound: {}, inbound: {ports: [8080]}"


def plan_of(directory: Path, text: str, selection: Selection = EVERYBODY, **names: Any) -> Plan:
    return make_plan(load(configuration(directory, f"{{{text}}}", **names)), selection)


def chains(plan: Plan) -> dict[str, list[str]]:
    """The rules of each chain that hangs on a hook; the hook is the first."""
    text = ruleset.transaction(plan)
    found = re.findall(r"^  chain (\w+) \{\n(.*?)^  \}$", text, re.MULTILINE | re.DOTALL)
    return {name: [line.strip() for line in body.splitlines()] for name, body in found if name != "about"}


def test_redirect(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "outbound: {exclude_ports: [25, 22], exclude_uids: [7], exclude_cidrs: [10.0.0.0/8, 'fe80::/10'], "
        "exclude_interfaces: ['veth*', docker0]}, inbound: {ports: [8080], exclude_cidrs: [10.1.0.0/16]}",
    )
    first = "tcp flags & (fin|syn|rst|ack) == syn"
    assert chains(plan) == {
        "outgoing": [
            "type nat hook output priority -102; policy accept;",
            "meta l4proto != tcp return",
            "meta mark 0xfa5 return",
            "meta mark & 0xff000000 == 0xfa000000 return",
            "ip daddr 127.0.0.0/8 return",
            "ip6 daddr ::1 return",
            "ip6 daddr fe80::/10 return",
            "ip daddr { 224.0.0.0/4, 255.255.255.255 } return",
            "ip6 daddr ff00::/8 return",
            'oifname "docker0" return',
            'oifname "veth*" return',
            "meta skuid { 7 } return",
            "tcp dport { 22, 25 } return",
            "ip daddr { 10.0.0.0/8 } return",
            "ip6 daddr { fe80::/10 } return",
            *(
                f"meta nfproto ipv{family} {first} ct direction original counter redirect to :15001 "
                'comment "taken outgoing"'
                for family in (4, 6)
            ),
        ],
        "incoming": [
            "type nat hook prerouting priority -102; policy accept;",
            'iifname "lo" return',
            "ip saddr { 10.1.0.0/16 } return",
            *(
                f"meta nfproto ipv{family} tcp dport {{ 8080 }} fib daddr type local {first} counter "
                'redirect to :15006 comment "taken incoming"'
                for family in (4, 6)
            ),
        ],
    }


def test_tproxy(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, f"method: tproxy, {ALL}", Selection(uid=7))
    mark = f"{route_mark('fastmesh_uid_7'):#x}"
    first = "tcp flags & (fin|syn|rst|ack) == syn"
    local = "tcp dport { 8080 } fib daddr type local"
    assert chains(plan) == {
        "outgoing": [
            "type route hook output priority -153; policy accept;",
            "meta l4proto != tcp return",
            "meta mark 0xfa5 return",
            f"ct mark {mark} ct direction original meta mark set {mark} return",
            "tcp flags & (fin|syn|rst|ack) != syn return",
            "meta mark & 0xff000000 == 0xfa000000 return",
            "ip daddr 127.0.0.0/8 return",
            "ip6 daddr ::1 return",
            "ip6 daddr fe80::/10 return",
            "ip daddr { 224.0.0.0/4, 255.255.255.255 } return",
            "ip6 daddr ff00::/8 return",
            f"{first} ct direction original meta skuid 7 counter ct mark set {mark} meta mark set {mark} "
            'comment "taken outgoing"',
        ],
        "incoming": [
            "type filter hook prerouting priority -152; policy accept;",
            f"meta mark {mark} meta l4proto tcp tproxy ip to 127.0.0.1:15001 accept",
            f"meta mark {mark} meta l4proto tcp tproxy ip6 to [::1]:15001 accept",
            f"meta mark {mark} meta l4proto tcp reject with tcp reset",
            'iifname "lo" return',
            f'{local} {first} counter comment "taken incoming"',
            f"{local} tproxy ip to 127.0.0.1:15006 accept",
            f"{local} tproxy ip6 to [::1]:15006 accept",
            f"{local} {first} reject with tcp reset",
        ],
    }


def test_names(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, "method: tproxy, outbound: {exclude_uids: [5]}, exempt_uids: [6]", Selection(uid=7)
    )
    found = chains(msgspec.structs.replace(plan, names4="127.0.0.1:15053", names6="[::1]:15053"))
    assert found["names"] == [
        "type nat hook output priority -113; policy accept;",
        "meta mark 0xfa5 return",
        "meta skuid { 6 } return",
        "meta skuid { 5 } return",
        "ip6 daddr fe80::/10 return",
        "ip daddr { 224.0.0.0/4, 255.255.255.255 } return",
        "ip6 daddr ff00::/8 return",
        "meta nfproto ipv4 meta l4proto { tcp, udp } th dport 53 meta skuid 7 dnat ip to 127.0.0.1:15053",
        "meta nfproto ipv6 meta l4proto { tcp, udp } th dport 53 meta skuid 7 dnat ip6 to [::1]:15053",
    ]
    assert "meta nfproto ipv4 tcp dport 53 return" in found["outgoing"]


def test_one_direction_alone(tmp_path: Path) -> None:
    assert list(chains(plan_of(tmp_path, "outbound: {}"))) == ["outgoing"]
    assert list(chains(plan_of(tmp_path, "inbound: {ports: [80]}"))) == ["incoming"]
    only = chains(plan_of(tmp_path, "method: tproxy, inbound: {ports: [80]}"))
    assert list(only) == ["incoming"]
    assert not any("mark" in line for line in only["incoming"])
    # What is marked on its way out has to be received.
    assert list(chains(plan_of(tmp_path, "method: tproxy, outbound: {}"))) == ["outgoing", "incoming"]


def test_the_transaction_replaces_what_is_there(tmp_path: Path) -> None:
    lines = ruleset.transaction(plan_of(tmp_path, ALL)).splitlines()
    assert lines[:3] == ["add table inet fastmesh", "delete table inet fastmesh", "table inet fastmesh {"]
    assert lines[-1] == "}"


def test_a_listener_for_each_family(tmp_path: Path) -> None:
    path = configuration(tmp_path, f"{{{ALL}}}")
    six = '  - {name: out6, role: outbound, bind: "[::1]:16001", transparent: true}\nservices:'
    path.write_text(path.read_text().replace("services:", six))
    outgoing = make_plan(load(path), EVERYBODY).outgoing
    assert outgoing is not None
    assert (outgoing.port4, outgoing.port6) == (15001, 16001)
    missing = 'incoming IPv6 is refused, for there is no listener for it; add one (bind: "[::]:15006")'
    assert unheard(load(path)) == [missing]
    path.write_text(path.read_text().replace("outbound: {}", "outbound: {listener: out6}"))
    outgoing = make_plan(load(path), EVERYBODY).outgoing
    assert outgoing is not None
    assert (outgoing.port4, outgoing.port6) == (16001, 16001)


@pytest.mark.parametrize(
    ("listen", "remark"),
    [
        ("127.0.0.1:15053", "DNS by IPv6 is not taken over, for dns.listen is an IPv4 address; let the appl"),
        ("[::1]:15053", "DNS by IPv4 is not taken over, for dns.listen is an IPv6 address; let the appl"),
    ],
)
def test_names_that_go_past_the_resolver(tmp_path: Path, listen: str, remark: str) -> None:
    path = configuration(tmp_path, "{outbound: {}, inbound: {ports: [8080]}}")
    before = unheard(load(path))
    path.write_text(f'{path.read_text()}dns: {{listen: "{listen}"}}\n')
    *others, last = unheard(load(path))
    assert others == before
    assert last.startswith(remark)
    path.write_text(path.read_text().replace("outbound: {}, ", ""))
    assert not any("DNS" in one for one in unheard(load(path)))


def test_networks_that_lie_in_others(tmp_path: Path) -> None:
    """A set of nft holds none that overlap."""
    cidrs = "10.1.0.0/16, 10.0.0.0/8, 10.0.0.0/8, 'fd00::1', 'fd00::/8', 192.0.2.0/25, 192.0.2.128/25"
    outgoing = plan_of(tmp_path, f"outbound: {{exclude_cidrs: [{cidrs}]}}").outgoing
    assert outgoing is not None
    assert outgoing.exclude_cidrs == ["10.0.0.0/8", "192.0.2.0/24", "fd00::/8"]


def test_users_by_name(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "outbound: {exclude_uids: [root, 0, 12]}, exempt_uids: [nobody]")
    assert plan.outgoing is not None
    assert plan.outgoing.exclude_uids == [0, 12]
    assert plan.exempt_uids == [65534]
    with pytest.raises(InterceptError, match=r"^there is no user no-such-user on this host; give one of"):
        plan_of(tmp_path, "outbound: {exclude_uids: [no-such-user]}")


def test_nothing_to_take(tmp_path: Path) -> None:
    with pytest.raises(InterceptError, match=r"is one of exempt_uids in .*: nothing would be taken; select"):
        plan_of(tmp_path, "outbound: {}, exempt_uids: [7]", Selection(uid=7))
    path = configuration(tmp_path, "{outbound: {}}")
    path.write_text(path.read_text().partition("intercept:")[0])
    with pytest.raises(InterceptError, match=r"has no `intercept`.*; add it"):
        make_plan(load(path), EVERYBODY)


def test_names_follow_from_the_selection() -> None:
    names = [
        table_of(selection)
        for selection in (
            EVERYBODY,
            Selection(uid=0),
            Selection(uid=7),
            Selection(cgroup="a/b"),
            Selection(cgroup="/a//b/"),
            Selection(cgroup="a"),
        )
    ]
    assert names[:3] == ["fastmesh", "fastmesh_uid_0", "fastmesh_uid_7"]
    assert names[3] == names[4] != names[5]
    assert all(map(is_ours, names))
    assert not any(map(is_ours, ("fastmeshx", "filter", "my_fastmesh_uid_1")))
    marks = {route_mark(name) for name in names}
    assert len(marks) == 5
    assert all(mark in ROUTE_MARKS for mark in marks)
    with pytest.raises(InterceptError, match="two selections"):
        table_of(Selection(uid=1, cgroup="a"))


def listed(plan: Plan) -> list[dict[str, Any]]:
    """What nft lists of the chain `about`."""
    comments = re.findall(r'return comment "(.*)"', ruleset.transaction(plan))
    assert all(len(comment) <= 128 for comment in comments)
    return [{"rule": {"chain": "about", "comment": comment, "expr": []}} for comment in comments]


def test_a_table_knows_its_plan(tmp_path: Path) -> None:
    ports = ", ".join(str(port) for port in range(2000, 2256))
    plan = plan_of(tmp_path, f"outbound: {{ports: [{ports}]}}, exempt_uids: [1, 2]", Selection(uid=7))
    rules = listed(plan)
    assert len(rules) > 2
    assert ruleset.plan_in(rules) == plan
    assert ruleset.plan_in(rules[:-1]) is None
    assert ruleset.plan_in([]) is None
    assert ruleset.plan_in([{"rule": {"chain": "about", "comment": "?", "expr": []}}]) is None


@pytest.mark.parametrize("text", [b"0" * (1 << 22), b'{"a":' + b"[" * 100_000])
def test_a_table_that_somebody_else_has_written(text: bytes) -> None:
    """Root in a container writes there what it likes, and we read it on the host."""
    comment = base64.b64encode(zlib.compress(text, 9)).decode()
    assert ruleset.plan_in([{"rule": {"chain": "about", "comment": comment, "expr": []}}]) is None


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "outbound: {}")
    plan = msgspec.structs.replace(plan, workload="a\x1b[2J", owner="b\nc", cgroup="d\x1b")
    assert plan.for_whom() == "a\\x1b[2J (b\\nc)"
    lines = words.told(apply.InForce(table=plan.table, plan=plan, state="same"), "here")
    assert "of cgroup d\\x1b in here" in lines[0]
    assert all(line.isprintable() for line in lines)


def test_the_seal_is_about_what_people_change() -> None:
    rule: dict[str, Any] = {"chain": "outgoing", "handle": 3, "expr": [{"counter": {"packets": 1}}]}
    table = [{"metainfo": {"version": "1.0.6"}}, {"rule": rule}]
    seal = ruleset.seal_of(table)
    assert seal.startswith("nft 1.0.6 ")
    steady = {**rule, "handle": 9, "expr": [{"counter": {"packets": 200}}]}
    own = {"rule": {"chain": "seal", "comment": seal, "expr": []}}
    assert ruleset.seal_of([table[0], {"rule": steady}, own]) == seal
    assert ruleset.seal_in([own]) == seal
    for changed in (
        [],
        [{"rule": {**rule, "expr": [*rule["expr"], {"accept": None}]}}],
        [{"rule": rule}, {"chain": {"name": "x"}}],
    ):
        assert ruleset.seal_of([table[0], *changed]) != seal


def test_side_by_side(tmp_path: Path) -> None:
    one = plan_of(tmp_path, ALL)
    same = msgspec.structs.replace(one, table="fastmesh_uid_7", uid=7)
    check_against(same, [one])  # one sidecar for two selections
    other = plan_of(tmp_path, ALL, Selection(uid=7), name="b", out=15021, inside=15026)
    with pytest.raises(
        InterceptError, match=r"for port 8080 is taken over already, for svc-a \(.*\), traffic of"
    ):
        check_against(other, [one])
    check_against(msgspec.structs.replace(other, incoming=None), [one])
    shared = plan_of(tmp_path, "outbound: {}", Selection(uid=7), name="b")
    with pytest.raises(InterceptError, match="port 15001 is that of another sidecar's listener already"):
        check_against(shared, [one])
