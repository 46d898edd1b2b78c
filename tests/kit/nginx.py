"""A real HTTP backend: nginx in the foreground with its own configuration."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from kit.limits import bare, wait_until
from kit.ports import free_port

BINARY = shutil.which("nginx") or "/usr/sbin/nginx"

CONFIG = """
daemon off; master_process off; worker_processes 1;
pid {directory}/nginx.pid; error_log {directory}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
  keepalive_timeout 3600;
  client_max_body_size 0; default_type text/plain; server_tokens off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /small {{ return 200 "a small answer from nginx\\n"; }}
    location = /echo-host {{ return 200 "$host"; }}
    location = /204 {{ return 204; }}
    location = /moved {{ return 302 /small; }}
    location / {{ root {directory}/www; }}
  }}
}}
"""


class Nginx:
    """`files` become static content; `/small`, `/echo-host`, `/204` and `/moved` are always there.

    Another `config` is formatted with `values`, and with a directory and a port as this one.
    """

    def __init__(
        self, directory: Path, files: dict[str, bytes] | None = None, config: str = CONFIG, **values: str
    ) -> None:
        self.directory = directory / "nginx"
        (self.directory / "www").mkdir(parents=True)
        self.directory.chmod(0o755)
        for name, data in (files or {}).items():
            (self.directory / "www" / name).write_bytes(data)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        path = self.directory / "nginx.conf"
        path.write_text(config.format(directory=self.directory, port=self.port, **values))
        env = bare()
        self.process = subprocess.Popen(
            [BINARY, "-c", str(path), "-p", str(self.directory)], stderr=subprocess.PIPE, env=env
        )
        wait_until(self._answers, "nginx")

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            assert self.process.stderr is not None
            raise AssertionError(f"nginx ended at start: {self.process.stderr.read().decode()}")
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
