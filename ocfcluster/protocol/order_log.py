"""The order log of one epoch: entries in index order, what of it is held, and the runs that holding completes.

An entry says: the indexes from here on are these packets of that origin. Since an origin's packets are ordered in
their own order, an index is held as soon as its origin's stream is contiguous up to its packet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from ocfcluster import limits
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.run import TOPIC_KINDS

_TRIM: Final = 256


class Entry(NamedTuple):
    """Indexes ``first_index`` to ``first_index + count - 1``: packets from ``first_packet`` on of ``origin``."""

    first_index: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    origin: OriginStream
    first_packet: int
    order_time: int

    @property
    def last_index(self) -> int:
        return self.first_index + self.count - 1


class HeldRun(NamedTuple):
    """A run whose last byte lies in the packet of ``index``."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    order_time: int
    origin: OriginStream
    run: bytes


class OrderLog:
    """Entries from ``base + 2`` on (the view itself is base + 1, held with the base)."""

    __slots__ = (
        "next_index",
        "highest",
        "held",
        "runs",
        "topic_runs",
        "own",
        "urgent",
        "refused",
        "_entries",
        "_firsts",
        "_freed",
        "_unheld",
        "_held_of_first",
        "_ahead",
    )

    def __init__(self, base: int) -> None:
        self.next_index = base + 2  # the first index without an entry
        self.highest = base + 1  # highest index known to be ordered, from whatever source
        self.held = base + 1
        self.runs: deque[HeldRun] = deque()  # held, not delivered yet, in order
        self.topic_runs: list[HeldRun] = []  # topic commands among them, for whoever takes them
        self.own: deque[tuple[int, int]] = deque()  # (last index, last packet) of this node's own entries
        self.urgent = base + 1  # the last index of an origin whose packets are to be acknowledged at once
        self.refused = 0  # entries that no honest sequencer makes
        self._entries: list[Entry] = []
        self._firsts: list[int] = []
        self._freed = 0
        self._unheld: deque[Entry] = deque()
        self._held_of_first = 0
        self._ahead: dict[int, list[Entry]] = {}

    def add(self, entries: list[Entry]) -> bool:
        """Take in consecutive entries (of one ORDER); False where nothing of them was new or kept."""
        first = entries[0].first_index
        last = entries[-1].last_index
        if last < self.next_index:
            return False
        if first > self.next_index:
            if len(self._ahead) >= limits.OUT_OF_ORDER_ORDERS and first not in self._ahead:
                return False
            if first - self.next_index > limits.OUT_OF_ORDER_ENTRIES:
                return False  # asked for when it is nearer; what never comes near must not stay
            self.claimed(last)
            known = self._ahead.get(first)
            if known is not None and known[-1].last_index >= last:
                return False
            self._ahead[first] = entries
            return True
        self.claimed(last)
        self._append(entries)
        while self._ahead:
            ahead = self._ahead.pop(self.next_index, None)
            if ahead is None:
                # A retransmission may have been cut otherwise than the original: look for what overlaps.
                ahead = self._overlapping()
                if ahead is None:
                    break
            self._append(ahead)
        return True

    def claimed(self, index: int) -> None:
        """Somebody says that there is an entry for ``index``. Bounded: a claim far ahead of what is there cannot make
        this node ask without end."""
        self.highest = max(self.highest, min(index, self.next_index + limits.OUT_OF_ORDER_ENTRIES))

    def _overlapping(self) -> list[Entry] | None:
        for first in sorted(self._ahead):
            if first > self.next_index:
                return None
            entries = self._ahead.pop(first)
            if entries[-1].last_index >= self.next_index:
                return entries
        return None

    def _append(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.first_index == self.next_index:
                if entry.first_packet != entry.origin.logged + 1:
                    self.refused += 1  # no honest sequencer's: an origin's packets are ordered in their order
                    return
                self._entries.append(entry)
                self._firsts.append(entry.first_index)
                self._unheld.append(entry)
                self.next_index += entry.count
                last_packet = entry.first_packet + entry.count - 1
                entry.origin.logged = last_packet
                if last_packet > entry.origin.highest:
                    entry.origin.highest = last_packet
                if entry.origin.urgent:
                    self.urgent = entry.last_index
                if entry.origin.own:
                    self.own.append((entry.last_index, last_packet))
            elif entry.last_index >= self.next_index:
                skip = self.next_index - entry.first_index
                self._append(
                    [
                        Entry(
                            self.next_index, entry.count - skip, entry.origin,
                            entry.first_packet + skip, entry.order_time,
                        )
                    ]
                )  # fmt: skip

    def advance(self) -> bool:
        """Hold what has arrived; completed runs are added to ``runs``. True where ``held`` moved."""
        before = self.held
        unheld = self._unheld
        while unheld:
            entry = unheld[0]
            first_index, count, origin, first_packet, order_time = entry
            done = self._held_of_first
            available = origin.contiguous - first_packet - done + 1
            if available <= 0:
                break
            left = count - done
            take = min(left, available)
            index = first_index + done
            for extent in origin.take(take):
                size = extent.size
                for used, run in origin.assembler.feed(extent.data):
                    held = HeldRun(index + (used - 1) // size, order_time, origin, run)
                    self.runs.append(held)
                    if run[4] in TOPIC_KINDS:
                        self.topic_runs.append(held)
                index += extent.count
            self.held += take
            if take == left:
                unheld.popleft()
                self._held_of_first = 0
            else:
                self._held_of_first = done + take
                break
        return self.held != before

    @property
    def has_gap(self) -> bool:
        return self.highest >= self.next_index

    def missing(self, room: int) -> Iterator[tuple[int, int]]:
        """Indexes without an entry up to ``highest`` as (first, count), the first ``room`` ranges of them."""
        at = self.next_index
        for first in sorted(self._ahead):
            if room <= 0:
                return
            if first > at:
                yield at, first - at
                room -= 1
            at = max(at, self._ahead[first][-1].last_index + 1)
        if at <= self.highest and room > 0:
            yield at, self.highest - at + 1

    def find(self, first: int, count: int) -> Iterator[Entry]:
        """The entries kept that lie in indexes ``first`` to ``first + count - 1`` at least in part."""
        at = max(self._freed, bisect_right(self._firsts, first) - 1)
        while at < len(self._entries) and self._entries[at].first_index < first + count:
            if self._entries[at].last_index >= first:
                yield self._entries[at]
            at += 1

    def free(self, stable: int) -> None:
        """Forget entries up to ``stable``, and their origins' packets."""
        entries = self._entries
        at = self._freed
        while at < len(entries) and entries[at].last_index <= stable:
            entry = entries[at]
            entry.origin.free(entry.first_packet + entry.count - 1)
            at += 1
        self._freed = at
        if at >= _TRIM and at * 2 >= len(entries):
            del entries[:at]
            del self._firsts[:at]
            self._freed = 0

    @property
    def entries_kept(self) -> int:
        return len(self._entries) - self._freed
