"""The access log: records out of the workers' rings, into a file of JSON lines.

A thread of its own drains the rings, because writing to a file may block for as long as the disk likes: a
dead disk then costs log lines, never an answer of the admin API. Nothing here can make a worker wait; a
ring that is not drained in time drops and counts by itself.

The file is opened for appending and created with mode 0640 (less what the umask takes). Each batch is one
write(2) of whole lines. It is opened again when its name no longer leads to it (rotation by renaming) and
on `reopen`; truncating it in place works too. Records that cannot be written are dropped and counted, the
failure is said once, and so is its end.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastmesh._core import Area

Record = dict[str, object]

MODE: Final = 0o640
# How many records one call takes out of a ring: what one write(2) carries (some 300 bytes each).
BATCH: Final = 1000
# A ring of 256 KiB holds 1000 to 1700 records. The delay between two passes is chosen so that the fullest
# ring is found about a quarter full, within these limits (seconds). The longest one bounds what a burst
# out of silence may lose; ten looks a second cost 0.1 % of a CPU.
RECORDS_A_PASS: Final = 250
SHORTEST_DELAY: Final = 0.005
LONGEST_DELAY: Final = 0.1
# How often the name of the file is compared with the open file, and a failed open tried again (seconds).
CHECK_INTERVAL: Final = 1.0


class LogFile:
    """A file that lines are appended to. Used by one thread; never raises OSError."""

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say
        self._fd = -1
        self._checked = 0.0
        self._torn = False
        self._lost = 0
        self._failing = False

    def append(self, lines: bytes, count: int) -> int:
        """Append `count` whole lines; returns how many of them are in the file."""
        if not self._ready():
            self._lost += count
            return 0
        if self._torn:
            lines = b"\n" + lines
        position = 0
        try:
            while position < len(lines):
                position += os.write(self._fd, memoryview(lines)[position:])
        except OSError as error:
            whole = lines.rfind(b"\n", 0, position) + 1
            written = lines.count(b"\n", 0, whole) - (self._torn and whole > 0)
            self._torn = self._torn and not whole
            if position > whole:
                self._take_back(position - whole)
            self._lost += count - written
            self._fail(f"cannot write {self.path}: {error.strerror}")
            return written
        self._torn = False
        self._recovered()
        return count

    def reopen(self) -> None:
        """Let the next line open the file anew."""
        self.close()
        self._checked = 0.0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ready(self) -> bool:
        """Whether there is a file to write to; opens it if it is not open or has been renamed."""
        now = time.monotonic()
        if self._checked and now - self._checked < CHECK_INTERVAL:
            return self._fd >= 0
        self._checked = now
        if self._fd >= 0 and self._in_place():
            return True
        try:
            # O_NONBLOCK only so that opening a pipe nobody reads fails instead of waiting.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            fd = os.open(self.path, flags, MODE)
            os.set_blocking(fd, True)
        except OSError as error:
            # A file that has been renamed is better than none.
            if self._fd >= 0:
                return True
            self._fail(f"cannot open {self.path}: {error.strerror}")
            return False
        self.close()
        self._fd = fd
        self._torn = False
        return True

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(Path(self.path).stat(), os.fstat(self._fd))
        except OSError:
            return False

    def _take_back(self, torn: int) -> None:
        """Remove the beginning of a line whose rest did not fit, so that the file holds whole lines only."""
        try:
            end = os.fstat(self._fd)
            # After an appending write the position is the end of what was written: nobody wrote behind it.
            if stat.S_ISREG(end.st_mode) and os.lseek(self._fd, 0, os.SEEK_CUR) == end.st_size:
                os.ftruncate(self._fd, end.st_size - torn)
                return
        except OSError:
            pass
        self._torn = True

    def _fail(self, message: str) -> None:
        if not self._failing:
            self._failing = True
            self._say(f"access log: {message}; records are dropped until it can be written")

    def _recovered(self) -> None:
        if self._failing:
            self._failing = False
            self._say(f"access log: {self.path} is written again, {self._lost} records were dropped")
        self._lost = 0


class LineEncoder:
    """Access log records as lines of JSON."""

    def __init__(self) -> None:
        # A sidecar without an access log does not pay for it.
        from msgspec import json

        self._encode: Callable[[object], bytes] = json.Encoder().encode
        self._second = -1
        self._prefix = ""

    def lines(self, records: list[Record]) -> bytes:
        encoded = []
        for record in records:
            record["time"] = self._time(record["time"])
            try:
                encoded.append(self._encode(record))
            except UnicodeEncodeError:
                encoded.append(self._encode({key: _printable(value) for key, value in record.items()}))
        encoded.append(b"")
        return b"\n".join(encoded)

    def _time(self, seconds: object) -> str:
        """UNIX time as RFC 3339 in UTC, always with microseconds: equal lengths sort as text."""
        assert isinstance(seconds, float)
        whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
        if whole != self._second:
            self._second = whole
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        return f"{self._prefix}.{micro:06d}Z"


def _printable(value: object) -> object:
    """`value` without the lone surrogates that stand for bytes that are no UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


class AccessLog:
    """Drains the rings of all worker slots into the configured file, if there is one.

    `written` and `failed` count records; both only grow.
    """

    def __init__(self, area: Area, say: Callable[[str], None]) -> None:
        self.written = 0
        self.failed = 0
        self._area = area
        self._say = say
        self._path: str | None = None
        self._slots = 0
        self._reopen = False
        self._stopping = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._encoder: LineEncoder | None = None

    def configure(self, path: str | None, slots: int) -> None:
        """Write what the first `slots` workers log to `path`; None for no access log. For one thread only."""
        if (path, slots) == (self._path, self._slots):
            return
        self._path = path
        self._slots = slots
        if path is not None and self._thread is None and not self._stopping:
            self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
            self._thread.start()
        self._wake.set()

    def reopen(self) -> None:
        """Open the file anew, because it has been rotated. Returns at once."""
        self._reopen = True
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Write what is in the rings and end, or give up after `timeout` seconds (a disk that hangs)."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        self._encoder = LineEncoder()
        file: LogFile | None = None
        delay = LONGEST_DELAY
        while True:
            stopping = self._stopping  # read before the pass: what was logged until then is written
            path = self._path
            if file is not None and file.path != path:
                file.close()
                file = None
            if file is None and path is not None:
                file = LogFile(path, self._say)
            if self._reopen and file is not None:
                self._reopen = False
                file.reopen()
            most = self._pass(file) if file is not None else 0
            if stopping and most < BATCH:
                break
            delay = next_delay(delay, most)
            if delay:
                self._wake.wait(delay if file is not None else None)
                self._wake.clear()
        if file is not None:
            file.close()

    def _pass(self, file: LogFile) -> int:
        """One batch of every ring; returns the size of the largest."""
        assert self._encoder is not None
        most = 0
        for slot in range(self._slots):
            records = self._area.log_read(slot, BATCH)
            if records:
                count = len(records)
                written = file.append(self._encoder.lines(records), count)
                self.written += written
                self.failed += count - written
                most = max(most, count)
        return most


def next_delay(delay: float, most: int) -> float:
    """How long to wait after a pass that found at most `most` records in a ring and came after `delay`."""
    if most >= BATCH:
        return 0.0
    delay = max(delay, SHORTEST_DELAY)
    wanted = delay * RECORDS_A_PASS / most if most else delay * 2
    return min(max(wanted, SHORTEST_DELAY), LONGEST_DELAY)
