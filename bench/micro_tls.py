"""Cost of TLS in memory, no sockets: nanoseconds a record, microseconds a handshake, KiB an idle connection.

    .venv/bin/python -m bench.micro_tls [--repeat N] [--connections N]     (needs a FASTMESH_PROBE=1 build)

"own" is what workers run: after the handshake our own records. "openssl" keeps OpenSSL's SSL object for the
life of the connection. The best of the repeats is what the code costs; the machine's noise is the rest.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.pki import TRUST_DOMAIN, make
from fastmesh import _tls as tls

SIZES = ((200, 64), (1024, 64), (16384, 4))
KEYS = bytes(range(80))
Pair = tuple[tls.Connection, tls.Connection]


class Bench:
    """Two workloads' contexts, and handshakes between them."""

    def __init__(self, own_records: bool) -> None:
        self.engine = tls.Engine(own_records=own_records)
        with tempfile.TemporaryDirectory() as directory:
            identities = make(Path(directory) / "pki").identities
            a, b = (
                (i.certificate.read_bytes(), i.key.read_bytes(), i.bundle.read_bytes())
                for i in (identities["svc-a"], identities["svc-b"])
            )
        domain = TRUST_DOMAIN.encode()
        self.client = tls.Context(False, *a, domain, None, b"\x08http/1.1")
        self.server = tls.Context(True, *b, domain, KEYS, b"\x08http/1.1")

    def pair(self, slot: tls.Slot) -> tuple[Pair, float, float]:
        """Two ends after a handshake, a ticket and an exchange; CPU seconds of client and server."""
        spent = [0.0, 0.0]
        start = time.thread_time()

        def lap(side: int) -> None:
            nonlocal start
            now = time.thread_time()
            spent[side] += now - start
            start = now

        client = tls.Connection(self.engine, self.client, False, None, slot)
        _, wire = client.handshake()
        lap(0)
        server = tls.Connection(self.engine, self.server, True)
        _, wire = server.handshake(wire)
        lap(1)
        _, wire = client.handshake(wire)
        lap(0)
        done, ticket = server.handshake(wire)
        lap(1)
        assert done == 1
        client.read(ticket)
        lap(0)
        server.read(client.write(bytes(200))[1])
        client.read(server.write(bytes(200))[1])
        return (client, server), spent[0], spent[1]


def records(bench: Bench, repeat: int) -> Iterator[tuple[int, float, float]]:
    (client, server), _, _ = bench.pair(tls.Slot())
    for size, batch in SIZES:
        runs = [tls.bench_records(client, server, size, batch, 300) for _ in range(repeat)]
        yield size, min(write for write, _ in runs), min(read for _, read in runs)


def handshakes(bench: Bench, repeat: int, resumed: bool) -> tuple[float, float]:
    """Microseconds of CPU at the client and at the server."""
    slot = tls.Slot()
    bench.pair(slot)
    best = [float("inf"), float("inf")]
    for _ in range(repeat):
        runs = [bench.pair(slot if resumed else tls.Slot()) for _ in range(20)]
        assert all(pair[1].resumed == resumed for pair, _, _ in runs)
        for side in range(2):
            best[side] = min(best[side], sum(run[1 + side] for run in runs) / len(runs) * 1e6)
    return best[0], best[1]


def proportional() -> int:
    """KiB that this process holds (PSS)."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))


def memory(bench: Bench, side: int, connections: int, resumed: bool) -> float:
    slot = tls.Slot()
    for _ in range(50):
        bench.pair(slot)
    gc.collect()
    tls.heap()  # gives free memory back to the system
    before = proportional()
    kept = [bench.pair(slot if resumed else tls.Slot())[0][side] for _ in range(connections)]
    tls.heap()
    grown = proportional() - before
    del kept
    return grown / connections


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeat", type=int, default=15)
    options.add_argument("--connections", type=int, default=2000)
    args = options.parse_args()
    for own in (True, False):
        print("own records" if own else "openssl's records")
        bench = Bench(own)
        for size, write, read in records(bench, args.repeat):
            print(f"  record of {size:5} bytes   write {write:7.0f} ns    read {read:7.0f} ns")
        for resumed in (False, True):
            client, server = handshakes(bench, args.repeat, resumed)
            what = "resumed" if resumed else "full"
            print(f"  handshake, {what:8}     client {client:6.0f} us  server {server:6.0f} us")
            sizes = [memory(bench, side, args.connections, resumed) for side in range(2)]
            print(f"  idle, {what:8}          client {sizes[0]:6.1f} KiB server {sizes[1]:6.1f} KiB (PSS)")


if __name__ == "__main__":
    main()
