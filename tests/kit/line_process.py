"""A child process that is spoken with on its stdin and stdout: a line of text there, a line of JSON back."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Mapping
from typing import IO, Any

from kit.limits import DEADLINE


class LineProcess:
    """That process. It ends with its input."""

    def __init__(self, command: list[str], env: Mapping[str, str], stderr: IO[bytes] | None = None) -> None:
        self._heard = b""
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=env
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The next line that it says."""
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], 4 * DEADLINE)
            more = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                # What it may yet say would be taken for the answer to something else.
                self.process.kill()
                raise AssertionError(f"{self.process.args} says nothing:\n{self.stderr()}")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def stderr(self) -> str:
        """What it has said on stderr, where that is kept."""
        return ""

    def close(self) -> None:
        """End of its input: it has nothing more to do and ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
