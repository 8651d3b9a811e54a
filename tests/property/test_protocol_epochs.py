"""The order over epochs: OrderLog and OriginStream against a naive model in which each epoch ends at a base, entries
behind it never were, and the next view takes the index behind it."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ocfcluster import limits
from ocfcluster.protocol.order_log import Entry, OrderLog
from ocfcluster.protocol.settings import Configuration
from ocfcluster.protocol.store import NO_LIMIT
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.datagram import Extent
from ocfcluster.wire.run import RunKind, build_run
from tests.unit.protocol_world import configuration_of

VIEW = (0, 0)  # what an index is that has no packet
ORIGINS = (1, 2, 3)
OWN = 1


def configuration(epoch: int, base: int) -> Configuration:
    members = dict.fromkeys(ORIGINS, 1)
    return configuration_of(members, epoch=epoch, base=base, epochs=[(epoch, base)], order_time=1000 + epoch)


class Epochs(RuleBasedStateMachine):
    """One node's log. The truth is what its sequencers have ordered: of the present epoch and of those that ended."""

    def __init__(self) -> None:
        super().__init__()
        self.log = OrderLog(0)
        self.streams = {one: OriginStream(one, one, limits.RUN_BYTES, own=one == OWN) for one in ORIGINS}
        # A run of two packets each time: what is held gives the runs that end in it.
        self.truth: list[tuple[int, int]] = []  # (origin, packet) of index 1, 2, ...
        self.epoch_of: list[int] = []
        self.epoch = 0
        self.base = 0
        self.arrived: set[int] = set()  # indexes whose entries came
        self.packets = dict.fromkeys(ORIGINS, 0)  # that came, of each origin
        self.views: list[int] = []
        self.held_runs: list[tuple[int, bytes | int]] = []
        self.stable = 0

    # --- the truth --------------------------------------------------------------------------------------------------

    def ordered(self, origin: int) -> int:
        return sum(1 for one, _ in self.truth if one == origin)

    def begin(self, base: int) -> None:
        self.truth = [*self.truth[:base], VIEW]
        self.epoch += 1
        self.epoch_of = [*self.epoch_of[:base], self.epoch]
        self.base = base
        self.arrived = {index for index in self.arrived if index <= base}
        self.views.append(base + 1)
        self.log.install(configuration(self.epoch, base))

    @initialize()
    def first(self) -> None:
        self.begin(0)

    @rule(origin=st.sampled_from(ORIGINS), count=st.integers(1, 5))
    def order(self, origin: int, count: int) -> None:
        """Somewhere the sequencer of the present epoch orders more."""
        last = self.ordered(origin)
        self.truth += [(origin, last + number) for number in range(1, count + 1)]
        self.epoch_of += [self.epoch] * count

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        """The epoch ends at some index that this node has not passed; it may lie ahead of all that it knows."""
        base = data.draw(st.integers(max(self.log.held, self.base + 1), max(len(self.truth), self.log.held)))
        self.begin(base)

    # --- what arrives -----------------------------------------------------------------------------------------------

    @rule(data=st.data(), cuts=st.lists(st.booleans(), min_size=1, max_size=5))
    def entries(self, data: st.DataObject, cuts: list[bool]) -> None:
        """A copy of a part of one epoch's order, cut as it comes: never across its view."""
        first = data.draw(st.integers(1, len(self.truth)))
        last = data.draw(st.integers(first, min(len(self.truth), first + 12)))
        made: list[Entry] = []
        for index in range(first, last + 1):
            origin, packet = self.truth[index - 1]
            epoch = self.epoch_of[index - 1]
            if (origin, packet) == VIEW or (made and made[-1].epoch != epoch):
                if made:
                    break
                continue
            stream = self.streams[origin]
            if made and made[-1].origin is stream and not cuts[index % len(cuts)]:
                made[-1] = made[-1]._replace(count=made[-1].count + 1)
            else:
                made.append(Entry(index, 1, stream, packet, epoch, epoch))
        if made:
            self.log.add(made)
            self.arrived |= set(range(made[0].first_index, made[-1].last_index + 1))

    @rule(origin=st.sampled_from(ORIGINS), count=st.integers(1, 7))
    def receive(self, origin: int, count: int) -> None:
        first = self.packets[origin] + 1
        whole = b"".join(packet(origin, number) for number in range(first, first + count))
        self.streams[origin].add(Extent(first, count, HALF, whole))
        self.packets[origin] += count

    @rule(ahead=st.integers(0, 6) | st.just(NO_LIMIT))
    def advance(self, ahead: int) -> None:
        before = self.log.held
        limit = min(NO_LIMIT, before + ahead)
        expected = before
        while expected < min(limit, len(self.truth)) and self.has(expected + 1):
            expected += 1
            self.held_runs += self.ends(expected)
        assert self.log.advance(limit) == (expected > before)
        assert self.log.held == expected

    def has(self, index: int) -> bool:
        origin, number = self.truth[index - 1]
        if (origin, number) == VIEW:
            return True
        return self.contiguous(index) and number <= self.packets[origin]

    def contiguous(self, index: int) -> bool:
        return all(at in self.arrived or self.truth[at - 1] == VIEW for at in range(1, index + 1))

    def ends(self, index: int) -> list[tuple[int, bytes | int]]:
        origin, number = self.truth[index - 1]
        if (origin, number) == VIEW:
            return [(index, self.epoch_of[index - 1])]
        return [(index, run_of(origin, number // 2))] if number % 2 == 0 else []

    @rule(share=st.floats(0, 1))
    def free(self, share: float) -> None:
        self.stable = max(self.stable, int(self.log.held * share))
        self.log.free(self.stable)

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def the_log_is_the_truth(self) -> None:
        log = self.log
        next_index = 1
        while next_index <= len(self.truth) and (
            next_index in self.arrived or self.truth[next_index - 1] == VIEW
        ):
            next_index += 1
        assert log.next_index == next_index
        assert log.refused == 0
        got = [(one.index, one.run if one.view is None else one.view.epoch) for one in log.runs]
        assert got == self.held_runs
        for origin, stream in self.streams.items():
            known = [number for one, number in self.truth[: next_index - 1] if one == origin]
            assert stream.logged == len(known)
        own = [
            (index, number)
            for index, (one, number) in enumerate(self.truth[: next_index - 1], 1)
            if one == OWN
        ]
        assert all(pair in own for pair in log.own)
        assert not own or (log.own and log.own[-1] == own[-1])
        for entry in log.find(self.stable + 1, 10_000):
            for at in range(entry.count):
                index = entry.first_index + at
                assert self.truth[index - 1] == (entry.origin.node_id, entry.first_packet + at)
                assert entry.epoch == entry.order_time == self.epoch_of[index - 1]
        kept = {at for one in log.find(0, 10_000) for at in range(one.first_index, one.last_index + 1)}
        wanted = {at for at in range(self.stable + 1, next_index) if self.truth[at - 1] != VIEW}
        assert wanted <= kept
        assert log.has_gap == (log.highest >= log.next_index)
        assert log.highest >= self.base + 1
        missing = [at for first, count in log.missing(100) for at in range(first, first + count)]
        assert not self.arrived & set(missing)


HALF = 40  # bytes of a packet: half a run


def run_of(origin: int, number: int) -> bytes:
    """The ``number``-th run of an origin: two packets of HALF bytes."""
    return build_run(RunKind.PUBLICATION, 16, origin, number, [number.to_bytes(2, "little") * 8])


def packet(origin: int, number: int) -> bytes:
    run = run_of(origin, (number + 1) // 2)
    assert len(run) == 2 * HALF
    return run[:HALF] if number % 2 else run[HALF:]


TestEpochs = Epochs.TestCase
TestEpochs.settings = settings(max_examples=150, stateful_step_count=40)
