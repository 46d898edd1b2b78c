"""A wall clock that a test moves, for whole processes: what reads the time of day gets it some seconds off.

A library of a few lines, made with the compiler that builds the core, stands before the C library's functions
(LD_PRELOAD). It reads the offset from a file that is mapped into every process: all of them jump at once.
"""

from __future__ import annotations

import functools
import os
import struct
import subprocess
import tempfile
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile const long *offset;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FASTMESH_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) offset = page;
    if (fd >= 0) close(fd);
}
int clock_gettime(clockid_t id, struct timespec *t) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, t);
    if (result == 0 && offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += *offset;
    return result;
}
time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    out->tv_sec = t.tv_sec;
    out->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"""


@functools.cache
def _library() -> Path:
    home = Path(tempfile.mkdtemp(prefix="fastmesh-clock-"))
    (home / "clock.c").write_text(_SOURCE)
    made = home / "clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(home / "clock.c"), "-ldl"]
    subprocess.run(command, check=True)
    return made


class Clock:
    """`env` is what processes must be started with that shall follow it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "clock"
        self._path.write_bytes(struct.pack("l", 0))
        preload = " ".join(filter(None, (os.environ.get("LD_PRELOAD", ""), str(_library()))))
        self.env = {"LD_PRELOAD": preload, "FASTMESH_TEST_CLOCK": str(self._path)}

    def set(self, offset: int) -> None:
        """From now on it is so many seconds ahead of ours."""
        with self._path.open("r+b") as file:
            file.write(struct.pack("l", offset))
