"""Transports within one process: for an embedded single node and for tests. No loss but by overflow."""

from __future__ import annotations

import os
import threading
from collections import deque

from ocfcluster import limits
from ocfcluster.net import udp
from ocfcluster.net.transport import Address, Received, count, datagram_count


class MemoryHub:
    """Connects MemoryTransports; may be shared by threads, one transport each."""

    __slots__ = ("_lock", "_next_number", "_transports")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._transports: dict[
            Address, MemoryTransport
        ] = {}  # replaced when it changes, never changed in place
        self._next_number = 1

    def transport(
        self,
        *,
        mtu: int = limits.MTU_MAXIMUM,
        receive_buffer_bytes: int = limits.RECEIVE_BUFFER_BYTES,
    ) -> MemoryTransport:
        """A new transport that reaches all others of this hub; its address is ("memory", number)."""
        with self._lock:
            made = MemoryTransport(self, ("memory", self._next_number), mtu, receive_buffer_bytes)
            self._next_number += 1
            self._transports = {**self._transports, made.address: made}
        return made

    @property
    def transports(self) -> dict[Address, MemoryTransport]:
        """Those that are open, by address."""
        return self._transports

    def remove(self, address: Address) -> None:
        with self._lock:
            self._transports = {key: value for key, value in self._transports.items() if key != address}


class MemoryTransport:
    """A ``Transport`` whose datagrams are handed over by reference. Made by ``MemoryHub.transport``.

    What exceeds ``receive_buffer_bytes`` is dropped at the receiver and counted there as ``receive_dropped``.
    """

    __slots__ = (
        "_closed",
        "_hub",
        "_lock",
        "_queue",
        "_queued_bytes",
        "_wake",
        "address",
        "counters",
        "ip_overhead_bytes",
        "mtu",
        "receive_buffer_bytes",
        "warnings",
    )

    def __init__(self, hub: MemoryHub, address: Address, mtu: int, receive_buffer_bytes: int) -> None:
        self._hub = hub
        self._lock = threading.Lock()
        self._queue: deque[Received] = deque()
        self._queued_bytes = 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self.address = address
        self.counters: dict[str, int] = {}
        self.ip_overhead_bytes = udp.IPV4_OVERHEAD_BYTES  # none is needed; the same sizes as over UDP are
        self.mtu = mtu
        self.receive_buffer_bytes = receive_buffer_bytes
        self.warnings: list[str] = []

    def filenos(self) -> list[int]:
        return [-1 if self._closed else self._wake]

    def receive(self, limit: int) -> list[Received]:
        with self._lock:
            received = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
            self._queued_bytes -= sum(len(buffer) for buffer, _, _ in received)
            if received and not self._queue:
                os.eventfd_read(self._wake)
        return received

    def multicast(self, buffer: bytes, segment: int) -> None:
        datagrams = datagram_count(len(buffer), segment)
        if self._closed:
            return
        for address, peer in self._hub.transports.items():
            if address != self.address:
                peer.accept(buffer, segment, datagrams, self.address)

    def send(self, address: Address, buffer: bytes, segment: int) -> None:
        datagrams = datagram_count(len(buffer), segment)
        peer = self._hub.transports.get(address)
        if peer is not None and not self._closed:  # as over UDP: nobody there is nobody's error
            peer.accept(buffer, segment, datagrams, self.address)

    def accept(self, buffer: bytes, segment: int, datagrams: int, source: Address) -> None:
        """Called by other transports of the hub, from their threads."""
        with self._lock:
            if self._closed or not buffer:
                return
            if self._queued_bytes + len(buffer) > self.receive_buffer_bytes:
                count(self.counters, "receive_dropped", datagrams)
                return
            if not self._queue:
                os.eventfd_write(self._wake, 1)
            self._queue.append((buffer, min(segment, len(buffer)), source))
            self._queued_bytes += len(buffer)

    def close(self) -> None:
        self._hub.remove(self.address)
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.clear()
                os.close(self._wake)
