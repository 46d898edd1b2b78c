# Who gets a connection, for tests: the words of some workers in memory of their own, used by real threads.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from fastmesh.core.sys.atomic cimport fm_load_word
from fastmesh.core.traffic.share cimport (
    SHARE_TAKES, share_choose, share_count, share_move, share_reset, share_settle, share_takes,
)


cdef class Words:
    """A listener's words, one a worker."""
    cdef uint32_t *at
    cdef readonly int workers

    def __cinit__(self, int workers):
        self.workers = workers
        self.at = <uint32_t *>calloc(workers, sizeof(uint32_t))
        if self.at == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.at)

    def count(self, int worker):
        return share_count(fm_load_word(&self.at[worker]))

    def takes(self, int worker, takes=None):
        if takes is not None:
            share_takes(&self.at[worker], takes)
        return bool(fm_load_word(&self.at[worker]) & SHARE_TAKES)

    def move(self, int worker, int by, int least=0):
        share_move(&self.at[worker], by, least)

    def settle(self, int worker, int has):
        share_settle(&self.at[worker], has)

    def reset(self, int worker):
        share_reset(&self.at[worker])

    def deal(self, int own, int count=1):
        """Choose for so many, without the interpreter's lock; how many each worker got."""
        cdef int got[64]
        cdef uint32_t *at = self.at
        cdef uint32_t workers = self.workers
        cdef int i
        for i in range(64):
            got[i] = 0
        with nogil:
            for i in range(count):
                got[share_choose(at, workers, own)] += 1
        return [got[i] for i in range(self.workers)]

    def churn(self, int own, int count):
        """Choose, and have the one chosen end at once, so many times."""
        cdef uint32_t *at = self.at
        cdef uint32_t workers = self.workers
        cdef int i
        with nogil:
            for i in range(count):
                share_move(&at[share_choose(at, workers, own)], -1, 0)
