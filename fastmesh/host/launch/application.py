"""The command of a run: a process as if the shell had started it, and dead at the latest when we are."""

from __future__ import annotations

import os
import signal

from fastmesh.host.launch.kernel import die_with_parent
from fastmesh.host.launch.processes import MARK, fork, send
from fastmesh.host.launch.signals import plain
from fastmesh.host.process import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmesh.host.launch.plan import Plan
    from fastmesh.host.launch.takeover import Takeover

# What a shell returns for a program that is not there, and for one that cannot be run.
EXIT_NOT_FOUND = 127
EXIT_NOT_EXECUTABLE = 126


class Application:
    """`pid` is 0 before it runs and after it has been reaped; `code` is known then."""

    def __init__(self, plan: Plan, mark: str) -> None:
        self.pid = 0
        self.code: int | None = None
        self._plan = plan
        self._mark = mark

    def start(self, takeover: Takeover, before: set[int]) -> None:
        """Run the command where its traffic is taken over, with the signal mask `before`. Raises OSError."""
        parent = os.getpid()
        self.pid = fork(lambda: self._execute(takeover, before, parent))

    def _execute(self, takeover: Takeover, before: set[int], parent: int) -> int:
        program, *_ = self._plan.command
        environment = {**os.environ, **self._plan.environment, MARK: self._mark}
        try:
            takeover.enter()
        except OSError as error:
            say(f"run: the command cannot be put where its traffic is taken over: {error.strerror}")
            return 1
        # After that, which may change the user: the kernel forgets it then.
        die_with_parent(signal.SIGKILL, parent)
        plain(before)
        try:
            os.execvpe(program, self._plan.command, environment)
        except FileNotFoundError:
            say(f"run: {program}: there is no such program")
            return EXIT_NOT_FOUND
        except OSError as error:
            say(f"run: {program} cannot be run: {error.strerror}")
            return EXIT_NOT_EXECUTABLE

    def signal(self, number: int) -> None:
        if self.pid:
            send(self.pid, number)

    def ended(self, code: int) -> None:
        """It has been reaped."""
        self.pid = 0
        self.code = code
