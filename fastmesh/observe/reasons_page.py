"""What the reason table says, for people: `docs/errors.md`.

`python -m fastmesh.observe.reasons_page` prints the page; `docs/errors.md` is its output, and the test suite
holds it to that. The table itself is `fastmesh/core/base/reason.pxd`.
"""

from __future__ import annotations

from typing import Final

from fastmesh._core import REASONS

# Answers that would have nobody to read them: the status is the one that other proxies log, never sent.
_NEVER_SENT: Final = (0, 499)

# The names of gRPC's status codes, of those in the table.
_GRPC: Final = {
    1: "CANCELLED",
    4: "DEADLINE_EXCEEDED",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    16: "UNAUTHENTICATED",
}

_SIDES: Final = {
    "local": "Decided by fastmesh itself.",
    "downstream": "The cause lies with the caller: its request, its connection, its certificate.",
    "upstream": "The cause lies with the endpoint: it cannot be reached, or what it sent is no answer.",
}

_INTRODUCTION: Final = """\
# Errors

<!-- Generated from core/base/reason.pxd: python -m fastmesh.observe.reasons_page > docs/errors.md -->

Everything that ends a request, a connection or a handshake otherwise than well has one reason. It is set
once, where the fact is known, and its name is the same everywhere: in the field `x-fastmesh-reason` of an
answer, in the metric `fastmesh_reasons_total{reason,side}`, and as `reason` in the access log.

```console
$ curl -i -H 'Host: nobody' http://127.0.0.1:15001/
HTTP/1.1 404 Not Found
date: Sun, 01 Mar 2026 12:00:00 GMT
x-fastmesh-reason: no_service
content-type: text/plain
content-length: 37

no service of that name (no_service)
```

- The body names the service, where one was found, the text of the table and the reason: `svc-b: the endpoint
  refused the connection (connect_refused)`. It names no address and no certificate; the access log does.
- An answer that fastmesh made has the field `x-fastmesh-reason`. In a mesh it may be the other side's
  sidecar that made it: an answer is passed on as it came. Applications can send the field too, so it is a
  help for people and not a proof.
- Where the status is "–" nobody can be answered: there is no HTTP yet, or no client any more. The connection
  is closed or reset.
- Once the head of an answer has left, a failure cannot be told in HTTP. The connection is reset, so that the
  client cannot take a part for the whole; the reason is counted and logged.
- If a connection cannot be made, or its TLS handshake fails, the other endpoints of the service are tried,
  each once, whatever the request: nothing of it was sent. The reason is that of the last try.
- A connection from the pool that ends before the first byte of an answer is no error yet: if the whole
  request (at most 64 KiB) is still in the buffer, it is sent once more on a fresh connection and counted in
  `fastmesh_reused_dead_total`.
- A response that is malformed is `upstream_bad_response`, whatever is wrong with it.
- A gRPC call is answered with HTTP status 200 and a gRPC status, and the body's text is its `grpc-message`.
  `UNAVAILABLE` stands where another try may go better, `DEADLINE_EXCEEDED` where time ran out for the answer,
  `INTERNAL` where one of the peers broke the protocol.
"""


def page() -> str:
    """The reference of reasons in Markdown."""
    parts = [_INTRODUCTION]
    for side, meaning in _SIDES.items():
        rows = [row for row in REASONS[1:] if row[1] == side]
        table = "\n".join(
            f"| `{name}` | {_status(status)} | {_grpc(status, grpc)} | {text} |"
            for name, _, status, text, grpc in rows
        )
        columns = "| reason | status | gRPC status | text |\n|---|---|---|---|"
        parts.append(f"## {side}\n\n{meaning}\n\n{columns}\n{table}\n")
    return "\n".join(parts)


def _status(status: int) -> str:
    return "–" if status in _NEVER_SENT else str(status)


def _grpc(status: int, grpc: int) -> str:
    return "–" if status in _NEVER_SENT else f"{grpc} {_GRPC[grpc]}"


if __name__ == "__main__":
    print(page(), end="")
