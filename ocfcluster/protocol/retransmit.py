"""Answering NACKs: what was asked for, within bounds, to one node or to all where several miss the same."""

from __future__ import annotations

from collections import OrderedDict

from ocfcluster import limits
from ocfcluster.protocol.effects import Address
from ocfcluster.protocol.order_log import Entry, OrderLog
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.datagram import ORDER, ORDER_ENTRY, MessageFlags, Order, Range, encode_order


class Retransmitter:
    __slots__ = ("_outbox", "_recent", "_entries_per_datagram", "_datagram_bytes", "packets")

    def __init__(self, outbox: Outbox, entries_per_datagram: int) -> None:
        self._outbox = outbox
        self._entries_per_datagram = entries_per_datagram
        self._datagram_bytes = (
            limits.CLEAR_HEADER_BYTES + ORDER.size + entries_per_datagram * ORDER_ENTRY.size
        )
        # (incarnation, first packet) → (when, asker): a second asker within RETRANSMIT_HOLD makes it a multicast, and
        # then (asker 0) nobody gets it again within that time. Oldest first, so that it is cut off at its bound.
        self._recent: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()
        self.packets = 0  # sent again so far

    def resize(self, entries_per_datagram: int) -> None:
        """A new epoch, with datagrams of another size perhaps."""
        self._entries_per_datagram = entries_per_datagram
        self._datagram_bytes = (
            limits.CLEAR_HEADER_BYTES + ORDER.size + entries_per_datagram * ORDER_ENTRY.size
        )

    def packets_asked(
        self, stream: OriginStream, wanted: Range, asker: int, address: Address, room: int, now: int
    ) -> int:
        """Send what there is of a range of packets; returns the bytes sent, about ``room`` at most."""
        sent = 0
        for extent in stream.find(wanted.first, wanted.count):
            if sent >= room:
                break
            most = max(1, (room - sent) // max(1, extent.size))
            if extent.count > most:
                extent = extent.part(0, most)
            to_all = self._to_all(stream.incarnation, extent.first, asker, now)
            if to_all is None:
                continue
            self._outbox.retransmit(None if to_all else address, stream.node_id, stream.incarnation, extent)
            self.packets += extent.count
            sent += len(extent.data)
        return sent

    def _to_all(self, incarnation: int, first: int, asker: int, now: int) -> bool | None:
        """Whether to multicast; None where it went out a moment ago."""
        key = (incarnation, first)
        when, who = self._recent.pop(key, (0, asker))
        fresh = when != 0 and now - when < limits.RETRANSMIT_HOLD_NS
        if fresh and (who in (0, asker)):
            self._recent[key] = (when, who)
            return None
        self._recent[key] = (now, 0 if fresh else asker)
        while len(self._recent) > limits.OUT_OF_ORDER_ENTRIES:
            self._recent.popitem(last=False)
        return fresh

    def entries_asked(self, log: OrderLog, wanted: Range, address: Address, room: int) -> int:
        """Send what there is of a range of order entries, ``room`` bytes at most; returns the bytes sent. Each ORDER
        copy has one epoch, one order_time, and indexes without a hole."""
        batch: list[Entry] = []
        sent = 0
        most = limits.NACK_DATAGRAMS * self._entries_per_datagram
        for entry in log.find(wanted.first, wanted.count):
            if batch and (
                entry.order_time != batch[0].order_time
                or entry.epoch != batch[0].epoch
                or entry.first_index != batch[-1].last_index + 1
                or len(batch) >= self._entries_per_datagram
            ):
                sent += self._send_entries(batch, address)
                batch = []
            if most <= 0 or sent + self._datagram_bytes > room:
                break
            batch.append(entry)
            most -= 1
        if batch:
            sent += self._send_entries(batch, address)
        return sent

    def _send_entries(self, batch: list[Entry], address: Address) -> int:
        entries = [(entry.origin.node_id, entry.count, entry.first_packet) for entry in batch]
        first = batch[0]
        order = Order(MessageFlags.COPY, first.epoch, 0, first.first_index, first.order_time, 0, 0, entries)
        body = encode_order(order)
        self._outbox.send(address, body)
        return limits.CLEAR_HEADER_BYTES + len(body)
