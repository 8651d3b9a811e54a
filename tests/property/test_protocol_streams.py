"""Streams and the order log against naive models; packets and runs against every way to cut them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ocfcluster import limits
from ocfcluster.protocol.order_log import Entry, OrderLog
from ocfcluster.protocol.store import NO_LIMIT
from ocfcluster.protocol.streams import Assembler, OriginStream, OutgoingStream
from ocfcluster.wire.datagram import Extent
from ocfcluster.wire.run import RunKind, build_run

SIZE = 3
MOST = 60  # packets of a model's stream


def extent(first: int, count: int, short: int = 0) -> Extent:
    """Packets of SIZE bytes that hold their own number; a ``short`` one of one packet, of fewer bytes."""
    data = b"".join(number.to_bytes(SIZE, "little") for number in range(first, first + count))
    return Extent(first, count, SIZE, data[: len(data) - short])


def packets(one: Extent) -> list[int]:
    """The packets of an extent, told from their bytes; checks that it says the same itself."""
    assert -(-len(one.data) // one.size) == one.count
    found = [
        int.from_bytes(one.data[at : at + one.size].ljust(SIZE, b"\0"), "little")
        for at in range(0, len(one.data), one.size)
    ]
    assert found == list(range(one.first, one.last + 1))
    return found


class Stream(RuleBasedStateMachine):
    """OriginStream against a set of packet numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = OriginStream(1, 1, limits.RUN_BYTES)
        self.have: set[int] = set()
        self.claimed = 0
        self.taken = 0
        self.freed = 0

    def contiguous(self) -> int:
        number = 0
        while number + 1 in self.have:
            number += 1
        return number

    @rule(first=st.integers(0, MOST), count=st.integers(1, 9), short=st.integers(0, SIZE - 1))
    def add(self, first: int, count: int, short: int) -> None:
        new = set(range(max(1, first), first + count)) - self.have
        was = self.contiguous()
        taken = self.stream.add(extent(first, count, short))
        self.have |= new
        if first <= was + 1:
            assert taken == bool(new - set(range(was + 1)))
        elif new:
            assert taken

    @rule(count=st.integers(1, 9))
    def go_on(self, count: int) -> None:
        self.add(self.contiguous() + 1, count, 0)

    @rule(ahead=st.integers(0, 20))
    def claim(self, ahead: int) -> None:
        self.claimed = self.contiguous() + ahead
        self.stream.highest = max(self.stream.highest, self.claimed)

    @rule(count=st.integers(0, 4) | st.just(MOST))
    def take(self, count: int) -> None:
        count = min(count, self.contiguous() - self.taken)
        got = [number for one in self.stream.take(count) for number in packets(one)]
        assert got == list(range(self.taken + 1, self.taken + count + 1))
        self.taken += count

    @precondition(lambda self: self.taken > 0)
    @rule(share=st.floats(0, 1))
    def free(self, share: float) -> None:
        self.freed = max(self.freed, int(self.taken * share))
        self.stream.free(self.freed)

    @rule(ahead=st.integers(0, 9))
    def depart(self, ahead: int) -> None:
        """What is not ordered never will be; what was ordered and is missing is still wanted."""
        logged = self.taken + ahead
        self.stream.logged = logged
        self.stream.depart()
        self.have = {number for number in range(1, self.contiguous() + 1) if number <= logged}
        assert self.stream.highest == logged
        assert self.stream.idle == (self.freed_all() and self.taken == logged)

    def freed_all(self) -> bool:
        return not list(self.stream.find(1, 10_000))

    @rule(first=st.integers(0, MOST + 9), count=st.integers(0, 30))
    def find(self, first: int, count: int) -> None:
        got = [number for one in self.stream.find(first, count) for number in packets(one)]
        asked = set(range(first, first + count))
        assert set(got) <= self.have & asked
        # What is freed may stay a while: an extent goes as a whole.
        assert set(got) >= {number for number in self.have & asked if number > self.freed}

    @rule(room=st.integers(0, 9))
    def missing(self, room: int) -> None:
        ranges = list(self.stream.missing(room))
        known = max(self.have | {self.stream.highest})
        holes = [number for number in range(1, known + 1) if number not in self.have]
        got = [number for first, count in ranges for number in range(first, first + count)]
        assert got == holes[: len(got)]
        assert len(ranges) <= room
        if len(ranges) < room:
            assert got == holes
        assert all(right[0] > left[0] + left[1] for left, right in pairwise(ranges))

    @invariant()
    def counts(self) -> None:
        stream = self.stream
        assert stream.contiguous == self.contiguous()
        assert stream.highest == max(self.have | {stream.highest})
        assert stream.has_gap == any(number not in self.have for number in range(1, stream.highest + 1))
        assert stream.ahead_bytes == sum(len(one.data) for one in stream._ahead.values())
        assert stream.kept_bytes == sum(len(one.data) for one in stream._kept)
        assert sorted(stream._ahead) == stream._ahead_firsts
        assert all(first > stream.contiguous + 1 for first in stream._ahead_firsts)


TestStream = Stream.TestCase


class Log(RuleBasedStateMachine):
    """OrderLog against the list of what each index is; copies of any part, cut in any way, come in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.log = OrderLog(1)
        self.origins = [OriginStream(node_id, node_id, limits.RUN_BYTES) for node_id in (1, 2, 3)]
        for origin in self.origins:
            origin.assembler.broken = "packets alone matter here"
        self.truth: list[tuple[int, int]] = []  # (origin, packet) of index 2, 3, ...
        self.arrived: set[int] = set()
        self.highest = 1
        self.stable = 1

    @rule(origin=st.integers(0, 2), count=st.integers(1, 6))
    def order(self, origin: int, count: int) -> None:
        last = sum(1 for one, _ in self.truth if one == origin)
        self.truth += [(origin, last + number) for number in range(1, count + 1)]

    def entries(self, first: int, last: int, cuts: list[bool]) -> list[Entry]:
        """The truth from index ``first`` to ``last``, cut also where the origin stays the same."""
        made: list[Entry] = []
        for index in range(first, last + 1):
            origin, packet = self.truth[index - 2]
            if made and made[-1].origin is self.origins[origin] and not cuts[index % len(cuts)]:
                made[-1] = made[-1]._replace(count=made[-1].count + 1)
            else:
                made.append(Entry(index, 1, self.origins[origin], packet, 7, 1))
        return made

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), cuts=st.lists(st.booleans(), min_size=1, max_size=7))
    def arrive(self, data: st.DataObject, cuts: list[bool]) -> None:
        end = len(self.truth) + 1
        first = data.draw(st.integers(2, end))
        last = data.draw(st.integers(first, min(end, first + 15)))
        self.log.add(self.entries(first, last, cuts))
        self.arrived |= set(range(first, last + 1))
        self.highest = max(self.highest, last)

    @precondition(lambda self: self.truth)
    @rule(origin=st.integers(0, 2), count=st.integers(1, 9))
    def receive(self, origin: int, count: int) -> None:
        stream = self.origins[origin]
        stream.add(Extent(stream.contiguous + 1, count, 1, bytes(count)))

    @rule()
    def advance(self) -> None:
        before = self.log.held
        assert self.log.advance(NO_LIMIT) == (self.log.held > before)
        held = 1
        for origin, packet in self.truth[: self.log.next_index - 2]:
            if packet > self.origins[origin].contiguous:
                break
            held += 1
        assert self.log.held == held

    @rule(share=st.floats(0, 1))
    def free(self, share: float) -> None:
        self.stable = max(self.stable, 1 + int((self.log.held - 1) * share))
        self.log.free(self.stable)
        kept = [
            number
            for one in self.log.find(2, 10_000)
            for number in range(one.first_index, one.last_index + 1)
        ]
        # Nothing behind the stable index is forgotten, and only the entry across it stays from before.
        begin = kept[0] if kept else self.log.next_index
        assert kept == list(range(begin, self.log.next_index))
        assert begin <= self.stable + 1
        assert sum(1 for one in self.log.find(2, 10_000) if one.last_index <= self.stable) == 0

    @rule(first=st.integers(0, 80), count=st.integers(0, 30))
    def find(self, first: int, count: int) -> None:
        for one in self.log.find(first, count):
            assert one.first_index < first + count
            assert one.last_index >= first
            wanted = [
                (self.origins.index(one.origin), one.first_packet + number) for number in range(one.count)
            ]
            assert self.truth[one.first_index - 2 : one.last_index - 1] == wanted

    @rule(room=st.integers(0, 9))
    def missing(self, room: int) -> None:
        ranges = list(self.log.missing(room))
        got = [number for first, count in ranges for number in range(first, first + count)]
        holes = [
            number for number in range(self.log.next_index, self.highest + 1) if number not in self.arrived
        ]
        assert got == holes[: len(got)]
        assert len(ranges) <= room
        if len(ranges) < room:
            assert got == holes

    @invariant()
    def counts(self) -> None:
        contiguous = 1
        while contiguous + 1 in self.arrived:
            contiguous += 1
        assert self.log.next_index == contiguous + 1
        assert self.log.highest == self.highest
        assert self.log.has_gap == (self.highest > contiguous)
        assert self.log.refused == 0
        for number, origin in enumerate(self.origins):
            ordered = [packet for one, packet in self.truth[: contiguous - 1] if one == number]
            assert origin.logged == len(ordered)


TestLog = Log.TestCase

RUNS = st.lists(
    st.builds(
        lambda events, number: build_run(RunKind.PUBLICATION, 16, 1, number, events),
        st.lists(st.binary(max_size=150), min_size=1, max_size=5),
        st.integers(1, 2**40),
    ),
    min_size=1,
    max_size=8,
)


@given(runs=RUNS, cuts=st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_any_cut_of_a_stream_gives_the_same_runs_at_the_same_bytes(
    runs: list[bytes], cuts: list[int]
) -> None:
    whole = b"".join(runs)
    ends, end = [], 0
    for run in runs:
        end += len(run)
        ends.append(end)
    assembler, found, begin, turn = Assembler(limits.RUN_BYTES), [], 0, 0
    while begin < len(whole):
        piece = whole[begin : begin + cuts[turn % len(cuts)]]
        turn += 1
        found += [(begin + used, run) for used, run in assembler.feed(piece)]
        begin += len(piece)
    assert found == list(zip(ends, runs, strict=True))
    assert (assembler.unfinished_bytes, assembler.broken) == (0, "")


@given(
    runs=RUNS,
    size=st.integers(1, 120),
    most=st.integers(1, 5),
    pushes=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    windows=st.lists(st.booleans(), min_size=1, max_size=7),
    order=st.randoms(use_true_random=False),
)
def test_runs_come_out_of_packets_as_they_went_in(
    runs: list[bytes], size: int, most: int, pushes: list[int], windows: list[bool], order: object
) -> None:
    """From OutgoingStream through loss, disorder and other cuts to HeldRuns at the packet of their last byte."""
    outgoing, origin, log = OutgoingStream(size, most), OriginStream(1, 1, limits.RUN_BYTES), OrderLog(1)
    waiting, sent, turn = list(runs), [], 0
    while waiting or outgoing.pending_bytes:
        for _ in range(pushes[turn % len(pushes)] or (0 if outgoing.pending_bytes else 1)):
            if waiting:
                outgoing.push(waiting.pop(0))
        open_window = windows[turn % len(windows)] or turn > 100
        turn += 1
        if (one := outgoing.next_extent(open_window)) is not None:
            assert one.count <= most
            sent.append(one)
    assert b"".join(one.data for one in sent) == b"".join(runs)
    assert [number for one in sent for number in range(one.first, one.last + 1)] == list(
        range(1, sent[-1].last + 1)
    )
    ends: list[int] = []  # the packet of each run's last byte
    lengths = [len(one.data[at : at + one.size]) for one in sent for at in range(0, len(one.data), one.size)]
    at, packet = 0, 0
    for run in runs:
        at += len(run)
        while sum(lengths[:packet]) < at:
            packet += 1
        ends.append(packet)
    pieces = [one.part(skip, 1) for one in sent for skip in range(one.count)] + sent
    order.shuffle(pieces)  # type: ignore[attr-defined]
    log.add([Entry(2, len(lengths), origin, 1, 7, 1)])
    for piece in pieces:
        origin.add(piece)
        log.advance(NO_LIMIT)
    assert [held.run for held in log.runs] == runs
    assert [held.index - 1 for held in log.runs] == ends
