"""The pages that are derived from the schema: up to date, complete, and true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastmesh.cli.init import STARTER
from fastmesh.config import ConfigErrors
from fastmesh.config.fields import Type, fields, sections
from fastmesh.config.loader import loads
from fastmesh.config.reference import json_schema, page
from fastmesh.config.schema import MAX_SERVICES, Config

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def test_reference_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == page(), "run: python -m fastmesh.config.reference > docs/configuration.md"


def test_every_setting_is_described() -> None:
    for path, section in sections():
        for field in fields(section).values():
            assert field.doc.endswith("."), f"{path}.{field.key}"
            assert f"`{field.key}`" in page()


def test_links_of_the_page_lead_somewhere() -> None:
    headings = re.findall(r"(?m)^## `(.*)`$", page())
    anchors = {re.sub(r"[^\w-]", "", heading.lower()) for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", page()))
    assert links <= anchors
    assert len(anchors) == len(headings)


def test_defaults_are_what_the_file_would_say() -> None:
    """Every documented default and example is accepted where it stands."""
    for _, section in sections():
        for field in fields(section).values():
            kind = field.type.kind
            if kind is not None:
                for text in field.examples:
                    kind.parse(text)
                if field.default is not None and not field.required:
                    assert kind.parse(kind.show(field.default)) == field.default


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_load(path: Path) -> None:
    loads(path.read_bytes(), path)


def test_starter_loads() -> None:
    loads(STARTER.encode(), Path("fastmesh.yaml"))


def test_starter_loads_with_everything_switched_on() -> None:
    text, count = re.subn(r"(?m)^( *)# ( *(?:- )?[a-z_-]+:(?: .*)?)$", r"\1\2", STARTER)
    assert count > 20
    config = loads(text.encode(), Path("fastmesh.yaml")).config
    assert [listener.name for listener in config.listeners] == ["edge", "outbound", "inbound"]
    assert config.workload == "svc-a"
    assert config.telemetry.access_log is not None


# A validator of exactly the keywords that our schema uses: no dependency, and it says so when one is new.
def valid(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    known = {"$schema", "title", "description", "default", "examples", "$defs"}
    rules = {key: rule for key, rule in schema.items() if key not in known}
    for key, rule in rules.items():
        match key:
            case "$ref":
                passed = valid(root["$defs"][rule.rpartition("/")[2]], value, root)
            case "anyOf":
                passed = any(valid(one, value, root) for one in rule)
            case "const":
                passed = value == rule
            case "enum":
                passed = value in rule
            case "type":
                types: dict[str, Any] = {
                    "object": dict,
                    "array": list,
                    "string": str,
                    "integer": int,
                    "boolean": bool,
                }
                passed = isinstance(value, types[rule]) and (rule == "boolean" or not isinstance(value, bool))
            case "pattern":
                passed = re.search(rule, value) is not None
            case "minimum":
                passed = value >= rule
            case "maximum":
                passed = value <= rule
            case "minItems":
                passed = len(value) >= rule
            case "maxItems" | "maxProperties":
                passed = len(value) <= rule
            case "items":
                passed = all(valid(rule, item, root) for item in value)
            case "required":
                passed = all(name in value for name in rule)
            case "properties":
                passed = all(valid(rule[name], value[name], root) for name in rule if name in value)
            case "propertyNames":
                passed = all(valid(rule, name, root) for name in value)
            case "additionalProperties":
                others = [item for name, item in value.items() if name not in schema.get("properties", {})]
                passed = not others if rule is False else all(valid(rule, item, root) for item in others)
            case _:
                raise AssertionError(f"unknown keyword {key}")
        if not passed:
            return False
    return True


def as_json(text: str) -> Any:
    """What an editor's YAML 1.2 parser makes of the file: `off` and `no` are text there."""
    return yaml.load(text, Loader=_Yaml12)


class _Yaml12(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false"), list("tf"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_json_schema_accepts_examples(path: Path) -> None:
    schema = json_schema()
    assert valid(schema, as_json(path.read_text()), schema)


@pytest.mark.parametrize(
    "change",
    [
        ("to: web", "too: web"),
        ("8080", "80800000"),
        ("protocol: http", "protocol: htp"),
        ("    bind: 127.0.0.1:5432\n", ""),
        ("listeners:", "listenrs:"),
        ("[127.0.0.1:15432]", "127.0.0.1:15432"),
        ("  web:", "  Web:"),
        ("to: postgres", "to: postgres\n    idle_timeout: 10"),
        ("to: postgres", "to: postgres\n    max_connections: 0"),
        ("to: postgres", "to: postgres\n    forwarded: {via: 1}"),
    ],
)
def test_json_schema_refuses(change: tuple[str, str]) -> None:
    schema = json_schema()
    text = (ROOT / "examples" / "edge.yaml").read_text()
    assert change[0] in text
    assert not valid(schema, as_json(text.replace(*change)), schema)


@pytest.mark.parametrize(("over", "fine"), [(0, True), (1, False)])
@pytest.mark.parametrize("what", ["rules", "services"])
def test_most_entries(what: str, over: int, fine: bool) -> None:
    """A worker refuses more rules than it has bits for: that must be said when the file is checked."""
    rules = "{from: [a]}, " * (256 + over if what == "rules" else 1)
    services = "".join(
        f"  s{n}: {{endpoints: []}}\n" for n in range(MAX_SERVICES + over if what == "services" else 1)
    )
    text = (
        "{workload: w, trust_domain: d, pki: p, listeners: "
        f"[{{name: a, role: inbound, bind: 'h:1', to: s0, allow: [{rules}]}}], services: {{{services}}}}}"
    ).replace("\n", ",")
    schema = json_schema()
    assert valid(schema, as_json(text), schema) is fine
    if fine:
        loads(text.encode(), Path("x.yaml"))
        return
    with pytest.raises(ConfigErrors) as caught:
        loads(text.encode(), Path("x.yaml"))
    (error,) = caught.value.errors
    wanted = "allow: 257 entries, expected at most 256"
    assert error.message == (wanted if what == "rules" else "services: 1025 entries, expected at most 1024")


def test_json_schema_accepts_off_and_both_endpoint_forms() -> None:
    schema = json_schema()
    text = "admin: off\nlisteners: [{name: a, bind: '[::1]:1', to: w, forwarded: {via: false}}]\n"
    text += "services: {w: {endpoints: ['unix:/x', {address: a:1}]}}\nworkers: 2\ndrain: 1m30s\n"
    loads(text.encode(), Path("x.yaml"))
    assert valid(schema, as_json(text), schema)


def test_types_are_complete() -> None:
    def leaf(kind: Type) -> Type:
        return leaf(kind.item) if kind.item is not None else kind

    for _, section in sections():
        for field in fields(section).values():
            kind = leaf(field.type)
            assert kind.section or kind.kind or kind.choices or kind.plain, field.key
            if kind.plain is int:
                assert None not in (kind.ge, kind.le), f"{field.key} has no bounds"


# Texts at the edge of some kind; each is tried for every kind that a setting has.
TEXTS = [
    *(
        "",
        "-",
        "a",
        "A",
        "a_b",
        "a.b",
        "a..b",
        "1",
        "1.2",
        "no",
        "svc-a",
        "-a",
        "a-",
        "x" * 63,
        "x" * 64,
        "ö",
    ),
    *("0s", "0ms", "1ms", "10s", "1m30s", "1s1m", "30d", "10", "1.5s", "0%", "0.5%", "100%", "1%%"),
    *("h:1", "h:", "h", ":1", "[::1]:1", "::1:1", "[::1]", "unix:/x", "unix:", "127.0.0.1:65535", "a b:1"),
    *("GET", "M-X", "G T", "*", "/", "/*", "/a*", "/a*b", "/a?b", "a/b", "spiffe://d/a", "spiffe://d/*"),
    *("off", "json", "mesh", "edge", "append", "true", "1e3", "mesh.local", "x" * 255, "a\tb"),
]
# What the loader refuses although the pattern lets it pass: an identity has none, none knows regexes.
LAXER = {("identity", text) for text in TEXTS} | {("regex", "*")}


def accepted(kind: Type, text: str) -> bool:
    """Whether the loader takes `text` for a scalar of this type."""
    if kind.kind is None:
        return text in kind.choices
    if kind.off and text == "off":
        return True
    try:
        value = kind.kind.parse(text)
    except ValueError:
        return False
    return kind.ge is None or value >= kind.ge


def test_json_schema_agrees_about_texts() -> None:
    """An editor marks no text that loads, and nearly every one that does not."""
    root = json_schema()
    for _, section in sections():
        schema = root if section is Config else root["$defs"][section.__name__]
        for field in fields(section).values():
            kind, rule = field.type, schema["properties"][field.key]
            if kind.item is not None and kind.key is None:
                kind, rule = kind.item, rule["items"]
            if kind.kind is None and not kind.choices:
                continue
            name = kind.kind.name if kind.kind is not None else "choice"
            for text in TEXTS:
                if accepted(kind, text):
                    assert valid(rule, text, root), (field.key, text)
                elif (name, text) not in LAXER:
                    assert not valid(rule, text, root), (field.key, text)
