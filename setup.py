"""Builds the Cython extension(s).

FASTMESH_BUILD=release|debug|asan|trace|none chooses how:
  release  -O2, no assertions (the default)
  debug    -O1 -g, FM_DEBUG: assertions abort, leaks at worker exit are an error
  asan     debug plus AddressSanitizer and UndefinedBehaviorSanitizer
  trace    line tracing for coverage (CPython 3.11 only)
  none     no extension: the Python part alone, for an editable install that is built afterwards
FASTMESH_PROBE=1 also builds the test-only extensions of tests/probe, which give the tests the codecs and
decisions of the core without a socket. FASTMESH_WERROR=1 makes the C compiler's warnings errors, as in CI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup

MODES = ("release", "debug", "asan", "trace", "none")
# pkg-config name -> (version floor, the Debian package that brings it)
LIBRARIES = {
    "openssl": ("3.0", "libssl-dev"),
    "libnghttp2": ("1.43", "libnghttp2-dev"),
    "libpcre2-8": ("10.34", "libpcre2-dev"),
}


def fail(text: str) -> NoReturn:
    sys.exit(f"fastmesh build: {text}")


def pkg_config(*args: str) -> list[str] | None:
    """What pkg-config says, in words; None when it does not know the library."""
    result = subprocess.run(["pkg-config", *args], check=False, capture_output=True, text=True)
    return None if result.returncode else result.stdout.split()


def libraries() -> tuple[list[str], list[str]]:
    """Compiler and linker flags of the C libraries, or an end that names the Debian packages missing."""
    if shutil.which("pkg-config") is None:
        # Nothing can be told of the libraries: name all, so that one round is enough.
        missing = ["pkg-config", *(package for _, package in LIBRARIES.values())]
        fail(
            "pkg-config is missing. On Debian: apt-get install " + " ".join(["gcc", "python3-dev", *missing])
        )
    missing = [
        package
        for name, (floor, package) in LIBRARIES.items()
        if pkg_config(f"--atleast-version={floor}", name) is None
    ]
    if missing:
        fail(
            "C libraries not found by pkg-config. On Debian: apt-get install "
            + " ".join(["gcc", "python3-dev", *missing])
        )
    return pkg_config("--cflags", *LIBRARIES) or [], pkg_config("--libs", *LIBRARIES) or []


def flags(mode: str) -> tuple[list[str], list[str]]:
    common = [
        # gcc, not the keyword, decides what to inline: half the code size at equal speed.
        "-DCYTHON_INLINE=__attribute__((unused))",
        "-fno-strict-aliasing",
        "-Wall",
        "-Wextra",
        "-Wno-unused-function",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
        "-Wno-cast-function-type",
    ]
    if os.environ.get("FASTMESH_WERROR"):
        common.append("-Werror")
    if mode == "release":
        return [*common, "-O2", "-g1", "-fno-plt", "-fno-semantic-interposition"], ["-Wl,-O1"]
    debug = [*common, "-g", "-O1", "-UNDEBUG", "-DFM_DEBUG=1", "-fno-omit-frame-pointer"]
    if mode == "asan":
        san = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        return [*debug, *san], san
    if mode == "trace":
        return [*debug, "-DCYTHON_TRACE_NOGIL=1", "-DCYTHON_USE_SYS_MONITORING=0"], []
    return debug, []


def extensions() -> list[Extension]:
    mode = os.environ.get("FASTMESH_BUILD", "release")
    if mode not in MODES:
        fail(f"FASTMESH_BUILD={mode}: expected one of {', '.join(MODES)}")
    if mode == "none":
        return []
    from Cython.Build import cythonize

    cflags, ldlibs = libraries()
    extra, link = flags(mode)
    sources = {"fastmesh._core": "fastmesh/_core.pyx"}
    if os.environ.get("FASTMESH_PROBE"):
        for probe in sorted(Path("tests/probe").glob("*.pyx")):
            sources[f"fastmesh.{probe.stem}"] = str(probe)
    headers = [str(path) for path in sorted(Path("fastmesh/core").rglob("*.pxd"))]
    return cythonize(
        [
            Extension(
                name,
                [source],
                # The source itself too: once it is translated, the source distribution would lack it.
                depends=[source, *headers],
                extra_compile_args=[*cflags, *extra],
                extra_link_args=[*link, *ldlibs],
            )
            for name, source in sources.items()
        ],
        build_dir=os.environ.get("FASTMESH_CYTHON_DIR", f"build/{mode}/cython"),
        emit_linenums=mode != "release",
        nthreads=os.cpu_count() or 1,
        show_all_warnings=False,
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "nonecheck": False,
            "embedsignature": True,
            "linetrace": mode == "trace",
        },
    )


setup(ext_modules=extensions())
