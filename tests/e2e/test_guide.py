"""The commands in docs/guide-first-mesh.md work as printed, from first to last, in an empty directory.

Only the ports are replaced by free ones, so that the test can run beside others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from kit.limits import DEADLINE
from kit.ports import free_port

GUIDE = Path(__file__).parents[2] / "docs" / "guide-first-mesh.md"


def test_every_command_of_the_guide(tmp_path: Path) -> None:
    text = GUIDE.read_text()
    for port in ("15443", "15001", "15000", "15100", "8080"):
        text = text.replace(port, str(free_port()))
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 11
    # -m: job control, so that `kill %1` means what it means at a prompt; nothing outlives a failure.
    script = ["set -eum", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"]
    # A sanitizer's libraries are for fastmesh; curl hangs with them.
    script += ['curl() { LD_PRELOAD= command curl "$@"; }']
    for number, block in enumerate(blocks):
        script += [f"echo '--- {number}'", block]
    bin_directory = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=6 * DEADLINE,
        check=False,
    )
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    said = dict(re.findall(r"^--- (\d+)\n(.*?)(?=^--- |\Z)", done.stdout, re.MULTILINE | re.DOTALL))
    assert said["4"] == said["5"] == "hello from svc-b\n"
    assert said["6"].startswith("HTTP/1.1 403 ")
    assert "x-fastmesh-reason: denied" in said["6"]
    assert said["7"].startswith("HTTP/1.1 404 ")
    assert "x-fastmesh-reason: no_service" in said["7"]
    assert said["8"].rstrip().endswith("refused")
    assert re.search(r'^fastmesh_requests_total\{.*code="2xx".*\} 2', said["9"], re.MULTILINE), said["9"]
    assert "tls_not_tls" in said["9"]
    assert "Traceback" not in logs, logs
    assert "10" in said, "the end was reached"
