"""`python -m fastmesh.host.launch PLAN`: what `fastmesh run` becomes. The plan is between the two of us."""

from __future__ import annotations

import signal
import sys

# Until signals are read: Ctrl-C ends a start as SIGTERM does, without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from fastmesh.host.launch.launcher import Launcher
from fastmesh.host.launch.plan import Plan
from fastmesh.host.process import fill_standard_streams

if __name__ == "__main__":
    fill_standard_streams()
    sys.exit(Launcher(Plan.decode(sys.argv[1])).run())
