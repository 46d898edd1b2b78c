"""The command line under bad conditions: no traceback, the right exit code, nothing in the wrong place."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from kit import procfs
from kit.limits import DEADLINE, wait_until
from kit.ports import free_port
from kit.proxy import FASTMESH, Fastmesh, cli
from kit.wire import connect


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["schema"], ["completion", "bash"], ["certs", "issue", "--help"]]
)
def test_output_that_cannot_be_written(args: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [FASTMESH, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_pid_file_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "fastmesh.yaml").write_text("")
    done = cli("serve", "--pid-file", "", check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"fastmesh: pid file {tmp_path}: Is a directory\n"


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("name", [b"edge\xff.yaml", b"d\xe9/fastmesh.yaml"])
def test_path_that_is_not_utf_8(tmp_path: Path, command: str, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    cli("init", path, errors="replace")
    args = [] if path.name == "fastmesh.yaml" else ["-c", path.name]
    done = cli(command, *args, check=False, cwd=path.parent)
    assert done.returncode == 2
    assert done.stderr.endswith(
        ": the path is not in UTF-8, expected one that is: rename the file or its directory\n"
    )


def test_standard_streams_that_are_closed(tmp_path: Path) -> None:
    """What the supervisor says must not go into whatever got the number of its stderr."""
    port, admin = free_port(), free_port()
    config = tmp_path / "edge.yaml"
    config.write_text(
        f"admin: 127.0.0.1:{admin}\n"
        f"listeners: [{{name: edge, bind: 127.0.0.1:{port}, protocol: http, to: web}}]\n"
        f"services: {{web: {{endpoints: [127.0.0.1:{free_port()}]}}}}\n"
    )
    proxy = Fastmesh(config.read_text(), tmp_path)
    command = 'exec "$@" <&- >&- 2>&-'
    proxy.process = subprocess.Popen(
        ["sh", "-c", command, "sh", FASTMESH, "serve", "-c", config, "--workers", "1"], start_new_session=True
    )
    try:
        proxy.wait_metric("a worker", lambda m: m.sum("workers", state="ready") == 1)
        for pid in (proxy.pid, *procfs.children(proxy.pid)):
            for number in range(3):
                assert os.readlink(f"/proc/{pid}/fd/{number}") == os.devnull  # noqa: PTH115
        [worker] = proxy.wait_workers(1)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker not in proxy.worker_pids() and proxy.worker_pids(), "a new worker")
        connect(("127.0.0.1", port)).close()
        proxy.terminate()
        assert proxy.wait() == 0
    finally:
        proxy.kill()
