"""HTTP/1.1 and HTTP/2 on either side of an edge and of a mesh: what both ends see, step by step.

The scenarios are data (`kit.matrix_*`); each runs for the pairs h1-h1, h1-h2, h2-h1, h2-h2 (client-server),
through an edge and through two sidecars with mutual TLS, between which it is HTTP/2.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit import matrix_messages, matrix_turns
from kit.limits import thinned
from kit.matrix_run import Matrix, Run, runs
from kit.pki import Pki

RUNS = runs(
    [
        *matrix_messages.BODIES,
        *matrix_messages.HEADS,
        *matrix_turns.INTERIM,
        *matrix_turns.EARLY,
        *matrix_turns.CLIENT_LEAVES,
        *matrix_turns.SERVER_LEAVES,
        *matrix_turns.LENGTHS,
    ]
)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Matrix]:
    running = Matrix(tmp_path_factory.mktemp("matrix"), pki, RUNS)
    try:
        running.start()
        yield running
        running.stop()
    finally:
        running.kill()


@pytest.mark.parametrize("run", thinned(RUNS), ids=str)
def test_exchange(matrix: Matrix, run: Run) -> None:
    run.perform()
    matrix.check()
