"""nft: a transaction in, the rules that are there out, and what its errors mean."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from fastmesh.host.intercept import programs
from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.intercept.namespace import Place
from fastmesh.host.intercept.selection import FAMILY

# What the kernel needs for our rules, as modules; where they are built in there is nothing to load.
MODULES: Final = "nf_tables nft_ct nft_nat nft_redir nft_fib_inet nft_socket nft_tproxy nft_reject_inet"

Object = dict[str, Any]


def load(place: Place, transaction: str, *, dry: bool = False) -> None:
    """Do all of it, or, with an InterceptError, nothing. `dry`: only have the kernel look at it."""
    # Text, because the JSON of nft before 1.0.8 knows no cgroups. What comes out is JSON.
    done = programs.run(place, "nft", *(["-c"] if dry else []), "-f", "-", given=transaction)
    if done.returncode:
        _fail(place, done.stderr)


def tables(place: Place) -> list[str]:
    """The names of the tables of our family."""
    found = _listed(place, "tables", FAMILY)
    assert found is not None
    return [one["table"]["name"] for one in found if "table" in one and one["table"]["family"] == FAMILY]


def chain(place: Place, table: str, name: str) -> list[Object] | None:
    """What is in a chain; None if there is none."""
    return _listed(place, "chain", FAMILY, table, name)


def table(place: Place, name: str) -> list[Object] | None:
    """What is in a table; None if there is none."""
    return _listed(place, "table", FAMILY, name)


def _listed(place: Place, *what: str) -> list[Object] | None:
    done = programs.run(place, "nft", "-j", "list", *what)
    if done.returncode:
        if "No such file or directory" in done.stderr:
            return None
        _fail(place, done.stderr)
    try:
        found: list[Object] = json.loads(done.stdout)["nftables"]
    except (ValueError, KeyError):
        raise InterceptError(
            "nft says nothing that can be understood; it needs JSON output (nftables 0.9.3 or newer)"
        ) from None
    return found


def _fail(place: Place, said: str) -> NoReturn:
    """What nft said, in a sentence with a remedy."""
    lines = [line for line in said.splitlines() if "rror:" in line]
    first = lines[0].partition("rror: ")[2] if lines else said.strip() or "no reason given"
    if "Operation not permitted" in said:
        raise InterceptError(
            f"not permitted in {place.words}: changing rules needs CAP_NET_ADMIN there; run this as root"
        )
    if "cgroup" in first:
        raise InterceptError(f"nft does not find a cgroup ({first}); make it first, then run this again")
    for sign in ("No such file or directory", "not supported", "Protocol wrong type", "Protocol error"):
        if sign in first:
            raise InterceptError(
                f"the kernel has not all that the rules need ({first}); load it with `modprobe -a "
                f"{MODULES}`, or use a kernel with these options"
            )
    if "syntax error" in said:
        raise InterceptError(
            f"this nft does not understand the rules ({first}); install nftables 1.0 or newer"
        )
    raise InterceptError(f"nft refuses the rules: {first}; nothing has been changed")
