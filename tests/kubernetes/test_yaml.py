"""YAML in and out: what is read means what kubectl says, what is written means what was read."""

from __future__ import annotations

import json
from typing import Any

import jsonpatch
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmesh.kubernetes import nodes
from fastmesh.kubernetes.manifests import Document, documents
from fastmesh.kubernetes.patch import difference

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cn"]), max_size=12)
# What is taken for something else where it is not in quotes.
TRICKY = st.sampled_from(
    [
        *(
            "on",
            "Off",
            "yes",
            "N",
            "null",
            "~",
            "",
            "1e3",
            "12e4567",
            "0644",
            "0o7",
            "0x1f",
            "1_000",
            "22:22",
        ),
        *(
            "190:20:30",
            "2026-01-01",
            ".5",
            "-.inf",
            ".nan",
            "=",
            "<<",
            "1.0",
            "+1",
            "-",
            "- a",
            "a: b",
            "a #b",
        ),
        *(
            "#a",
            "'a'",
            '"a"',
            "&a",
            "*a",
            "!a",
            "%a",
            "@a",
            "`a",
            "{a}",
            "[a]",
            "|",
            ">",
            "?",
            ":",
            " ",
            " a",
        ),
        *("a ", "a\nb", "\n", "---", "...", "10.0.0.0/8", "100m"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXT | TRICKY
KEYS = TEXT | TRICKY
NAMED = st.builds(
    lambda name, rest: {**rest, "name": name},
    st.sampled_from("abcd"),
    st.dictionaries(KEYS, SCALARS, max_size=2),
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4) | st.lists(NAMED, max_size=4)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("0644", 0o644),
        ("0o644", 0o644),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("on", True),
        ("No", False),
        ("true", True),
        ("~", None),
        ("", None),
        ("'on'", "on"),
        ('"5"', "5"),
        ("!!str 5", "5"),
        ('!!int "5"', 5),
        ("22:22", "22:22"),
        ("2026-01-01", "2026-01-01"),
        ("100m", "100m"),
        ("09", 9.0),
        ("0x_1_F", 31),
        ("0b_", "0b_"),
        ("-0o_", "-0o_"),
        ("0x__", "0x__"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_mean_what_kubectl_says(text: str, value: Any) -> None:
    (document,) = documents(f"a: {text}\n".encode(), "x")
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


@settings(max_examples=100, deadline=None)
@given(DATA)
def test_what_is_made_means_the_same_to_every_reader(data: Any) -> None:
    text = nodes.written(nodes.node({"a": data}))
    assert yaml.safe_load(text) == {"a": data}
    (document,) = documents(text.encode(), "x")
    assert document.data == {"a": data}


@settings(max_examples=100, deadline=None)
@given(DATA, DATA, st.booleans())
def test_difference(old: Any, new: Any, as_json: bool) -> None:
    """The operations make one of the other: for a library of others', and on the nodes of a text."""
    old, new = {"a": old, "b/~": [1]}, {"a": new, "c": {}}
    operations = difference(old, new)
    assert jsonpatch.apply_patch(old, operations) == new
    text = json.dumps(old) if as_json else nodes.written(nodes.node(old))
    (document,) = documents(text.encode(), "x")
    assert document.data == old
    (again,) = documents(document.text(operations).encode(), "x")
    assert again.data == new


@settings(max_examples=100, deadline=None)
@given(DATA, st.sampled_from(("'", '"', None, "|", ">")))
def test_scalars_that_nobody_touches_keep_their_meaning(data: Any, style: str | None) -> None:
    text = yaml.safe_dump({"a": data}, default_style=style, allow_unicode=True)
    (document,) = documents(text.encode(), "x")
    changed = document.text([{"op": "add", "path": "/b", "value": 1}])
    assert yaml.safe_load(changed) == {"a": data, "b": 1}


def test_names_keep_entries_in_place() -> None:
    """A container in front of others is one addition, not a change of all of them."""
    old, new = [{"name": "a", "x": 1}], [{"name": "new"}, {"name": "a", "x": 2}]
    assert difference(old, new) == [
        {"op": "add", "path": "/0", "value": {"name": "new"}},
        {"op": "replace", "path": "/1/x", "value": 2},
    ]


def texts(data: list[Document]) -> list[str]:
    return [one.text([]) for one in data]


def test_documents_are_cut_where_they_begin() -> None:
    text = "# head\na: 1\n--- # second\nb: 2\n...\n%YAML 1.1\n---\nc: 3\n--- {d: 4}\n"
    found = documents(text.encode(), "x")
    assert [one.data for one in found] == [{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}]
    assert texts(found) == [
        "# head\na: 1\n",
        "--- # second\nb: 2\n...\n",
        "%YAML 1.1\n---\nc: 3\n",
        "--- {d: 4}\n",
    ]


def test_byte_order_mark_and_line_ends() -> None:
    found = documents("\ufeffa: 1\r\n---\r\nb: 2\r\n".encode(), "x")
    assert [one.data for one in found] == [{"a": 1}, {"b": 2}]
    assert texts(found) == ["a: 1\r\n", "---\r\nb: 2\r\n"]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_the_deepest_document_can_be_changed(form: str) -> None:
    levels = nodes.MAX_DEPTH - 1
    text = f'{{"x": {"{"}"a": '.replace('{"a": ', '{"a": ' * levels) + "1" + "}" * (levels + 1) + "\n"
    (document,) = documents(text.encode() if form == "json" else b"# not JSON\n" + text.encode(), "deep")
    changed = document.text([{"op": "add", "path": "/y", "value": 1}])
    (again,) = documents(changed.encode(), "changed")
    assert again.data == {**document.data, "y": 1}
