# The balance counters: what a worker that has ended everything still holds has leaked.

from fastmesh.core.base.buffer cimport pool_in_use
from fastmesh.core.io.state cimport Worker


cdef inline dict balance(Worker *w):
    """All zero, or there is a defect."""
    return {
        "connections": w.conns.in_use,
        "exchanges": w.exchanges.in_use,
        "servers": w.servers.in_use,
        "clients": w.clients.in_use,
        "diallings": w.diallings.in_use,
        "parked": w.parked.in_use,
        "http2": w.h2s.in_use,
        "streams": w.h2_ends.in_use,
        "heap": w.heap.in_use,
        "flows": w.flows.in_use,
        "tunnels": w.tunnels.in_use,
        "originals": w.originals.in_use,
        "buffers": pool_in_use(&w.pool),
        "texts": w.identities.count + w.client_certs.count,
        "timers": w.wheel.armed,
        "tls": w.tls_open,
        "pipes": w.pipes_open,
        "descriptors": w.fds_open,
        "snapshots": w.snapshots,
    }
