"""Signals reach the command once, whoever they were sent to; the terminal is the command's."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import sys
from pathlib import Path

import pytest
from kit import procfs
from kit.limits import DEADLINE, wait_until

# Says which signals it gets.
LISTENER = """
import os, signal, sys

NUMBERS = [signal.Signals[name] for name in sys.argv[1:]]
signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
print("ready", flush=True)
while True:
    got = signal.sigwait(NUMBERS).name
    print(got, flush=True)
    if got == "SIGTERM":
        break
"""
NAMES = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGWINCH", "SIGCONT", "SIGRTMIN"]


@pytest.fixture
def listening(launch, script, config):
    run = launch(config, *script(LISTENER), *NAMES, "SIGTERM")
    run.wait_out("ready\n")
    return run


def test_signals_to_the_run_are_passed_on(listening):
    for count, name in enumerate(NAMES):
        listening.signal(signal.Signals[name])
        listening.wait_out(f"{name}\n")
        assert len(listening.out().split()) == count + 2
    listening.signal(signal.SIGTERM)
    assert listening.wait() == 0, listening.err()
    assert listening.out().split() == ["ready", *NAMES, "SIGTERM"]


def test_signals_to_the_group_come_once(listening):
    for name in NAMES:
        os.killpg(listening.pid, signal.Signals[name])
        listening.wait_out(f"{name}\n")
    os.killpg(listening.pid, signal.SIGTERM)
    assert listening.wait() == 0, listening.err()
    assert listening.out().split() == ["ready", *NAMES, "SIGTERM"]


def pending(pid, number):
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "ShdPnd" in line]
    return int(line.split()[1], 16) >> (number - 1) & 1


def test_to_the_group_and_then_to_the_run(listening):
    for _ in range(3):
        before = listening.out().count("SIGUSR1")
        os.killpg(listening.pid, signal.SIGUSR1)
        wait_until(lambda n=before: listening.out().count("SIGUSR1") == n + 1, "the one to the group")
        # Two that wait are one (signal(7)): the run must have read its own.
        wait_until(lambda: not pending(listening.pid, signal.SIGUSR1), "that the run has read it")
        listening.signal(signal.SIGUSR1)
        wait_until(lambda n=before: listening.out().count("SIGUSR1") == n + 2, "the one to the run")
    listening.signal(signal.SIGTERM)
    assert listening.wait() == 0
    assert listening.out().count("SIGUSR1") == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_the_command(launch, config, number):
    run = launch(config, "sh", "-c", "ulimit -c 0; echo ready; exec sleep 1000")
    run.wait_out("ready")
    run.signal(number)
    assert run.wait() == 128 + number


def test_signals_as_the_command_was_to_have_them(launch, config, script):
    text = """
import signal
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
ignored = [one for one in signal.valid_signals() if signal.getsignal(one) == signal.SIG_IGN]
print([one.name for one in blocked], sorted(one.name for one in ignored))
"""
    # What Python ignores for itself it ignores again in the command, which is Python here.
    run = launch(config, *script(text), prefix=["env", "--ignore-signal=HUP", "--block-signal=USR1"])
    assert run.wait() == 0, run.err()
    assert run.out() == "['SIGUSR1'] ['SIGHUP', 'SIGPIPE', 'SIGXFSZ']\n"
    shell = launch(config, "grep", "SigIgn", "/proc/self/status")
    assert shell.wait() == 0
    # From 32 on they are the C library's own, and whoever began it all may have left them so.
    assert int(shell.out().split()[1], 16) & 0x7FFF_FFFF == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_before_the_command_has_started(launch, config, number):
    """While the sidecar boots: it is held there."""
    run = launch(config, "echo", "started", prefix=["env", "FASTMESH_TEST=1"])
    sidecar = run.child(lambda title: "fastmesh.host /" in title or "supervisor" in title)
    os.kill(sidecar, signal.SIGSTOP)
    run.signal(number)
    os.kill(sidecar, signal.SIGCONT)
    assert run.wait() in (128 + number, 0)
    if run.out() == "":
        assert run.process.returncode == 128 + number


# with a terminal


class Terminal:
    """A pseudo-terminal, and the process that is in its foreground as a shell would have put it there."""

    def __init__(self, launch, config, *command):
        self.ours, theirs = pty.openpty()
        self.said = b""
        self.run = launch(
            config,
            *command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            process_group=None,
            start_new_session=True,
            prefix=[sys.executable, "-c", SHELL],
        )
        os.close(theirs)
        os.set_blocking(self.ours, False)

    def type(self, text):
        os.write(self.ours, text)

    def wait(self, text):
        def there():
            # EIO: everybody has closed the other end.
            with contextlib.suppress(OSError):
                self.said += os.read(self.ours, 4096)
            self.run.family()
            return text in self.said

        wait_until(there, f"{text!r} on the terminal: {self.said!r}", 2 * DEADLINE)


# What a shell does for a job in the foreground, and what it sees of it.
SHELL = """
import fcntl, os, signal, sys, termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        os.tcsetpgrp(0, os.getpgrp())
        print("stopped", os.WSTOPSIG(status), flush=True)
        sys.stdin.readline()
        os.tcsetpgrp(0, job)
        os.killpg(job, signal.SIGCONT)
    else:
        print("ended", os.waitstatus_to_exitcode(status), flush=True)
        break
"""
INTERACTIVE = """
import os, signal

print("foreground", os.tcgetpgrp(0) == os.getpgrp(), flush=True)
count = 0
while True:
    try:
        line = input("> ")
    except KeyboardInterrupt:
        count += 1
        print("interrupted", count, flush=True)
        continue
    if line == "end":
        break
    print("read", line, flush=True)
raise SystemExit(5)
"""


@pytest.fixture
def terminal(launch, config, script):
    opened = Terminal(launch, config, *script(INTERACTIVE))
    yield opened
    os.close(opened.ours)


def test_the_terminal_is_the_commands(terminal):
    terminal.wait(b"foreground True")
    terminal.type(b"words\n")
    terminal.wait(b"read words")
    terminal.type(b"\x03")
    terminal.wait(b"interrupted 1")
    terminal.type(b"\x03")
    terminal.wait(b"interrupted 2")
    terminal.type(b"end\n")
    terminal.wait(b"ended 5")
    # Every one was seen once.
    assert terminal.said.count(b"interrupted") == 2


def test_ctrl_z_and_back(terminal):
    terminal.wait(b"foreground True")
    for count in (1, 2):
        terminal.type(b"\x1a")
        terminal.wait(b"stopped %d" % signal.SIGTSTP)
        terminal.type(b"fg\n")
        terminal.type(b"words %d\n" % count)
        terminal.wait(b"read words %d" % count)
        terminal.said = terminal.said.replace(b"stopped", b"")
    terminal.type(b"end\n")
    terminal.wait(b"ended 5")


def test_stopped_and_continued_from_elsewhere(terminal):
    terminal.wait(b"foreground True")
    run = terminal.run.child(lambda title: title.startswith("fastmesh: run"))
    os.kill(run, signal.SIGTSTP)
    terminal.wait(b"stopped %d" % signal.SIGTSTP)
    (app,) = [pid for pid in procfs.children(run) if "app.py" in procfs.title(pid)]
    assert procfs.stopped(app)
    terminal.type(b"fg\n")
    terminal.type(b"end\n")
    terminal.wait(b"ended 5")


def test_an_interactive_shell_has_its_own_jobs(launch, config):
    opened = Terminal(launch, config, "bash", "--norc", "-i")
    try:
        opened.type(b"sleep 1000\n")
        wait_until(lambda: any(title == "sleep 1000" for title in opened.run.tree()), "sleep", 2 * DEADLINE)
        opened.type(b"\x03")
        opened.type(b"echo code $((100 + $?))\n")
        opened.wait(b"code 230")
        opened.type(b"exit 3\n")
        opened.wait(b"ended 3")
    finally:
        os.close(opened.ours)
