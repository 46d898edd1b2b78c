"""HPACK header blocks by hand (RFC 7541): every representation, also those that an encoder would not choose.

Nothing here has state: who uses the dynamic table counts its entries himself.
"""

from __future__ import annotations

from collections.abc import Iterable

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

STATIC = HeaderTable.STATIC_TABLE
NAMES: dict[bytes, int] = {}
for _index, (_name, _) in enumerate(STATIC, 1):
    NAMES.setdefault(_name, _index)
PAIRS = {pair: index for index, pair in reversed(list(enumerate(STATIC, 1)))}
FIRST_DYNAMIC = len(STATIC) + 1

# First byte and prefix bits of the literal representations (RFC 7541 section 6.2).
LITERALS = {"incremental": (0x40, 6), "without": (0x00, 4), "never": (0x10, 4)}
_huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")


def integer(value: int, prefix: int, first: int = 0) -> bytes:
    """An integer of RFC 7541 section 5.1; the bits of `first` stand in front of the prefix."""
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes([first | value])
    out = bytearray([first | limit])
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(value: bytes | str, huffman: bool = False) -> bytes:
    """A string literal of section 5.2."""
    text = _bytes(value)
    if huffman:
        coded = bytes(_huffman.encode(text)) if text else b""
        return integer(len(coded), 7, 0x80) + coded
    return integer(len(text), 7) + text


def indexed(index: int) -> bytes:
    """A field of either table (section 6.1)."""
    return integer(index, 7, 0x80)


def literal(
    name: bytes | str | int, value: bytes | str, kind: str = "without", huffman: bool = False
) -> bytes:
    """A literal field; a name that is a number is an index (section 6.2)."""
    first, prefix = LITERALS[kind]
    head = integer(name, prefix, first) if isinstance(name, int) else bytes([first]) + string(name, huffman)
    return head + string(value, huffman)


def table_size(size: int) -> bytes:
    """A dynamic table size update (section 6.3)."""
    return integer(size, 5, 0x20)


def field(name: bytes | str, value: bytes | str) -> bytes:
    """One field: of the static table if it is there, else a literal that is put into no table."""
    pair = _bytes(name), _bytes(value)
    if pair in PAIRS:
        return indexed(PAIRS[pair])
    return literal(NAMES.get(pair[0], pair[0]), pair[1])


def block(fields: Iterable[tuple[bytes | str, bytes | str]]) -> bytes:
    return b"".join(field(name, value) for name, value in fields)
