"""The access log: lines, batches, rotation, and everything that can be wrong with a file."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.area import FakeArea, log_record
from kit.limits import wait_until

from fastmesh.observe import access_log
from fastmesh.observe.access_log import (
    BATCH,
    LONGEST_DELAY,
    SHORTEST_DELAY,
    AccessLog,
    LineEncoder,
    LogFile,
    next_delay,
)

LogFiles = Callable[[str | Path], LogFile]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def log_file(said: list[str]) -> Iterator[LogFiles]:
    """Log files that say into `said`, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(path: str | Path) -> LogFile:
            file = LogFile(str(path), said.append)
            stack.callback(file.close)
            return file

        yield make


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: write(2) then does what it can, then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- lines


def test_a_record_is_one_line_of_json() -> None:
    record = log_record(path="/a?b=\u00e9", reason="connect_refused", identity="spiffe://mesh.local/svc-a")
    (line,) = LineEncoder().lines([dict(record)]).splitlines()
    assert json.loads(line) == {**record, "time": "2023-11-14T22:13:20.250000Z"}


def test_times_are_utc_and_of_one_length() -> None:
    encoder = LineEncoder()
    times = [0.0, 1.5, 1_700_000_000.999_999_9, 1_700_000_001.0, 1_700_000_000.25]
    lines = encoder.lines([log_record(time=time) for time in times]).splitlines()
    assert [json.loads(line)["time"] for line in lines] == [
        "1970-01-01T00:00:00.000000Z",
        "1970-01-01T00:00:01.500000Z",
        "2023-11-14T22:13:21.000000Z",
        "2023-11-14T22:13:21.000000Z",
        "2023-11-14T22:13:20.250000Z",
    ]


def test_nothing_in_a_record_can_break_a_line() -> None:
    nasty = '\r\n{"status": 200}\0\x1b[2J\u2028\u0085"\\'
    data = LineEncoder().lines([log_record(path=nasty, authority=nasty), log_record()])
    assert data.count(b"\n") == 2
    assert b"\r" not in data and b"\0" not in data and b"\x1b" not in data
    assert json.loads(data.split(b"\n")[0])["path"] == nasty


def test_bytes_that_are_no_text_do_not_stop_the_log() -> None:
    data = LineEncoder().lines([log_record(path="/\udcff"), log_record()])
    assert [json.loads(line)["path"] for line in data.splitlines()] == ["/?", "/"]


# -- the file


def test_it_is_created_for_its_group_to_read(log_file: LogFiles, path: Path, said: list[str]) -> None:
    file = log_file(path)
    before = os.umask(0)
    try:
        assert file.append(b"1\n", 1) == 1
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert not said


def test_a_batch_is_one_write(
    log_file: LogFiles, path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    write = os.write

    def spy(fd: int, data: Any) -> int:
        sizes.append(len(data))
        return write(fd, data)

    file = log_file(path)
    monkeypatch.setattr(os, "write", spy)
    file.append(b"x" * 299 + b"\n" + b"y\n" * 999, 1000)
    assert sizes == [300 + 2 * 999]


def test_it_appends_and_lets_others_append(log_file: LogFiles, path: Path, said: list[str]) -> None:
    path.write_text("before\n")
    file = log_file(path)
    file.append(b"1\n", 1)
    with path.open("a") as other:
        other.write("other\n")
    file.append(b"2\n", 1)
    assert path.read_text() == "before\n1\nother\n2\n"


def test_a_renamed_file_is_followed_by_a_new_one(
    log_file: LogFiles, path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "CHECK_INTERVAL", 0.0)
    file = log_file(path)
    file.append(b"1\n", 1)
    old = path.rename(path.with_suffix(".1"))
    file.append(b"2\n", 1)
    assert (old.read_text(), path.read_text()) == ("1\n", "2\n")


def test_a_deleted_file_is_created_anew(
    log_file: LogFiles, path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "CHECK_INTERVAL", 0.0)
    file = log_file(path)
    file.append(b"1\n", 1)
    path.unlink()
    file.append(b"2\n", 1)
    assert path.read_text() == "2\n"


def test_reopen_does_not_wait_for_the_next_look(log_file: LogFiles, path: Path, said: list[str]) -> None:
    file = log_file(path)
    file.append(b"1\n", 1)
    old = path.rename(path.with_suffix(".1"))
    file.append(b"2\n", 1)
    file.reopen()
    file.append(b"3\n", 1)
    assert (old.read_text(), path.read_text()) == ("1\n2\n", "3\n")


def test_a_truncated_file_goes_on_at_its_start(log_file: LogFiles, path: Path, said: list[str]) -> None:
    file = log_file(path)
    file.append(b"1\n" * 1000, 1000)
    os.truncate(path, 0)
    file.append(b"2\n", 1)
    assert path.read_bytes() == b"2\n"


def test_a_directory_that_is_missing_is_said_once_and_its_coming_too(
    log_file: LogFiles,
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access_log, "CHECK_INTERVAL", 0.0)
    path = tmp_path / "logs" / "access.log"
    file = log_file(path)
    assert [file.append(b"1\n2\n", 2) for _ in range(3)] == [0, 0, 0]
    assert len(said) == 1 and "No such file" in said[0]
    path.parent.mkdir()
    assert file.append(b"3\n", 1) == 1
    assert len(said) == 2 and "6 records" in said[1]
    assert path.read_text() == "3\n"


def test_a_directory_that_vanishes_keeps_the_open_file(
    log_file: LogFiles,
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access_log, "CHECK_INTERVAL", 0.0)
    path = tmp_path / "logs" / "access.log"
    path.parent.mkdir()
    file = log_file(path)
    file.append(b"1\n", 1)
    moved = path.parent.rename(tmp_path / "moved") / "access.log"
    assert file.append(b"2\n", 1) == 1
    assert moved.read_text() == "1\n2\n"


def test_a_full_disk_drops_counts_and_says_it_once(log_file: LogFiles, said: list[str]) -> None:
    file = log_file("/dev/full")
    assert [file.append(b"1\n2\n3\n", 3) for _ in range(3)] == [0, 0, 0]
    assert len(said) == 1 and "No space left" in said[0]


def test_a_disk_that_fills_up_leaves_whole_lines_only(
    log_file: LogFiles, path: Path, said: list[str]
) -> None:
    file = log_file(path)
    line = b"x" * 99 + b"\n"
    with file_size_limit(250):
        assert file.append(line * 5, 5) == 2
        assert path.read_bytes() == line * 2
        assert file.append(line, 1) == 0
        assert file.append(b"short\n", 1) == 1
    assert path.read_bytes() == line * 2 + b"short\n"
    assert len(said) == 2 and "File too large" in said[0] and "4 records" in said[1]


def test_a_torn_line_that_cannot_be_taken_back_stands_alone(
    log_file: LogFiles, path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int, size: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "ftruncate", fails)
    file = log_file(path)
    line = b"x" * 99 + b"\n"
    with file_size_limit(150):
        assert file.append(line * 2, 2) == 1
    assert file.append(line * 2, 2) == 2
    assert path.read_bytes().split(b"\n") == [line[:-1], b"x" * 50, line[:-1], line[:-1], b""]


def test_a_line_another_process_wrote_behind_a_torn_one_is_not_cut_off(
    log_file: LogFiles, path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def disturbed(fd: int, data: Any) -> int:
        try:
            return write(fd, data)
        except OSError:
            with file_size_limit(10_000), path.open("ab") as other:
                other.write(b"other\n")
            raise

    file = log_file(path)
    monkeypatch.setattr(os, "write", disturbed)
    with file_size_limit(150):
        assert file.append(b"x" * 99 + b"\n" + b"y" * 99 + b"\n", 2) == 1
    assert path.read_bytes() == b"x" * 99 + b"\n" + b"y" * 50 + b"other\n"


def test_a_pipe_without_a_reader_does_not_hang(log_file: LogFiles, path: Path, said: list[str]) -> None:
    os.mkfifo(path)
    assert log_file(path).append(b"1\n", 1) == 0
    assert len(said) == 1


# -- the rings


def test_every_ring_is_drained(path: Path, said: list[str]) -> None:
    area: Any = FakeArea(3)
    for slot in range(3):
        area.log[slot] = [log_record(worker=slot, path=f"/{number}") for number in range(BATCH + 5)]
    log = AccessLog(area, said.append)
    log.configure(str(path), 3)
    wait_until(lambda: log.written == 3 * (BATCH + 5), "all records")
    log.stop(5)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for slot in range(3):
        paths = [record["path"] for record in records if record["worker"] == slot]
        assert paths == [f"/{number}" for number in range(BATCH + 5)]
    assert (log.failed, said) == (0, [])


def test_slots_without_a_worker_are_left_alone(path: Path, said: list[str]) -> None:
    area: Any = FakeArea(1)  # any other slot would raise
    log = AccessLog(area, said.append)
    log.configure(str(path), 1)
    area.log[0].append(log_record())
    wait_until(lambda: log.written == 1, "the record")
    log.stop(5)


def test_what_was_logged_until_the_end_is_written(path: Path, said: list[str]) -> None:
    area: Any = FakeArea(1)
    log = AccessLog(area, said.append)
    log.configure(str(path), 1)
    area.log[0] += [log_record() for _ in range(3 * BATCH + 1)]
    log.stop(5)
    assert len(path.read_text().splitlines()) == 3 * BATCH + 1


def test_without_a_file_nothing_is_taken_and_no_thread_runs(said: list[str]) -> None:
    area: Any = FakeArea(1)
    area.log[0].append(log_record())
    threads = threading.active_count()
    log = AccessLog(area, said.append)
    log.configure(None, 1)
    assert threading.active_count() == threads
    log.stop(0)
    assert len(area.log[0]) == 1


def test_records_the_file_refuses_are_counted_and_the_ring_stays_empty(said: list[str]) -> None:
    area: Any = FakeArea(1)
    area.log[0] += [log_record() for _ in range(10)]
    log = AccessLog(area, said.append)
    log.configure("/dev/full", 1)
    wait_until(lambda: log.failed == 10, "ten records lost")
    log.stop(5)
    assert (log.written, area.log[0], len(said)) == (0, [], 1)


def test_a_disk_that_hangs_does_not_hold_the_end_up(path: Path, said: list[str]) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    area: Any = FakeArea(1)
    log = AccessLog(area, said.append)
    log.configure(str(path), 1)
    area.log[0] += [log_record(path="/" + "x" * 300) for _ in range(BATCH)]  # more than a pipe holds
    wait_until(lambda: not area.log[0], "the batch to be taken")
    log.stop(0.05)
    assert log.written == 0
    while os.read(reader, 1 << 20) and not log.written:
        wait_until(lambda: log.written or _readable(reader), "the rest")
    os.close(reader)


def _readable(fd: int) -> bool:
    import select

    poll = select.poll()  # select() ends at descriptor 1024
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def test_the_delay_follows_the_rate() -> None:
    assert next_delay(LONGEST_DELAY, BATCH) == 0.0
    assert next_delay(LONGEST_DELAY, 0) == LONGEST_DELAY
    assert next_delay(0.0, 0) <= 2 * SHORTEST_DELAY
    delay = 0.05
    for _ in range(20):  # 10,000 records a second: 250 of them every 25 ms
        delay = next_delay(delay, round(delay * 10_000))
    assert delay == pytest.approx(0.025, rel=0.1)
    for most in (1, 10, 999):
        assert SHORTEST_DELAY <= next_delay(delay, most) <= LONGEST_DELAY
