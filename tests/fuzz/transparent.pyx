# Fuzz target of what becomes of a connection that was taken over, for libFuzzer: whose the destination is
# (traffic/destination), the choice (traffic/transparent), what is learned (traffic/learned), and how a destination is
# written (io/original), all of it without sockets. Only the C that Cython makes of it runs.
#
# Input: one byte of mode (modulo 3, enum Mode) and choices. What must hold:
#   - a table finds what a search through all claims finds, whatever is in it and however full it is;
#   - the choice is the one that the rules of docs/internals/transparent.md come to, step by step, and rests on nothing
#     but its inputs;
#   - what is learned is what a list of all places remembers: one place for a destination, the first free one of its
#     places or the one not seen for longest, and nothing else is lost;
#   - a destination survives being made an address or a text, and back.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset, strlen
from fastmesh.core.base.reason cimport R_LOOP, R_NO_SERVICE, R_UNKNOWN_DESTINATION
from fastmesh.core.io.original cimport DESTINATION_TEXT, destination_address, destination_of, destination_text, is_own
from fastmesh.core.sys.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, htons, inet_pton, sockaddr_in, sockaddr_in6, sockaddr_storage,
)
from fastmesh.core.traffic.destination cimport (
    DEST_INET, DEST_INET6, DEST_NONE, DEST_SHARED, DEST_SLOT, Destination, DestinationEntry, destination_equal,
    destination_find, destination_hash, destination_loopback, destination_sharer, destination_slot,
)
from fastmesh.core.traffic.learned cimport (
    DETECT_BUCKETS, Detection, LEARNED_MAX, LEARNED_WAYS, Learned, detect_bound_ms, detect_observe, learned_find,
    learned_server_first, learned_spoke, learned_timeout,
)
from fastmesh.core.traffic.route cimport name_hash
from fastmesh.core.traffic.snapshot cimport (
    Endpoint, ListenerConf, PROTO_AUTO, PROTO_HTTP, PROTO_TCP, PortConf, SVC_TCP, Service, Snapshot,
)
from fastmesh.core.traffic.transparent cimport Choice, choose, port_find, route_original, sharer_by_name
from fuzz cimport Choices, choice, choice16, fail

cdef enum Mode:
    MODE_CHOICE = 0
    MODE_LEARNED = 1
    MODE_WRITTEN = 2

cdef enum:
    SERVICES = 8
    CLAIMS = 48
    PORTS = 6
    SLOTS = 128
    NAMES = 32

cdef struct Claim:
    Destination at
    uint8_t owners                # a bit for each service
    int32_t first                 # the lowest of them

cdef struct World:                # a snapshot with one listener, and the same as lists
    Snapshot snapshot
    ListenerConf conf
    Service services[8]           # SERVICES
    Endpoint endpoints[8]
    PortConf ports[6]             # PORTS
    uint32_t names[32]            # NAMES
    char letters[8][8]
    Claim claims[48]              # CLAIMS
    int nclaims

cdef struct Place:                # of what is learned, as it is remembered here
    bint taken
    Destination at
    int32_t service
    uint32_t timeouts
    uint32_t skipped
    bint server_first
    uint64_t seen_ms

cdef struct Memory:
    Place places[256]             # LEARNED_MAX
    bint any_server


cdef void destination(Choices *c, bint table, Destination *out) noexcept nogil:
    """Few addresses and few ports, so that they meet; in a table a port may be any."""
    cdef uint8_t family = choice(c)
    cdef uint8_t low = choice(c)
    cdef uint8_t port = choice(c)
    memset(out, 0, sizeof(Destination))
    out.family = DEST_INET6 if family & 1 else DEST_INET
    if family & 128:
        choice16(c)
        out.address[3] = choice(c)
        if out.family == DEST_INET6:
            out.address[9] = choice(c)
    out.address[0] = 127 if family & 2 else 10
    out.address[15 if out.family == DEST_INET6 else 3] ^= low if family & 64 else low % 5
    out.port = port if port & 128 else port % 5
    if not table and out.port == 0:
        out.port = 443


# ---- the choice ----------------------------------------------------------------------------------------

cdef Claim *claim_of(World *w, const Destination *to) noexcept nogil:
    cdef int i
    for i in range(w.nclaims):
        if memcmp(&w.claims[i].at, to, sizeof(Destination)) == 0:
            return &w.claims[i]
    return NULL


cdef Claim *owner_of(World *w, const Destination *to) noexcept nogil:
    """By its port, else by its address alone."""
    cdef Destination any_port
    cdef Claim *found = claim_of(w, to)
    memcpy(&any_port, to, sizeof(Destination))
    any_port.port = 0
    return found if found != NULL else claim_of(w, &any_port)


cdef bint shared(const Claim *claim) noexcept nogil:
    return claim.owners != <uint8_t>(1 << claim.first)


cdef void found_is_right(World *w, const Destination *to) noexcept nogil:
    cdef const DestinationEntry *e = destination_find(&w.snapshot.destinations, to)
    cdef Claim *claim = owner_of(w, to)
    cdef int32_t i
    if claim == NULL:
        if e != NULL:
            fail(b"somebody has what nobody claims")
        return
    if e == NULL:
        fail(b"nobody has what is claimed")
    if not destination_equal(&e.at, &claim.at):
        fail(b"another claim counts")
    if e.service != (DEST_SHARED if shared(claim) else claim.first):
        fail(b"another has the destination")
    if shared(claim):
        for i in range(-2, SERVICES + 1):
            if destination_sharer(&w.snapshot.destinations, e, i) != (
                    0 <= i < SERVICES and (claim.owners >> i) & 1 != 0):
                fail(b"others share the destination")


cdef void build_claims(World *w, Choices *c) noexcept nogil:
    """As the loader does it (io/load_destinations); tight: as full as a table may ever be."""
    cdef Destination to
    cdef Claim *claim
    cdef DestinationEntry *e
    cdef int wanted = choice(c) % CLAIMS
    cdef bint tight = choice(c) & 1
    cdef uint32_t slots = 4
    cdef int32_t service
    cdef uint32_t sharers = 0
    cdef int i
    for i in range(wanted):
        destination(c, True, &to)
        service = choice(c) % <int32_t>w.snapshot.nservices
        claim = claim_of(w, &to)
        if claim == NULL:
            claim = &w.claims[w.nclaims]
            w.nclaims += 1
            claim.at = to
            claim.first = service
        elif service < claim.first:
            claim.first = service
        claim.owners |= <uint8_t>(1 << service)
    if w.nclaims == 0:
        return
    while slots < (<uint32_t>w.nclaims + 1 if tight else 2 * <uint32_t>w.nclaims):
        slots *= 2
    w.snapshot.destinations.entries = <DestinationEntry *>calloc(slots, sizeof(DestinationEntry))
    w.snapshot.destinations.sharers = <int32_t *>calloc(w.nclaims * SERVICES, sizeof(int32_t))
    w.snapshot.destinations.mask = slots - 1
    for i in range(w.nclaims):
        claim = &w.claims[i]
        e = destination_slot(&w.snapshot.destinations, &claim.at)
        if e.at.family != DEST_NONE:
            fail(b"no free slot")
        e.at = claim.at
        e.service = claim.first
        w.snapshot.destinations.used += 1
        if claim.at.port == 0:
            w.snapshot.destinations.any_port = True
        if shared(claim):
            e.service = DEST_SHARED
            e.first = sharers
            for service in range(SERVICES):
                if (claim.owners >> service) & 1:
                    w.snapshot.destinations.sharers[sharers] = service
                    sharers += 1
                    e.count += 1


cdef void build_services(World *w, Choices *c) noexcept nogil:
    cdef Service *s
    cdef Endpoint *end
    cdef uint8_t form
    cdef uint32_t at
    cdef uint32_t i, k
    w.snapshot.services = w.services
    w.snapshot.nservices = 1 + choice(c) % SERVICES
    w.snapshot.names = w.names
    w.snapshot.names_mask = NAMES - 1
    form = choice(c)
    w.snapshot.passthrough = -1 if form & 1 else <int32_t>((form >> 1) % w.snapshot.nservices)
    for i in range(w.snapshot.nservices):
        s = &w.services[i]
        form = choice(c)
        s.protocol = form & 3
        s.original = <int32_t>i == w.snapshot.passthrough
        # "a0", "b.1", "[::2": different names, some of them awkward
        w.letters[i][0] = <char>(c"[" if form & 192 == 192 else c"a" + (form >> 6))
        w.letters[i][1] = c"." if form & 4 else c"-"
        w.letters[i][2] = <char>(c"0" + i)
        w.letters[i][3] = c"]" if form & 192 == 192 else 0
        s.name.ptr = w.letters[i]
        s.name.len = <uint32_t>strlen(w.letters[i])
        at = name_hash(s.name.ptr, s.name.len) & (NAMES - 1)
        while w.names[at]:
            at = (at + 1) & (NAMES - 1)
        w.names[at] = i + 1
        s.endpoints = &w.endpoints[i]
        s.nendpoints = 0 if s.original else (form >> 3) & 1
        end = s.endpoints
        k = choice(c)
        end.address.ss_family = AF_INET if k & 3 < 2 else AF_INET6 if k & 3 == 2 else AF_UNIX
        (<sockaddr_in *>&end.address).sin_port = htons(<uint16_t>(k >> 2))
        end.keep_port = k >= 240


cdef void build_listener(World *w, Choices *c) noexcept nogil:
    cdef uint8_t form = choice(c)
    cdef uint32_t count = choice(c) % (PORTS + 1)
    cdef uint32_t i
    cdef uint32_t port = 0
    w.conf.inbound = form & 1
    w.conf.outbound = not w.conf.inbound
    w.conf.transparent = True
    w.conf.reject = form & 2 != 0
    w.conf.protocol = (form >> 2) % 3
    w.conf.direct = -1 if form & 16 else choice(c) % <int32_t>w.snapshot.nservices
    w.conf.ports = w.ports
    for i in range(count):
        form = choice(c)
        port += form if form & 128 else 1 + form % 3
        w.ports[i].port = <uint16_t>port
        form = choice(c)
        w.ports[i].protocol = form % 3
        w.ports[i].service = (form >> 2) % <int32_t>w.snapshot.nservices if w.conf.inbound and form & 128 else -1
    w.conf.nports = count


cdef const PortConf *said_of(World *w, uint16_t port) noexcept nogil:
    cdef uint32_t i
    for i in range(w.conf.nports):
        if w.ports[i].port == port:
            return &w.ports[i]
    return NULL


cdef void expect(World *w, const Destination *to, bint own, Choice *out, Claim **claim) noexcept nogil:
    """The choice by the rules; of a shared destination the claim too."""
    cdef const PortConf *port = said_of(w, to.port)
    cdef Service *s
    cdef uint32_t i
    cdef bint said = port != NULL
    claim[0] = NULL
    memset(out, 0, sizeof(Choice))
    out.service = -1
    out.port = to.port
    out.protocol = w.conf.protocol
    if said:
        out.protocol = port.protocol
    if w.conf.inbound and own:
        out.service = w.conf.direct
        out.protocol = w.conf.protocol
        said = False
        if out.service >= 0:
            s = &w.services[out.service]
            if s.nendpoints and not s.endpoints[0].keep_port and s.endpoints[0].address.ss_family != AF_UNIX:
                out.port = htons((<sockaddr_in *>&s.endpoints[0].address).sin_port)
        for i in range(w.conf.nports):
            if out.service >= 0 and w.ports[i].service == out.service:
                out.protocol = w.ports[i].protocol
                out.port = w.ports[i].port
                said = True
                break
    elif w.conf.inbound:
        out.service = port.service if said else -1
    elif own:
        out.reason = R_LOOP
        return
    else:
        claim[0] = owner_of(w, to)
        if claim[0] != NULL and not shared(claim[0]):
            out.service = claim[0].first
            claim[0] = NULL
        elif claim[0] == NULL or out.protocol == PROTO_TCP:
            claim[0] = NULL                      # nothing says whose it is
            out.protocol = PROTO_TCP
            out.service = w.snapshot.passthrough
            if w.conf.reject or out.service < 0:
                out.reason = R_UNKNOWN_DESTINATION
            return
        else:
            return
    if out.service < 0:
        out.reason = R_NO_SERVICE
    elif out.protocol == PROTO_AUTO and not said and w.services[out.service].protocol == SVC_TCP:
        out.protocol = PROTO_TCP


cdef int32_t named(World *w, const char *name, size_t n) noexcept nogil:
    """The service of that name, without regard to case, port and a last dot."""
    cdef size_t host = 0
    cdef size_t k
    cdef uint32_t i
    cdef bint equal
    cdef char a
    cdef char b
    if n and name[0] == c"[":
        while host < n and name[host] != c"]":
            host += 1
        if host < n:
            host += 1
    else:
        while host < n and name[host] != c":":
            host += 1
        if host and name[host - 1] == c".":
            host -= 1
    for i in range(w.snapshot.nservices):
        equal = w.services[i].name.len == host
        for k in range(host if equal else 0):
            a = name[k]
            b = w.services[i].name.ptr[k]
            if c"A" <= a <= c"Z":
                a += 32
            if a != b:
                equal = False
        if equal:
            return <int32_t>i
    return -1


cdef void decide(World *w, Choices *c) noexcept nogil:
    cdef Destination to
    cdef Choice wanted
    cdef Choice got
    cdef Choice again
    cdef Claim *claim = NULL
    cdef Claim *other
    cdef Service *service
    cdef int32_t owner
    cdef char name[12]
    cdef size_t n
    cdef int32_t index
    cdef uint8_t form = choice(c)
    cdef uint16_t port = 7
    cdef bint own = form & 7 == 7
    if form & 8 and w.nclaims:
        to = w.claims[choice(c) % w.nclaims].at
        if to.port == 0:
            to.port = choice16(c) | 1
    else:
        destination(c, False, &to)
    found_is_right(w, &to)
    if port_find(&w.conf, to.port) != said_of(w, to.port):
        fail(b"another port is found")
    memset(&got, 0xA5, sizeof(Choice))
    memset(&again, 0x5A, sizeof(Choice))
    choose(&w.snapshot, &w.conf, &to, own, &got)
    choose(&w.snapshot, &w.conf, &to, own, &again)
    if (got.service != again.service or got.shared != again.shared or got.protocol != again.protocol
            or got.port != again.port or got.reason != again.reason):
        fail(b"a choice, and another one")
    expect(w, &to, own, &wanted, &claim)
    if (got.reason != wanted.reason or got.port != wanted.port or (got.shared != NULL) != (claim != NULL)):
        fail(b"another choice than by the rules")
    if wanted.reason == 0 and (got.service != wanted.service or got.protocol != wanted.protocol):
        fail(b"another service or protocol than by the rules")
    if got.reason == 0 and got.shared == NULL and not 0 <= got.service < <int32_t>w.snapshot.nservices:
        fail(b"a choice of nothing")
    # by name
    n = 0
    if form & 16:
        index = choice(c) % <int32_t>w.snapshot.nservices
        n = w.services[index].name.len
        memcpy(name, w.services[index].name.ptr, n)
        if form & 32:
            name[0] = name[0] - 32 if c"a" <= name[0] <= c"z" else name[0]
        if form & 64:
            name[n] = c"."
            n += 1
        if form & 128:
            memcpy(name + n, b":80", 3)
            n += 3
    else:
        n = form >> 5
        for index in range(<int32_t>n):
            name[index] = <char>choice(c)
    index = owner = named(w, name, n)
    if got.shared != NULL:
        if index >= 0 and not (claim.owners >> index) & 1:
            index = -1
        if sharer_by_name(&w.snapshot, got.shared, name, n) != index:
            fail(b"another of those who share it")
    else:
        index = -1 if got.reason or w.services[got.service].original else got.service
    if w.nclaims:
        other = &w.claims[form % w.nclaims]
        if shared(other) and sharer_by_name(
                &w.snapshot, destination_slot(&w.snapshot.destinations, &other.at), name, n) != (
                    owner if owner >= 0 and (other.owners >> owner) & 1 else -1):
            fail(b"another of those who share a destination")
    service = route_original(&w.snapshot, &w.conf, &to, own, name, n, &port)
    if port != got.port or service != (&w.services[index] if index >= 0 else NULL):
        fail(b"a request goes elsewhere")


cdef void choices_are_right(Choices *c) noexcept nogil:
    cdef World *w = <World *>calloc(1, sizeof(World))
    build_services(w, c)
    build_listener(w, c)
    build_claims(w, c)
    while c.left:
        decide(w, c)
    for i in range(w.nclaims):
        found_is_right(w, &w.claims[i].at)
    free(w.snapshot.destinations.entries)
    free(w.snapshot.destinations.sharers)
    free(w)


# ---- what is learned -----------------------------------------------------------------------------------

cdef Place *remembered(Memory *m, const Destination *to) noexcept nogil:
    cdef int i
    for i in range(LEARNED_MAX):
        if m.places[i].taken and memcmp(&m.places[i].at, to, sizeof(Destination)) == 0:
            return &m.places[i]
    return NULL


cdef Place *place_for(Memory *m, const Destination *to) noexcept nogil:
    """Where a new destination goes: its first free place, else the one that was not seen for longest."""
    cdef uint32_t first = destination_hash(to)
    cdef Place *oldest = NULL
    cdef Place *one
    cdef uint32_t i
    for i in range(<uint32_t>LEARNED_WAYS):
        one = &m.places[(first + i) % LEARNED_MAX]
        if not one.taken:
            return one
    for i in range(<uint32_t>LEARNED_WAYS):
        one = &m.places[(first + i) % LEARNED_MAX]
        if oldest == NULL or one.seen_ms < oldest.seen_ms:
            oldest = one
    return oldest


cdef void remembers(Memory *m, Detection *d) noexcept nogil:
    """All places, one by one."""
    cdef Learned *row
    cdef Place *one
    cdef int i
    if (d.any_server != 0) != m.any_server:
        fail(b"whether any server speaks first")
    for i in range(LEARNED_MAX):
        row = &d.rows[i]
        one = &m.places[i]
        if (row.at.family != DEST_NONE) != one.taken:
            fail(b"a place is taken, or not")
        if one.taken and (
                not destination_equal(&row.at, &one.at) or row.service != one.service
                or row.timeouts != one.timeouts or row.skipped != one.skipped
                or (row.server_first != 0) != one.server_first or row.seen_ms != one.seen_ms):
            fail(b"something else is remembered")


cdef void memory_is_right(Choices *c) noexcept nogil:
    cdef Detection *d = <Detection *>calloc(1, sizeof(Detection))
    cdef Memory *m = <Memory *>calloc(1, sizeof(Memory))
    cdef Destination to
    cdef Place *one
    cdef Learned *row
    cdef uint8_t form
    cdef uint64_t now = 1000
    cdef uint64_t buckets[16]
    cdef uint64_t total = 0
    cdef uint64_t ms
    cdef int32_t service
    cdef int i
    cdef int steps = 0
    memset(buckets, 0, sizeof(buckets))
    while c.left:
        form = choice(c)
        now += (form >> 4) & 3
        if form & 128:
            # many, of which few come again: the table runs over
            memset(&to, 0, sizeof(Destination))
            to.family = DEST_SLOT if form & 64 else DEST_INET
            to.address[2] = choice(c) & 3
            to.address[3] = choice(c)
            to.port = 25
        else:
            destination(c, False, &to)
        one = remembered(m, &to)
        if form & 3 < 2:
            service = choice(c) % 5 - 1
            learned_timeout(d, &to, service, now)
            if one == NULL:
                one = place_for(m, &to)
                memset(one, 0, sizeof(Place))
                one.taken = True
                one.at = to
            one.service = service
            one.timeouts += 1
            one.seen_ms = now
        elif form & 3 == 2:
            learned_spoke(d, &to, form & 4 != 0)
            if one != NULL:
                one.server_first = form & 4 != 0
                m.any_server = m.any_server or one.server_first
        else:
            if learned_server_first(d, &to, now) != (one != NULL and one.server_first):
                fail(b"whether the server speaks first")
            if one != NULL and one.server_first:
                one.skipped += 1
                one.seen_ms = now
        row = learned_find(d, &to)
        if (row != NULL) != (one != NULL) or row != NULL and row != &d.rows[one - m.places]:
            fail(b"found in another place")
        if form & 8:
            ms = choice16(c) if form & 4 else choice(c)
            detect_observe(d, ms)
            total += ms
            i = 0
            while i < DETECT_BUCKETS - 1 and not ms <= detect_bound_ms(i):
                i += 1
            buckets[i] += 1
        steps += 1
        if steps % 64 == 0:
            remembers(m, d)
    remembers(m, d)
    if memcmp(buckets, d.delays, DETECT_BUCKETS * sizeof(uint64_t)) != 0 or total != d.delay_sum_ms:
        fail(b"delays")
    free(d)
    free(m)


# ---- as addresses and texts ----------------------------------------------------------------------------

cdef void text_is_right(const Destination *d) noexcept nogil:
    cdef char *text = <char *>calloc(1, DESTINATION_TEXT)
    cdef int n = destination_text(d, text)
    cdef int end = n - 1
    cdef uint32_t port = 0
    cdef uint32_t scale = 1
    cdef uint8_t address[16]
    cdef bint six = d.family == DEST_INET6
    memset(address, 0, 16)
    if not 0 < n < DESTINATION_TEXT or <int>strlen(text) != n:
        fail(b"the length of a text")
    while end > 0 and text[end] != c":":
        port += <uint32_t>(text[end] - c"0") * scale
        scale *= 10
        end -= 1
    if six:
        end -= 1
        if text[0] != c"[" or text[end] != c"]":
            fail(b"no brackets")
    text[end] = 0
    if inet_pton(AF_INET6 if six else AF_INET, text + six, address) != 1 or memcmp(
            address, d.address, 16) != 0 or port != d.port:
        fail(b"a text of another destination")
    free(text)


cdef void written_is_right(Choices *c) noexcept nogil:
    cdef sockaddr_storage *raw = <sockaddr_storage *>calloc(1, sizeof(sockaddr_storage))
    cdef sockaddr_storage *made = <sockaddr_storage *>calloc(1, sizeof(sockaddr_storage))
    cdef Destination d
    cdef Destination back
    cdef Destination bound
    cdef Destination before
    cdef uint8_t form
    cdef uint8_t *bytes = <uint8_t *>raw
    cdef bint mapped, loopback
    cdef int i
    memset(&before, 0, sizeof(Destination))
    before.family = DEST_INET
    while c.left:
        form = choice(c)
        for i in range(28):
            bytes[i] = choice(c)
        if form & 4:
            memcpy(bytes + 8, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12)
        if form & 8:
            memset(bytes + 8, 0, 15)
        raw.ss_family = AF_INET if form & 3 == 0 else AF_UNIX if form & 3 == 1 else AF_INET6
        mapped = form & 3 > 1 and memcmp(bytes + 8, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0
        memset(&d, 0xA5, sizeof(Destination))
        destination_of(raw, &d)
        if raw.ss_family == AF_UNIX:
            memset(&back, 0, sizeof(Destination))
            if memcmp(&d, &back, sizeof(Destination)) != 0:
                fail(b"a destination in a Unix socket")
            continue
        if d.family != (DEST_INET if mapped or form & 3 == 0 else DEST_INET6) or d.zero != 0:
            fail(b"another family")
        if d.port != (bytes[2] << 8 | bytes[3]):
            fail(b"another port")
        if d.family == DEST_INET and memcmp(d.address, bytes + (20 if mapped else 4), 4) != 0:
            fail(b"another address")
        if d.family == DEST_INET6 and memcmp(d.address, bytes + 8, 16) != 0:
            fail(b"another address")
        if destination_address(&d, made) != (sizeof(sockaddr_in) if d.family == DEST_INET else sizeof(sockaddr_in6)):
            fail(b"the length of an address")
        memset(&back, 0xA5, sizeof(Destination))
        destination_of(made, &back)
        if not destination_equal(&d, &back):
            fail(b"there and back is elsewhere")
        text_is_right(&d)
        loopback = d.address[0] == 127
        if d.family == DEST_INET6:
            loopback = d.address[15] == 1
            for i in range(15):
                loopback = loopback and d.address[i] == 0
        if destination_loopback(&d) != loopback:
            fail(b"whether it is loopback")
        # is it the listener: bound to it, to all addresses of its port, to another
        if not is_own(&d, &d):
            fail(b"not itself")
        if form & 128:                           # what came before, almost or just the same
            d = before
            d.port ^= form & 1
        memset(&bound, 0, sizeof(Destination))
        bound.family = d.family if form & 16 else DEST_INET6
        bound.port = d.port
        if not is_own(&bound, &d):
            fail(b"bound to all addresses, and not this one")
        bound.port = d.port ^ 1
        if is_own(&bound, &d):
            fail(b"the port of another")
        memset(&bound, 0, sizeof(Destination))
        if is_own(&before, &d) != (before.port == d.port and (
                destination_equal(&before, &d) or memcmp(before.address, bound.address, 16) == 0)):
            fail(b"whether it is the listener")
        before = d
        if form & 32:
            before.port ^= 1
        if form & 64:
            before.address[15 if before.family == DEST_INET6 else 3] ^= 1
    free(raw)
    free(made)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) noexcept nogil:
    cdef Choices c
    if size < 1:
        return 0
    c.p = input + 1
    c.left = size - 1
    if input[0] % 3 == MODE_CHOICE:
        choices_are_right(&c)
    elif input[0] % 3 == MODE_LEARNED:
        memory_is_right(&c)
    else:
        written_is_right(&c)
    return 0
