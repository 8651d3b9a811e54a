"""The order log: entries in index order, what of it is held, and the runs that holding completes.

An entry says: the indexes from here on are these packets of that origin. Since an origin's packets are ordered in
their own order, an index is held as soon as its origin's stream is contiguous up to its packet. The log goes on from
epoch to epoch: the index behind an epoch's base is the next view itself, which is held with the base.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from ocfcluster import limits
from ocfcluster.protocol.settings import Configuration
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.run import STAGED_KINDS

_TRIM: Final = 256


class Entry(NamedTuple):
    """Indexes ``first_index`` to ``first_index + count - 1``: packets from ``first_packet`` on of ``origin``."""

    first_index: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    origin: OriginStream
    first_packet: int
    order_time: int
    epoch: int

    @property
    def last_index(self) -> int:
        return self.first_index + self.count - 1


class HeldRun(NamedTuple):
    """A run whose last byte lies in the packet of ``index``; or, without an origin, the view that ``index`` is."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    order_time: int
    origin: OriginStream | None
    run: bytes
    view: Configuration | None = None


class OrderLog:
    """Entries behind ``position``: what lies up to there came otherwise."""

    __slots__ = (
        "next_index",
        "highest",
        "held",
        "runs",
        "staged_runs",
        "own",
        "urgent",
        "refused",
        "_entries",
        "_firsts",
        "_freed",
        "unheld",
        "_held_of_first",
        "_ahead",
        "views",
        "last_order_time",
    )

    def __init__(self, position: int) -> None:
        self.next_index = position + 1  # the first index without an entry
        self.highest = position  # highest index known to be ordered, from whatever source
        self.held = position
        self.last_order_time = 0  # of what is held
        self.runs: deque[HeldRun] = deque()  # held, not delivered yet, in order
        self.staged_runs: list[
            HeldRun
        ] = []  # commands among them that act when they are held, for whoever does that
        self.own: deque[tuple[int, int]] = deque()  # (last index, last packet) of this node's own entries
        self.urgent = position  # the last index of an origin whose packets are to be acknowledged at once
        self.refused = 0  # entries that no honest sequencer makes
        self._entries: list[Entry] = []
        self._firsts: list[int] = []
        self._freed = 0
        self.unheld: deque[Entry] = deque()  # to be looked at, not changed; ``views`` as well
        self._held_of_first = 0
        self._ahead: dict[int, list[Entry]] = {}
        self.views: deque[tuple[int, Configuration]] = deque()  # that are not held yet, with their indexes

    def install(self, configuration: Configuration) -> None:
        """The epoch ends at ``configuration.base``: what was ordered behind it never was. Nothing behind it may be
        held. The view takes the next index."""
        base = configuration.base
        self._cut_off(base)
        self._ahead = {
            first: [_cut(entry, base) for entry in entries if entry.first_index <= base]
            for first, entries in self._ahead.items()
            if first <= base
        }
        self.views.append((base + 1, configuration))
        self.highest = base + 1
        self.urgent = min(self.urgent, base)
        self._pass_view()

    def _cut_off(self, base: int) -> None:
        self.next_index = min(self.next_index, base + 1)
        while self.own and self.own[-1][0] > base:
            self.own.pop()
        removed = [entry for entry in self.unheld if entry.last_index > base]
        for entry in reversed(removed):
            entry.origin.logged = (
                max(entry.first_packet, entry.first_packet + base + 1 - entry.first_index) - 1
            )
        at = bisect_right(self._firsts, base)
        del self._entries[at:], self._firsts[at:]
        self.unheld = deque([entry for entry in self.unheld if entry.first_index <= base])
        if removed and removed[0].first_index <= base:
            rest = removed[0]._replace(count=base + 1 - removed[0].first_index)
            self._entries[-1] = rest
            self.unheld[-1] = rest
            if rest.origin.own:
                self.own.append((base, rest.origin.logged))
        if len(self.unheld) == 1 and self.unheld[0].count == self._held_of_first:
            self.unheld.clear()
        if not self.unheld:
            self._held_of_first = 0

    def _pass_view(self) -> None:
        """The view behind a base that is whole has its place."""
        for index, _ in self.views:
            if index == self.next_index:
                self.next_index += 1

    def add(self, entries: list[Entry]) -> bool:
        """Take in consecutive entries (of one ORDER); False where nothing of them was new or kept."""
        first = entries[0].first_index
        last = entries[-1].last_index
        if first == self.next_index and not self._ahead and not self.views:
            self.claimed(last)
            self._append(entries)
            return True
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
        if self.views:
            self._pass_view()
        while self._ahead:
            ahead = self._ahead.pop(self.next_index, None)
            if ahead is None:
                # A retransmission may have been cut otherwise than the original: look for what overlaps.
                ahead = self._overlapping()
                if ahead is None:
                    break
            self._append(ahead)
            if self.views:
                self._pass_view()
        return True

    def claimed(self, index: int) -> None:
        """Somebody says that there is an entry for ``index``. Bounded: a claim far ahead of what is there cannot make
        this node ask without end."""
        if index > self.highest:
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
            first_index, count, origin, first_packet, _, _ = entry
            if first_index == self.next_index:
                if first_packet != origin.logged + 1:
                    self.refused += 1  # no honest sequencer's: an origin's packets are ordered in their order
                    return
                self._entries.append(entry)
                self._firsts.append(first_index)
                self.unheld.append(entry)
                self.next_index = first_index + count
                last_packet = first_packet + count - 1
                origin.logged = last_packet
                if last_packet > origin.highest:
                    origin.highest = last_packet
                if origin.urgent:
                    self.urgent = first_index + count - 1
                if origin.own:
                    self.own.append((first_index + count - 1, last_packet))
            elif entry.last_index >= self.next_index:
                skip = self.next_index - entry.first_index
                self._append(
                    [
                        Entry(
                            self.next_index, entry.count - skip, entry.origin,
                            entry.first_packet + skip, entry.order_time, entry.epoch,
                        )
                    ]
                )  # fmt: skip

    def advance(self, limit: int) -> bool:
        """Hold what has arrived, up to ``limit``; completed runs are added to ``runs``. True where ``held`` moved."""
        before = self.held
        unheld = self.unheld
        while True:
            if self.views and self.views[0][0] == self.held + 1 <= limit:
                index, view = self.views.popleft()
                self.runs.append(HeldRun(index, view.order_time, None, b"", view))
                self.held = index
                self.last_order_time = view.order_time
                continue
            if not unheld:
                break
            entry = unheld[0]
            first_index, count, origin, first_packet, order_time, _ = entry
            done = self._held_of_first
            available = origin.contiguous - first_packet - done + 1
            index = first_index + done
            left = count - done
            take = min(left, available, limit + 1 - index)
            if take <= 0:
                break
            for extent in origin.take(take):
                size = extent.size
                for used, run in origin.assembler.feed(extent.data):
                    held = HeldRun(index + (used - 1) // size, order_time, origin, run)
                    self.runs.append(held)
                    if run[4] in STAGED_KINDS:
                        self.staged_runs.append(held)
                index += extent.count
            self.held += take
            self.last_order_time = order_time
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

    def positions(self) -> dict[OriginStream, int]:
        """The last packet of each origin with entries that are not held which is held."""
        first: dict[OriginStream, int] = {}
        done = self._held_of_first
        for entry in self.unheld:
            first.setdefault(entry.origin, entry.first_packet + done - 1)
            done = 0
        return first

    def kept(self, upto: int) -> Iterator[Entry]:
        """The entries kept that lie up to ``upto``, the last one cut there."""
        for at in range(self._freed, len(self._entries)):
            entry = self._entries[at]
            if entry.first_index > upto:
                return
            yield _cut(entry, upto)

    def adopt(self, entries: list[Entry]) -> None:
        """Entries of what this log begins behind, kept to serve others."""
        self._entries = entries
        self._firsts = [entry.first_index for entry in entries]

    @property
    def entries_kept(self) -> int:
        return len(self._entries) - self._freed


def _cut(entry: Entry, upto: int) -> Entry:
    """What of an entry lies up to ``upto``, where it begins before."""
    return entry if entry.last_index <= upto else entry._replace(count=upto + 1 - entry.first_index)
