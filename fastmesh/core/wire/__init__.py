"""Floor 2: sans-I/O codecs: bytes in, events out; no socket, no clock."""
