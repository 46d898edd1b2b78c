"""Nanoseconds a request over HTTP/2 in memory, both sides: `FASTMESH_PROBE=1` build needed.

    .venv/bin/python bench/micro_http2.py [--rounds N] [--repeat N]

A client and a server of the codec's own, `streams` requests a turn: heads, bodies, frames, HPACK, windows,
hooks; no socket and no TLS. Prints the best of `repeat` runs for each half of the way, and the sums by side.
"""

from __future__ import annotations

import argparse

from fastmesh import _http2

SMALL = (
    b"GET / HTTP/1.1\r\nHost: svc-b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
    2,
)
API = (
    b"GET /api/v1/items?page=2 HTTP/1.1\r\n"
    b"Host: svc-b.default\r\n"
    b"User-Agent: python-httpx/0.27\r\n"
    b"Accept: application/json\r\n"
    b"X-Forwarded-For: 10.0.0.1\r\n"
    b"X-Forwarded-Proto: https\r\n"
    b"\r\n",
    b"HTTP/1.1 200 OK\r\n"
    b"Server: nginx/1.22.1\r\n"
    b"Date: Tue, 14 May 2024 09:30:00 GMT\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: 612\r\n"
    b"\r\n",
    612,
)
CASES = (("smallest", SMALL), ("an API call", API))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=1000, help="turns in one run")
    options.add_argument("--repeat", type=int, default=15, help="runs")
    args = options.parse_args()
    worker = _http2.Worker()
    columns = ("ask", "serve", "answer", "take", "client", "server")
    print(f"{'request':12} {'streams':>7}" + "".join(f" {column:>7}" for column in columns))
    for name, (request, response, body) in CASES:
        for streams in (1, 32, 256):
            runs = [
                _http2.nanoseconds(
                    worker, request, response, body, streams, max(1, args.rounds * 32 // streams)
                )
                for _ in range(args.repeat)
            ]
            ask, serve, answer, take = (min(run[part] for run in runs) for part in range(4))
            print(
                f"{name:12} {streams:7} {ask:7.0f} {serve:7.0f} {answer:7.0f} {take:7.0f}"
                f" {ask + take:7.0f} {serve + answer:7.0f}"
            )


if __name__ == "__main__":
    main()
