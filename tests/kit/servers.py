"""Real servers of other protocols on a host of a test's own: each is started, found ready, and ended.

They listen on loopback alone, on the ports that everybody knows: their host has no other network, or rules.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kit.limits import DEADLINE, bare, wait_until
from kit.netns import Namespace
from kit.three_hosts import execute

_NOBODY = pwd.getpwnam("nobody")


def program(name: str) -> str:
    """Its path; AssertionError where it is not installed."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found is not None, f"there is no program {name}: scripts/setup installs it"
    return found


def postgresql_programs() -> Path | None:
    """Where PostgreSQL's server is; None: it is not installed. It is large: scripts/setup does without."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found and shutil.which("psql") else None


@contextlib.contextmanager
def _running(
    host: Namespace, command: Sequence[str | Path], log: Path, probe: Sequence[str | Path], user: int = 0
) -> Iterator[None]:
    """The server, from when `probe` says that it serves."""
    with log.open("wb") as output, host.inside():
        process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=bare(),
            user=user or None,
            group=(user and _NOBODY.pw_gid) or None,
            extra_groups=[] if user else None,
            cwd="/",
        )

    def serves() -> bool:
        assert process.poll() is None, f"{command[0]} ended:\n{log.read_text(errors='replace')}"
        return execute(host, *probe, check=False).returncode == 0

    try:
        wait_until(serves, f"{command[0]} to serve", 2 * DEADLINE)
        yield
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def redis(host: Namespace, directory: Path) -> Iterator[None]:
    """Redis on port 6379, which keeps nothing, and does not insist on callers from loopback."""
    options: list[str | Path] = [
        "--port",
        "6379",
        "--bind",
        "127.0.0.1",
        "::1",
        "--save",
        "",
        "--dir",
        directory,
    ]
    options += ["--protected-mode", "no"]
    probe = [program("redis-cli"), "-e", "ping"]
    with _running(host, [program("redis-server"), *options], directory / "redis.log", probe):
        yield


@contextlib.contextmanager
def mariadb(host: Namespace, directory: Path) -> Iterator[None]:
    """MariaDB on port 3306, empty, for everybody."""
    data = directory / "mariadb"
    data.mkdir()
    options = [
        "--no-defaults",
        "--user=root",
        "--skip-grant-tables",
        # With these, connections by TCP are off unless a port is given.
        "--skip-networking=0",
        "--port=3306",
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        f"--datadir={data}",
        f"--socket={data}/socket",
        f"--pid-file={data}/pid",
        "--innodb-buffer-pool-size=8M",
        "--innodb-log-file-size=4M",
    ]
    probe = [*MARIADB, "-h127.0.0.1", "-P3306", "-e", "select 1"]
    with _running(host, [program("mariadbd"), *options], directory / "mariadb.log", probe):
        yield


MARIADB = ["mariadb", "--no-defaults", "--protocol=tcp", "--skip-column-names", "--batch"]


@contextlib.contextmanager
def postgresql(host: Namespace, directory: Path) -> Iterator[None]:
    """PostgreSQL on port 5432, empty, for everybody. It will not run as root."""
    programs = postgresql_programs()
    assert programs is not None
    # Not below a test's directory: only its owner comes through to that.
    data = Path(tempfile.mkdtemp(prefix="fm-postgresql-"))
    try:
        os.chown(data, _NOBODY.pw_uid, _NOBODY.pw_gid)
        make: list[str | Path] = [
            "-D",
            data,
            "-A",
            "trust",
            "-U",
            "app",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(
            [programs / "initdb", *make],
            check=True,
            capture_output=True,
            user=_NOBODY.pw_uid,
            group=_NOBODY.pw_gid,
            extra_groups=[],
            cwd="/",
        )
        with (data / "pg_hba.conf").open("a") as file:
            file.write("host all all all trust\n")
        options: list[str | Path] = ["-D", data, "-p", "5432", "-h", "127.0.0.1", "-k", data, "-F"]
        probe = [*PSQL, "-h", "127.0.0.1", "-c", "select 1"]
        log = directory / "postgresql.log"
        with _running(host, [programs / "postgres", *options], log, probe, _NOBODY.pw_uid):
            yield
    finally:
        shutil.rmtree(data)


PSQL = ["psql", "-X", "-A", "-t", "-q", "-U", "app", "-d", "postgres"]


@contextlib.contextmanager
def grpc(host: Namespace) -> Iterator[None]:
    """The service of `kit.grpc_service` on port 50051."""
    with host.inside():
        process = subprocess.Popen(
            [sys.executable, "-m", "kit.grpc_service", "127.0.0.1:50051"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=bare() | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        )
    with process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert b"port" in process.stdout.readline()
            yield
        finally:
            process.stdin.close()
            process.wait(2 * DEADLINE)
