"""The engine where a table is not enough: many rules, limits, and a second implementation to compare with."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.rules import engine

from fastmesh import _policy

A = "spiffe://mesh.local/svc-a"


def head(target: str = "/", method: str = "GET", host: str = "h", **headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def test_as_many_rules_as_a_list_has() -> None:
    """Each of 256 rules decides what it is for, in both lists at once, whatever word of the set it is in."""
    allow = [{"paths": [f"/a{number}/*", f"/b{number}"]} for number in range(256)]
    deny = [{"headers": {"x-n": str(number)}} for number in range(256)]
    rules = engine({"allow": allow, "deny": deny})
    for number in range(256):
        assert rules.ask(head(f"/a{number}/x"))["rule"] == f"allow-{number + 1}"
        assert rules.ask(head(f"/b{number}"))["rule"] == f"allow-{number + 1}"
        assert rules.ask(head(f"/a{number}", x_n=str(number)))["rule"] == f"deny-{number + 1}"
    assert rules.ask(head("/a256"))["reason"] == "denied"
    assert rules.ask(head("/a255", x_n="256"))["reason"] is None


def test_one_rule_more_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 256 rules"):
        _policy.Engine({"allow": [{"methods": ["GET"]}] * 257})


def test_the_first_rule_that_holds_decides() -> None:
    rules = engine({"allow": [{"paths": ["/x"]}, {"paths": ["/*"]}, {"paths": ["/x"]}]})
    assert rules.ask(head("/x"))["rule"] == "allow-1"
    assert rules.ask(head("/y"))["rule"] == "allow-2"


# Exponential without a limit: nothing that the expressions below can match, but all the bytes they need.
BOMB = "/" + "a" * 200 + "0123456789bc"


def test_limits_are_counted_and_end_the_search() -> None:
    """After one regex at its limit no other is tried for the same request: the work stays bounded."""
    evil = [{"paths": [{"regex": rf"/(a|aa)+{number}"}]} for number in range(100)]
    rules = engine({"allow": evil})
    assert rules.ask(head(BOMB))["reason"] == "denied"
    assert rules.regex_limits == 1
    assert rules.ask(head("/aa7"))["rule"] == "allow-8"
    denying = engine({"deny": evil})
    assert denying.ask(head(BOMB))["reason"] == "denied"
    assert denying.regex_limits == 1
    unless = engine({"deny": [{"methods": ["GET"], "not_paths": [{"regex": "/(a|aa)+b"}]}]})
    assert unless.ask(head(BOMB))["reason"] == "denied"
    excepted = engine({"allow": [{"not_paths": [{"regex": "/(a|aa)+b"}]}]})
    assert excepted.ask(head(BOMB))["reason"] == "denied"


def test_a_regex_is_the_whole_text_also_across_lines() -> None:
    rules = engine(
        {"deny": [{"paths": [{"regex": "/a.*"}]}], "allow": [{"paths": [{"regex": "/.$"}, "/a%0Ab"]}]}
    )
    assert rules.ask(head("/a%0ab"))["rule"] == "deny-1"
    assert rules.ask(head("/b"))["rule"] == "allow-1"
    assert rules.ask(head("/b%0a"))["reason"] == "denied"


def test_audited_and_enforced_owners_side_by_side() -> None:
    listener = {"mode": "audit", "allow": [{"name": "l", "from": [A]}]}
    service = {"allow": [{"name": "s", "methods": ["GET"]}]}
    rules = _policy.Engine(listener, service)
    got = rules.ask(head())
    assert (got["reason"], got["decision"], got["audit"], got["service"]) == (None, "deny", True, False)
    got = rules.ask(head(method="PUT"))
    assert (got["reason"], got["decision"], got["audit"], got["service"]) == ("denied", "deny", False, True)
    got = rules.ask(head(), A)
    assert (got["reason"], got["decision"], got["rule"], got["service"]) == (None, "allow", "s", True)
    counted = {name: counts for name, counts in rules.counters() if any(counts)}
    assert counted == {"default": [0, 1, 0], "l": [1, 0, 0], "s": [2, 0, 0]} or counted["l"] == [1, 0, 0]


def test_counters_by_rule() -> None:
    rules = engine({"allow": [{"name": "a", "from": ["svc-a"]}], "deny": [{"name": "d", "methods": ["PUT"]}]})
    for method, who in (("GET", A), ("PUT", A), ("GET", None), ("GET", None)):
        rules.ask(head(method=method), who)
    assert dict(rules.counters()[:3]) == {"default": [0, 2, 0], "a": [1, 0, 0], "d": [0, 1, 0]}


@given(st.lists(st.binary(max_size=3), max_size=600))
def test_shared_texts_come_and_go(texts: list[bytes]) -> None:
    """What the application is told of callers is held once for each certificate, and while it is needed."""
    assert _policy.share(texts) == (len(set(texts)), 0)


def test_many_shared_texts() -> None:
    texts = [b"By=%d" % number for number in range(5000)]
    assert _policy.share(texts * 2) == (5000, 0)


# A second implementation, as plain as can be.

SEGMENTS = st.sampled_from(["a", "b", "ab", "a-b", "c"])
PATHS = st.lists(SEGMENTS, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
PATTERNS = st.one_of(PATHS, PATHS.map(lambda path: path + "/*"), PATHS.map(lambda path: path + "*"))
HOSTS = st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join)
HOST_PATTERNS = st.one_of(HOSTS, HOSTS.map(lambda host: "*." + host))
METHODS = st.sampled_from(["GET", "PUT", "PURGE", "LINK"])
VALUES = st.sampled_from(["", "x", "xy", "y"])
HEADERS = st.dictionaries(
    st.sampled_from(["x-a", "x-b", "x-c"]),
    st.one_of(
        VALUES,
        VALUES.map(lambda value: {"prefix": value}),
        st.booleans().map(lambda value: {"present": value}),
        st.sampled_from(["x+", ".y?"]).map(lambda value: {"regex": value}),
    ),
    min_size=1,
    max_size=2,
)
KINDS = {
    "methods": st.lists(METHODS, min_size=1, max_size=2),
    "paths": st.lists(PATTERNS, min_size=1, max_size=3),
    "hosts": st.lists(HOST_PATTERNS, min_size=1, max_size=2),
    "headers": HEADERS,
}
RULE = st.fixed_dictionaries({}, optional=KINDS | {f"not_{key}": value for key, value in KINDS.items()})
REQUESTS = st.tuples(
    METHODS, PATHS, HOSTS, st.dictionaries(st.sampled_from(["x-a", "x-b", "x-c"]), VALUES, max_size=2)
)


def holds(rule: dict[str, Any], method: str, path: str, host: str, headers: dict[str, str]) -> bool:
    def path_is(pattern: str) -> bool:
        if pattern.endswith("/*"):
            return path == pattern[:-2] or path.startswith(pattern[:-1])
        return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern

    def host_is(pattern: str) -> bool:
        return host.endswith(pattern[1:]) if pattern.startswith("*") else host == pattern

    def header_is(name: str, wanted: Any) -> bool:
        if isinstance(wanted, str):
            return headers.get(name) == wanted
        if "present" in wanted:
            return (name in headers) == wanted["present"]
        if "prefix" in wanted:
            return name in headers and headers[name].startswith(wanted["prefix"])
        whole = {"x+": {"x"}, ".y?": {"x", "xy", "y"}}[wanted["regex"]]
        return headers.get(name) in whole

    met = {
        "methods": lambda values: method in values,
        "paths": lambda values: any(map(path_is, values)),
        "hosts": lambda values: any(map(host_is, values)),
    }
    for key, test in met.items():
        if (key in rule and not test(rule[key])) or (f"not_{key}" in rule and test(rule[f"not_{key}"])):
            return False
    if not all(header_is(name, wanted) for name, wanted in rule.get("headers", {}).items()):
        return False
    return not any(header_is(name, wanted) for name, wanted in rule.get("not_headers", {}).items())


def as_snapshot(rule: dict[str, Any]) -> dict[str, Any]:
    def path(pattern: str) -> dict[str, str]:
        return {"prefix": pattern[:-1]} if pattern.endswith("*") else {"exact": pattern}

    def header(name: str, wanted: Any) -> dict[str, Any]:
        return {"name": name, **(wanted if isinstance(wanted, dict) else {"exact": wanted})}

    out = dict(rule)
    for key in ("paths", "not_paths"):
        if key in rule:
            out[key] = [path(pattern) for pattern in rule[key]]
    for key in ("headers", "not_headers"):
        if key in rule:
            out[key] = [header(name, wanted) for name, wanted in rule[key].items()]
    return out


@settings(max_examples=300)
@given(st.lists(RULE, min_size=1, max_size=5), st.lists(REQUESTS, min_size=1, max_size=8))
def test_it_agrees_with_a_plain_implementation(rules: list[dict[str, Any]], asked: list[Any]) -> None:
    allowing = _policy.Engine({"allow": [as_snapshot(rule) for rule in rules]})
    denying = _policy.Engine({"deny": [as_snapshot(rule) for rule in rules]})
    for method, path, host, headers in asked:
        data = head(path, method, host, **headers)
        first = next(
            (index for index, rule in enumerate(rules) if holds(rule, method, path, host, headers)),
            None,
        )
        got, refused = allowing.ask(data), denying.ask(data)
        if first is None:
            assert (got["reason"], refused["reason"]) == ("denied", None)
        else:
            assert (got["reason"], got["rule"]) == (None, f"allow-{first + 1}")
            assert (refused["reason"], refused["rule"]) == ("denied", f"deny-{first + 1}")
