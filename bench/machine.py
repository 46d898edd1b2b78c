"""The machine under the bench: which CPU does what, free ports, and facts by which to judge the figures."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import random
import resource
import socket
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BENCH: Final = ROOT / "bench"
RESULTS: Final = BENCH / "results"
# Below Linux' range of ephemeral ports: the bench's own outgoing connections cannot take a port between the
# moment it is found free and the moment its owner binds it.
PORTS: Final = range(17_000, 32_000)
USER_HZ: Final = os.sysconf("SC_CLK_TCK")
CLOCK_SOURCE: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


@dataclass(frozen=True)
class Cpus:
    """Which CPUs the proxies and which the load (wrk, the backend, this program) may use."""

    proxy: frozenset[int]
    load: frozenset[int]

    @property
    def all(self) -> frozenset[int]:
        return self.proxy | self.load


def choose_cpus() -> Cpus:
    """The last CPU for the proxies: devices interrupt the first ones. With one CPU all must share it."""
    usable = sorted(os.sched_getaffinity(0))
    proxy = frozenset(usable[-1:])
    return Cpus(proxy=proxy, load=frozenset(usable[:-1]) or proxy)


def raise_file_limit(wanted: int = 65_536) -> int:
    """Raise RLIMIT_NOFILE for this process and its children as far as allowed; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((wanted, max(hard, wanted)), (hard, hard)):
        if soft >= limits[0]:
            break
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@functools.cache
def _handed_out() -> set[int]:
    return set()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses and that this run has not handed out yet."""
    for _ in range(1000):
        port = random.choice(PORTS)
        if port in _handed_out():
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _handed_out().add(port)
        return port
    raise RuntimeError("no free port on 127.0.0.1")


@dataclass(frozen=True)
class Ticks:
    """Seconds that all the CPUs of the bench have spent, from /proc/stat (ticks of 10 ms)."""

    busy: float
    stolen: float  # what the hypervisor gave to others while this machine wanted to run


def ticks(cpus: frozenset[int]) -> Ticks:
    busy = stolen = 0
    names = {f"cpu{number}" for number in cpus}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return Ticks(busy / USER_HZ, stolen / USER_HZ)


def facts(cpus: Cpus, file_limit: int) -> dict[str, object]:
    """What a reader needs to judge the figures; goes into the results file."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "cpu_mhz": _field("/proc/cpuinfo", "cpu MHz"),
        "virtual_machine": "hypervisor" in _field("/proc/cpuinfo", "flags").split(),
        "proxy_cpus": sorted(cpus.proxy),
        "load_cpus": sorted(cpus.load),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "system": _field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "clock_source": CLOCK_SOURCE.read_text().strip() if CLOCK_SOURCE.exists() else "?",
        "load_average_at_start": os.getloadavg(),
        "file_limit": file_limit,
        "python": sys.version.split()[0],
        "openssl": ssl.OPENSSL_VERSION,
        "compiler": first_line(["gcc", "--version"]),
        "commit": first_line(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "uncommitted": bool(first_line(["git", "-C", str(ROOT), "status", "--porcelain", "-uno"])),
    }


def first_line(argv: list[str]) -> str:
    """The first line that a command prints (on either stream), "" if it cannot run."""
    try:
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((line.strip() for line in done.stdout.splitlines() if line.strip()), "")


def _field(path: str, name: str, separator: str = ":") -> str:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            key, found, value = line.partition(separator)
            if found and key.strip() == name:
                return value.strip()
    return "?"
