"""The floors of the core: a header cimports its own floor and those below; only the topmost holds the GIL."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CORE = Path(__file__).parent.parent / "fastmesh" / "core"
FLOORS = ("sys", "base", "wire", "traffic", "io", "face")
HEADERS = sorted(CORE.rglob("*.pxd"))

# `from fastmesh.core.base.buffer cimport …`, `from fastmesh.core.base cimport …`, `cimport fastmesh.core.…`
CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+cimport\s+\(?\s*([\w*]+)|cimport\s+([\w. ,]+))", re.MULTILINE)
PACKAGE = "fastmesh.core"


def cimported(text: str) -> set[str]:
    """The modules of ours, and the top-level names of others', that a header cimports."""
    found: set[str] = set()
    for match in CIMPORT.finditer(text):
        source, first, plain = match.groups()
        if source:
            # `from fastmesh.core cimport base` names the floor in what it takes.
            found.add(f"{source}.{first}" if source in ("fastmesh", PACKAGE) else source)
        else:
            found |= {name.split(" as ")[0].strip() for name in plain.split(",")}
    return found


def floor_of(module: str) -> str | None:
    """The floor of a module of ours; None for Cython's own (libc, cpython)."""
    if not module.startswith("fastmesh"):
        return None
    assert module.startswith(f"{PACKAGE}."), f"{module}: the core cimports the core only"
    return module.removeprefix(f"{PACKAGE}.").split(".")[0]


def wrong(floor: str, text: str) -> list[str]:
    """The cimports of a header on `floor` that lead upwards, or into Python."""
    bad = []
    for module in sorted(cimported(text)):
        target = floor_of(module)
        if target is not None:
            if FLOORS.index(target) > FLOORS.index(floor):
                bad.append(module)
        elif module.split(".")[0] not in ("libc", "posix", "cython"):
            bad.append(module)
    return bad


def test_there_are_headers_on_every_floor():
    assert {path.relative_to(CORE).parts[0] for path in HEADERS} == set(FLOORS)


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: str(path.relative_to(CORE)))
def test_cimports_only_downwards(path):
    assert not wrong(path.relative_to(CORE).parts[0], path.read_text())


FUNCTION = re.compile(r"^cdef (?:inline )?(?:[\w *]+?)(\w+)\((?:[^()]|\([^()]*\))*\)([^\n]*):$", re.MULTILINE)


def holding(text: str) -> list[str]:
    """The functions that need the GIL, or may raise."""
    return [match[1] for match in FUNCTION.finditer(text) if match[2].strip() != "noexcept nogil"]


@pytest.mark.parametrize(
    "path",
    [path for path in HEADERS if path.relative_to(CORE).parts[0] != FLOORS[-1]],
    ids=lambda path: str(path.relative_to(CORE)),
)
def test_nothing_below_the_face_knows_python(path):
    assert not holding(path.read_text())


def test_what_holds_the_gil_is_found():
    text = """
cdef inline char *one(int (*f)(int),
                      int n) noexcept nogil:
    pass
cdef inline dict two(Worker *w):
    pass
cdef inline int three(Worker *w) except -1:
    pass
"""
    assert holding(text) == ["two", "three"]


def test_every_form_of_cimport_is_seen():
    text = """
from libc.stdint cimport uint8_t
from fastmesh.core.io.loop cimport (
    turn,
)
from fastmesh.core.io cimport loop
from fastmesh.core cimport io
cimport fastmesh.core.traffic.routes as routes, libc.math
    from cpython.bytes cimport PyBytes_FromString
"""
    assert wrong("wire", text) == [
        "cpython.bytes",
        "fastmesh.core.io",
        "fastmesh.core.io.loop",
        "fastmesh.core.traffic.routes",
    ]
    assert wrong("io", text) == ["cpython.bytes"]


NAMED = re.compile(r"^from \S+ cimport (?:\(([^)]*)\)|([^(\n*]+))$", re.MULTILINE)


def idle(text: str) -> list[str]:
    """The names that a file cimports one by one and says nowhere else."""
    names = [
        name.split(" as ")[-1].strip()
        for match in NAMED.finditer(text)
        for name in (match[1] or match[2]).split(",")
    ]
    return [name for name in names if name and len(re.findall(rf"\b{re.escape(name)}\b", text)) == 1]


@pytest.mark.parametrize("path", [*HEADERS, CORE.parent / "_core.pyx"], ids=lambda path: path.name)
def test_what_is_cimported_is_used(path):
    assert not idle(path.read_text())


def test_a_name_that_is_not_used_is_found():
    assert idle("from a.b cimport (\n    one, two as three,\n)\nfrom c cimport *\ncdef one x\n") == ["three"]
