"""The bench's own programs in C, built when a source is newer than the binary beside it."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from bench.machine import BENCH
from bench.proxies import Unavailable

LIBRARIES: Final[dict[str, tuple[str, ...]]] = {
    "floor": (),
    "sockmap": (),
    "stream_serve": ("-lnghttp2",),
    "stream_load": ("-lnghttp2",),
}


def program(name: str) -> Path:
    """The binary of `bench/NAME.c`. Raises Unavailable if it cannot be built."""
    binary, source = BENCH / name, BENCH / f"{name}.c"
    newest = max(file.stat().st_mtime for file in (source, *BENCH.glob("*.h")))
    if not binary.exists() or binary.stat().st_mtime < newest:
        _build(source, binary)
    return binary


def _build(source: Path, binary: Path) -> None:
    """Into a file of its own first: whoever builds or runs it at the same time never meets half a program."""
    with tempfile.TemporaryDirectory(dir=BENCH) as directory:
        made = Path(directory) / binary.name
        command = ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(made), str(source)]
        try:
            done = subprocess.run(
                [*command, *LIBRARIES[binary.name]], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise Unavailable(f"gcc cannot run: {error}") from error
        if done.returncode:
            raise Unavailable(f"{source.name} does not compile: {done.stderr}")
        made.replace(binary)
