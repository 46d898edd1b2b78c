"""Every file in `bad/` says in its last lines (`#! line:column: message`) exactly what must be reported."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from fastmesh.config import ConfigErrors, load
from fastmesh.config.loader import loads

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_errors(path: Path) -> None:
    expected = [line.removeprefix("#! ") for line in path.read_text().splitlines() if line.startswith("#! ")]
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert expected, "a bad file without expectations"
    assert [str(error) for error in caught.value.errors] == [f"{path}:{line}" for line in expected]
    assert str(caught.value) == "\n".join(f"{path}:{line}" for line in expected)
    for error in caught.value.errors:
        assert re.fullmatch(r"[^\n]+", error.message)


@pytest.mark.parametrize(
    ("data", "line", "column", "message"),
    [
        (b"a: 1\nb: \xff\n", 2, 4, "byte 0xff is not UTF-8, expected UTF-8"),
        (b"\xef\xbb\xbfa: \xc3\n", 1, 4, "byte 0xc3 is not UTF-8, expected UTF-8"),
        ("a: ö\nö: ".encode() + b"\x80", 2, 4, "byte 0x80 is not UTF-8, expected UTF-8"),
        ("a: 1".encode("utf-16"), 1, 1, "the file is in UTF-16, expected UTF-8"),
        (b"a: 1\r\nb: \x00", 2, 4, "control character U+0000, expected printable text"),
        (b"a: \x1b[31m", 1, 4, "control character U+001B, expected printable text"),
        (b"", 1, 1, "the file is empty, expected at least `listeners`"),
        (b"\xef\xbb\xbf", 1, 1, "the file is empty, expected at least `listeners`"),
    ],
)
def test_bytes(data: bytes, line: int, column: int, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(data, Path("x.yaml"))
    (error,) = caught.value.errors
    assert (error.file, error.line, error.column) == ("x.yaml", line, column)
    assert error.message == message


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "nothing.yaml"
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    expected = "does not exist, expected a configuration file (`fastmesh init` writes one to start from)"
    assert str(caught.value) == f"{path}: {expected}"


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a directory, expected a file"


def test_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.yaml"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # the suite may run as root, whom no mode stops
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert str(caught.value) == f"{path}: cannot be read: permission denied"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file.yaml/inside"])
def test_no_such_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.yaml").touch()
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path / name)
    (error,) = caught.value.errors
    assert error.line == 0
    assert error.message.startswith("cannot be read: ")


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert str(caught.value) == f"{path}: is larger than 16MiB, expected a configuration file"


def test_named_pipe_without_a_writer(tmp_path: Path) -> None:
    """It must not be waited for: `serve` would neither start nor say why."""
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert str(caught.value) == f"{path}: is a pipe that nobody writes to, expected a file"


def test_pipe_with_a_writer() -> None:
    """`fastmesh check -c <(generate)`: whole, however late the parts come."""
    text = b"listeners: [{name: a, bind: 'h:1', to: web}]\nservices: {web: {endpoints: []}}\n"
    reading, writing = os.pipe()
    path = Path(f"/dev/fd/{reading}")
    # The second part is more than a pipe holds: it can only be written while somebody reads.
    parts = [text, b"#" * (1 << 18)]

    def write() -> None:
        with os.fdopen(writing, "wb", buffering=0) as out:
            for part in parts:
                out.write(part)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert load(path).config.listeners[0].name == "a"
    finally:
        os.close(reading)
        writer.join()
