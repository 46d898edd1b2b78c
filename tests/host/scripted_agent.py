"""An agent that does what a test says: `scripted_agent.py SCRIPT CHANNEL AREA [ADMIN …]`.

SCRIPT is a JSON file: a list of frames under each of "start", "resume" and "reload", sent when such a frame
comes. Among them {"type": "exit", "code": N} ends the process, {"type": "raw", "hex": …} sends bytes that are
no frame, {"type": "hang"} stops reading for ever. Whatever is received is appended, a line of JSON each, to
SCRIPT.log, together with what is worth knowing of the process.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
from pathlib import Path

from fastmesh.host.channel import Channel, Frame


def main() -> None:
    script_path, channel_fd, area_fd, *admin_fds = sys.argv[1:]
    script = Path(script_path)
    with Path(f"{script_path}.log").open("a") as log:

        def note(entry: dict[str, object]) -> None:
            log.write(json.dumps(entry) + "\n")
            log.flush()

        note(
            {
                "type": "birth",
                "pid": os.getpid(),
                "fds": sorted(int(name) for name in os.listdir("/proc/self/fd")),  # noqa: PTH208
                "given": [int(channel_fd), int(area_fd), *map(int, admin_fds)],
                "admin": [socket.socket(fileno=int(fd)).getsockname()[1] for fd in admin_fds],
                "environ": sorted(os.environ),
            }
        )
        sock = socket.socket(fileno=os.dup(int(channel_fd)))
        channel = Channel.from_fd(int(channel_fd))
        poll = select.poll()
        poll.register(sock, select.POLLIN)

        def act(frame: Frame) -> None:
            entry = dict(frame.message)
            if frame.descriptors:
                entry["ports"] = [socket.socket(fileno=fd).getsockname()[1] for fd in frame.descriptors]
            note(entry)
            if frame.type == "stop":
                sys.exit(0)
            for answer in json.loads(script.read_text()).get(frame.type, []):
                if answer["type"] == "exit":
                    os._exit(answer["code"])
                elif answer["type"] == "hang":
                    threading.Event().wait()
                elif answer["type"] == "raw":
                    sock.send(bytes.fromhex(answer["hex"]))
                else:
                    channel.send(answer)

        while not channel.closed:
            poll.poll()
            for frame in channel.receive():
                act(frame)
            channel.flush()


if __name__ == "__main__":
    main()
