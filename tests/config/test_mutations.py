"""Whatever a file says, it loads or yields errors with their place, and never a traceback."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastmesh.config import ConfigErrors, make_snapshot
from fastmesh.config.loader import loads

HERE = Path(__file__).parent
VALID = [path.read_bytes() for path in sorted((HERE.parents[1] / "examples").glob("*.yaml"))]
SEEDS = VALID + [path.read_bytes() for path in sorted((HERE / "bad").glob("*.yaml"))]
PIECES = [
    *(
        b"\n",
        b" ",
        b"  ",
        b"\t",
        b":",
        b": ",
        b"- ",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"#",
        b"&a ",
        b"*a",
        b"<<: *a",
    ),
    *(
        b'"',
        b"'",
        b"|\n",
        b">\n",
        b"!!str ",
        b"! ",
        b"%",
        b"@",
        b"`",
        b"---\n",
        b"...\n",
        b"? ",
        b"\\",
        b"~",
        b"null",
    ),
    *(
        b"\xff",
        b"\x00",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"\r",
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        "ö𝄞".encode(),
        b"\x1b",
    ),
    *(b"0", b"-1", b"1e999", b"9" * 400, b"true", b"off", b"10s", b"5%", b"unix:", b"[::1]:0", b"a" * 5000),
    *(b"listeners:", b"services:", b"to: ", b"tls: mesh", b"role: inbound", b"allow: []", b"pki: ", b"web"),
]

Edit = tuple[str, int, int, bytes]
edits = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "double", "swap"]),
    st.integers(0, 4000),
    st.integers(1, 60),
    st.one_of(st.sampled_from(PIECES), st.binary(max_size=6)),
)


def apply(data: bytes, edit: Edit) -> bytes:
    what, start, length, piece = edit
    start %= len(data) + 1
    before, middle, after = data[:start], data[start : start + length], data[start + length :]
    match what:
        case "insert":
            return before + piece + middle + after
        case "replace":
            return before + piece + after
        case "delete":
            return before + after
        case "double":
            return before + middle + middle + after
        case _:
            lines = data.split(b"\n")
            one, two = start % len(lines), (start + length) % len(lines)
            lines[one], lines[two] = lines[two], lines[one]
            return b"\n".join(lines)


def check(data: bytes) -> None:
    path = Path("/x.yaml")
    try:
        loads(data, path)
    except ConfigErrors as caught:
        lines = data.decode("utf-8", "replace").splitlines() or [""]
        assert caught.errors
        assert caught.errors == sorted(set(caught.errors))
        for error in caught.errors:
            assert 1 <= error.line <= len(lines) + 1
            assert error.column >= 1
            assert "\n" not in str(error)
            assert str(error).isprintable()
            assert len(error.message) < 1000


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SEEDS), st.lists(edits, min_size=1, max_size=8))
def test_mutated_files(data: bytes, changes: list[Edit]) -> None:
    for change in changes:
        data = apply(data, change)
    check(data)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)))
@example(b"? a\n: b\n? [c]\n")
@example(b"<<: *a")
@example(b"a: &a\nb: *a\n<<: *a")
@example(b"&a a: &b b\n*a : *b")
@example(b"%YAML 1.1\n---\na: 1")
@example(b"%YAML 9.9\n---\na: 1")
@example(b"%TAG ! x:\n---\n!a b")
@example(b"!<tag> a")
def test_any_bytes(data: bytes) -> None:
    check(data)


def test_truncated_files() -> None:
    """A file that is still being written: every prefix of the examples."""
    for data in VALID:
        for end in range(len(data)):
            check(data[:end])


@settings(max_examples=150, deadline=None)
@given(st.lists(edits, min_size=1, max_size=2))
def test_what_loads_has_a_snapshot(changes: list[Edit]) -> None:
    """The checks leave nothing for the snapshot to stumble over."""
    data = VALID[0]
    for change in changes:
        data = apply(data, change)
    path = Path("/x.yaml")
    try:
        loaded = loads(data, path)
        snapshot = make_snapshot(loaded)
    except ConfigErrors:
        return
    for listener in snapshot["listeners"]:
        assert -1 <= listener["service"] < len(snapshot["services"])


def test_names_cannot_write_to_the_terminal() -> None:
    """YAML's escapes put control characters into names; messages quote them escaped and cut."""
    nasty = '"a\\e[31m\\n' + "x" * 5000 + '"'
    check(
        f"listeners: [{{name: a, bind: {nasty}, to: {nasty}, {nasty}: 1}}]\nservices: {{{nasty}: }}".encode()
    )
    check(
        f"listeners: [{{name: a, bind: 'h:1', to: web}}]\nservices: {{{nasty}: {{endpoints: []}}}}".encode()
    )
    unix = '"unix:/a\\e[31m"'
    check(f"listeners: [{{name: a, bind: {unix}, to: w}}]\nservices: {{w: {{endpoints: [{unix}]}}}}".encode())
