"""The floor: `bench/floor.c`, built when its source is newer. It has no TLS: its mesh is plaintext."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bench.pki import Identity
from bench.programs import program
from bench.proxies import Hop, Topology, Unavailable


class Floor:
    name = "floor"
    # Over HTTP/2 it would move bytes of many requests at a time: no unit for what forwards each of them.
    topologies: Final[frozenset[Topology]] = frozenset(("plain", "mesh"))

    def version(self) -> str:
        program("floor")
        return "floor.c"

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        return [str(program("floor")), str(hop.listen), str(hop.upstream)]

    def identity(self, workload: str) -> Identity:
        raise Unavailable("no TLS")
