"""The commands in docs/identity.md work as printed, from first to last, in an empty directory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from kit.certs import ROOT, environment

GUIDE = ROOT / "docs/identity.md"


def test_every_command_of_the_guide(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    fastmesh = f'fastmesh() {{ "{sys.executable}" -c "from fastmesh.cli import main; main()" "$@"; }}'
    script = "\n".join(["set -eu", fastmesh, *blocks])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "certificate.pem: OK" in done.stdout
    assert "URI:spiffe://mesh.local/svc-a, DNS:svc-a" in done.stdout
    assert re.search(r"^usable +yes, for another 1h(29m|30m)", done.stdout, re.MULTILINE)
