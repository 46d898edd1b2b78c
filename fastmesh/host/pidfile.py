"""The pid file: it appears, whole, when the proxy is ready, and goes when it ends."""

from __future__ import annotations

import contextlib
import errno
import os


class PidFile:
    """`prepare` early, so that a directory that cannot be written is known before anything runs.

    Methods raise OSError, `remove` does not.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._draft = f"{path}.{os.getpid()}"

    def prepare(self) -> None:
        if os.path.isdir(self.path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with open(self._draft, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")

    def publish(self) -> None:
        os.replace(self._draft, self.path)

    def remove(self) -> None:
        """Remove it, unless another process has written its own by now."""
        with contextlib.suppress(OSError):
            os.unlink(self._draft)
        with contextlib.suppress(OSError):
            with open(self.path, "rb") as file:
                mine = file.read(32) == b"%d\n" % os.getpid()
            if mine:
                os.unlink(self.path)
