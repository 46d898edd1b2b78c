"""What the parts of a supervisor share: how far its run is, what it holds, and the snapshot in use."""

from __future__ import annotations

import os

from fastmesh._core import Area
from fastmesh.host.activation import Activation
from fastmesh.host.channel import Frame, encode, snapshot_frame
from fastmesh.host.parts import with_parts
from fastmesh.host.sockets import ListenerSet
from fastmesh.host.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Literal

    Phase = Literal["agent", "boot", "run", "drain", "stop"]

# Rows of the shared counters. The configuration, which says how many workers there are, is read later by a
# process that already maps them; rows that nobody uses cost address space only.
MAX_WORKERS = 256
# How long each half of the start may take.
BOOT_S = 30.0


class StartError(Exception):
    """The start has failed: the exit code and the reason."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Run:
    """One run of the proxy. `workers` and `workload` override the configuration."""

    def __init__(self, config: str, workers: int | None, workload: str | None = None) -> None:
        self.config = config
        self.workers = workers
        self.workload = workload
        self.label = os.path.basename(config)
        # agent: it reads the file; boot: workers start; run; drain: exchanges end; stop: the agent ends
        self.phase: Phase = "agent"
        self.timers = Timers()
        self.activation = Activation()
        self.listeners = ListenerSet(self.activation)
        self.area = Area.create(workers or MAX_WORKERS)
        # The snapshot in use: as the agent sent it, and the part that is decided with here.
        self.frame = b""
        self.snapshot: dict[str, Any] = {}

    def source(self) -> dict[str, object]:
        """What the agent reads the configuration by."""
        return {"config": self.config, "workers": self.workers, "workload": self.workload}

    def renew(self, new: Mapping[str, Any]) -> bool:
        """Use the snapshot in use with new parts from now on: its other keys the agent does not keep.

        False: that was made for a snapshot that was not put to use, which the agent is being told.
        """
        if new["number"] != self.snapshot["number"] + 1:
            return False
        snapshot = with_parts(Frame(self.frame, []).message["snapshot"], new["parts"])
        snapshot |= {key: new[key] for key in ("number", "digest")}
        self.take(Frame(snapshot_frame(encode(snapshot)), []))
        return True

    def take(self, frame: Frame) -> None:
        """Use this snapshot from now on; services and keys stay in the frame only."""
        self.frame = frame.body
        snapshot = frame.message["snapshot"]
        self.snapshot = {key: snapshot[key] for key in ("number", "workers", "drain_ms", "admin")}
