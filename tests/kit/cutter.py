"""A TCP relay that cuts and stalls what runs through it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from kit.limits import DEADLINE
from kit.ports import free_port


class Cutter:
    """Listens on its own port and relays to `target`; `up` is towards the target, `down` back.

    `stall()` stops reading in the directions named, so that senders run into a full window; `cut()` ends
    all connections now, `cut_after()` does so once that many bytes have gone down.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = free_port()
        self.accepted = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._flowing = {"up": threading.Event(), "down": threading.Event()}
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket, threading.Event]] = []
        self._cut_after: tuple[int, bool] | None = None
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self.resume()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Cutter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stall(self, *directions: str) -> None:
        for name in directions or ("up", "down"):
            self._flowing[name].clear()

    def resume(self) -> None:
        for event in self._flowing.values():
            event.set()

    def cut(self, reset: bool = True) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for down, up, dead in pairs:
            dead.set()
            self._end(down, reset)
            self._end(up, reset)

    def cut_after(self, bytes_down: int, reset: bool = True) -> None:
        """Cut everything as soon as `bytes_down` more bytes have gone down."""
        self._cut_after = (self.bytes_down + bytes_down, reset)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self.resume()

    @staticmethod
    def _end(sock: socket.socket, reset: bool) -> None:
        with contextlib.suppress(OSError):
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # Wakes the thread in recv() without a FIN; its close() then sends the RST.
                sock.shutdown(socket.SHUT_RD)
            else:
                sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def _accept(self) -> None:
        while True:
            try:
                down, _ = self._listener.accept()
            except OSError:
                return
            try:
                up = socket.create_connection(self.target, timeout=DEADLINE)
            except OSError:
                self._end(down, reset=True)
                continue
            up.settimeout(None)
            self.accepted += 1
            dead = threading.Event()
            with self._lock:
                self._pairs.append((down, up, dead))
            threading.Thread(target=self._relay, args=(down, up, "up", dead), daemon=True).start()
            threading.Thread(target=self._relay, args=(up, down, "down", dead), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, name: str, dead: threading.Event) -> None:
        while True:
            self._flowing[name].wait()
            try:
                data = source.recv(65536)
                self._flowing[name].wait()
                if dead.is_set():
                    return
                if name == "down" and self._cut_after is not None:
                    limit, reset = self._cut_after
                    if self.bytes_down + len(data) >= limit:
                        self._cut_after = None
                        sink.sendall(data[: limit - self.bytes_down])
                        self.bytes_down = limit
                        self.cut(reset)
                        return
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
            except OSError:
                return
            if name == "up":
                self.bytes_up += len(data)
            else:
                self.bytes_down += len(data)
