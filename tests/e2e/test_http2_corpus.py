"""Every case of tests/corpus/http2 against a listener, with a server of HTTP/1.1 behind it.

What a case expects of the connection is one half; the other is what the upstream got: nothing of a malformed
request, no end of one that was cut, and of a right one exactly the fields that it had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from kit.http2_case import Case, load
from kit.http2_corpus import Target
from kit.http2_upstream import CorpusUpstream
from kit.limits import scaled, thinned
from kit.ports import free_port, release_port
from kit.proxy import Fastmesh
from kit.public import Shop

CASES = load()
# Byte by byte: every third, and all with a block in several frames, where most state is kept between bytes.
LARGEST = scaled(20_000)
DRIBBLED = [
    case
    for number, case in enumerate(CASES)
    if (number % 3 == 0 or any("CONTINUATION" in line for line in case.lines))
    and "tls" not in case.requires
    and case.size <= LARGEST
]
NAME = "corpus.example"


@dataclass
class Listeners:
    """One process with a listener in plaintext and one with TLS, and what stands behind both."""

    proxy: Fastmesh
    pids: list[int]
    plain: Target
    tls: Target


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    directory = tmp_path_factory.mktemp("http2")
    shop = Shop(directory / "shop")
    ports = [free_port() for _ in range(3)]
    plain, tls, endpoint = ports
    common = {"to": "app", "protocol": "http", "http2": {"max_concurrent_streams": 100}}
    config = {
        "listeners": [
            {"name": "plain", "bind": f"127.0.0.1:{plain}", **common},
            {
                "name": "tls",
                "bind": f"127.0.0.1:{tls}",
                "tls": {"certificates": [shop.issue("one", NAME)]},
                **common,
            },
        ],
        # No connection to the upstream outlives the exchange, so that none outlives a test.
        "services": {"app": {"endpoints": [f"127.0.0.1:{endpoint}"], "pool": {"idle_max": 0}}},
    }
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.callback(release_port, port)
        upstream = CorpusUpstream(("127.0.0.1", endpoint))
        stack.callback(upstream.close)
        proxy = Fastmesh(config, directory)
        stack.callback(proxy.kill)
        proxy.start()
        yield Listeners(
            proxy,
            proxy.wait_workers(),
            Target(("127.0.0.1", plain), upstream=upstream),
            Target(("127.0.0.1", tls), shop.client(), NAME, upstream=upstream),
        )
        upstream.check()
        proxy.stop()


@pytest.fixture(autouse=True)
def _unharmed(listeners: Listeners) -> Iterator[None]:
    """The worker is still the same, and nothing bad is on stderr."""
    yield
    faults = listeners.proxy.new_faults()
    assert not faults, f"{faults}\n{listeners.proxy.stderr()}"
    assert listeners.proxy.worker_pids() == listeners.pids


def run(target: Target, case: Case, *, dribble: bool = False) -> None:
    outcome = target.run(case, dribble=dribble)
    if outcome.missing:
        pytest.skip(f"no {outcome.missing}")
    assert not outcome.complaint, str(outcome)


@pytest.mark.parametrize("case", thinned([case for case in CASES if "tls" not in case.requires]), ids=str)
def test_by_prior_knowledge(listeners: Listeners, case: Case) -> None:
    run(listeners.plain, case)


@pytest.mark.parametrize(
    "case", thinned([case for case in CASES if "plaintext" not in case.requires], 3), ids=str
)
def test_over_tls(listeners: Listeners, case: Case) -> None:
    run(listeners.tls, case)


@pytest.mark.parametrize("case", thinned(DRIBBLED, 2), ids=str)
def test_byte_by_byte(listeners: Listeners, case: Case) -> None:
    run(listeners.plain, case, dribble=True)
