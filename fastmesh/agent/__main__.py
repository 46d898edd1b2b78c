"""Boot of the agent: first the configuration, which the workers wait for, then everything else.

1. the supervisor says "start" (load the file) or "resume" (take this snapshot)
2. the loader process works while this one imports asyncio and the rest of the agent
3. its result goes out the moment it is there, between two imports or after them
4. the agent's loop takes over
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
from typing import Final

from fastmesh.agent.configuration import Configuration
from fastmesh.agent.state import State
from fastmesh.host.channel import Channel, Frame

# In this order, each a step after which the loader is looked at. What they need comes with them.
STEPS: Final = ("asyncio", "fastmesh.agent.agent")


def main(argv: list[str]) -> int:
    # What is imported stays; `Agent.run` lets the collector begin.
    gc.disable()
    dns_fds = [int(one.removeprefix("dns=")) for one in argv if one.startswith("dns=")]
    channel_fd, area_fd, *admin_fds = (int(one) for one in argv if one.isdecimal())
    # The supervisor decides when the agent ends: Ctrl-C and service managers signal the whole group.
    # SIGUSR1 is for the access log, once there is one.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for fd in (area_fd, *admin_fds, *dns_fds):
        os.set_inheritable(fd, False)
    channel = Channel.from_fd(channel_fd)
    state = State()
    configuration = Configuration(channel, state)
    frames: list[Frame] = []
    while not frames and not channel.closed:
        select.select([channel], [], [])
        frames = channel.receive()
    if not frames:
        return 0
    first, *later = frames
    configuration.adopt(first.message)
    if first.type == "resume":
        state.take_snapshot(first.message["snapshot"])
        label = state.snapshot["source"] if state.snapshot is not None else ""
    else:
        configuration.load(young=True)
        label = state.config.rpartition("/")[2]
    # Not before the loader has been started.
    from fastmesh import _core

    _core.set_title(f"fastmesh: agent ({label})")

    for module in STEPS:
        importlib.import_module(module)
        if configuration.loading is not None:
            configuration.advance()
    from fastmesh.agent.agent import Agent

    admin, dns = ([socket.socket(fileno=fd) for fd in fds] for fds in (admin_fds, dns_fds))
    Agent(_core.Area.attach(area_fd), channel, state, configuration, admin, dns=dns).run(later)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Freeing every object one by one would only keep the supervisor waiting.
    sys.stderr.flush()
    os._exit(code)
