"""A gRPC server with the health service of grpcio-health-checking, as a process whose word can be changed.

`python -m kit.grpc_health [--no-health] HOST:PORT` says `{"port": N}` once it listens. A line of JSON with
`service` and `status` (`NOT_SERVING`) sets that, and is answered with `{"set": status}`; the process ends
with its standard input. `/fastmesh.test.Script/Who` answers with the port that was asked.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kit.limits import DEADLINE

WHO = "/fastmesh.test.Script/Who"


class HealthServer:
    """That process. `services` are SERVING at first; the whole server always is."""

    def __init__(self, *services: str, health: bool = True) -> None:
        options = [] if health else ["--no-health"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kit.grpc_health", *options, "127.0.0.1:0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        try:
            self.port: int = self._hear()["port"]
            for service in services:
                self.set("SERVING", service)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set(self, status: str, service: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"service": service, "status": status}).encode() + b"\n")
        self.process.stdin.flush()
        assert self._hear() == {"set": status}

    def _hear(self) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 4 * DEADLINE)
        line = self.process.stdout.readline() if ready else b""
        assert line, "the gRPC server says nothing"
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def __enter__(self) -> HealthServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(arguments: list[str]) -> None:
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    server = grpc.server(ThreadPoolExecutor(4))
    port = server.add_insecure_port(arguments[-1])
    who = grpc.unary_unary_rpc_method_handler(lambda request, context: str(port).encode())
    service, _, method = WHO[1:].partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: who}),))
    servicer = health.HealthServicer()
    if "--no-health" not in arguments:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.start()
    print(json.dumps({"port": port}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        status = health_pb2.HealthCheckResponse.ServingStatus.Value(told["status"])
        servicer.set(told["service"], status)
        print(json.dumps({"set": told["status"]}), flush=True)
    server.stop(0).wait()


if __name__ == "__main__":
    main(sys.argv[1:])
