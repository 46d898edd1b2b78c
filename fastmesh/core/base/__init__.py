"""Floor 1: buffers, slabs, lists, timers, hash tables, the reason enum."""
