"""The sequencer: indexes, commit by votes, stable by all, and a clock that never goes back."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.order_log import OrderLog
from ocfcluster.protocol.sequencer import OrderClock, Sequencer
from ocfcluster.protocol.settings import Configuration, Limits, Member
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.datagram import Extent
from tests.unit.protocol_world import settings_of

SECOND = 10**9


def configuration(votes: dict[int, int], base: int = 0) -> Configuration:
    members = [Member(1, node_id, node_id, node_id, many) for node_id, many in votes.items()]
    return Configuration(
        "0" * 32, [], 1, base, votes, members, 1, 1, "safe", False, 1, 1500, Limits(), 1, [(1, base)], 0
    )


def sequencer(votes: dict[int, int], base: int = 0) -> Sequencer:
    return Sequencer(configuration(votes, base), settings_of(1, votes), 1400, base, 0)


def test_commit_is_what_more_than_half_of_the_votes_hold() -> None:
    one = sequencer({1: 1, 2: 1, 3: 1})
    one.keeps(9, 9, 20)
    assert not one.count()
    one.acknowledged(2, 5, 20)
    assert one.count()
    assert (one.commit, one.stable) == (5, 0)
    one.acknowledged(3, 7, 20)
    assert one.count()
    assert (one.commit, one.stable) == (7, 5)


def test_half_of_the_votes_are_not_enough() -> None:
    one = sequencer({1: 1, 2: 1, 3: 1, 4: 1})
    one.keeps(9, 9, 20)
    one.acknowledged(2, 9, 20)
    assert not one.count()
    one.acknowledged(3, 4, 20)
    assert one.count()
    assert one.commit == 4


def test_votes_count_and_not_heads() -> None:
    one = sequencer({1: 1, 2: 1, 3: 1, 4: 4})
    for node_id in (1, 2, 3):
        one.acknowledged(node_id, 9, 20)
    assert not one.count()
    one.acknowledged(4, 3, 20)
    assert one.count()
    assert one.commit == 3
    heavy = sequencer({1: 3, 2: 1, 3: 1})
    heavy.acknowledged(1, 6, 20)
    assert heavy.count()
    assert heavy.commit == 6


def test_stable_waits_for_the_last_member_and_begins_at_the_base() -> None:
    one = sequencer({1: 1, 2: 1, 3: 1}, base=100)
    for node_id in (1, 2):
        one.acknowledged(node_id, 150, 200)
    one.count()
    assert (one.commit, one.stable) == (150, 100)


def test_what_waits_for_the_sequencers_own_disk_holds_up_commit_and_not_stable() -> None:
    one = sequencer({1: 1, 2: 1, 3: 1})
    one.keeps(9, 3, 20)
    one.acknowledged(2, 9, 20)
    one.count()
    assert (one.commit, one.stable) == (3, 0)
    one.acknowledged(3, 8, 20)
    one.count()
    assert (one.commit, one.stable) == (8, 8)
    one.acknowledged(3, 9, 20)
    one.keeps(20, 3, 20)
    one.count()
    assert (one.commit, one.stable) == (9, 9)
    assert one.lag([2, 3]) == 11


def test_stable_is_never_beyond_commit() -> None:
    one = sequencer({1: 2, 2: 1})
    one.keeps(9, 3, 20)
    one.acknowledged(2, 9, 20)
    one.count()
    assert (one.commit, one.stable) == (3, 3)


def test_acknowledgements_of_what_cannot_be_say_nothing() -> None:
    one = sequencer({1: 1, 2: 1, 3: 1})
    assert not one.acknowledged(2, 21, 20)  # never ordered
    assert not one.acknowledged(9, 5, 20)  # no member
    assert one.acknowledged(2, 5, 20)
    assert not one.acknowledged(2, 4, 20)  # older
    assert not one.acknowledged(2, 5, 20)
    one.keeps(5, 5, 20)
    one.count()
    assert (one.commit, one.stable) == (5, 0)


def test_each_origins_packets_are_ordered_behind_those_before() -> None:
    one, log = sequencer({1: 1, 2: 1}), OrderLog(1)
    origins = {node_id: OriginStream(node_id, node_id, 10_000) for node_id in (1, 2)}
    origins[1].add(Extent(1, 3, 1, b"abc"))
    origins[2].add(Extent(2, 1, 1, b"b"))  # the first is missing
    clock = OrderClock()
    clock.enter(7, 0)
    assert [(e.first_index, e.count, e.order_time) for e in one.order(origins, log, clock, 0)] == [(2, 3, 7)]
    assert one.order(origins, log, clock, 0) == []
    log.next_index = 5
    origins[2].add(Extent(1, 1, 1, b"a"))
    origins[1].add(Extent(4, 1, 1, b"d"))
    entries = one.order(origins, log, clock, 1)
    assert [(e.first_index, e.count, e.origin.node_id, e.first_packet, e.order_time) for e in entries] == [
        (5, 1, 1, 4, 8),
        (6, 2, 2, 1, 8),
    ]


def test_lag_is_the_slowest_responsive_members() -> None:
    one = sequencer({1: 1, 2: 1, 3: 1})
    one.keeps(20, 20, 20)
    one.acknowledged(2, 15, 20)
    assert one.lag([2, 3]) == 20
    assert one.lag([2]) == 5
    assert one.lag([]) == 0


def test_the_order_clock_follows_a_jump_slowly_and_never_goes_back() -> None:
    clock = OrderClock()
    clock.enter(1000 * SECOND, 0)
    assert clock.read(0) == 1000 * SECOND
    clock.slew(SECOND, 1001 * SECOND)
    assert clock.read(SECOND) == 1001 * SECOND
    clock.slew(2 * SECOND, 5000 * SECOND)  # the wall clock jumped by more than an hour
    after = clock.read(2 * SECOND)
    assert after - 1002 * SECOND == SECOND // limits.ORDER_TIME_SLEW
    clock.slew(3 * SECOND, 10 * SECOND)  # and far back
    assert clock.read(3 * SECOND) > after
    assert clock.read(0) == clock.read(3 * SECOND)


def test_the_order_clock_goes_on_from_epoch_to_epoch() -> None:
    clock = OrderClock()
    clock.enter(7000 * SECOND, 0)
    clock.enter(7000 * SECOND, 100 * SECOND)  # nothing was ordered meanwhile
    assert clock.read(100 * SECOND) == 7100 * SECOND
    clock.enter(9000 * SECOND, 101 * SECOND)  # somebody has promised that it is so late
    assert clock.read(101 * SECOND) == 9000 * SECOND


def test_a_members_order_clock_follows_its_sequencer() -> None:
    clock = OrderClock()
    clock.enter(7000 * SECOND, 0)
    clock.follow(7010 * SECOND, 20 * SECOND)  # a monotonic clock that is quicker than the sequencer's
    assert clock.read(30 * SECOND) == 7020 * SECOND
    clock.enter(7010 * SECOND, 40 * SECOND)
    clock.slew(50 * SECOND, 99_999 * SECOND)  # it is the sequencer now, and has another time of day
    assert clock.read(50 * SECOND) == 7040 * SECOND + 10 * SECOND // limits.ORDER_TIME_SLEW
