"""What the gRPC processes of the test kit have in common: messages, metadata and settings, without a network.

`grpc-js/common.js` says the same in JavaScript; the two must agree byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

import grpc

# Limits of the library, not of the mesh: messages of any size, and metadata as large as the mesh lets pass.
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.absolute_max_metadata_size", 64 * 1024),
]
COMPRESSION = {
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
    "identity": grpc.Compression.NoCompression,
}
_BLOCK = bytes(range(251))


def encode(message: str | int) -> bytes:
    """A message of a scenario: text, or that many bytes of a pattern."""
    if isinstance(message, str):
        return message.encode()
    return (_BLOCK * (message // len(_BLOCK) + 1))[:message]


def digest(message: bytes) -> str:
    """A message in the records: itself if it is short, else its size and hash."""
    if len(message) <= 64:
        return message.decode("latin-1")
    return f"{len(message)} bytes, sha256 {hashlib.sha256(message).hexdigest()[:16]}"


def from_pairs(pairs: Iterable[list[Any]]) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata as scenarios have it, for grpcio."""
    return tuple(
        (key, base64.b64decode(value["b64"]) if isinstance(value, dict) else value) for key, value in pairs
    )


def to_pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[list[Any]]:
    """Metadata of grpcio as scenarios have it."""
    return [
        [key, {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value]
        for key, value in metadata or ()
    ]
