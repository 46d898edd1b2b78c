"""YAML: aliases, merges, places, and the bounds that keep a hostile file from costing anything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from fastmesh.config import ConfigErrors, Loaded
from fastmesh.config.document import MAX_DEPTH, Node, parse
from fastmesh.config.loader import loads

LISTENER = "listeners: [{name: a, bind: 127.0.0.1:8080, to: web}]\n"


def tree(text: str) -> Node:
    node, errors = parse(text.encode(), "x")
    assert errors == []
    return node


def loaded(text: str) -> Loaded:
    return loads(text.encode(), Path("x.yaml"))


def messages(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        loaded(text)
    return [str(error) for error in caught.value.errors]


def test_anchor_and_alias() -> None:
    config = loaded(
        LISTENER
        + """
services:
  web: &web
    endpoints: [&one 127.0.0.1:9000, *one]
    connect_timeout: 2s
  other: *web
"""
    ).config
    assert config.services["other"] == config.services["web"]
    assert [str(e.address) for e in config.services["web"].endpoints] == ["127.0.0.1:9000"] * 2


def test_merge_keys() -> None:
    config = loaded(
        LISTENER
        + """
services:
  web: &web {endpoints: [127.0.0.1:9000], connect_timeout: 2s, response_timeout: 3s}
  slow: &slow {endpoints: [], connect_timeout: 9s, response_timeout: 9s}
  own: {<<: *web, connect_timeout: 5s}
  after: {connect_timeout: 5s, <<: *web}
  first: {<<: [*web, *slow]}
"""
    ).config
    own, first = config.services["own"], config.services["first"]
    assert (own.connect_timeout, own.response_timeout) == (5000, 3000)
    assert config.services["after"] == own
    assert first == config.services["web"]


def test_quoted_merge_key_is_a_key() -> None:
    assert messages(LISTENER + 'services: {web: {"<<": {}, endpoints: []}}')[0].startswith(
        "x.yaml:2:18: unknown key '<<' in a service"
    )


def test_places_with_aliases() -> None:
    """What is wrong inside an anchored value is reported where it was written, once."""
    text = LISTENER + "services:\n  web: &web {endpoints: [x]}\n  b: *web\n  c: *web\n"
    assert [m.split(" ")[0] for m in messages(text)] == ["x.yaml:3:26:"]


def test_text_stays_text() -> None:
    config = loaded(
        """
listeners: [{name: on, bind: 127.0.0.1:8080, to: no}]
services: {no: {endpoints: [127.0.0.1:9000]}, y: {endpoints: []}, 1e3: {endpoints: []}, 0x1f: {endpoints: []}}
workload: null-and-void
trust_domain: 1.2
"""
    ).config
    assert list(config.services) == ["no", "y", "1e3", "0x1f"]
    assert (config.listeners[0].name, config.listeners[0].to) == ("on", "no")
    assert config.trust_domain == "1.2"


def test_byte_order_mark_and_line_ends() -> None:
    text = (LISTENER + "services: {web: {endpoints: [x]}}\n").replace("\n", "\r\n")
    with pytest.raises(ConfigErrors) as caught:
        loads(b"\xef\xbb\xbf" + text.encode(), Path("x.yaml"))
    assert [(e.line, e.column) for e in caught.value.errors] == [(2, 30)]


def test_columns_count_characters() -> None:
    text = '{"services": {"ö𝄞": 1}, zzz: 1}'
    assert [m.split(" ")[0] for m in messages(text)][-1] == f"x.yaml:1:{text.index('zzz') + 1}:"


def test_json_is_yaml() -> None:
    text = (
        '{"listeners": [{"name": "a", "bind": "[::1]:80", "to": "w"}], "services": {"w": {"endpoints": []}}}'
    )
    assert loaded(text).config.listeners[0].bind.host == "::1"


def test_billion_laughs() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    started = time.process_time()
    (message,) = messages("\n".join(lines))
    assert message.endswith("more than 250000 values once aliases are expanded, expected fewer")
    assert message.startswith("x.yaml:6:"), "the place where it became too much"
    assert time.process_time() - started < 1


def test_billion_laughs_by_merge() -> None:
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: x" for n in range(50)) + "}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 50)}]}}" for n in range(1, 9)]
    started = time.process_time()
    (message,) = messages("\n".join(lines))
    assert "250000 values" in message
    assert time.process_time() - started < 1


@pytest.mark.parametrize("opener", ["[", "{a: ", "- "])
def test_depth(opener: str) -> None:
    started = time.process_time()
    (message,) = messages(opener * 100_000)
    assert message.endswith(f"nested more than {MAX_DEPTH} levels deep, expected less")
    assert time.process_time() - started < 2


def test_many_values() -> None:
    (message,) = messages("[" + "1," * 300_000 + "]")
    assert "250000 values" in message


def test_merge_keeps_no_alias_to_its_source() -> None:
    node = tree("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: {<<: *a}")
    assert list(node.entries["a"][1].entries) == ["x"]
    assert list(node.entries["b"][1].entries) == ["y", "x"]


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "bad").glob("*.yaml")), ids=lambda p: p.stem)
def test_both_parsers_agree(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML may be installed without libyaml: the errors are the same then."""
    with pytest.raises(ConfigErrors) as with_libyaml:
        loads(path.read_bytes(), path)
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    with pytest.raises(ConfigErrors) as without:
        loads(path.read_bytes(), path)
    assert str(with_libyaml.value) == str(without.value)
