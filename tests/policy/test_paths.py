"""Paths: normal form against RFC 3986, and no spelling of a denied path gets through to who decodes it."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kit.rules import engine

from fastmesh import _policy

DENIED = ("/admin", "/a/b", "/x:y", "/~me/.ssh")
RULES = engine({"deny": [{"paths": [path, f"{path}/*"]} for path in DENIED]})
KEEPING = engine(
    {"deny": [{"paths": [path, f"{path}/*"]} for path in DENIED], "listener": {"encoded_slashes": "keep"}}
)
UNTOUCHED = engine(
    {"deny": [{"paths": [path, f"{path}/*"]} for path in DENIED], "listener": {"normalize_paths": "off"}}
)
ALLOWING = engine({"allow": [{"paths": ["/public/*", "/open"]}]})
ALLOWING_KEPT = engine(
    {"allow": [{"paths": ["/public/*", "/open"]}], "listener": {"encoded_slashes": "keep"}}
)


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("/a/b/c/./../../g", "/a/g"),  # RFC 3986 5.2.4
        ("/mid/content=5/../6", "/mid/6"),
        ("/..", "/"),
        ("/.", "/"),
        ("/../g", "/g"),
        ("/./g/.", "/g/"),
        ("/g.", "/g."),
        ("/.g", "/.g"),
        ("/..g", "/..g"),
        ("/g/..", "/"),
        ("/a/g;x=1/./y", "/a/g;x=1/y"),
        ("/a/g;x=1/../y", "/a/y"),
        ("//", "/"),
        ("///a//b///", "/a/b/"),
        ("/a//../b", "/b"),
        ("/%7Euser/%61", "/~user/a"),
        ("/%c3%a9", "/%C3%A9"),
        ("/%3a%3A", "/%3A%3A"),
        ("/%2e%2e/a", "/a"),
        ("/a/%2E", "/a/"),
        ("/a%20b", "/a%20b"),
        ("/%252e", "/%252e"),
        ("/%2F", None),
        ("/%5c", None),
        ("/%00", None),
        ("/\\", None),
        ("/%", None),
        ("/%g1", None),
        ("/%1", None),
        ("/..;", None),
        ("/.;a/b", None),
        ("/a/..%3bx", None),
        ("/.%02", "/.%02"),
        ("/..%20", "/..%20"),
    ],
)
def test_normal_form(path: str, normal: str | None) -> None:
    got, was_normal = _policy.normalise(path.encode())
    assert got == (None if normal is None else normal.encode())
    assert was_normal == (path == normal)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/a%2fb", b"/a%2Fb"),
        ("/a%5Cb/%61", b"/a%5Cb/a"),
        ("/a%2f..%2fb", None),
        ("/%2e%2e%2fb", None),
        ("/a%2f.", None),
        ("/a%5c..;x%2fb", None),
        ("/a%2f..b", b"/a%2F..b"),
        ("/a\\b", None),
    ],
)
def test_kept_slashes(path: str, kept: bytes | None) -> None:
    assert _policy.normalise(path.encode(), True)[0] == kept


@pytest.mark.parametrize(
    ("path", "decoded", "bare"),
    [
        (b"/a%3Ab", b"/a:b", b"/a:b"),
        (b"/a;x=1/b;y", b"/a;x=1/b;y", b"/a/b"),
        (b"/;x/a", b"/;x/a", b"/a"),
        (b"/a%2F%2Fb%5Cc", b"/a/b/c", b"/a/b/c"),
        (b"/a%3bx", b"/a;x", b"/a"),
    ],
)
def test_loose_forms(path: bytes, decoded: bytes, bare: bytes) -> None:
    assert _policy.forms(path) == (decoded, bare)


ANY_PATH = st.text(
    st.sampled_from("/.;%aA2ef5cFE0~:x\\"),
    min_size=1,
    max_size=24,
).map(lambda text: "/" + text)


@given(ANY_PATH, st.booleans())
def test_normal_form_is_a_fixed_point(path: str, keep: bool) -> None:
    normal, _ = _policy.normalise(path.encode(), keep)
    if normal is not None:
        assert len(normal) <= len(path)
        # one scan tells it, unless slashes were kept: those are looked at more closely
        kept = b"%2F" in normal or b"%5C" in normal
        assert _policy.normalise(normal, keep) == (normal, not kept)
        assert b"//" not in normal
        assert not {b".", b".."} & set(normal.split(b"/"))


DETOURS = ("/", "/.", "/y/..", "/y/%2e%2E", "/%2e", "/z/../", "/;p", "/q/..;p", "/;%2fp", "/;%3bp")


@st.composite
def spelling(draw: st.DrawFn, paths: tuple[str, ...] = DENIED) -> str:
    """A path, written in some other way: escapes, dot segments, empty segments, parameters, backslashes."""
    path = draw(st.sampled_from(paths)) + draw(st.sampled_from(("", "/", "/x", "/x/y")))
    out = ""
    for segment in path.split("/")[1:]:
        for _ in range(draw(st.integers(0, 2))):
            out += draw(st.sampled_from(DETOURS))
        out += draw(st.sampled_from(("/", "/", "/", "/", "\\", "%2f", "%5C")))
        for character in segment:
            how = draw(st.integers(0, 3))
            out += (
                f"%{ord(character):02x}" if how == 1 else f"%{ord(character):02X}" if how == 2 else character
            )
        out += draw(st.sampled_from(("", "", "", ";a=b", ";", "%3Bx", ";%2fq", ";x%5Cq", "%3fx", "%23")))
    if not out.startswith(("/", "\\", "%")):
        out = "/" + out
    return out if out.startswith("/") else "/" + out


def readings(target: str) -> set[str]:
    """What endpoints may make of a path: decoded or not, with parameters or without, resolved then or not."""
    path = target.partition("?")[0]
    found = set()
    for before in (path, resolved(path)):
        for text in (before, bare(before)):
            plain = unquote_to_bytes(text).decode("latin-1")
            for last in (plain, bare(plain), plain.replace("\\", "/"), bare(plain).replace("\\", "/")):
                found |= {last, resolved(last), resolved(bare(resolved(last)))}
                found.add(resolved(re.split("[?#]", last)[0]))
    return found


def bare(path: str) -> str:
    return "/".join(segment.partition(";")[0] for segment in path.split("/"))


def resolved(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def names_denied(path: str) -> bool:
    return any(path == denied or path.startswith(denied + "/") for denied in DENIED)


@pytest.mark.parametrize("rules", [RULES, KEEPING, UNTOUCHED], ids=["auto", "keep", "off"])
@given(target=st.one_of(spelling(), ANY_PATH))
@example(target="/~me;x%5Cq%2f.ssh")  # a backslash within parameters, to who takes it for no slash
@example(target="/~me;x;y%3Bx%5Cq%2f.ssh")
@example(target="/~me%3Bx%5Cq;y/.ssh")
@example(target="/%5Ca;x%5Cq%2fb")  # ... and for one afterwards
def test_no_spelling_of_a_denied_path_gets_through(rules: _policy.Engine, target: str) -> None:
    got = rules.ask(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    if got["reason"] is None:
        seen = readings(got["target"].decode())
        assert not any(map(names_denied, seen)), (got["target"], sorted(seen))


@pytest.mark.parametrize("rules", [ALLOWING, ALLOWING_KEPT], ids=["auto", "keep"])
@given(target=st.one_of(spelling(("/public/x", "/open", "/public", "/secret")), ANY_PATH))
def test_what_is_allowed_stays_where_it_is(rules: _policy.Engine, target: str) -> None:
    """Whatever the endpoint makes of an allowed path, it is one that is allowed."""
    got = rules.ask(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    if got["reason"] is None:
        for path in readings(got["target"].decode()):
            assert resolved(path) in ("/open", "/public") or resolved(path).startswith("/public/"), path
