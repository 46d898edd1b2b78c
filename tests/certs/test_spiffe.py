"""SPIFFE ids and workload names: what the standard allows, and nothing else."""

from __future__ import annotations

import pytest

from fastmesh.certs import spiffe

LONG = "a" * 255


@pytest.mark.parametrize(
    ("text", "domain", "path"),
    [
        ("spiffe://mesh.local/svc-a", "mesh.local", "/svc-a"),
        ("spiffe://mesh.local", "mesh.local", ""),
        ("spiffe://mesh.local/ns/shop/sa/cart", "mesh.local", "/ns/shop/sa/cart"),
        ("spiffe://1.2.3.4/a", "1.2.3.4", "/a"),
        ("spiffe://under_score-dash.dot/A.b-c_d", "under_score-dash.dot", "/A.b-c_d"),
        ("spiffe://a/.../..a/a..", "a", "/.../..a/a.."),
        (f"spiffe://{LONG}/a", LONG, "/a"),
        ("spiffe://a/" + "b" * 2037, "a", "/" + "b" * 2037),
    ],
)
def test_a_valid_id_is_taken_apart_and_put_together_again(text: str, domain: str, path: str) -> None:
    found = spiffe.parse(text)
    assert (found.trust_domain, found.path) == (domain, path)
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///a",
        "mesh.local/a",
        "http://mesh.local/a",
        "SPIFFE://mesh.local/a",
        "spiffe:/mesh.local/a",
        " spiffe://mesh.local/a",
        "spiffe://mesh.local/a\n",
        "spiffe://mesh.local\n",
        "spiffe://mesh.local/a ",
        "spiffe://Mesh.local/a",
        "spiffe://mesh.local:80/a",
        "spiffe://user@mesh.local/a",
        "spiffe://mesh.local/a?b",
        "spiffe://mesh.local/a#b",
        "spiffe://mesh.local?b",
        "spiffe://mesh.local/",
        "spiffe://mesh.local/a/",
        "spiffe://mesh.local//a",
        "spiffe://mesh.local/a//b",
        "spiffe://mesh.local/.",
        "spiffe://mesh.local/..",
        "spiffe://mesh.local/a/../b",
        "spiffe://mesh.local/%61",
        "spiffe://mesh.local/a*",
        "spiffe://*/a",
        "spiffe://mesh.local/a\0b",
        "spiffe://mesh.local/ä",
        "spiffe://mesh.lοcal/a",  # a Greek omicron
        "spiffe://mesh.local/١",  # a digit, but not of ASCII
        f"spiffe://{LONG}a/a",
        "spiffe://a/" + "b" * 2038,
        "[::1]",
        "spiffe://[::1]/a",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(spiffe.SpiffeError):
        spiffe.parse(text)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "svc-a",
        "1",
        "a.b.c",
        "svc-a.shop",
        "x" * 63,
        "0a",
        "a--b",
        ".".join(["x" * 61] * 4),
        "svc.1",
        "v1",
    ],
)
def test_workload_names(name: str) -> None:
    assert spiffe.workload(name) == name
    made = str(spiffe.workload_id("mesh.local", name))
    assert made == f"spiffe://mesh.local/{name}"
    assert spiffe.parse(made).path == f"/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/a",
        "a\n",
        "a b",
        "-a",
        "a-",
        ".a",
        "a.",
        "a..b",
        "a_b",
        "A",
        "ä",
        "*",
        "*.a",
        "x" * 64,
        "a" * 254,
        "1.2",
        "10.0.0.1",
        "a\0",
        "a:1",
        "[red]",
        "$(id)",
    ],
)
def test_bad_workload_names(name: str) -> None:
    with pytest.raises(spiffe.SpiffeError) as caught:
        spiffe.workload(name)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_the_refusal_says_what_to_write_instead() -> None:
    with pytest.raises(spiffe.SpiffeError, match=r"write svc-a$"):
        spiffe.workload("Svc_A")
    with pytest.raises(spiffe.SpiffeError, match=r"write mesh\.local$"):
        spiffe.trust_domain("Mesh.Local")
    with pytest.raises(spiffe.SpiffeError, match="without spiffe://"):
        spiffe.trust_domain("spiffe://mesh.local")


@pytest.mark.parametrize("text", ["", "a" * 256, "a/b", "a\n", "a b", "a:1", "ü", "*", "A"])
def test_bad_trust_domains(text: str) -> None:
    with pytest.raises(spiffe.SpiffeError):
        spiffe.trust_domain(text)


def test_a_long_input_makes_a_short_message() -> None:
    with pytest.raises(spiffe.SpiffeError) as caught:
        spiffe.parse("spiffe://mesh.local/" + "é" * 1000)
    assert len(str(caught.value)) < 300
