"""`python -m fastmesh.host CONFIG [--workers N] [--pid-file FILE]`: what `fastmesh serve` becomes.

The command line is checked there; this one is between the two of us, and parsed without argparse, which is
large.
"""

from __future__ import annotations

import sys

from fastmesh.host.supervisor import Supervisor


def main(argv: list[str]) -> int:
    config, *rest = argv
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    workers = options.pop("--workers", None)
    pid_file = options.pop("--pid-file", None)
    if options:
        raise SystemExit(f"unknown options: {' '.join(options)}")
    return Supervisor(config, int(workers) if workers else None, pid_file).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
