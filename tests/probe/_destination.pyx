# Where connections that were taken over go, for tests: tables of destinations, the choice, what is learned, what the
# first bytes tell, and Host.

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastmesh.core.io.original cimport DESTINATION_TEXT, destination_text, is_own
from fastmesh.core.sys.posix cimport AF_INET, AF_INET6, inet_pton
from fastmesh.core.traffic.destination cimport (
    DEST_INET, DEST_INET6, DEST_NONE, DEST_SHARED, Destination, DestinationEntry, Destinations, destination_find,
    destination_sharer, destination_slot,
)
from fastmesh.core.traffic.dials cimport Dials, dial_note, dial_noted
from fastmesh.core.traffic.detect cimport DETECT_BYTES, detect, detect_last
from fastmesh.core.traffic.learned cimport (
    DETECT_BUCKETS, Detection, LEARNED_MAX, Learned, detect_observe, learned_find, learned_server_first,
    learned_skipped, learned_spoke, learned_timeout,
)
from fastmesh.core.traffic.snapshot cimport ListenerConf, PortConf
from fastmesh.core.traffic.transparent cimport port_find
from fastmesh.core.wire.first_host cimport first_host
from fastmesh.core.wire.http2_begin cimport http2_server_begins
from fastmesh.core.wire.request_line cimport LINE_MORE, RequestLine, request_line

MOST_LEARNED = LEARNED_MAX
ENOUGH = DETECT_BYTES


cdef Destination _destination(str host, int port) except *:
    cdef Destination out
    cdef bytes raw = host.encode()
    memset(&out, 0, sizeof(Destination))
    out.family = DEST_INET6 if ":" in host else DEST_INET
    out.port = port
    if inet_pton(AF_INET6 if ":" in host else AF_INET, raw, out.address) != 1:
        raise ValueError(host)
    return out


def text_of(str host, int port):
    cdef Destination d = _destination(host, port)
    cdef char text[DESTINATION_TEXT]
    cdef int n = destination_text(&d, text)
    return text[:n].decode()


def own(bound, to):
    """Is `to` the socket bound to `bound`?"""
    cdef Destination a = _destination(bound[0], bound[1])
    cdef Destination b = _destination(to[0], to[1])
    return bool(is_own(&a, &b))


cdef class Table:
    """Destinations with their services; several services for one: it is shared."""
    cdef Destinations t

    def __cinit__(self, dict claims):
        cdef uint32_t slots = 4
        cdef uint32_t sharers = 0
        cdef Destination d
        cdef DestinationEntry *e
        while slots < 2 * <uint32_t>len(claims):
            slots *= 2
        self.t.mask = slots - 1
        self.t.entries = <DestinationEntry *>calloc(slots, sizeof(DestinationEntry))
        self.t.sharers = <int32_t *>calloc(sum(map(len, claims.values())) + 1, sizeof(int32_t))
        for (host, port), services in claims.items():
            d = _destination(host, port)
            e = destination_slot(&self.t, &d)
            e.at = d
            e.service = services[0] if len(services) == 1 else DEST_SHARED
            e.first = sharers
            e.count = len(services)
            self.t.any_port = self.t.any_port or port == 0
            for service in services:
                self.t.sharers[sharers] = service
                sharers += 1

    def __dealloc__(self):
        free(self.t.entries)
        free(self.t.sharers)

    def find(self, str host, int port):
        """The services; None: nobody's."""
        cdef Destination d = _destination(host, port)
        cdef const DestinationEntry *e = destination_find(&self.t, &d)
        if e == NULL:
            return None
        if e.service != DEST_SHARED:
            return [e.service]
        return [i for i in range(100) if destination_sharer(&self.t, e, i)]


def find_port(list ports, int port):
    """The place of a port in a list of them."""
    cdef ListenerConf conf
    cdef const PortConf *found
    memset(&conf, 0, sizeof(ListenerConf))
    conf.nports = len(ports)
    conf.ports = <PortConf *>calloc(len(ports) + 1, sizeof(PortConf))
    for i, one in enumerate(ports):
        conf.ports[i].port = one
    found = port_find(&conf, port)
    place = None if found == NULL else found - conf.ports
    free(conf.ports)
    return place


cdef class Memory:
    """What one worker has learned."""
    cdef Detection *d

    def __cinit__(self):
        self.d = <Detection *>calloc(1, sizeof(Detection))

    def __dealloc__(self):
        free(self.d)

    def timeout(self, str host, int port, int now, int service=0):
        cdef Destination to = _destination(host, port)
        learned_timeout(self.d, &to, service, now)

    def spoke(self, str host, int port, bint server):
        cdef Destination to = _destination(host, port)
        learned_spoke(self.d, &to, server)

    def server_first(self, str host, int port, int now):
        cdef Destination to = _destination(host, port)
        cdef Learned *row = learned_server_first(self.d, &to)
        if row != NULL:
            learned_skipped(row, now)
        return row != NULL

    def known(self, str host, int port):
        """(timeouts, skipped, server first), or None."""
        cdef Destination to = _destination(host, port)
        cdef Learned *row = learned_find(self.d, &to)
        return None if row == NULL else (row.timeouts, row.skipped, bool(row.server_first))

    def count(self):
        return sum([self.d.rows[i].at.family != DEST_NONE for i in range(LEARNED_MAX)])

    def observe(self, int ms):
        """In which bucket it was counted."""
        before = [self.d.delays[i] for i in range(DETECT_BUCKETS)]
        detect_observe(self.d, ms)
        return [self.d.delays[i] - before[i] for i in range(DETECT_BUCKETS)].index(1)


def told(bytes data, bint http2=False, bint more=True):
    """What the first bytes of a connection tell, in memory of just their size: HTTP (1), not (-1), or not yet (0)."""
    cdef ListenerConf conf
    cdef char *copy = <char *>malloc(len(data) if len(data) else 1)
    memcpy(copy, <const char *>data, len(data))
    memset(&conf, 0, sizeof(ListenerConf))
    conf.http2 = http2
    result = detect(&conf, copy, len(data)) if more else detect_last(&conf, copy, len(data))
    free(copy)
    return result


def host_of(bytes data):
    """The first Host in the beginning of a request; None: more is needed."""
    cdef const char *host
    cdef size_t n = 0
    if not first_host(<const char *>data, len(data), &host, &n):
        return None
    return host[:n]


def could_be_http(list parts):
    """Whether some server could take the beginning of a connection, as it came, for HTTP; None: it cannot be told yet."""
    cdef RequestLine line
    cdef bytes part
    cdef int r = LINE_MORE
    memset(&line, 0, sizeof(RequestLine))
    for part in parts:
        r = request_line(&line, <const char *>part, len(part))
        if r != LINE_MORE:
            break
    return None if r == LINE_MORE else r > 0


def begins_as_http2_server(bytes data):
    return bool(http2_server_begins(<const char *>data, len(data)))


cdef class OwnDials:
    """What one worker has dialled."""
    cdef Dials *d

    def __cinit__(self):
        self.d = <Dials *>calloc(1, sizeof(Dials))

    def __dealloc__(self):
        free(self.d)

    def note(self, source, to, int now):
        cdef Destination a = _destination(source[0], source[1])
        cdef Destination b = _destination(to[0], to[1])
        dial_note(self.d, &a, &b, now)

    def noted(self, source, to, int now):
        cdef Destination a = _destination(source[0], source[1])
        cdef Destination b = _destination(to[0], to[1])
        return bool(dial_noted(self.d, &a, &b, now))
