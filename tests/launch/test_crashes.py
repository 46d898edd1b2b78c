"""What dies, who takes its place, and that nothing survives which should not."""

from __future__ import annotations

import os
import signal

import yaml
from kit import procfs
from kit.launched import RUN
from kit.limits import wait_until
from kit.ports import free_port

# Asks once for each line on its stdin, and says what came of it.
CALLER = """
import sys, urllib.error, urllib.request

print("ready")
for line in sys.stdin:
    try:
        print("got", urllib.request.urlopen("http://svc-b/", timeout=10).read().decode())
    except (urllib.error.URLError, ConnectionError) as error:
        print("failed", error)
"""
# Leaves processes behind that have nothing in common with it: no session, no parent.
DAEMON = "setsid sh -c '(sleep 1000 & sleep 2000) & exec sleep 3000' & "


class Caller:
    def __init__(self, launch, config, script, **options):
        read, self._write = os.pipe()
        self.run = launch(config, *script(CALLER), stdin=read, **options)
        os.close(read)
        self._count = 0
        self.run.wait_out("ready\n")

    def ask(self):
        os.write(self._write, b"\n")
        self._count += 1
        wait_until(lambda: len(self.run.out().splitlines()) > self._count, f"an answer: {self.run.err()}")
        return self.run.out().splitlines()[self._count]

    def end(self):
        os.close(self._write)
        return self.run.wait()


def test_a_worker_that_dies_is_replaced(launch, config, script):
    caller = Caller(launch, config, script)
    assert caller.ask() == "got hello"
    worker = caller.run.find("worker")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: any("worker" in t for t in caller.run.tree()) and not procfs.alive(worker), "another")
    assert caller.ask() == "got hello"
    assert caller.end() == 0
    assert "it is started again" not in caller.run.err()


def test_a_sidecar_that_dies_is_started_again(launch, config, script):
    caller = Caller(launch, config, script)
    for count in (1, 2):
        supervisor = caller.run.find("supervisor")
        os.kill(supervisor, signal.SIGKILL)
        caller.run.wait_err("run: the sidecar is back\n", count)
        assert caller.ask() == "got hello"
    assert (
        f"run: the sidecar (pid {supervisor}) was killed by SIGKILL; it is started again, and"
        in caller.run.err()
    )
    assert caller.end() == 0


def test_traffic_fails_while_there_is_no_sidecar(launch, config, script):
    caller = Caller(launch, config, script)
    # One that cannot start: then there is none for good.
    caller.run.config.write_text("listeners: []\n")
    os.kill(caller.run.find("supervisor"), signal.SIGKILL)
    caller.run.wait_err("run: the sidecar (pid ", 2)
    assert caller.ask().startswith("failed")
    assert caller.end() == 0
    assert "expected a non-empty list" in caller.run.err()


def test_an_application_that_crashes(launch, config):
    run = launch(config, "sh", "-c", "ulimit -c 0; " + DAEMON + "echo ready; kill -SEGV $$")
    assert run.wait() == 139
    assert "was killed" not in run.err()


def test_what_is_left_behind_is_ended(launch, config):
    """Asked first; what does not heed that is killed."""
    deaf = "(trap '' TERM; echo > $pipe; exec setsid sleep 4000) & read line < $pipe"
    run = launch(config, "sh", "-c", f"{DAEMON} pipe=$(mktemp -u); mkfifo $pipe; {deaf}; rm $pipe; exit 4")
    assert run.wait() == 4
    (line,) = [line for line in run.err().splitlines() if "what the command has left behind: " in line]
    assert line.count(",") == 0, "one that did not heed"


def test_orphans_are_reaped(launch, config):
    run = launch(config, "sh", "-c", "(sh -c 'exit 0' &); (true &); echo ready; exec sleep 1000")
    run.wait_out("ready")
    wait_until(
        lambda: [procfs.title(pid) for pid in procfs.children(run.pid) if "sleep" in procfs.title(pid)],
        "sleep",
    )
    wait_until(lambda: all(map(procfs.alive, procfs.children(run.pid))), "no zombie of the run")
    run.signal(signal.SIGTERM)
    assert run.wait() == 143


def test_a_run_that_is_killed_takes_everything_along(launch, config):
    run = launch(config, "sh", "-c", DAEMON + "echo ready; exec sleep 4000")
    run.wait_out("ready")
    wait_until(lambda: sum("sleep" in title for title in run.tree()) >= 4, f"all of them: {run.tree()}")
    family = run.family()
    os.kill(run.pid, signal.SIGKILL)
    run.wait_gone()
    assert not any(map(procfs.alive, family))
    run.wait_err("was killed; the command, its sidecar and the interception have been ended\n")


def test_a_group_that_is_killed_takes_everything_along(launch, config):
    run = launch(config, "sh", "-c", DAEMON + "echo ready; exec sleep 4000")
    run.wait_out("ready")
    run.family()
    os.killpg(run.pid, signal.SIGKILL)
    run.wait_gone()


def test_a_run_that_is_killed_with_its_guard(launch, config):
    """The kernel ends the command and the sidecar then."""
    run = launch(config, "sh", "-c", "echo ready; exec sleep 4000")
    run.wait_out("ready")
    guard = run.find("guard")
    os.kill(run.pid, signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)
    os.kill(run.pid, signal.SIGKILL)
    run.wait_gone()


def test_a_run_within_a_run(launch, config, tmp_path):
    """The outer one's end is the inner one's."""
    inner = tmp_path / "inner.yaml"
    outbound = {"name": "outbound", "role": "outbound", "bind": f"127.0.0.1:{free_port()}"}
    inner.write_text(yaml.safe_dump({"admin": "off", "workers": 1, "listeners": [outbound]}))
    command = ["sh", "-c", DAEMON + "echo ready; exec sleep 4000"]
    run = launch(config, *RUN, "-c", inner, "--explicit", "--", *command)
    run.wait_out("ready")
    wait_until(lambda: sum("sleep" in title for title in run.tree()) >= 4, f"all of them: {run.tree()}")
    run.family()
    os.kill(run.pid, signal.SIGKILL)
    run.wait_gone()


def test_helpers_that_die(launch, config):
    """The guard is replaced, and nobody else gets what is meant for it."""
    read, write = os.pipe()
    run = launch(config, "sh", "-c", "echo ready; read line", stdin=read)
    os.close(read)
    run.wait_out("ready")
    guard, witness = run.find("guard"), run.find("witness")
    os.kill(witness, signal.SIGKILL)
    run.wait_err(f"run: the witness (pid {witness}) was killed by SIGKILL; ")
    os.kill(guard, signal.SIGKILL)
    run.wait_err(f"run: the guard (pid {guard}) was killed by SIGKILL; it is started again")
    wait_until(lambda: any("guard" in title for title in run.tree()), "another guard")
    assert run.find("guard") != guard
    os.close(write)
    assert run.wait() == 1
    run.wait_gone()
