"""`python -m fastmesh.host CONFIG [--workers N] [--workload NAME] [--pid-file FILE]`.

What `fastmesh serve` becomes, and what `fastmesh run` starts. The command line is checked there; this
one is between us, and parsed without argparse, which is large.
"""

from __future__ import annotations

import signal
import sys

# Until the supervisor has its own handlers: Ctrl-C ends a start as SIGTERM does, without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from fastmesh.host.process import fill_standard_streams  # noqa: E402
from fastmesh.host.supervisor import Supervisor  # noqa: E402


def main(argv: list[str]) -> int:
    fill_standard_streams()
    config, *rest = argv
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    workers = options.pop("--workers", None)
    pid_file = options.pop("--pid-file", None)
    workload = options.pop("--workload", None)
    if options:
        raise SystemExit(f"unknown options: {' '.join(options)}")
    return Supervisor(config, int(workers) if workers else None, pid_file, workload=workload).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
