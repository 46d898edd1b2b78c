"""A container's process with the rights that a container runtime gives it; a program of `kit.kubelet`'s.

    python container.py STATUS_FD < specification in JSON

It makes mount, process, IPC and host name namespaces, in the network namespace that it is told, with a root
of its own: an image is directories of this machine, read-only. Then it gives up what the specification does
not grant, in the order of a runtime: seccomp, bounding set, groups, user, no_new_privs. The process is number
1 of its namespace, as in a cluster: signals that it has no handler for do nothing. With `join` it is one more
process in the namespaces of another, as `kubectl exec` makes them. Needs root.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWIPC, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PDEATHSIG, _SET_SECCOMP, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 1, 22, 24, 38, 47
_LAST_CAP = 40
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_MACHINE = platform.machine()
# Of what the default profiles of containerd, CRI-O and Docker forbid, what a program may come to think of.
_FORBIDDEN = {
    "x86_64": {
        "mount": 165,
        "umount2": 166,
        "pivot_root": 155,
        "unshare": 272,
        "setns": 308,
        "bpf": 321,
        "perf_event_open": 298,
        "io_uring_setup": 425,
        "keyctl": 250,
        "add_key": 248,
        "userfaultfd": 323,
        "init_module": 175,
        "finit_module": 313,
        "kexec_load": 246,
        "open_by_handle_at": 304,
        "quotactl": 179,
        "syslog": 103,
        "acct": 163,
        "settimeofday": 164,
        "clock_settime": 227,
        "clock_adjtime": 305,
        "chroot": 161,
        "sethostname": 170,
        "swapon": 167,
        "reboot": 169,
    }
}
_AUDIT_ARCH = {"x86_64": 0xC000003E}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    given = [one.encode() if one else None for one in (source, target, kind)]
    _check(_libc.mount(*given, ctypes.c_ulong(flags), data.encode() or None), f"mount {source} {target}")


def _bind(source: Path, target: Path, *, writable: bool) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), str(target), "", _MS_BIND)
    if not writable:
        _mount("", str(target), "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def _make_root(one: dict[str, Any]) -> None:
    """The root file system, without /proc, and this process in it."""
    _mount("", "/", "", _MS_REC | _MS_PRIVATE)
    root = Path(one["root"])
    _mount("root", str(root), "tmpfs", 0, "mode=755")
    for name in ("proc", "dev", "tmp", "run", "etc", "var"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    for name, text in one["files"].items():
        (root / name.lstrip("/")).write_text(text)
    for link, to in one["links"].items():
        (root / link.lstrip("/")).symlink_to(to)
    for path in one["image"]:
        _bind(Path(path), root / path.lstrip("/"), writable=False)
    for name in _DEVICES:
        _bind(Path("/dev", name), root / "dev" / name, writable=True)
    for name, to in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/{to}")
    (root / "dev/shm").mkdir()
    _mount("shm", str(root / "dev/shm"), "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=1777,size=64m")
    (root / "sys").mkdir()
    _mount("sysfs", str(root / "sys"), "sysfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for source, target, writable in one["mounts"]:
        _bind(Path(source), root / target.lstrip("/"), writable=writable)
    if one["read_only"]:
        _mount("", str(root), "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    os.chdir(root)
    _check(_libc.syscall(_PIVOT_ROOT[_MACHINE], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", 2), "umount2")
    os.chdir("/")


def _make_proc() -> None:
    """Of the process namespace; settings of the kernel are read-only, as in every container."""
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("/proc/sys", "/proc/sys", "", _MS_BIND)
    _mount("", "/proc/sys", "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _filter() -> bytes:
    """A BPF program (seccomp(2)): EPERM for what is forbidden."""
    load, equal, done = 0x20, 0x15, 0x06
    forbidden = sorted(_FORBIDDEN[_MACHINE].values())
    lines = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH[_MACHINE]), (done, 0, 0, 0x80000000), (load, 0, 0, 0)]
    lines += [(equal, len(forbidden) - i, 0, number) for i, number in enumerate(forbidden)]
    lines += [(done, 0, 0, 0x7FFF0000), (done, 0, 0, 0x00050001)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _forbid() -> None:
    if _MACHINE not in _FORBIDDEN:
        return
    program = ctypes.create_string_buffer(_filter())
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(program)))
    _check(_libc.prctl(_SET_SECCOMP, 2, head, 0, 0), "seccomp")


def _give_up(one: dict[str, Any]) -> None:
    """All rights but those that are granted. The last is what the kernel does at exec (capabilities(7))."""
    if one["seccomp"]:
        _forbid()
    _check(_libc.prctl(_CAP_AMBIENT, 4, 0, 0, 0), "ambient capabilities")
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    words = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, words), "capget")
    effective, permitted, _, *high = struct.unpack("6I", words.raw)
    words.raw = struct.pack("6I", effective, permitted, 0, *high[:2], 0)
    _check(_libc.capset(header, words), "capset")
    for number in range(_LAST_CAP + 1):
        if number not in one["capabilities"]:
            _check(_libc.prctl(_CAPBSET_DROP, number, 0, 0, 0), f"capability {number}")
    os.setgroups(one["groups"])
    os.setresgid(*[one["group"]] * 3)
    os.setresuid(*[one["user"]] * 3)
    if one["no_new_privs"]:
        _check(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")


def _enter(path: str, kind: int) -> None:
    with Path(path).open() as file:
        _check(_libc.setns(file.fileno(), kind), f"setns {path}")


def main() -> int:
    one: dict[str, Any] = json.loads(sys.stdin.read())
    status = int(sys.argv[1])
    if one["join"]:
        home = os.open(f"/proc/{one['join']}/ns", os.O_RDONLY | os.O_DIRECTORY)
        kinds = (("net", _NEWNET), ("ipc", _NEWIPC), ("uts", _NEWUTS), ("pid", _NEWPID), ("mnt", _NEWNS))
        for name, kind in kinds:
            descriptor = os.open(name, os.O_RDONLY, dir_fd=home)
            _check(_libc.setns(descriptor, kind), f"setns {name}")
            os.close(descriptor)
        os.close(home)
    else:
        _enter(one["network"], _NEWNET)
        _check(_libc.unshare(_NEWNS | _NEWPID | _NEWIPC | _NEWUTS), "unshare")
        socket.sethostname(one["hostname"])
        _make_root(one)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    started, starting = os.pipe()  # closed by exec: whoever is told of the process finds it as it is to be
    child = os.fork()
    if child == 0:
        os.close(status)
        try:
            if not one["join"]:
                _make_proc()
            os.umask(0o022)
            os.setsid()
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                if number < signal.SIGRTMIN:
                    signal.signal(number, signal.SIG_DFL)
            _give_up(one)
            os.execvpe(one["command"][0], one["command"], one["env"])
        except OSError as error:
            os.write(2, f"container: {error}\n".encode())
        os._exit(128)
    os.close(starting)
    os.read(started, 1)
    os.write(status, f"{child}\n".encode())
    os.close(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
