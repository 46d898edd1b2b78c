# What ps and top show of this process.

from libc.string cimport memcpy, memset

from fastmesh.core.sys.posix cimport PR_SET_NAME, prctl


cdef inline int title_set(str title) except -1:
    """Written over the process's arguments, which /proc/PID/stat knows (proc(5): arg_start, arg_end); cut to their
    length."""
    cdef bytes raw = title.encode()
    cdef char *start
    cdef size_t room
    with open("/proc/self/stat", "rb") as f:
        fields = f.read().rsplit(b")", 1)[1].split()
    start = <char *><size_t>int(fields[45])
    room = int(fields[46]) - int(fields[45])
    if start == NULL or room < 2:
        return 0
    raw = raw[:room - 1]
    memset(start, 0, room)
    memcpy(start, <char *>raw, len(raw))
    prctl(PR_SET_NAME, <unsigned long><char *>raw, 0, 0, 0)
    return 0
