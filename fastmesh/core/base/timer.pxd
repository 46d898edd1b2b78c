# A hashed timer wheel with lazy re-arming.
#
# One tick is TICK_MS; a timer further away than the wheel's span waits in its slot for more than one
# round. Moving a deadline further out costs one store: the timer is found too early, sees that and goes
# back into the wheel. Only an earlier deadline relinks it. Timers fire at or up to one tick after their time.
# The owner embeds the Timer, unlinks it before its memory goes (timer_stop), and gets its callback called
# with the timer already out of the wheel.

from libc.stdint cimport uint64_t

from fastmesh.core.base.list cimport Node, list_append, list_empty, list_init, list_remove, node_linked

cdef enum:
    TICK_MS = 16
    WHEEL_SLOTS = 1024        # one round: 16.4 s

ctypedef void (*TimerFn)(void *worker, Timer *t) noexcept nogil

cdef struct Timer:
    Node node
    uint64_t deadline     # ms on the worker's clock when it shall fire
    uint64_t slot_at      # ms under which it is filed
    TimerFn fire

cdef extern from * nogil:
    int fm_ctz "__builtin_ctzll"(uint64_t v)

cdef struct Wheel:
    Node slots[1024]      # WHEEL_SLOTS
    uint64_t filled[16]   # a bit for each slot that may hold a timer: what wheel_wait looks at
    uint64_t tick         # the next tick to look at
    uint64_t armed        # timers in the wheel: a balance counter


cdef inline void wheel_init(Wheel *w, uint64_t now_ms) noexcept nogil:
    cdef int i
    for i in range(WHEEL_SLOTS):
        list_init(&w.slots[i])
    for i in range(WHEEL_SLOTS // 64):
        w.filled[i] = 0
    w.tick = now_ms // TICK_MS
    w.armed = 0


cdef inline void timer_init(Timer *t, TimerFn fire) noexcept nogil:
    t.node.next = NULL
    t.node.prev = NULL
    t.deadline = 0
    t.slot_at = 0
    t.fire = fire


cdef inline void _file(Wheel *w, Timer *t, uint64_t at) noexcept nogil:
    cdef uint64_t tick = at // TICK_MS + 1       # round up: never early
    if tick < w.tick:
        tick = w.tick
    t.slot_at = at
    tick &= WHEEL_SLOTS - 1
    w.filled[tick >> 6] |= <uint64_t>1 << (tick & 63)
    list_append(&w.slots[tick], &t.node)


cdef inline void timer_start(Wheel *w, Timer *t, uint64_t deadline) noexcept nogil:
    """Arm or re-arm for `deadline` (ms of the worker's clock)."""
    t.deadline = deadline
    if node_linked(&t.node):
        if deadline >= t.slot_at:
            return                                # lazily: it will be filed anew when it is found
        list_remove(&t.node)
    else:
        w.armed += 1
    _file(w, t, deadline)


cdef inline void timer_stop(Wheel *w, Timer *t) noexcept nogil:
    if node_linked(&t.node):
        list_remove(&t.node)
        w.armed -= 1


cdef inline void wheel_advance(void *worker, Wheel *w, uint64_t now_ms) noexcept nogil:
    """Fire what is due at `now_ms`. Callbacks may start and stop any timer."""
    cdef uint64_t now_tick = now_ms // TICK_MS
    cdef uint64_t at
    cdef Node due
    cdef Node *slot
    cdef Timer *t
    if now_tick >= w.tick + WHEEL_SLOTS:          # the process slept for more than a round
        w.tick = now_tick - WHEEL_SLOTS + 1
    while w.tick <= now_tick:
        at = w.tick & (WHEEL_SLOTS - 1)
        slot = &w.slots[at]
        w.tick += 1
        w.filled[at >> 6] &= ~(<uint64_t>1 << (at & 63))
        if list_empty(slot):
            continue
        # Take the whole slot: what is filed while we walk lands in slots ahead or, a round away, in this one.
        due.next = slot.next
        due.prev = slot.prev
        due.next.prev = &due
        due.prev.next = &due
        list_init(slot)
        while not list_empty(&due):
            t = <Timer *>due.next                 # node is the first member
            list_remove(&t.node)
            if t.deadline > now_ms:
                _file(w, t, t.deadline)
            else:
                w.armed -= 1
                t.fire(worker, t)


cdef inline int wheel_wait(Wheel *w, uint64_t now_ms) noexcept nogil:
    """Milliseconds the loop may sleep: to the next slot that may hold a timer; -1 if no timer is armed."""
    cdef uint64_t first = w.tick & (WHEEL_SLOTS - 1)
    cdef uint64_t bits
    cdef uint64_t at
    cdef int i
    if w.armed == 0:
        return -1
    bits = w.filled[first >> 6] & (~<uint64_t>0 << (first & 63))
    for i in range(WHEEL_SLOTS // 64 + 1):
        if bits != 0:
            at = ((first >> 6) + i) * 64 + fm_ctz(bits) - first + w.tick
            at *= TICK_MS
            return <int>(at - now_ms) if at > now_ms else 0
        bits = w.filled[((first >> 6) + i + 1) & (WHEEL_SLOTS // 64 - 1)]
    return TICK_MS
