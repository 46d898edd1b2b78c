"""A gRPC server with the health service of grpcio-health-checking, as a process whose word can be changed.

`python -m kit.grpc_health [--no-health] HOST:PORT` says `{"port": N}` once it listens. A line of JSON with
`service` and `status` (`NOT_SERVING`) sets that, and is answered with `{"set": status}`; the process ends
with its standard input. `/fastmesh.test.Script/Who` answers with the port that was asked.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kit.line_process import LineProcess

WHO = "/fastmesh.test.Script/Who"


class HealthServer(LineProcess):
    """That process. `services` are SERVING at first; the whole server always is."""

    def __init__(self, *services: str, health: bool = True) -> None:
        options = [] if health else ["--no-health"]
        super().__init__(
            [sys.executable, "-m", "kit.grpc_health", *options, "127.0.0.1:0"],
            {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        try:
            self.port: int = self.hear()["port"]
            for service in services:
                self.set("SERVING", service)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set(self, status: str, service: str = "") -> None:
        self.say(json.dumps({"service": service, "status": status}))
        assert self.hear() == {"set": status}

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
