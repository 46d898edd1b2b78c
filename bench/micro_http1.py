"""Nanoseconds per parse of typical HTTP/1 heads: `FASTMESH_PROBE=1` build needed.

    .venv/bin/python bench/micro_http1.py [--rounds N] [--repeat N]

Prints the best and the median of `repeat` runs; the best is what the code costs, the distance to the
median is the noise of the machine. httptools (llhttp with Python callbacks left out) is the yardstick.
"""

from __future__ import annotations

import argparse
import statistics
import time

import httptools

from fastmesh import _http1

WRK = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"

BROWSER = (
    b"GET /shop/products/42?ref=home&utm_source=newsletter HTTP/1.1\r\n"
    b"Host: www.example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    b"Accept-Language: en-GB,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Referer: https://www.example.com/shop/products?page=3\r\n"
    b"Connection: keep-alive\r\n"
    b"Cookie: session=0f4c2c6a9d7b4f1e8a3b5c7d9e1f2a3b; theme=dark; consent=necessary;"
    b" seen=2024-05-14T09:30:00Z\r\n"
    b"Upgrade-Insecure-Requests: 1\r\n"
    b"Sec-Fetch-Dest: document\r\n"
    b"Sec-Fetch-Mode: navigate\r\n"
    b"Sec-Fetch-Site: same-origin\r\n"
    b"Priority: u=0, i\r\n"
    b"Cache-Control: max-age=0\r\n"
    b"\r\n"
)

RESPONSE = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: nginx/1.22.1\r\n"
    b"Date: Tue, 14 May 2024 09:30:00 GMT\r\n"
    b"Content-Type: text/html; charset=utf-8\r\n"
    b"Content-Length: 612\r\n"
    b"Last-Modified: Tue, 14 May 2024 09:00:00 GMT\r\n"
    b"Connection: keep-alive\r\n"
    b'ETag: "66432a10-264"\r\n'
    b"Accept-Ranges: bytes\r\n"
    b"\r\n"
)

HEADS = (
    ("request, wrk", WRK, False),
    ("request, browser", BROWSER, False),
    ("response, static file", RESPONSE, True),
)


class _Silent:
    """A protocol without callbacks, so that mostly llhttp itself is measured."""


def _llhttp(data: bytes, rounds: int, response: bool) -> float:
    parser = (httptools.HttpResponseParser if response else httptools.HttpRequestParser)(_Silent())
    body = data + bytes(612) if response else data
    start = time.perf_counter()
    for _ in range(rounds):
        parser.feed_data(body)
    return (time.perf_counter() - start) / rounds * 1e9


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=200_000, help="parses in one run")
    options.add_argument("--repeat", type=int, default=15, help="runs")
    args = options.parse_args()
    print(f"{'head':24} {'bytes':>6} {'best ns':>8} {'median':>8} {'GB/s':>6} {'llhttp ns':>10}")
    for name, data, response in HEADS:
        runs = [_http1.nanoseconds(data, args.rounds, response) for _ in range(args.repeat)]
        other = min(_llhttp(data, args.rounds // 10, response) for _ in range(args.repeat // 3 + 1))
        best = min(runs)
        middle = statistics.median(runs)
        print(f"{name:24} {len(data):6} {best:8.1f} {middle:8.1f} {len(data) / best:6.2f} {other:10.0f}")


if __name__ == "__main__":
    main()
