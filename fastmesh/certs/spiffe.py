"""SPIFFE ids and workload names: text in, checked text out.

The rules are those of the SPIFFE-ID standard, sections 2.1 to 2.3. All patterns are applied with `fullmatch`
(`match` with `$` accepts a trailing newline) and all lengths are bounded before a pattern runs. Nothing is
normalised: what is not already in its one valid spelling is refused, so that two ids are the same workload
exactly when they are the same bytes.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

SCHEME: Final = "spiffe://"
MAX_ID: Final = 2048
MAX_TRUST_DOMAIN: Final = 255
# A workload name is also a DNS name in its certificate: RFC 1123 labels, RFC 1035 lengths.
MAX_WORKLOAD: Final = 253

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]+")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ADDRESS: Final = re.compile(r"[0-9]+(?:\.[0-9]+)+")


class SpiffeError(ValueError):
    """The text is no SPIFFE id, trust domain or workload name; the message says which rule it breaks."""


class SpiffeId(NamedTuple):
    """A checked SPIFFE id. `path` starts with a slash; it is empty for the trust domain itself."""

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"


def parse(text: str) -> SpiffeId:
    """The SPIFFE id in `text`, which must be exactly that. Raises SpiffeError."""
    # A character of the id is a byte: everything beyond ASCII is refused below.
    if len(text) > MAX_ID:
        raise SpiffeError(f"a SPIFFE id has at most {MAX_ID} bytes, this one has {len(text)} characters")
    if not text.startswith(SCHEME):
        raise SpiffeError(f"{_shown(text)} is no SPIFFE id: it does not start with {SCHEME}")
    domain, slash, rest = text[len(SCHEME) :].partition("/")
    return SpiffeId(trust_domain(domain), _path(slash + rest))


def workload_id(domain: str, name: str) -> SpiffeId:
    """`spiffe://DOMAIN/NAME`. Raises SpiffeError when either part breaks its rule, or both are too long."""
    made = SpiffeId(trust_domain(domain), f"/{workload(name)}")
    return parse(str(made))


def trust_domain(text: str) -> str:
    """`text` if it is a trust domain name (SPIFFE-ID section 2.1). Raises SpiffeError."""
    if not text:
        raise SpiffeError("the trust domain is empty")
    if len(text) > MAX_TRUST_DOMAIN:
        raise SpiffeError(f"a trust domain has at most {MAX_TRUST_DOMAIN} characters, not {len(text)}")
    if not _TRUST_DOMAIN.fullmatch(text):
        hint = ""
        if text.startswith(SCHEME):
            hint = "; give the name alone, without spiffe://"
        elif _TRUST_DOMAIN.fullmatch(text.lower()):
            hint = f"; write {text.lower()}"
        raise SpiffeError(
            f"{_shown(text)} is no trust domain: only a-z, 0-9, dots, dashes and underscores are "
            f"allowed{hint}"
        )
    return text


def workload(text: str) -> str:
    """`text` if it is a workload name: one path segment of a SPIFFE id that is a DNS name too. Raises
    SpiffeError."""
    if not text:
        raise SpiffeError("the workload name is empty")
    if len(text) > MAX_WORKLOAD:
        raise SpiffeError(f"a workload name has at most {MAX_WORKLOAD} characters, not {len(text)}")
    if not all(_LABEL.fullmatch(label) for label in text.split(".")):
        guess = text.lower().replace("_", "-")
        valid = all(_LABEL.fullmatch(label) for label in guess.split("."))
        raise SpiffeError(
            f"{_shown(text)} is no workload name: it stands in certificates as a DNS name, so only a-z, 0-9 "
            "and dashes inside are allowed, in parts of at most 63 characters separated by single dots"
            + (f"; write {guess}" if valid else "")
        )
    if _ADDRESS.fullmatch(text):
        raise SpiffeError(f"{_shown(text)} is no workload name: clients would take it for an IP address")
    return text


def dns_name(text: str) -> str:
    """`text` if it can stand in a certificate as a DNS name: without wildcards, in lower case. Raises
    SpiffeError."""
    try:
        return workload(text)
    except SpiffeError:
        pass
    if "*" in text:
        raise SpiffeError(f"{_shown(text)} is a wildcard: a certificate is for one workload")
    guess = text.lower().removesuffix(".")
    valid = guess != text and all(_LABEL.fullmatch(label) for label in guess.split("."))
    raise SpiffeError(f"{_shown(text)} is no DNS name" + (f"; write {guess}" if valid else ""))


def path(text: str) -> str:
    """`text` if it is the path of a workload's SPIFFE id, as `/ns/shop/sa/cart`. Raises SpiffeError."""
    if not text.startswith("/"):
        raise SpiffeError(f"{_shown(text)} is no path: it starts with a slash, as /ns/shop/sa/cart")
    # The length is that of the whole id, which the trust domain is part of.
    if len(text) > MAX_ID:
        raise SpiffeError(f"a SPIFFE id has at most {MAX_ID} bytes")
    return _path(text)


def _path(text: str) -> str:
    if not text:
        return ""
    for segment in text[1:].split("/"):
        if not segment:
            raise SpiffeError("the path of a SPIFFE id has no empty parts and no slash at its end")
        if segment in (".", ".."):
            raise SpiffeError(f"the path of a SPIFFE id has no part {segment!r}")
        if not _SEGMENT.fullmatch(segment):
            raise SpiffeError(
                f"{_shown(segment)} cannot stand in the path of a SPIFFE id: only letters, digits, dots, "
                "dashes and underscores of ASCII are allowed"
            )
    return text


def _shown(text: str) -> str:
    """Input for an error message: quoted, control characters escaped, of bounded length."""
    quoted = ascii(text)
    return quoted if len(quoted) <= 100 else quoted[:97] + "...'"
