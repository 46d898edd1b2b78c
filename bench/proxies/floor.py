"""The floor: `bench/floor.c`, built when its source is newer. It has no TLS: its mesh is plaintext.

As `floor-direct` it takes part where connections are redirected, and is dialled without redirect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bench.pki import Identity
from bench.programs import program
from bench.proxies import DIRECT, REDIRECTED, Hop, Topology, Unavailable


class Floor:
    def __init__(self, name: str = "floor") -> None:
        self.name = name
        # Over HTTP/2 it would move bytes of many requests at a time: no unit for what forwards each of them.
        others: frozenset[Topology] = frozenset(() if name == DIRECT else ("plain", "mesh"))
        self.topologies: Final[frozenset[Topology]] = REDIRECTED | others

    def version(self) -> str:
        program("floor")
        return "floor.c"

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        return [str(program("floor")), str(hop.listen), str(hop.upstream)]

    def identity(self, workload: str) -> Identity:
        raise Unavailable("no TLS")
