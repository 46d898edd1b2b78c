"""The kinds of scalar: what is read, what is refused, and that what is shown is read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmesh.config import values
from fastmesh.config.values import Address


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("250ms", 250),
        ("10s", 10_000),
        ("1m30s", 90_000),
        ("1h", 3_600_000),
        ("0s", 0),
        ("1d2h3m4s5ms", 93_784_005),
        ("30d", values.MAX_DURATION_MS),
        ("90s", 90_000),
    ],
)
def test_duration(text: str, milliseconds: int) -> None:
    assert values.parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    "text", ["", "s", "1", "1.5s", "1s1m", "1s1s", "-1s", "1 s", "1s\n", "1S", "١s", "9" * 11 + "s"]
)
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        values.parse_duration(text)


@given(st.integers(0, values.MAX_DURATION_MS))
def test_duration_is_read_as_shown(milliseconds: int) -> None:
    assert values.parse_duration(values.format_duration(milliseconds)) == milliseconds


@pytest.mark.parametrize(("text", "share"), [("0%", 0), ("100%", 1), ("0.5%", 0.005), ("12.25%", 0.1225)])
def test_percent(text: str, share: float) -> None:
    assert values.parse_percent(text) == pytest.approx(share)
    assert values.format_percent(share) == text


@pytest.mark.parametrize("text", ["", "1", "101%", "-1%", "1 %", "%", "1%\n", "nan%", "1e1%"])
def test_no_percent(text: str) -> None:
    with pytest.raises(ValueError, match="expected a percentage"):
        values.parse_percent(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("[::1]:80", Address("::1", 80)),
        ("[0:0:0::1]:80", Address("::1", 80)),
        ("[::ffff:1.2.3.4]:80", Address("::ffff:102:304", 80)),
        ("Localhost:0", Address("localhost", 0)),
        ("my_app.shop.svc.:443", Address("my_app.shop.svc.", 443)),
        ("unix:/run/a b", Address(path="/run/a b")),
        ("unix:run/a", Address(path="run/a")),
    ],
)
def test_address(text: str, address: Address) -> None:
    assert values.parse_address(text) == address
    assert values.parse_address(str(address)) == address


@given(st.text(max_size=40))
def test_address_is_read_or_refused(text: str) -> None:
    try:
        address = values.parse_address(text)
    except ValueError as error:
        assert "expected" in str(error)
    else:
        assert values.parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "svc-a",
        "svc-*",
        "s*",
        "*",
        "spiffe://mesh.local/svc-a",
        "spiffe://mesh.local/ns/*",
        "spiffe://m/Ns_1/a*",
    ],
)
def test_from(text: str) -> None:
    assert values.parse_from(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "svc_a",
        "Svc",
        "a*b",
        "**",
        "spiffe:*",
        "spiffe://*",
        "spiffe://mesh.local",
        "spiffe://mesh.local/",
        "spiffe://mesh.*",
        "spiffe://mesh.local*",
        "spiffe://Mesh.local/a",
        "spiffe://mesh.local/a//b",
        "spiffe://mesh.local/../a",
        "spiffe://mesh.local/a?b",
        "svc-a\n",
        "spiffe://mesh.local/svc-a\n",
        "spiffe://m/" + "a" * 2048,
    ],
)
def test_no_from(text: str) -> None:
    with pytest.raises(ValueError, match="is not an identity, expected"):
        values.parse_from(text)


def test_messages_are_one_short_line() -> None:
    with pytest.raises(ValueError, match=r"^'a+…'") as caught:
        values.parse_duration("a" * 10_000 + "\n")
    assert len(str(caught.value)) < 200
