"""The floor: `bench/floor.c`, built when its source is newer. It has no TLS: its mesh is plaintext."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from bench.machine import BENCH
from bench.pki import Identity
from bench.proxies import Hop, Unavailable

SOURCE: Final = BENCH / "floor.c"
BINARY: Final = BENCH / "floor"


class Floor:
    name = "floor"

    def version(self) -> str:
        if not BINARY.exists() or BINARY.stat().st_mtime < SOURCE.stat().st_mtime:
            _build()
        return "floor.c"

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        return [str(BINARY), str(hop.listen), str(hop.upstream)]

    def identity(self, workload: str) -> Identity:
        raise Unavailable("no TLS")


def _build() -> None:
    """Into a file of its own first: whoever builds or runs it at the same time never meets half a program."""
    with tempfile.TemporaryDirectory(dir=BENCH) as directory:
        made = Path(directory) / "floor"
        command = ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(made), str(SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise Unavailable(f"gcc cannot run: {error}") from error
        if done.returncode:
            raise Unavailable(f"floor.c does not compile: {done.stderr}")
        made.replace(BINARY)
