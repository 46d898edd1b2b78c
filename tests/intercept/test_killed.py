"""`up` and `down`, killed at every step they take: what is left is nothing, all, or what `down` removes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from kit.intercept import Hosts, configuration, leave_alone, take_over
from kit.limits import DEADLINE, scaled
from kit.proxy import FASTMESH

from fastmesh.host.intercept import Selection, rules_in_force

ALL = "outbound: {exclude_ports: [22]}, inbound: {ports: [8080]}"


class Steps:
    """Stands in for nft and ip, mounted over them for those that it runs, and kills who calls them at one of
    the calls: before it is done, while it is left to finish alone, or after it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "bin"
        self.calls = directory / "calls"
        self.directory.mkdir()
        self.mounts: list[str] = []
        for name in ("nft", "ip"):
            program = self.directory / name
            real = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
            assert real is not None
            shutil.copy(real, f"{program}-itself")
            self.mounts.append(f"mount --bind {program} {real}")
            program.write_text(
                f"""#!/bin/sh
echo >> {self.calls}
n=$(wc -l < {self.calls})
[ "$KILL_AT $KILL_WHEN" = "$n before" ] && kill -9 $PPID
{program}-itself "$@"
code=$?
[ "$KILL_AT $KILL_WHEN" = "$n after" ] && kill -9 $PPID
exit $code
"""
            )
            program.chmod(0o755)

    def run(self, *arguments: object, at: int = 0, when: str = "before") -> tuple[int, int]:
        """The exit code of a command that is killed at a call, and how many calls there were."""
        self.calls.write_text("")
        script = "\n".join(["set -e", *self.mounts, 'exec "$@"'])
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "-", FASTMESH, "intercept", *map(str, arguments)],
            check=False,
            env={**os.environ, "KILL_AT": str(at), "KILL_WHEN": when},
        )
        return done.returncode, self.calls.read_text().count("\n")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["redirect", "tproxy"])
def test_at_every_step(hosts: Hosts, tmp_path: Path, method: str, when: str) -> None:
    app, _ = hosts
    config = configuration(tmp_path, f"{{method: {method}, {ALL}}}")
    netns = ("--netns", app.name)
    steps = Steps(tmp_path)
    before = app.state()
    code, calls = steps.run("up", "-c", config, *netns)
    assert (code, calls > 4) == (0, True)
    whole = app.state()
    _, calls_down = steps.run("down", *netns)
    for at in range(1, calls + 1):
        code, _ = steps.run("up", "-c", config, *netns, at=at, when=when)
        assert code == -signal.SIGKILL
        if at % 3 == 0:
            # Another one finishes what it began.
            take_over(config, app)
            assert handleless(app.state()) == handleless(whole)
        leave_alone(app)
        assert app.state() == before
    for at in range(1, calls_down + 1):
        take_over(config, app)
        code, _ = steps.run("down", *netns, at=at, when=when)
        assert code == -signal.SIGKILL
        leave_alone(app)
        assert app.state() == before


def handleless(state: str) -> list[str]:
    return [part for part in state.replace(",", " ").split() if not part.strip("}").isdigit()]


def test_at_random_points(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    before = app.state()
    generator = random.Random(4005)
    for turn in range(8):
        method = ("redirect", "tproxy")[turn % 2]
        config = configuration(tmp_path, f"{{method: {method}, {ALL}}}")
        for what in (("up", "-c", str(config)), ("down",)):
            process = subprocess.Popen(
                [str(FASTMESH), "intercept", *what, "--netns", app.name],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(generator.uniform(0.1, 0.6))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(DEADLINE)
        leave_alone(app)
        assert app.state() == before


def test_up_and_down_many_times(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    before = app.state()
    configs = [
        configuration(tmp_path, f"{{method: {method}, {ALL}}}", name=method)
        for method in ("redirect", "tproxy")
    ]
    for turn in range(scaled(100)):
        take_over(configs[turn % 2], app)
        assert leave_alone(app)
    assert not leave_alone(app)
    assert app.state() == before


def test_at_the_same_time(hosts: Hosts, tmp_path: Path) -> None:
    """They wait for each other, and the last one is right."""
    app, _ = hosts
    before = app.state()
    config = configuration(tmp_path, f"{{method: tproxy, {ALL}}}")
    command = [str(FASTMESH), "intercept"]
    processes = [
        subprocess.Popen(
            [*command, *(["up", "-c", str(config)] if turn % 2 else ["down"]), "--netns", app.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for turn in range(8)
    ]
    for process in processes:
        _, said = process.communicate(timeout=4 * DEADLINE)
        assert process.returncode == 0, said
    take_over(config, app)
    assert rules_in_force(Selection(netns=app.name)) is not None
    leave_alone(app)
    assert app.state() == before
