"""A connection that an application might make: of one user, in one cgroup. Run as a file, with nothing
imported but the standard library, so that it works for users who may not read the rest.

    dial.py ADDRESS PORT USER CGROUP_PROCS

CGROUP_PROCS: the file that takes a process into its cgroup, or empty. Prints our own address and port once
connected, `error NUMBER` if that fails, or `unable NUMBER` if it cannot be tried, and keeps the connection
until its input ends.
"""

import os
import socket
import sys

_TIMEOUT = 3.0


def main() -> None:
    address, port, user, procs = sys.argv[1:]
    if procs:
        with open(procs, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    if os.geteuid() == 0 and int(user) != 0:
        os.setgroups([])
        os.setresgid(int(user), int(user), int(user))
        os.setresuid(int(user), int(user), int(user))
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(_TIMEOUT)
        try:
            sock.connect((address, int(port)))
        except OSError as error:
            print(f"error {error.errno or 0}", flush=True)
            return
        print(*sock.getsockname()[:2], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"unable {error.errno or 0}", flush=True)
