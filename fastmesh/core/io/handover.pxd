# Connections that go to a sibling before their first byte is read, so that each worker has its share of them.
#
# The kernel deals connections to the workers' sockets by a hash, which is fair to thousands and not to ten. So who
# accepts one asks share_choose who shall have it. A connection for a sibling travels as a descriptor in a message to
# the sibling's inbox, a socket pair whose ends the supervisor keeps over the deaths of workers: what waits there for
# one that has died is served by its successor. The message says which listener it comes from; with the receiver it
# takes the way of one that was accepted there.
#
# Invariants:
#   - A connection is counted for one worker from share_choose on: by the word of the one who has it, or will have it.
#   - A descriptor has one owner at any time. What cannot be sent, because an inbox is full or shut, stays here.
#   - The sender may close its descriptor after the receiver has closed its own: a receiver takes what it closes out of
#     epoll itself (C_HANDED), or it would hear of a connection that is no more.
#   - A message is taken only when there is room for its descriptor: without, the kernel would close it.
#   - A drain shuts the inbox first: from then on siblings keep what they have, and what is in it is taken.
#   - Floods of short connections do not pay: HANDED_US for each on average, after a burst of HANDED_BURST_US, and no
#     look at the siblings meanwhile. With one worker nothing here runs.

from libc.stdint cimport uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from fastmesh.core.base.timer cimport Timer, timer_init, timer_start, timer_stop
from fastmesh.core.io.state cimport Listener, Worker
from fastmesh.core.sys.posix cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, EINTR, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, F_DUPFD_CLOEXEC,
    MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, SCM_RIGHTS, SHUT_RD, SOL_SOCKET, c_close, c_shutdown, cmsghdr,
    epoll_ctl, epoll_event, errno, fcntl, iovec, msghdr, recvmsg, sendmsg,
)
from fastmesh.core.traffic.counters cimport K_HANDED_OUT, area_words
from fastmesh.core.traffic.share cimport share_choose, share_move, share_reset, share_settle, share_takes

cdef enum:
    HANDED_US = 8000              # between two connections of a listener that one worker hands over, on average
    HANDED_BURST_US = 2048000     # 256 of them may go at once
    INBOX_PAUSE_MS = 100          # out of descriptors


cdef inline void listener_leave(Worker *w, Listener *l) noexcept nogil:
    """A connection of the listener is closed."""
    l.nconns -= 1
    if l.words != NULL:
        share_move(&l.words[w.slot], -1, l.nconns)


cdef inline void listener_enter(Worker *w, Listener *l) noexcept nogil:
    """A connection of the listener is ours; its word counts it already."""
    l.nconns += 1
    if l.words != NULL:
        share_move(&l.words[w.slot], 0, l.nconns)


cdef inline void listener_refuse(Worker *w, Listener *l) noexcept nogil:
    """Its word counts a connection that is closed at once."""
    if l.words != NULL:
        share_move(&l.words[w.slot], -1, l.nconns)


cdef inline void listener_takes(Worker *w, Listener *l, bint takes) noexcept nogil:
    """Whether siblings may send us connections of the listener."""
    if l.words != NULL:
        share_takes(&l.words[w.slot], takes)


cdef inline void listener_share(Worker *w, Listener *l, int number) noexcept nogil:
    """Share the listener's connections out, if there is anybody to share with and a word for it."""
    if w.inbox.nsiblings > 1 and 0 <= number and <uint32_t>number < w.area.listeners:
        l.number = <uint32_t>number
        l.words = area_words(w.area, l.number)
        share_reset(&l.words[w.slot])            # nothing is left of whoever had our slot before us


cdef inline bint _send(int to, uint32_t number, int fd) noexcept nogil:
    """Whether the message has left; `fd` stays open here."""
    cdef size_t control[8]                       # aligned as a header of it must be
    cdef cmsghdr *rights = <cmsghdr *>control
    cdef iovec body
    cdef msghdr message
    memset(&message, 0, sizeof(msghdr))
    memset(control, 0, sizeof(control))
    body.iov_base = &number
    body.iov_len = sizeof(uint32_t)
    message.msg_iov = &body
    message.msg_iovlen = 1
    message.msg_control = control
    message.msg_controllen = CMSG_LEN(sizeof(int))
    rights.cmsg_level = SOL_SOCKET
    rights.cmsg_type = SCM_RIGHTS
    rights.cmsg_len = CMSG_LEN(sizeof(int))
    memcpy(CMSG_DATA(rights), &fd, sizeof(int))
    return sendmsg(to, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(uint32_t)


cdef inline bint handover(Worker *w, Listener *l, int fd) noexcept nogil:
    """Count a connection just accepted; True: it has gone to a sibling, `fd` is closed."""
    cdef uint32_t to
    if l.words == NULL:
        return False
    if w.inbox.shut or l.handed_us > w.now_us + HANDED_BURST_US:
        share_move(&l.words[w.slot], 1, 0)
        return False
    to = share_choose(l.words, w.inbox.nsiblings, w.slot)
    if to == w.slot:
        return False
    l.handed_us = (l.handed_us if l.handed_us > w.now_us else w.now_us) + HANDED_US
    if not _send(w.inbox.siblings[to], l.number, fd):
        share_move(&l.words[to], -1, 0)
        share_move(&l.words[w.slot], 1, 0)
        return False
    c_close(fd)
    w.row.counters[K_HANDED_OUT] += 1
    return True


cdef inline int _receive(Worker *w, uint32_t *number, int *fd) noexcept nogil:
    """1: a message, with its descriptor or -1; 0: none waits; -1: none will come any more."""
    cdef size_t control[8]                       # aligned as a header of it must be
    cdef cmsghdr *c
    cdef iovec body
    cdef msghdr message
    cdef ssize_t n = -1
    memset(&message, 0, sizeof(msghdr))
    body.iov_base = number
    body.iov_len = sizeof(uint32_t)
    message.msg_iov = &body
    message.msg_iovlen = 1
    message.msg_control = control
    message.msg_controllen = CMSG_LEN(sizeof(int))       # room for one descriptor, and for no other
    fd[0] = -1
    while True:
        n = recvmsg(w.inbox.src.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        if n >= 0 or errno != EINTR:
            break
    if n <= 0:
        return -1 if n == 0 else 0
    c = CMSG_FIRSTHDR(&message)
    while c != NULL:
        if c.cmsg_level == SOL_SOCKET and c.cmsg_type == SCM_RIGHTS and c.cmsg_len == CMSG_LEN(sizeof(int)):
            memcpy(fd, CMSG_DATA(c), sizeof(int))
        c = CMSG_NXTHDR(&message, c)
    if n != sizeof(uint32_t) and fd[0] >= 0:
        c_close(fd[0])
        fd[0] = -1
    return 1


cdef inline bint _hold(Worker *w) noexcept nogil:
    if w.inbox.spare < 0:
        w.inbox.spare = fcntl(w.inbox.src.fd, F_DUPFD_CLOEXEC, 0)
    return w.inbox.spare >= 0


cdef inline bint inbox_take(Worker *w, Listener **listener, int *fd) noexcept nogil:
    """The next connection that a sibling has sent, and its listener. False: none now."""
    cdef uint32_t number = 0
    cdef Listener *l
    cdef int r
    while w.inbox.src.fd >= 0 and not w.inbox.paused:
        if not _hold(w):
            inbox_pause(w)
            return False
        c_close(w.inbox.spare)
        w.inbox.spare = -1
        r = _receive(w, &number, fd)
        if r <= 0:
            if r < 0:
                inbox_close(w)
            else:
                _hold(w)                         # what was closed for it
            return False
        l = w.listeners
        while l != NULL and (l.words == NULL or l.number != number):
            l = l.next
        if l != NULL and fd[0] >= 0:
            listener[0] = l
            return True
        if fd[0] >= 0:
            c_close(fd[0])                       # whoever had this inbox before us had a listener that we lack
    return False


cdef inline void inbox_takes(Worker *w, bint takes) noexcept nogil:
    """Whether siblings may send us connections."""
    cdef Listener *l = w.listeners
    while l != NULL:
        listener_takes(w, l, takes and l.src.fd >= 0 and not l.paused)
        l = l.next


cdef inline void inbox_pause(Worker *w) noexcept nogil:
    """Out of descriptors: what was sent waits, and no more is to come."""
    epoll_ctl(w.ep, EPOLL_CTL_DEL, w.inbox.src.fd, NULL)
    w.inbox.paused = True
    inbox_takes(w, False)
    timer_start(&w.wheel, &w.inbox.timer, w.now_ms + INBOX_PAUSE_MS)


cdef inline bint inbox_watch(Worker *w) noexcept nogil:
    cdef epoll_event ev
    ev.events = EPOLLIN
    ev.data.ptr = &w.inbox
    w.inbox.paused = False
    return epoll_ctl(w.ep, EPOLL_CTL_ADD, w.inbox.src.fd, &ev) == 0


cdef inline void inbox_again(void *worker, Timer *t) noexcept nogil:
    cdef Worker *w = <Worker *>worker
    if not _hold(w) or not inbox_watch(w):
        w.inbox.paused = True
        timer_start(&w.wheel, &w.inbox.timer, w.now_ms + INBOX_PAUSE_MS)
    elif not w.inbox.shut:
        inbox_takes(w, True)


cdef inline bint inbox_open(Worker *w, int fd) noexcept nogil:
    """Take what siblings send to `fd`, which is the worker's from now on."""
    w.inbox.src.fd = fd
    timer_init(&w.inbox.timer, inbox_again)
    return _hold(w) and inbox_watch(w)


cdef inline void inbox_shut(Worker *w) noexcept nogil:
    """Siblings keep what they have from now on; what is in the inbox is still to be taken."""
    w.inbox.shut = True
    if w.inbox.src.fd >= 0:
        inbox_takes(w, False)
        c_shutdown(w.inbox.src.fd, SHUT_RD)


cdef inline void inbox_close(Worker *w) noexcept nogil:
    """Look into the inbox no more."""
    if w.inbox.src.fd < 0:
        return
    inbox_takes(w, False)
    if not w.inbox.paused:
        epoll_ctl(w.ep, EPOLL_CTL_DEL, w.inbox.src.fd, NULL)
    timer_stop(&w.wheel, &w.inbox.timer)
    c_close(w.inbox.src.fd)
    w.inbox.src.fd = -1
    if w.inbox.spare >= 0:
        c_close(w.inbox.spare)
        w.inbox.spare = -1


cdef inline void handover_settle(Worker *w) noexcept nogil:
    """A sibling has died and our inbox is empty: what it has counted for us and not sent will not come."""
    cdef Listener *l = w.listeners
    while l != NULL:
        if l.words != NULL:
            share_settle(&l.words[w.slot], l.nconns)
        l = l.next


cdef inline void handover_free(Worker *w) noexcept nogil:
    """Close the inbox and our ends of the siblings'."""
    cdef uint32_t i
    inbox_close(w)
    if w.inbox.siblings != NULL:
        for i in range(w.inbox.nsiblings):
            if w.inbox.siblings[i] >= 0:
                c_close(w.inbox.siblings[i])
        free(w.inbox.siblings)
        w.inbox.siblings = NULL
    w.inbox.nsiblings = 0
