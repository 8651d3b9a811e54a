"""Asking for what is missing, and answering: patience, rounds, bounds, one node or all."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.effects import Effect, Multicast, Send
from ocfcluster.protocol.gaps import ORDER, GapAsker
from ocfcluster.protocol.order_log import Entry, OrderLog
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.protocol.retransmit import Retransmitter
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Extent, MessageFlags, Range

MS = 1_000_000
ASKER, OTHER = ("host", 2), ("host", 3)
KEY = (5, 55)  # (node_id, incarnation)


def origin_with_hole() -> OriginStream:
    origin = OriginStream(5, 55, limits.RUN_BYTES)
    origin.add(Extent(4, 1, 1, b"x"))
    return origin


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_a_hole_is_given_time_to_close_by_itself() -> None:
    asker, origin = GapAsker(), origin_with_hole()
    asker.note(KEY, origin, 100 * MS)
    assert asker.next_due() == 100 * MS + limits.NACK_DELAY_NS
    assert asker.due(100 * MS, 64) == []
    origin.add(Extent(1, 3, 1, b"abc"))
    asker.note(KEY, origin, 100 * MS)
    assert asker.next_due() is None


def test_a_hole_that_closed_unnoticed_is_not_asked_for() -> None:
    asker, origin = GapAsker(), origin_with_hole()
    asker.note(KEY, origin, 0)
    origin.add(Extent(1, 3, 1, b"abc"))
    assert asker.due(limits.NACK_DELAY_NS, 64) == []
    assert asker.next_due() is None


def test_rounds_come_more_seldom_without_progress_and_quickly_again_with_it() -> None:
    asker, origin = GapAsker(), origin_with_hole()
    asker.note(KEY, origin, 0)
    now, waits, tries = limits.NACK_DELAY_NS, [], []
    for _ in range(8):
        [(key, many, ranges)] = asker.due(now, 64)
        assert (key, ranges) == (KEY, [Range(5, 3, 55, 1)])
        tries.append(many)
        due = asker.next_due()
        assert due is not None
        waits.append((due - now) // MS)
        now = due
    assert tries == list(range(1, 9))
    assert waits[-1] == limits.NACK_RETRY_MAX_NS // MS
    assert waits == sorted(waits)
    origin.add(Extent(1, 1, 1, b"x"))
    assert asker.due(now, 64) == [(KEY, 0, [Range(5, 2, 55, 2)])]
    assert asker.next_due() == now + limits.NACK_RETRY_NS


def test_ranges_of_one_round_are_bounded_and_fit_their_field() -> None:
    asker, origin = GapAsker(), OriginStream(5, 55, limits.RUN_BYTES)
    for first in range(2, 200, 2):
        origin.add(Extent(first, 1, 1, b"x"))
    asker.note(KEY, origin, 0)
    assert len(asker.due(MS, 10)[0][2]) == 10
    log = OrderLog(0)
    log.highest = 2**50
    asker.note(ORDER, log, 0)
    ranges = next(ranges for key, _, ranges in asker.due(MS, 10) if key == ORDER)
    assert ranges == [Range(0, 2**32 - 1, 0, 1)]
    wire.encode_nack(1, ranges)


# --- retransmission ---------------------------------------------------------------------------------------------------


def outbox() -> Outbox:
    return Outbox(wire.clear_prefix(1, 1, 1))


def packets_in(effects: list[Effect]) -> list[tuple[type[Effect], int]]:
    """Every retransmitted packet, with how it was sent."""
    found = []
    for effect in effects:
        assert isinstance(effect, Multicast | Send)
        for one in wire.split(effect.buffer, effect.segment):
            node_id, incarnation, extent = wire.decode_retransmit(one)
            assert (node_id, incarnation) == (5, 55)
            found.append((type(effect), extent.first))
    return found


def full_origin(count: int = 10, size: int = 100) -> OriginStream:
    origin = OriginStream(5, 55, limits.RUN_BYTES)
    origin.add(Extent(1, count, size, bytes(count * size)))
    return origin


def test_the_first_asker_gets_it_alone_a_second_one_soon_makes_it_a_multicast() -> None:
    box, origin = outbox(), full_origin()
    again = Retransmitter(box, 50)
    wanted = Range(5, 2, 55, 3)
    assert again.packets_asked(origin, wanted, 2, ASKER, 10_000, MS) == 200
    assert packets_in(box.effects) == [(Send, 3), (Send, 4)]
    box.effects.clear()
    assert again.packets_asked(origin, wanted, 2, ASKER, 10_000, MS + 1) == 0  # it is on its way
    again.packets_asked(origin, wanted, 3, OTHER, 10_000, MS + 2)
    assert packets_in(box.effects) == [(Multicast, 3), (Multicast, 4)]
    box.effects.clear()
    for asker, address in ((2, ASKER), (3, OTHER), (4, ("host", 4))):
        again.packets_asked(origin, wanted, asker, address, 10_000, MS + 3)
    assert box.effects == []
    again.packets_asked(origin, wanted, 2, ASKER, 10_000, MS + 2 + limits.RETRANSMIT_HOLD_NS)
    assert packets_in(box.effects) == [(Send, 3), (Send, 4)]
    assert again.packets == 6


def test_an_answer_stays_within_its_room() -> None:
    box, origin = outbox(), full_origin(1000)
    again = Retransmitter(box, 50)
    assert again.packets_asked(origin, Range(5, 2**32 - 1, 55, 1), 2, ASKER, 6450, MS) == 6400
    assert [first for _, first in packets_in(box.effects)] == list(range(1, 65))
    assert all(len(effect.buffer) <= limits.SEGMENT_BUFFER_BYTES for effect in box.effects)  # type: ignore[union-attr]


def test_what_is_not_kept_is_not_answered() -> None:
    box, origin = outbox(), full_origin()
    again = Retransmitter(box, 50)
    for first, count in ((11, 5), (0, 1), (2**64 - 1, 2**32 - 1), (5, 0)):
        assert again.packets_asked(origin, Range(5, count, 55, first), 2, ASKER, 10_000, MS) == 0
    assert box.effects == []


def test_what_was_sent_a_moment_ago_is_remembered_within_bounds(monkeypatch: object) -> None:
    box, origin = outbox(), OriginStream(5, 55, limits.RUN_BYTES)
    bound = 100
    monkeypatch.setattr(limits, "OUT_OF_ORDER_ENTRIES", bound)  # type: ignore[attr-defined]
    again = Retransmitter(box, 50)
    for number in range(1, 301):
        origin.add(Extent(number, 1, 1, b"x"))
        again.packets_asked(origin, Range(5, 1, 55, number), 2, ASKER, 100, MS)
    assert len(again._recent) == bound


def test_copies_of_order_entries_have_one_order_time_and_one_epoch_each() -> None:
    box, origin, log = outbox(), full_origin(), OrderLog(1)
    log.add([Entry(2, 2, origin, 1, 70, 8), Entry(4, 1, origin, 3, 70, 8)])
    log.add([Entry(5, 3, origin, 4, 80, 8)])
    log.add([Entry(8, 1, origin, 7, 80, 9)])
    Retransmitter(box, 50).entries_asked(log, Range(0, 100, 0, 1), ASKER, 10_000)
    orders = [wire.decode_order(effect.buffer) for effect in box.effects if isinstance(effect, Send)]
    assert [(one.flags, one.epoch, one.first_index, one.order_time, one.entries) for one in orders] == [
        (MessageFlags.COPY, 8, 2, 70, [(5, 2, 1), (5, 1, 3)]),
        (MessageFlags.COPY, 8, 5, 80, [(5, 3, 4)]),
        (MessageFlags.COPY, 9, 8, 80, [(5, 1, 7)]),
    ]
