# Where the client of a connection that was taken over wanted to go: as the kernel remembers it.
#
# Rewritten by NAT (redirect), the connection tracker knows it: SO_ORIGINAL_DST, and its twin for IPv6. Otherwise
# (tproxy) the socket's own address is it.

from libc.stdint cimport uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from fastmesh.core.sys.posix cimport (
    AF_INET, AF_INET6, IP6T_SO_ORIGINAL_DST, SOL_IP, SOL_IPV6, SO_ORIGINAL_DST, getsockname, getsockopt, htons,
    inet_ntop, ntohs, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t,
)
from fastmesh.core.traffic.destination cimport DEST_INET, DEST_INET6, DEST_NONE, Destination, destination_equal

cdef enum:
    DESTINATION_TEXT = 56         # "[ipv6]:port" with its NUL


cdef inline void destination_of(const sockaddr_storage *a, Destination *out) noexcept nogil:
    """An IPv4 address mapped into IPv6 is what it is; of a Unix socket there is none."""
    cdef const uint8_t *ip = <const uint8_t *>&(<const sockaddr_in6 *>a).sin6_addr
    memset(out, 0, sizeof(Destination))
    if a.ss_family == AF_INET:
        out.family = DEST_INET
        out.port = ntohs((<const sockaddr_in *>a).sin_port)
        memcpy(out.address, &(<const sockaddr_in *>a).sin_addr, 4)
    elif a.ss_family == AF_INET6:
        out.port = ntohs((<const sockaddr_in6 *>a).sin6_port)
        if memcmp(ip, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:
            out.family = DEST_INET
            memcpy(out.address, ip + 12, 4)
        else:
            out.family = DEST_INET6
            memcpy(out.address, ip, 16)


cdef inline socklen_t destination_address(const Destination *d, sockaddr_storage *out) noexcept nogil:
    """The address to connect to, and its length."""
    cdef sockaddr_in *v4 = <sockaddr_in *>out
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>out
    memset(out, 0, sizeof(sockaddr_in6))
    if d.family == DEST_INET:
        v4.sin_family = AF_INET
        v4.sin_port = htons(d.port)
        memcpy(&v4.sin_addr, d.address, 4)
        return sizeof(sockaddr_in)
    v6.sin6_family = AF_INET6
    v6.sin6_port = htons(d.port)
    memcpy(&v6.sin6_addr, d.address, 16)
    return sizeof(sockaddr_in6)


cdef inline int destination_text(const Destination *d, char *out) noexcept nogil:
    """ "192.0.2.1:443" or "[2001:db8::1]:443" into `out[DESTINATION_TEXT]`; its length."""
    cdef char ip[48]
    inet_ntop(AF_INET if d.family == DEST_INET else AF_INET6, d.address, ip, sizeof(ip))
    if d.family == DEST_INET:
        return snprintf(out, DESTINATION_TEXT, b"%s:%u", ip, <unsigned int>d.port)
    return snprintf(out, DESTINATION_TEXT, b"[%s]:%u", ip, <unsigned int>d.port)


cdef inline bint is_own(const Destination *bound, const Destination *to) noexcept nogil:
    """Is `to` the listening socket that is bound to `bound`? That may be all addresses of this host."""
    cdef Destination any_address
    if to.port != bound.port:
        return False
    if destination_equal(bound, to):
        return True
    any_address = bound[0]
    memset(any_address.address, 0, 16)
    return destination_equal(bound, &any_address)


cdef inline bint original_destination(int fd, const Destination *bound, Destination *out) noexcept nogil:
    """Where the client of a connection that was accepted on a socket bound to `bound` wanted to go. False: it has gone,
    and nobody knows."""
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(sockaddr_storage)
    if getsockopt(
            fd, SOL_IP if bound.family == DEST_INET else SOL_IPV6,
            SO_ORIGINAL_DST if bound.family == DEST_INET else IP6T_SO_ORIGINAL_DST, &address, &size) != 0:
        size = sizeof(sockaddr_storage)
        if getsockname(fd, <sockaddr *>&address, &size) != 0:
            return False
    destination_of(&address, out)
    return out.family != DEST_NONE
