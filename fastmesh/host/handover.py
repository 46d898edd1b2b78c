"""Inboxes through which workers hand connections to each other (`core/io/handover`): a socket pair a slot.

The supervisor makes them before the first worker and keeps both ends over the deaths of workers, so that what
waits for one that has died is its successor's.
"""

from __future__ import annotations

import socket


class Inboxes:
    """`receiving` and `sending`: the ends by slot. A single worker has nobody to share with, and no inbox."""

    def __init__(self, slots: int) -> None:
        """Raises OSError, with nothing left open."""
        self.receiving: list[socket.socket] = []
        self.sending: list[socket.socket] = []
        try:
            for _ in range(slots if slots > 1 else 0):
                # Messages, and an end: a stream of bytes has no borders, datagrams have no end.
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self.receiving.append(ours)
                self.sending.append(theirs)
                for sock in (ours, theirs):
                    sock.setblocking(False)
        except BaseException:
            self.close()
            raise

    def descriptors(self) -> tuple[list[int], list[int]]:
        """The receiving ends and the sending ones, by slot."""
        return [sock.fileno() for sock in self.receiving], [sock.fileno() for sock in self.sending]

    def shut(self, slot: int) -> None:
        """Nobody will look into this inbox any more: what is in it is closed, and nothing more is sent."""
        if self.receiving:
            self.receiving[slot].close()

    def close(self) -> None:
        for sock in (*self.receiving, *self.sending):
            sock.close()
        self.receiving, self.sending = [], []
