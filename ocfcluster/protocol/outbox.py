"""Where everything that leaves a node gets its clear header, and becomes an effect."""

from __future__ import annotations

import struct
from typing import Final

from ocfcluster import limits
from ocfcluster.protocol.effects import Address, Effect, Multicast, Send
from ocfcluster.wire.datagram import DATA_HEAD, Extent, encode_packets, packets_per_buffer, retransmit_head

_COUNTER: Final = struct.Struct("<Q")
_BUFFER_BYTES: Final = limits.DATAGRAM_BYTES - limits.SEGMENT_COUNT * limits.SEAL_BYTES  # room for all tags


class Outbox:
    """Numbers datagrams and collects effects in their order."""

    __slots__ = ("effects", "prefix", "silent", "_counter")

    def __init__(self, prefix: bytes = b"") -> None:
        self.effects: list[Effect] = []
        self.silent = False  # nobody listens: this node is alone
        self.prefix = prefix  # of every datagram
        self._counter = 1  # of the next datagram

    def _datagram(self, body: bytes) -> bytes:
        counter = self._counter
        self._counter = counter + 1
        return b"".join((self.prefix, _COUNTER.pack(counter), body))

    def multicast(self, body: bytes) -> None:
        """One datagram to all. Where it fits behind the packets just before it, it travels in their buffer: one
        system call less here, and one wake-up less at every receiver."""
        if self.silent:
            return
        datagram = self._datagram(body)
        size = len(datagram)
        effects = self.effects
        if effects and type(last := effects[-1]) is Multicast:
            before = len(last.buffer)
            if (
                size <= last.segment
                and before % last.segment == 0
                and before < last.segment * limits.SEGMENT_COUNT
                and before + size <= _BUFFER_BYTES
            ):
                effects[-1] = Multicast(last.buffer + datagram, last.segment)
                return
        effects.append(Multicast(datagram, size))

    def send(self, address: Address, body: bytes) -> None:
        datagram = self._datagram(body)
        self.effects.append(Send(address, datagram, len(datagram)))

    def multicast_data(self, extent: Extent) -> None:
        """This node's own packets, for the first time."""
        if not self.silent:
            self.effects.append(Multicast(*self._packets(DATA_HEAD, extent)))

    def retransmit(self, address: Address | None, node_id: int, incarnation: int, extent: Extent) -> None:
        """Packets again: to one node, or with ``address`` None to all. In buffers that one send takes."""
        head = retransmit_head(node_id, incarnation)
        most = packets_per_buffer(extent.size)
        for skip in range(0, extent.count, most):
            buffer, segment = self._packets(head, extent.part(skip, min(most, extent.count - skip)))
            if address is None:
                self.effects.append(Multicast(buffer, segment))
            else:
                self.effects.append(Send(address, buffer, segment))

    def _packets(self, head: bytes, extent: Extent) -> tuple[bytes, int]:
        counter = self._counter
        self._counter = counter + extent.count
        return encode_packets(self.prefix, counter, head, extent)
