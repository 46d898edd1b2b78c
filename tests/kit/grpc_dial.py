"""A gRPC application: `python -m kit.grpc_dial HOST:PORT CHANNELS`.

One channel, hence one connection, after another; on each a call and a conversation. For each it prints how
many milliseconds the first answer took.
"""

from __future__ import annotations

import sys
import time

import grpc

from kit.grpc_scenarios import METHODS
from kit.grpc_service import WHO
from kit.limits import DEADLINE

CONVERSATION = [str(number).encode() * 1000 for number in range(50)]


def main(target: str, channels: str) -> None:
    for _ in range(int(channels)):
        begun = time.monotonic()
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert channel.unary_unary(WHO)(b"", timeout=DEADLINE) == b"50051"
            print((time.monotonic() - begun) * 1000)
            bidi = channel.stream_stream(METHODS["bidi"])
            metadata = (("x-script", '[["echo_all"]]'), ("x-call", "conversation"))
            assert [*bidi(iter(CONVERSATION), timeout=DEADLINE, metadata=metadata)] == CONVERSATION


if __name__ == "__main__":
    main(*sys.argv[1:])
