# Records of the access log as the agent gets them.

from fastmesh.core.base.reason cimport R_COUNT
from fastmesh.core.face.names cimport verdict_name
from fastmesh.core.traffic.ring cimport (
    LOG_AUTHORITY, LOG_IDENTITY, LOG_LISTENER, LOG_METHOD, LOG_PATH, LOG_RULE, LOG_SERVICE, LOG_SOURCE, LOG_TEXTS,
    LOG_UPSTREAM, LogRecord, Ring, ring_next, ring_take,
)


cdef inline list log_take(Ring *ring, int slot, int limit, tuple reasons):
    """The oldest `limit` records of a worker's ring, oldest first; they leave it. `reasons`: as `names` has them."""
    cdef LogRecord rec
    cdef bytearray whole
    cdef list out = []
    while len(out) < limit and ring_next(ring, &rec):
        whole = bytearray(rec.size)
        ring_take(ring, &rec, whole)
        out.append(_record(slot, &rec, whole, reasons))
    return out


cdef inline dict _record(int slot, const LogRecord *rec, bytearray whole, tuple reasons):
    cdef list texts = []
    cdef size_t at = sizeof(LogRecord)
    cdef int i
    for i in range(LOG_TEXTS):
        texts.append(whole[at:at + rec.lengths[i]].decode("utf-8", "backslashreplace"))
        at += rec.lengths[i]
    return {
        "time": rec.wall_us / 1e6,
        "worker": slot,
        "listener": texts[LOG_LISTENER],
        "service": texts[LOG_SERVICE],
        "method": texts[LOG_METHOD],
        "authority": texts[LOG_AUTHORITY],
        "path": texts[LOG_PATH],
        "status": rec.status,
        "reason": reasons[rec.reason][0] if 0 < rec.reason < R_COUNT else None,
        "duration": rec.duration_us / 1e6,
        "bytes_in": rec.bytes_in,
        "bytes_out": rec.bytes_out,
        "source": texts[LOG_SOURCE],
        "upstream": texts[LOG_UPSTREAM] or None,
        "identity": texts[LOG_IDENTITY] or None,
        "decision": verdict_name(rec.verdict),
        "rule": texts[LOG_RULE] or ("default" if rec.verdict else None),
        "rules_of": ("service" if rec.by_service else "listener") if rec.verdict else None,
        "audit": bool(rec.audit),
        "protocol": {0: "TCP", 10: "HTTP/1.0", 11: "HTTP/1.1", 20: "HTTP/2"}.get(rec.version, "?"),
        "retries": rec.retries,
        "snapshot": rec.snapshot,
    }
