"""Streams of packets: what an origin sends, what a member has received of it, and runs put together again."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from typing import Final

from ocfcluster import limits
from ocfcluster.errors import MalformedRun
from ocfcluster.wire.datagram import Extent
from ocfcluster.wire.run import Buffer, verify_run

_LENGTH: Final = struct.Struct("<I")  # what every run begins with
_TRIM: Final = 256  # extents freed before the list's head is cut off: keeps freeing amortised constant


class Assembler:
    """Runs out of an origin's byte stream. An ill-formed run ends the stream: alike on every node, as all see the
    same bytes."""

    __slots__ = ("_parts", "_gathered", "_needed", "_limit", "broken")

    def __init__(self, run_limit_bytes: int) -> None:
        self._parts: list[
            Buffer
        ] = []  # of one unfinished run, as views: a run is copied once, when it is whole
        self._gathered = 0
        self._needed = 0  # bytes of the unfinished run; 0 while its length field is not there yet
        self._limit = run_limit_bytes
        self.broken = ""  # why the stream ended, if it did

    @property
    def unfinished_bytes(self) -> int:
        return self._gathered

    @property
    def unfinished(self) -> bytes:
        """What there is of the run that has begun."""
        return b"".join(self._parts)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The runs that ``data`` completes: (bytes of ``data`` used up with the run's last byte, run)."""
        if self.broken:
            return []
        runs: list[tuple[int, bytes]] = []
        size = len(data)
        offset = 0
        if self._parts:
            if not self._needed and self._gathered + size >= 4:
                self._needed = self._length_at(b"".join((*self._parts, data[:4])), 0)
                if self.broken:
                    return runs
            offset = self._needed - self._gathered
            if not self._needed or offset > size:
                self._parts.append(data)
                self._gathered += size
                return runs
            self._parts.append(memoryview(data)[:offset])
            run = b"".join(self._parts)
            self._parts = []
            self._gathered = self._needed = 0
            if not self._accept(runs, offset, run):
                return runs
        while size - offset >= 4:
            length = self._length_at(data, offset)
            if self.broken:
                return runs
            end = offset + length
            if end > size:
                break
            run = data[offset:end]
            offset = end
            if not self._accept(runs, offset, run):
                return runs
        if offset < size:
            self._parts = [memoryview(data)[offset:]]
            self._gathered = size - offset
            self._needed = self._length_at(data, offset) if self._gathered >= 4 else 0
        return runs

    def _length_at(self, data: bytes, offset: int) -> int:
        length: int = _LENGTH.unpack_from(data, offset)[0]
        if not limits.RUN_HEADER_BYTES <= length <= self._limit:
            self.broken = f"a run says it has {length} bytes"
        return length

    def _accept(self, runs: list[tuple[int, bytes]], used: int, run: bytes) -> bool:
        try:
            verify_run(run)
        except MalformedRun as error:
            self.broken = str(error)
            return False
        runs.append((used, run))
        return True


class OriginStream:
    """What a member has of the packets of one origin, an incarnation of a node.

    Packets come in any order; ``contiguous`` says up to where there is no hole. ``take`` hands each out once, in
    order, to be held; ``find`` serves retransmissions until ``free``.
    """

    __slots__ = (
        "node_id",
        "incarnation",
        "own",
        "urgent",
        "ordered",
        "logged",
        "contiguous",
        "highest",
        "assembler",
        "_kept",
        "_firsts",
        "_freed",
        "_freed_packet",
        "_untaken",
        "_taken_of_first",
        "_ahead",
        "_ahead_firsts",
        "ahead_bytes",
        "kept_bytes",
    )

    def __init__(self, node_id: int, incarnation: int, run_limit_bytes: int, own: bool = False) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.own = own  # this node's own stream
        self.urgent = False  # somebody waits for this node's acknowledgement of its packets
        self.ordered = 0  # the last packet that this node, as the sequencer, has ordered
        self.logged = 0  # the last packet that has an entry in the order log
        self.contiguous = 0
        self.highest = 0  # highest packet number known to exist, from whatever source
        self.assembler = Assembler(run_limit_bytes)
        self._kept: list[Extent] = []
        self._firsts: list[int] = []
        self._freed = 0  # how many at the head of _kept are freed
        self._freed_packet = 0  # up to which packet they may be
        self._untaken: deque[Extent] = deque()
        self._taken_of_first = 0
        self._ahead: dict[int, Extent] = {}
        self._ahead_firsts: list[int] = []
        self.ahead_bytes = 0
        self.kept_bytes = 0

    def add(self, extent: Extent) -> bool:
        """Take in packets; False where nothing of them was new or kept."""
        first, count, _, data = extent
        last = first + count - 1
        if last <= self.contiguous:
            return False
        if first > self.contiguous + 1:
            return self._keep_ahead(extent)
        if last > self.highest:
            self.highest = last
        if first <= self.contiguous:
            skip = self.contiguous + 1 - first
            extent = extent.part(skip, count - skip)
            data = extent.data
        self._append(extent, last, len(data))
        if self._ahead_firsts:
            self._join_ahead()
        return True

    def _join_ahead(self) -> None:
        """What waited behind a hole that is closed now."""
        joined = 0
        for first in self._ahead_firsts:
            if first > self.contiguous + 1:
                break
            joined += 1
            ahead = self._ahead.pop(first)
            self.ahead_bytes -= len(ahead.data)
            skip = self.contiguous + 1 - first
            if skip < ahead.count:
                ahead = ahead.part(skip, ahead.count - skip)
                self._append(ahead, ahead.last, len(ahead.data))
        del self._ahead_firsts[:joined]  # at once: one by one from the head would take quadratic time

    def _append(self, extent: Extent, last: int, size: int) -> None:
        self.contiguous = last
        self.kept_bytes += size
        self._kept.append(extent)
        self._firsts.append(extent.first)
        self._untaken.append(extent)

    def _keep_ahead(self, extent: Extent) -> bool:
        first, count, _, data = extent
        if first + count - 1 - self.contiguous > limits.OUT_OF_ORDER_ENTRIES:
            return False
        if self.ahead_bytes + len(data) > limits.OUT_OF_ORDER_BYTES:
            return False
        self.highest = max(self.highest, first + count - 1)
        known = self._ahead.get(first)
        if known is not None:
            if known.count >= count:
                return False
            self.ahead_bytes -= len(known.data)
        else:
            insort(self._ahead_firsts, first)
        self._ahead[first] = extent
        self.ahead_bytes += len(data)
        return True

    def take(self, count: int) -> Iterator[Extent]:
        """The next ``count`` packets in order; the caller knows that they are there."""
        while count > 0:
            head = self._untaken[0]
            left = head.count - self._taken_of_first
            if count >= left:
                self._untaken.popleft()
                yield head.part(self._taken_of_first, left)
                self._taken_of_first = 0
                count -= left
            else:
                yield head.part(self._taken_of_first, count)
                self._taken_of_first += count
                count = 0

    def missing(self, room: int) -> Iterator[tuple[int, int]]:
        """Holes up to ``highest`` as (first, count), the first ``room`` of them."""
        at = self.contiguous + 1
        for first in self._ahead_firsts:
            if room <= 0:
                return
            if first > at:
                yield at, first - at
                room -= 1
            at = max(at, self._ahead[first].last + 1)
        if at <= self.highest and room > 0:
            yield at, self.highest - at + 1

    @property
    def has_gap(self) -> bool:
        return self.highest > self.contiguous

    def begin_behind(self, packet: int, partial: bytes, broken: str) -> None:
        """Nothing up to ``packet`` will come: a snapshot brought what it made. ``partial``: of a run it has begun."""
        self.ordered = self.logged = self.contiguous = self.highest = packet
        if partial:
            self.assembler.feed(partial)
        if broken:
            self.assembler.broken = broken

    def adopt(self, extents: list[Extent]) -> None:
        """Packets of what came otherwise, kept to serve others. Before anything was added."""
        self._kept = extents
        self._firsts = [extent.first for extent in extents]
        self.kept_bytes = sum(len(extent.data) for extent in extents)

    def depart(self) -> None:
        """Its origin is no member any more: packets that were not ordered never will be, and are forgotten."""
        limit = self.logged
        self.highest = limit
        if self._ahead:
            self._ahead.clear()
            self._ahead_firsts.clear()
            self.ahead_bytes = 0
        if self.contiguous <= limit:
            return
        self.contiguous = limit
        kept, untaken = self._kept, self._untaken
        while len(kept) > self._freed and kept[-1].last > limit:
            extent = kept.pop()
            self._firsts.pop()
            self.kept_bytes -= len(extent.data)
            if extent.first <= limit:
                rest = extent.part(0, limit + 1 - extent.first)
                kept.append(rest)
                self._firsts.append(rest.first)
                self.kept_bytes += len(rest.data)
        while untaken and untaken[-1].last > limit:
            extent = untaken.pop()
            if extent.first + (0 if untaken else self._taken_of_first) <= limit:
                untaken.append(extent.part(0, limit + 1 - extent.first))
        if not untaken:
            self._taken_of_first = 0
        self.free(self._freed_packet)  # what waited for the rest of its extent

    @property
    def extents_kept(self) -> int:
        return len(self._kept) - self._freed

    @property
    def idle(self) -> bool:
        """Nothing is kept, waited for, or to be handed out."""
        return self._freed == len(self._kept) and not self._untaken and self.highest <= self.contiguous

    def find(self, first: int, count: int) -> Iterator[Extent]:
        """What is kept of packets ``first`` to ``first + count - 1``."""
        end = first + count
        at = max(self._freed, bisect_right(self._firsts, first) - 1)
        while at < len(self._kept):
            extent = self._kept[at]
            if extent.first >= end:
                break
            begin = max(first, extent.first)
            stop = min(end, extent.last + 1)
            if begin < stop:
                yield extent.part(begin - extent.first, stop - begin)
            at += 1
        firsts = self._ahead_firsts
        for at in range(bisect_left(firsts, first - limits.SEGMENT_COUNT), bisect_left(firsts, end)):
            extent = self._ahead[firsts[at]]  # which has SEGMENT_COUNT + 1 packets at most
            begin = max(first, extent.first)
            stop = min(end, extent.last + 1)
            if begin < stop:
                yield extent.part(begin - extent.first, stop - begin)

    def free(self, packet: int) -> None:
        """Forget packets up to ``packet``: all members hold them. An extent goes with the last of its packets."""
        self._freed_packet = packet
        kept = self._kept
        at = self._freed
        while at < len(kept) and kept[at].last <= packet:
            self.kept_bytes -= len(kept[at].data)
            kept[at] = _FREED
            at += 1
        self._freed = at
        if at >= _TRIM and at * 2 >= len(kept):
            del kept[:at]
            del self._firsts[:at]
            self._freed = 0


_FREED: Final = Extent(0, 0, 0, b"")


class OutgoingStream:
    """This node's own stream: runs wait here until the window lets them out as packets."""

    __slots__ = ("_runs", "_control", "_rest", "pending_bytes", "next_packet", "_size", "_most")

    def __init__(self, size: int, most: int) -> None:
        self._runs: deque[bytes] = deque()
        self._control: deque[bytes] = deque()  # passes publications, at the next border between runs
        self._rest: Buffer = b""  # of the run begun by the last packet sent
        self.pending_bytes = 0
        self.next_packet = 1
        self._size = size  # stream bytes of a full packet
        self._most = most  # packets of one buffer

    def resize(self, size: int, most: int) -> None:
        """Packets from now on have ``size`` bytes, and a buffer ``most`` of them."""
        self._size, self._most = size, most

    def push(self, run: bytes) -> None:
        self._runs.append(run)
        self.pending_bytes += len(run)

    def push_control(self, run: bytes) -> None:
        self._control.append(run)
        self.pending_bytes += len(run)

    @property
    def controls_waiting(self) -> int:
        return len(self._control)

    @property
    def must_send(self) -> bool:
        """Whether something waits that passes a closed window: the rest of a begun run, or a control run."""
        return bool(self._rest or self._control)

    def next_extent(self, open_window: bool) -> Extent | None:
        """The next packets, at most one buffer of them; None where nothing may go.

        With a closed window only the rest of a begun run and control runs go. Packets are filled to the brim while
        more waits; the last one of what waits is as short as it comes out.
        """
        room = self._size * self._most
        parts: list[Buffer] = [self._rest] if self._rest else []
        gathered = len(self._rest)
        self._rest = b""
        control, runs = self._control, self._runs
        while gathered < room and control:
            parts.append(control.popleft())
            gathered += len(parts[-1])
        if open_window:
            while gathered < room and runs:
                parts.append(runs.popleft())
                gathered += len(parts[-1])
        if not gathered:
            return None
        if gathered > room:  # the border lies in the last part: nothing was added once the room was used up
            cut = len(parts[-1]) - (gathered - room)
            last = memoryview(parts[-1])
            self._rest = last[cut:]
            parts[-1] = last[:cut]
            gathered = room
        data = b"".join(parts)
        count = -(-gathered // self._size)
        extent = Extent(self.next_packet, count, self._size if count > 1 else gathered, data)
        self.next_packet += count
        self.pending_bytes -= gathered
        return extent
