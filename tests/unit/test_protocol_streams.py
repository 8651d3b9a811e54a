"""Packets of an origin: what is kept, what is missing, and runs put together from them."""

from __future__ import annotations

import pytest

from ocfcluster import limits
from ocfcluster.protocol.streams import Assembler, OriginStream, OutgoingStream
from ocfcluster.wire.datagram import Extent
from tests.unit.protocol_world import publication

SIZE = 4


def extent(first: int, count: int) -> Extent:
    """Packets of SIZE bytes that hold their own number."""
    data = b"".join(number.to_bytes(SIZE, "little") for number in range(first, first + count))
    return Extent(first, count, SIZE, data)


def stream() -> OriginStream:
    return OriginStream(1, 11, limits.RUN_BYTES)


def numbers(extents: list[Extent]) -> list[int]:
    """The packets of extents, told from their bytes."""
    found = []
    for one in extents:
        assert len(one.data) == one.count * SIZE
        found += [int.from_bytes(one.data[at : at + SIZE], "little") for at in range(0, len(one.data), SIZE)]
        assert found[-one.count] == one.first
    return found


# --- OriginStream -----------------------------------------------------------------------------------------------------


def test_packets_in_order_are_taken_in_order_and_once() -> None:
    origin = stream()
    assert origin.add(extent(1, 3))
    assert origin.add(extent(4, 1))
    assert origin.contiguous == origin.highest == 4
    assert numbers(list(origin.take(2))) == [1, 2]
    assert numbers(list(origin.take(2))) == [3, 4]
    origin.add(extent(5, 5))
    assert [numbers(list(origin.take(count))) for count in (1, 1, 2, 1)] == [[5], [6], [7, 8], [9]]


def test_a_packet_behind_a_hole_waits_and_the_hole_is_missing() -> None:
    origin = stream()
    assert origin.add(extent(4, 2))
    assert origin.contiguous == 0
    assert origin.has_gap
    assert list(origin.missing(9)) == [(1, 3)]
    assert origin.add(extent(1, 3))
    assert (origin.contiguous, origin.ahead_bytes, origin.has_gap) == (5, 0, False)
    assert numbers(list(origin.take(5))) == [1, 2, 3, 4, 5]


def test_repeated_packets_are_not_new() -> None:
    origin = stream()
    origin.add(extent(1, 3))
    assert not origin.add(extent(1, 3))
    assert not origin.add(extent(2, 1))
    assert origin.add(extent(7, 2))
    assert not origin.add(extent(7, 1))
    assert origin.kept_bytes == 3 * SIZE
    assert origin.ahead_bytes == 2 * SIZE


def test_only_the_new_part_of_an_overlap_is_kept() -> None:
    origin = stream()
    origin.add(extent(1, 3))
    assert origin.add(extent(2, 4))
    assert origin.kept_bytes == 5 * SIZE
    assert numbers(list(origin.take(5))) == [1, 2, 3, 4, 5]


def test_extents_that_overlap_behind_a_hole_close_it_once() -> None:
    origin = stream()
    for one in (extent(3, 3), extent(4, 5), extent(6, 1), extent(3, 1), extent(9, 1)):
        origin.add(one)
    assert origin.add(extent(1, 2))
    assert (origin.contiguous, origin.ahead_bytes) == (9, 0)
    assert numbers(list(origin.take(9))) == list(range(1, 10))


def test_as_many_holes_are_named_as_there_is_room() -> None:
    origin = stream()
    for first in (3, 6, 9):
        origin.add(extent(first, 1))
    origin.highest = 12
    assert list(origin.missing(9)) == [(1, 2), (4, 2), (7, 2), (10, 3)]
    assert list(origin.missing(2)) == [(1, 2), (4, 2)]
    assert list(origin.missing(0)) == []


def test_packets_too_far_ahead_are_not_kept() -> None:
    origin = stream()
    assert not origin.add(extent(limits.OUT_OF_ORDER_ENTRIES + 1, 1))
    assert not origin.add(Extent(2**64 - 1, 1, SIZE, bytes(SIZE)))
    assert origin.highest == 0
    assert origin.add(extent(limits.OUT_OF_ORDER_ENTRIES, 1))


def test_bytes_behind_a_hole_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUT_OF_ORDER_BYTES", 4 * SIZE)
    origin = stream()
    assert origin.add(extent(3, 3))
    assert not origin.add(extent(7, 2))
    assert origin.add(extent(7, 1))
    assert origin.ahead_bytes == 4 * SIZE


def test_kept_packets_are_found_until_freed() -> None:
    origin = stream()
    for first in (1, 4, 7):
        origin.add(extent(first, 3))
    origin.add(extent(12, 2))
    assert numbers(list(origin.find(3, 5))) == [3, 4, 5, 6, 7]
    assert numbers(list(origin.find(8, 5))) == [8, 9, 12]
    origin.free(5)
    assert numbers(list(origin.find(1, 9))) == [4, 5, 6, 7, 8, 9]
    origin.free(9)
    assert numbers(list(origin.find(1, 2**32 - 1))) == [12, 13]
    assert origin.kept_bytes == 0


def test_the_list_of_kept_packets_does_not_grow_with_what_was_freed() -> None:
    origin = stream()
    for number in range(1, 4001):
        origin.add(extent(number, 1))
        list(origin.take(1))
        origin.free(number - 10)
    assert len(origin._kept) < 1000
    assert len(origin._firsts) == len(origin._kept)
    assert numbers(list(origin.find(1, 5000))) == list(range(3991, 4001))


def test_a_departed_origins_packets_end_with_what_was_ordered() -> None:
    origin = stream()
    origin.add(extent(1, 6))
    origin.add(extent(7, 2))
    origin.add(extent(12, 3))  # ahead
    origin.logged = 4
    list(origin.take(2))
    origin.depart()
    assert (origin.contiguous, origin.highest, origin.has_gap) == (4, 4, False)
    assert (origin.ahead_bytes, origin.kept_bytes) == (0, 4 * SIZE)
    assert numbers(list(origin.find(1, 100))) == [1, 2, 3, 4]
    assert not origin.idle
    assert numbers(list(origin.take(2))) == [3, 4]
    origin.free(4)
    assert origin.idle


def test_a_departed_origin_whose_last_packets_are_missing_still_waits_for_them() -> None:
    origin = stream()
    origin.add(extent(1, 2))
    origin.logged = 5
    origin.depart()
    assert (origin.contiguous, origin.highest, origin.has_gap) == (2, 5, True)
    assert not origin.idle
    origin.add(extent(3, 3))
    assert origin.contiguous == 5
    origin.depart()
    assert numbers(list(origin.take(5))) == [1, 2, 3, 4, 5]


def test_departing_in_the_middle_of_what_is_taken() -> None:
    origin = stream()
    origin.add(extent(1, 8))
    list(origin.take(5))
    origin.logged = 5
    origin.depart()
    origin.free(5)
    assert origin.idle
    assert list(origin.find(1, 100)) == []
    assert origin.kept_bytes == 0


def test_an_extent_of_which_only_what_is_freed_remains_is_freed() -> None:
    origin = stream()
    origin.add(extent(1, 6))
    list(origin.take(4))
    origin.logged = 4
    origin.free(4)  # 5 and 6 may still be ordered
    assert numbers(list(origin.find(1, 100))) == [1, 2, 3, 4, 5, 6]
    origin.depart()
    assert (origin.idle, origin.kept_bytes) == (True, 0)


def test_what_was_freed_stays_so_when_an_origin_departs() -> None:
    origin = stream()
    for first in (1, 4, 7):
        origin.add(extent(first, 3))
    list(origin.take(9))
    origin.free(6)
    origin.logged = 9
    origin.depart()
    assert numbers(list(origin.find(1, 100))) == [7, 8, 9]
    origin.free(9)
    assert origin.idle


def test_what_a_snapshot_brought_is_kept_to_serve_and_not_to_be_taken() -> None:
    origin = stream()
    run = publication(16, 1, 1, [b"data"])
    origin.begin_behind(9, run[:30], "")
    origin.adopt([extent(4, 3), extent(7, 3)])
    assert (origin.contiguous, origin.logged, origin.ordered, origin.highest) == (9, 9, 9, 9)
    assert origin.kept_bytes == 6 * SIZE
    assert numbers(list(origin.find(5, 100))) == [5, 6, 7, 8, 9]
    assert not origin.add(extent(8, 2))
    assert origin.add(extent(9, 3))
    assert numbers(list(origin.take(2))) == [10, 11]
    assert origin.assembler.unfinished == run[:30]
    assert [one for _, one in origin.assembler.feed(run[30:])] == [run]
    origin.free(6)
    assert numbers(list(origin.find(1, 100))) == [7, 8, 9, 10, 11]


def test_a_stream_that_was_broken_in_a_snapshot_gives_nothing_more() -> None:
    origin = stream()
    origin.begin_behind(3, b"", "broken there")
    assert origin.assembler.feed(publication(16, 1, 1, [b"data"])) == []


# --- Assembler --------------------------------------------------------------------------------------------------------


def test_runs_come_out_with_the_byte_that_completes_them() -> None:
    first, second = publication(16, 1, 1, [b"a"]), publication(16, 1, 2, [b"bb"])
    assembler = Assembler(limits.RUN_BYTES)
    assert assembler.feed(first[:2]) == []
    assert assembler.feed(first[2:10]) == []
    assert assembler.unfinished_bytes == 10
    assert assembler.feed(first[10:] + second[:3]) == [(len(first) - 10, first)]
    assert assembler.feed(second[3:]) == [(len(second) - 3, second)]
    assert assembler.unfinished_bytes == 0


def test_several_runs_in_one_piece() -> None:
    runs = [publication(16, 1, number, [b"x" * number]) for number in range(1, 5)]
    found = Assembler(limits.RUN_BYTES).feed(b"".join(runs))
    assert [run for _, run in found] == runs
    assert found[-1][0] == sum(map(len, runs))


@pytest.mark.parametrize("length", [0, 1, limits.RUN_HEADER_BYTES - 1, limits.RUN_BYTES + 1, 2**32 - 1])
@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5])
def test_an_impossible_length_ends_the_stream_before_it_is_gathered(length: int, cut: int) -> None:
    good = publication(16, 1, 1, [b"x"])
    bad = good + length.to_bytes(4, "little") + bytes(100)
    assembler = Assembler(limits.RUN_BYTES)
    runs = assembler.feed(bad[: len(good) + cut]) + assembler.feed(bad[len(good) + cut :])
    assert [run for _, run in runs] == [good]
    assert str(length) in assembler.broken
    assert assembler.feed(good) == []
    assert assembler.unfinished_bytes <= len(bad)


def test_an_ill_formed_run_ends_the_stream_behind_what_was_good() -> None:
    good = publication(16, 1, 1, [b"x"])
    bad = bytearray(good)
    bad[4] = 99
    for pieces in ([good + bytes(bad) + good], [good, bytes(bad[:30]), bytes(bad[30:]) + good]):
        assembler = Assembler(limits.RUN_BYTES)
        assert [run for piece in pieces for _, run in assembler.feed(piece)] == [good]
        assert "kind 99" in assembler.broken


# --- OutgoingStream ---------------------------------------------------------------------------------------------------


def test_what_waits_goes_out_in_full_packets_and_a_rest() -> None:
    outgoing = OutgoingStream(100, 4)
    outgoing.push(b"a" * 150)
    outgoing.push(b"b" * 90)
    one = outgoing.next_extent(True)
    assert one == Extent(1, 3, 100, b"a" * 150 + b"b" * 90)
    assert (outgoing.pending_bytes, outgoing.next_packet, outgoing.next_extent(True)) == (0, 4, None)


def test_a_single_short_packet_has_its_own_size() -> None:
    outgoing = OutgoingStream(100, 4)
    outgoing.push(b"a" * 30)
    assert outgoing.next_extent(True) == Extent(1, 1, 30, b"a" * 30)


def test_a_buffer_ends_at_its_room_and_the_run_goes_on_in_the_next() -> None:
    outgoing = OutgoingStream(10, 3)
    run = bytes(range(75))
    outgoing.push(run)
    gathered = b""
    while (one := outgoing.next_extent(True)) is not None:
        assert one.count <= 3
        gathered += one.data
    assert gathered == run
    assert outgoing.next_packet == 9


def test_with_a_closed_window_a_begun_run_is_finished_and_no_other_begun() -> None:
    outgoing = OutgoingStream(10, 3)
    outgoing.push(b"a" * 45)
    outgoing.push(b"b" * 10)
    outgoing.next_extent(True)
    assert outgoing.must_send
    assert outgoing.next_extent(False) == Extent(4, 2, 10, b"a" * 15)
    assert not outgoing.must_send
    assert outgoing.next_extent(False) is None
    assert outgoing.pending_bytes == 10


def test_control_runs_pass_waiting_publications_but_never_cut_a_begun_run() -> None:
    outgoing = OutgoingStream(10, 3)
    outgoing.push(b"a" * 35)
    outgoing.push(b"b" * 10)
    outgoing.next_extent(True)
    outgoing.push_control(b"c" * 8)
    assert outgoing.must_send
    one = outgoing.next_extent(False)
    assert one is not None
    assert one.data == b"a" * 5 + b"c" * 8
    outgoing.push_control(b"d" * 5)
    two = outgoing.next_extent(True)
    assert two is not None
    assert two.data == b"d" * 5 + b"b" * 10
