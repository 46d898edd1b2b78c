"""Families of processes, however deep they are."""

from __future__ import annotations

import os
import subprocess
import sys

from fastmesh.host.launch.processes import descendants

# Each one is the child of the one before; the last one tells, and all end with their input.
CHAIN = """
import os, sys
for _ in range(1200):
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        os._exit(0)
print("there", flush=True)
sys.stdin.read()
"""


def test_a_long_chain():
    process = subprocess.Popen(
        [sys.executable, "-c", CHAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    found = list(descendants(os.getpid()))
    below = found[found.index(process.pid) :]
    process.communicate()
    assert len(below) == 1201
