"""The order log: entries in index order, what is held of them, and the runs that holding completes."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.order_log import Entry, HeldRun, OrderLog
from ocfcluster.protocol.settings import Configuration
from ocfcluster.protocol.store import NO_LIMIT
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire import control
from ocfcluster.wire.datagram import Extent
from tests.unit.protocol_world import configuration_of, publication

SIZE = 50


def origin(node_id: int = 1, own: bool = False) -> OriginStream:
    return OriginStream(node_id, node_id, limits.RUN_BYTES, own)


def entry(
    first_index: int, count: int, source: OriginStream, first_packet: int, order_time: int = 7
) -> Entry:
    return Entry(first_index, count, source, first_packet, order_time, 1)


def packets(data: bytes, first: int = 1) -> Extent:
    return Extent(first, -(-len(data) // SIZE), SIZE, data)


def test_a_run_is_held_at_the_index_of_its_last_byte() -> None:
    log, a, b = OrderLog(1), origin(1), origin(2)
    long, short = publication(16, 1, 1, [b"l" * 100]), publication(16, 2, 1, [b"s" * 20])
    a.add(packets(long))  # 164 bytes: four packets
    b.add(packets(short))  # two packets
    log.add([entry(2, 1, a, 1), entry(3, 2, b, 1), entry(5, 3, a, 2)])
    assert log.advance(NO_LIMIT)
    assert log.held == 7
    assert list(log.runs) == [HeldRun(4, 7, b, short), HeldRun(7, 7, a, long)]
    assert not log.advance(NO_LIMIT)


def test_a_run_that_ends_with_its_packet_is_held_there() -> None:
    log, a = OrderLog(1), origin()
    run = publication(16, 1, 1, [b"x" * (2 * SIZE - limits.RUN_HEADER_BYTES)])
    a.add(packets(run * 2))
    log.add([entry(2, 4, a, 1)])
    log.advance(NO_LIMIT)
    assert [held.index for held in log.runs] == [3, 5]


def test_holding_stops_at_a_missing_packet_and_goes_on_when_it_comes() -> None:
    log, a = OrderLog(11), origin()
    run = publication(16, 1, 1, [b"x" * 100])
    whole = packets(run)
    log.add([entry(12, 4, a, 1)])
    assert a.highest == 4  # the order says that they exist: they can be asked for
    assert not log.advance(NO_LIMIT)
    a.add(whole.part(0, 2))
    assert log.advance(NO_LIMIT)
    assert (log.held, len(log.runs)) == (13, 0)
    a.add(whole.part(2, 2))
    assert log.advance(NO_LIMIT)
    assert [held.index for held in log.runs] == [15]


def test_entries_behind_a_hole_wait_and_the_hole_is_missing() -> None:
    log, a = OrderLog(1), origin()
    assert log.add([entry(5, 2, a, 4)])
    assert log.add([entry(9, 1, a, 8)])
    assert not log.add([entry(9, 1, a, 8)])
    assert log.has_gap
    assert list(log.missing(9)) == [(2, 3), (7, 2)]
    assert list(log.missing(1)) == [(2, 3)]
    assert log.add([entry(2, 3, a, 1)])
    assert (log.next_index, a.logged) == (7, 5)
    assert log.add([entry(7, 2, a, 6)])
    assert (log.next_index, a.logged, log.has_gap) == (10, 8, False)


def test_copies_that_are_cut_otherwise_fit_all_the_same() -> None:
    log, a, b = OrderLog(1), origin(1), origin(2)
    log.add([entry(6, 2, b, 1), entry(8, 2, a, 5)])
    log.add([entry(2, 4, a, 1), entry(6, 1, b, 1)])  # overlaps the first of those that wait
    assert (log.next_index, a.logged, b.logged) == (10, 6, 2)
    assert not log.add([entry(4, 3, a, 3)])
    assert log.refused == 0


def test_an_entry_that_skips_packets_of_its_origin_is_refused() -> None:
    log, a = OrderLog(1), origin()
    log.add([entry(2, 2, a, 3)])
    assert (log.refused, log.next_index, a.logged) == (1, 2, 0)
    log.add([entry(2, 2, a, 1)])
    assert (log.next_index, a.logged) == (4, 2)
    log.add([entry(4, 2, a, 2)])  # a packet ordered twice
    assert (log.refused, log.next_index) == (2, 4)


def test_own_entries_are_told_for_the_window() -> None:
    log, me, other = OrderLog(1), origin(1, own=True), origin(2)
    log.add([entry(2, 3, me, 1), entry(5, 1, other, 1), entry(6, 1, me, 4)])
    assert list(log.own) == [(4, 3), (6, 4)]


def test_commands_that_act_when_held_are_told_apart() -> None:
    log, a = OrderLog(1), origin()
    runs = [
        control.control_run(control.TopicCreate("t", False), 1),
        control.control_run(control.Barrier(), 2),
    ]
    a.add(packets(b"".join(runs)))
    log.add([entry(2, a.contiguous, a, 1)])
    log.advance(NO_LIMIT)
    assert [held.run for held in log.runs] == runs
    assert [held.run for held in log.staged_runs] == runs[:1]


def test_freeing_forgets_entries_and_their_packets() -> None:
    log, a = OrderLog(1), origin()
    a.add(Extent(1, 6, 1, bytes(6)))
    a.assembler.broken = "only packets matter here"
    log.add([entry(2, 2, a, 1), entry(4, 4, a, 3)])
    log.advance(NO_LIMIT)
    assert [one.first_index for one in log.find(3, 2)] == [2, 4]
    log.free(4)  # in the middle of an entry: that one stays
    assert log.entries_kept == 1
    assert [one.first_index for one in log.find(1, 100)] == [4]
    log.free(7)
    assert (log.entries_kept, list(log.find(1, 2**32))) == (0, [])


def test_lists_do_not_grow_with_what_was_freed() -> None:
    log, a = OrderLog(1), origin()
    a.assembler.broken = "only packets matter here"
    for number in range(1, 3000):
        a.add(Extent(number, 1, 1, b"x"))
        log.add([entry(number + 1, 1, a, number)])
        log.advance(NO_LIMIT)
        log.free(log.held)
    assert len(log._entries) < 1000
    assert len(log._firsts) == len(log._entries)


def test_orders_behind_a_hole_are_bounded() -> None:
    log, a = OrderLog(1), origin()
    for number in range(limits.OUT_OF_ORDER_ORDERS):
        assert log.add([entry(4 + 2 * number, 1, a, 1)])
    assert not log.add([entry(4 + 2 * limits.OUT_OF_ORDER_ORDERS, 1, a, 1)])


# --- epochs -----------------------------------------------------------------------------------------------------------


def view(epoch: int, base: int) -> Configuration:
    return configuration_of({1: 1, 2: 1}, epoch=epoch, base=base, epochs=[(epoch, base)], order_time=epoch)


def test_a_view_is_held_with_its_base_and_takes_the_next_index() -> None:
    log, a = OrderLog(0), origin()
    log.install(view(1, 0))
    assert log.next_index == 2
    assert log.advance(NO_LIMIT)
    assert list(log.runs) == [HeldRun(1, 1, None, b"", view(1, 0))]
    log.add([entry(2, 3, a, 1)])
    a.add(Extent(1, 1, 1, b"x"))
    log.advance(NO_LIMIT)
    log.install(view(2, 3))  # this node holds 2; 3 has its entry, 4 never was
    assert (log.held, log.next_index, log.highest, a.logged) == (2, 5, 4, 2)
    assert not log.advance(NO_LIMIT)
    a.add(Extent(2, 1, 1, b"x"))
    assert log.advance(3)
    assert log.held == 3
    assert log.advance(4)
    assert (log.held, log.last_order_time, log.runs[-1].view) == (4, 2, view(2, 3))


def test_a_view_whose_base_is_not_known_yet_is_asked_up_to() -> None:
    log, a = OrderLog(0), origin()
    log.install(view(1, 0))
    log.install(view(2, 5))
    assert log.has_gap
    assert list(log.missing(9)) == [(2, 5)]
    log.add([entry(2, 4, a, 1)])
    assert (log.next_index, log.has_gap) == (7, False)


def test_what_waited_behind_a_hole_and_behind_the_base_never_was() -> None:
    log, a, b = OrderLog(0), origin(1), origin(2)
    log.install(view(1, 0))
    log.add([entry(4, 2, b, 1)])  # ahead, and behind the base in part
    log.add([entry(7, 1, b, 3)])  # ahead, and wholly behind it
    log.install(view(2, 4))
    log.add([entry(2, 2, a, 1)])
    assert (log.next_index, a.logged, b.logged) == (
        6,
        2,
        1,
    )  # what lies before the base is kept; 5 is the view
    log.add([entry(6, 1, a, 3)])
    assert (log.next_index, a.logged, b.logged, log.refused) == (7, 3, 1, 0)


def test_own_entries_behind_the_base_are_not_told_for_the_window() -> None:
    log, me = OrderLog(0), origin(1, own=True)
    log.install(view(1, 0))
    log.add([entry(2, 4, me, 1)])
    log.install(view(2, 3))
    assert list(log.own) == [(3, 2)]
    log.add([entry(5, 2, me, 3)])
    assert list(log.own) == [(3, 2), (6, 4)]


def test_an_entry_that_is_held_in_part_is_cut_where_it_is_held() -> None:
    log, a = OrderLog(0), origin()
    a.assembler.broken = "only packets matter here"
    log.install(view(1, 0))
    log.add([entry(2, 5, a, 1)])
    a.add(Extent(1, 2, 1, b"xx"))
    log.advance(NO_LIMIT)
    log.install(view(2, 3))
    assert log.advance(NO_LIMIT)
    assert (log.held, a.logged, log.entries_kept) == (4, 2, 1)
    assert log.positions() == {}
    a.add(Extent(3, 1, 1, b"x"))
    log.add([entry(5, 1, a, 3)])
    assert log.advance(NO_LIMIT)
    assert log.held == 5


def test_positions_are_the_last_packets_held_of_origins_that_have_more() -> None:
    log, a, b = OrderLog(1), origin(1), origin(2)
    a.assembler.broken = b.assembler.broken = "only packets matter here"
    a.add(Extent(1, 2, 1, b"xx"))
    log.add([entry(2, 4, a, 1), entry(6, 1, b, 1), entry(7, 2, a, 5)])
    assert log.positions() == {a: 0, b: 0}
    log.advance(NO_LIMIT)
    assert log.positions() == {a: 2, b: 0}
    assert [(one.first_index, one.count) for one in log.kept(3)] == [(2, 2)]
    assert [(one.first_index, one.count) for one in log.kept(7)] == [(2, 4), (6, 1), (7, 1)]
