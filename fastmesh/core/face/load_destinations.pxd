# The destinations of a snapshot, and what transparent listeners do by port. With the GIL, never on the request path.
#
# What a service says in `addresses` counts more than where the endpoints of another happen to be.

from libc.stdint cimport int32_t, uint16_t, uint32_t
from libc.string cimport memset

from fastmesh.core.face.load_block cimport load_block
from fastmesh.core.io.original cimport destination_of
from fastmesh.core.sys.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, inet_pton, sockaddr_in, sockaddr_in6, sockaddr_storage,
)
from fastmesh.core.traffic.destination cimport (
    DEST_NONE, DEST_SHARED, Destination, DestinationEntry, Destinations, destination_slot,
)
from fastmesh.core.traffic.snapshot cimport ListenerConf, PROTO_AUTO, PROTO_HTTP, PROTO_TCP, PortConf, Snapshot


cdef inline int _destination(dict d, Destination *out) except -1:
    """An address of the snapshot; of a Unix socket DEST_NONE."""
    cdef sockaddr_storage a
    cdef bytes host = (d.get("host") or "").encode()
    memset(&a, 0, sizeof(sockaddr_storage))
    if d["family"] == "unix":
        a.ss_family = AF_UNIX
    elif d["family"] == "inet":
        a.ss_family = AF_INET
        if inet_pton(AF_INET, host, &(<sockaddr_in *>&a).sin_addr) != 1:
            raise ValueError(f"address {d!r} is not IPv4")
    else:
        a.ss_family = AF_INET6
        if inet_pton(AF_INET6, host, &(<sockaddr_in6 *>&a).sin6_addr) != 1:
            raise ValueError(f"address {d!r} is not IPv6")
    destination_of(&a, out)
    if out.family != DEST_NONE:
        out.port = 0 if d.get("keep_port") else <uint16_t>d["port"]
    return 0


cdef inline int _claims(dict found, list addresses, int32_t service, dict taken) except -1:
    """Note in `found` that the service has these addresses, as far as they are not in `taken`."""
    cdef Destination to
    cdef bytes key
    for one in addresses:
        _destination(one, &to)
        key = (<char *>&to)[:sizeof(Destination)]
        if to.family != DEST_NONE and key not in taken:
            if service not in found.setdefault(key, []):
                found[key].append(service)
    return 0


cdef inline int load_destinations(Snapshot *s, list services) except -1:
    """The table of all services, once they are loaded."""
    cdef Destinations *t = &s.destinations
    cdef DestinationEntry *e
    cdef dict named = {}
    cdef dict reached = {}
    cdef dict claims
    cdef uint32_t slots = 4
    cdef uint32_t sharers = 0
    cdef bytes key
    cdef int32_t i
    for i in range(<int32_t>len(services)):
        _claims(named, services[i].get("addresses") or [], i, {})
    for i in range(<int32_t>len(services)):
        if not services[i].get("local"):
            _claims(reached, services[i]["endpoints"], i, named)
    claims = {**reached, **named}
    if not claims:
        return 0
    while slots < 2 * <uint32_t>len(claims):
        slots *= 2
    t.entries = <DestinationEntry *>load_block(s, slots * sizeof(DestinationEntry))
    t.sharers = <int32_t *>load_block(s, sum(map(len, claims.values())) * sizeof(int32_t))
    t.mask = slots - 1
    for key, owners in claims.items():
        e = destination_slot(t, <const Destination *><const char *>key)
        e.at = (<const Destination *><const char *>key)[0]
        e.service = owners[0]
        t.used += 1
        if e.at.port == 0:
            t.any_port = True
        if len(owners) > 1:
            e.service = DEST_SHARED
            e.first = sharers
            e.count = <uint32_t>len(owners)
            for i in range(<int32_t>len(owners)):
                t.sharers[sharers] = owners[i]
                sharers += 1
    return 0


cdef inline int load_transparent(Snapshot *s, ListenerConf *out, dict d) except -1:
    """What a transparent listener is told beyond others."""
    cdef list ports = d.get("ports") or []
    cdef uint32_t i
    out.transparent = True
    out.reject = d.get("unknown") == "reject"
    out.direct = d.get("direct", -1)
    if out.direct >= <int32_t>s.nservices:
        raise ValueError(f"listener {d['name']!r}: no service {out.direct}")
    out.ports = <PortConf *>load_block(s, (len(ports) + 1) * sizeof(PortConf))
    for i in range(<uint32_t>len(ports)):
        out.ports[i].port = ports[i]["port"]
        out.ports[i].protocol = {"http": PROTO_HTTP, "tcp": PROTO_TCP, "auto": PROTO_AUTO}[ports[i]["protocol"]]
        out.ports[i].service = ports[i].get("service", -1)
        if out.ports[i].service >= <int32_t>s.nservices or i > 0 and out.ports[i - 1].port >= out.ports[i].port:
            raise ValueError(f"listener {d['name']!r}: no such service, or ports without order")
        out.nports += 1
    return 0
