"""The programs that interception is done with: found, run where we are, their absence explained."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.intercept.namespace import Place

PACKAGES: Final = {"nft": "nftables", "ip": "iproute2"}
# Where distributions keep them, whatever a user's PATH says.
_USUAL: Final = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
_CAP_NET_ADMIN: Final = 12
_TIMEOUT: Final = 60.0


def find(program: str) -> str | None:
    """The path of a program, None without it."""
    # Not where we happen to be started: this is done as root.
    own = [one for one in os.environ.get("PATH", "").split(":") if one.startswith("/")]
    return shutil.which(program, path=":".join([*_USUAL, *own]))


def run(place: Place, program: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with `given` as its input. InterceptError if it is not there."""
    path = find(program)
    if path is None:
        raise InterceptError(
            f"there is no program {program} here, which this is done with; install it (on Debian: apt-get "
            f"install {PACKAGES[program]})"
        )
    try:
        return subprocess.run(
            [path, *arguments],
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            pass_fds=(place.lock,),
            timeout=_TIMEOUT,
            check=False,
        )
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise InterceptError(f"{path} cannot be run: {why}") from None
    except subprocess.TimeoutExpired:
        raise InterceptError(
            f"{path} did not end within {_TIMEOUT:.0f} s; look at what holds it up"
        ) from None


def may_change_network() -> bool:
    """Whether this thread has CAP_NET_ADMIN (capabilities(7)); whether here, the kernel says when asked."""
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        effective = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_NET_ADMIN & 1)


def require_privilege() -> None:
    """InterceptError without CAP_NET_ADMIN."""
    if not may_change_network():
        raise InterceptError(
            "not permitted: this needs CAP_NET_ADMIN; run it as root, or give the container NET_ADMIN"
        )
