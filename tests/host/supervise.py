"""Runs a supervisor with a scripted agent: `supervise.py CONFIG SCRIPT [OPTION VALUE ...]`.

Options: --workers, --workload, --pid-file, --ticket-interval.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastmesh.host.supervisor import Supervisor


def main() -> int:
    config, script, *rest = sys.argv[1:]
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    workers = options.get("--workers")
    agent = [sys.executable, str(Path(__file__).with_name("scripted_agent.py")), script]
    interval = float(options.get("--ticket-interval", 3600))
    pid_file = options.get("--pid-file")
    workload = options.get("--workload")
    count = int(workers) if workers else None
    return Supervisor(config, count, pid_file, agent, interval, workload=workload).run()


if __name__ == "__main__":
    sys.exit(main())
