# What becomes of a connection, or of a request on it, that was taken over: by where its client wanted to go.
#
# The decision is made anew for every request, by the snapshot in force then: a connection may outlive many.

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint8_t

from fastmesh.core.base.reason cimport R_LOOP, R_NO_SERVICE, R_UNKNOWN_DESTINATION
from fastmesh.core.sys.posix cimport AF_INET, AF_INET6, ntohs, sockaddr_in
from fastmesh.core.traffic.destination cimport (
    DEST_SHARED, Destination, DestinationEntry, destination_find, destination_sharer,
)
from fastmesh.core.traffic.route cimport host_length, service_by_name
from fastmesh.core.traffic.snapshot cimport (
    ListenerConf, PROTO_AUTO, PROTO_TCP, PortConf, SVC_TCP, Service, Snapshot,
)

cdef struct Choice:
    int32_t service               # index; with `shared` -1: not known yet
    const DestinationEntry *shared    # several services have the destination; NULL: one does
    uint8_t protocol              # enum Protocol: what is expected
    uint16_t port                 # what rules call the port: the application's, also where the listener itself was dialled
    int reason                    # refused: enum Reason; 0: it goes on


cdef inline const PortConf *port_find(const ListenerConf *conf, uint16_t port) noexcept nogil:
    """What the listener says of a port that clients wanted; NULL: nothing."""
    cdef uint32_t low = 0
    cdef uint32_t high = conf.nports
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if conf.ports[middle].port < port:
            low = middle + 1
        else:
            high = middle
    return &conf.ports[low] if low < conf.nports and conf.ports[low].port == port else NULL


cdef inline void choose_unknown(const Snapshot *s, const ListenerConf *conf, Choice *out) noexcept nogil:
    """No service has the destination."""
    out.shared = NULL
    out.protocol = PROTO_TCP
    out.service = s.passthrough
    out.reason = R_UNKNOWN_DESTINATION if conf.reject or s.passthrough < 0 else 0


cdef inline void choose(const Snapshot *s, const ListenerConf *conf, const Destination *to, bint own,
                        Choice *out) noexcept nogil:
    """For a connection to `to`; `own`: that is the listener itself."""
    cdef const PortConf *port = port_find(conf, to.port)
    cdef const DestinationEntry *e
    out.service = -1
    out.shared = NULL
    out.protocol = port.protocol if port != NULL else conf.protocol
    out.port = to.port
    out.reason = 0
    if conf.inbound:
        out.service = conf.direct if own else port.service if port != NULL else -1
        if out.service < 0:
            out.reason = R_NO_SERVICE
            return
        if own:
            out.protocol = conf.protocol
            port = port_by_service(conf, out.service)
            if port != NULL:
                out.protocol = port.protocol
                out.port = port.port
            else:
                out.port = _endpoint_port(&s.services[out.service], to.port)
    elif own:
        out.reason = R_LOOP                      # passed through it would come back here, for ever
        return
    else:
        e = destination_find(&s.destinations, to)
        if e == NULL:
            choose_unknown(s, conf, out)
            return
        if e.service == DEST_SHARED:
            out.shared = e
            if out.protocol == PROTO_TCP:
                choose_unknown(s, conf, out)     # nothing in it says whose it is
            return
        out.service = e.service
    # what a port says counts more than what the service does
    if s.services[out.service].protocol == SVC_TCP and port == NULL and out.protocol == PROTO_AUTO:
        out.protocol = PROTO_TCP


cdef inline const PortConf *port_by_service(const ListenerConf *conf, int32_t service) noexcept nogil:
    cdef uint32_t i
    for i in range(conf.nports):
        if conf.ports[i].service == service:
            return &conf.ports[i]
    return NULL


cdef inline uint16_t _endpoint_port(const Service *service, uint16_t otherwise) noexcept nogil:
    """That of its endpoints, which have the same one; a Unix socket has none."""
    cdef const sockaddr_in *address
    if service.nendpoints == 0 or service.endpoints[0].keep_port:
        return otherwise
    address = <const sockaddr_in *>&service.endpoints[0].address     # an IPv6 address has it in the same place
    return ntohs(address.sin_port) if address.sin_family in (AF_INET, AF_INET6) else otherwise


cdef inline int32_t sharer_by_name(Snapshot *s, const DestinationEntry *shared, const char *name,
                                   size_t n) noexcept nogil:
    """The one of those that share a destination which has that name (of Host, or in a TLS hello); -1: none."""
    cdef Service *service = service_by_name(s, name, host_length(name, n))
    cdef int32_t index
    if service == NULL:
        return -1
    index = <int32_t>(service - s.services)
    return index if destination_sharer(&s.destinations, shared, index) else -1


cdef inline Service *route_original(Snapshot *s, const ListenerConf *conf, const Destination *to, bint own,
                                    const char *authority, size_t n, uint16_t *port) noexcept nogil:
    """The service of a request that came on a connection to `to`, for `authority`; NULL: none. `port`: for rules.

    It may be the one that stands for all destinations that nobody has: for another Host than the first on a shared one,
    and where a reload has taken the destination from its service."""
    cdef Choice choice
    if own and conf.outbound:                    # older than the interception, or it would have been refused
        port[0] = to.port
        return service_by_name(s, authority, host_length(authority, n))
    choose(s, conf, to, own, &choice)
    port[0] = choice.port
    if choice.shared != NULL:
        choice.service = sharer_by_name(s, choice.shared, authority, n)
        if choice.service < 0:
            choose_unknown(s, conf, &choice)
    return &s.services[choice.service] if not choice.reason and choice.service >= 0 else NULL
