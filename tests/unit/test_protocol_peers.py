"""Other nodes: each counter is taken once, and the table of incarnations is bounded."""

from __future__ import annotations

import sys

from ocfcluster import limits
from ocfcluster.protocol.peers import PeerTable
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.replay import ReplayWindow


def test_each_counter_is_taken_once() -> None:
    window = ReplayWindow()
    assert window.accept(1)
    assert not window.accept(1)
    assert window.accept(5)
    assert window.accept(3)
    assert not window.accept(3)
    assert window.accept(2)
    assert window.accept(4)
    assert not any(window.accept(counter) for counter in range(6))


def test_zero_is_no_counter() -> None:
    window = ReplayWindow()
    assert not window.accept(0)
    window.accept(3)
    assert not window.accept(0)


def test_several_counters_are_taken_all_or_none() -> None:
    window = ReplayWindow()
    assert window.accept(11, 10)
    assert not window.accept(11, 10)
    assert window.accept(1, 5)
    assert not window.accept(4, 4)  # two of them came before
    assert window.accept(6, 3)
    assert not window.accept(9, 4)  # up into those that came
    assert window.accept(9, 2)
    assert not window.accept(20, 1)
    assert window.accept(21, 1)


def test_what_lies_a_window_behind_is_not_taken() -> None:
    window = ReplayWindow()
    newest = 10 * limits.REPLAY_WINDOW
    assert window.accept(newest)
    assert not window.accept(newest - limits.REPLAY_WINDOW)
    assert window.accept(newest - limits.REPLAY_WINDOW + 1)
    assert window.accept(newest - 1)


def test_many_jumps_stay_within_bounds() -> None:
    window = ReplayWindow()
    counter = 0
    for _ in range(200):
        counter += limits.REPLAY_WINDOW // 3
        assert window.accept(counter)
        assert not window.accept(counter)
    assert window.accept(2**64 - 1)
    assert not window.accept(2**64 - 1)
    assert window.accept(2**64 - 2)
    assert not window.accept(1)


def size_of(window: ReplayWindow) -> int:
    total = 0
    for name in ReplayWindow.__slots__:
        value = getattr(window, name)
        total += sys.getsizeof(value)
        if isinstance(value, set | list | dict):
            total += sum(map(sys.getsizeof, value))
        if isinstance(value, dict):
            total += sum(map(sys.getsizeof, value.values()))
    return total


def test_a_stranger_cannot_make_a_window_large() -> None:
    """There may be 2 × NODES windows, filled by whoever has heard a cluster's name."""
    window = ReplayWindow()
    for counter in range(1, 100 * limits.REPLAY_WINDOW, limits.REPLAY_WINDOW // 4):
        window.accept(counter)
    assert size_of(window) < 32 * limits.KIB


def test_the_table_is_bounded_and_the_longest_silent_go_first() -> None:
    table = PeerTable(limits.SUSPICION_NS, limits.HEARTBEAT_NS)
    for incarnation in range(5 * limits.NODES):
        table.add(1, incarnation, ("h", 1), now=incarnation)
    assert len(table._peers) == 2 * limits.NODES
    assert table.get(1, 3 * limits.NODES - 1) is None
    assert table.get(1, 3 * limits.NODES) is not None


def test_members_stay_whatever_strangers_send() -> None:
    table = PeerTable(limits.SUSPICION_NS, limits.HEARTBEAT_NS)
    members = [table.add(node_id, 1, ("h", 1), now=0) for node_id in range(1, limits.NODES)]
    for peer in members:
        peer.origin = OriginStream(peer.node_id, 1, 1000)
    for incarnation in range(2, 5 * limits.NODES):
        table.add(1, incarnation, ("h", 1), now=incarnation)
    assert all(table.get(peer.node_id, 1) is peer for peer in members)


def test_heard_are_those_within_the_suspicion_time_in_order() -> None:
    table = PeerTable(100, 10)
    for node_id, at in ((3, 50), (1, 200), (2, 150)):
        table.add(node_id, 9, ("h", node_id), now=at)
    assert [peer.node_id for peer in table.heard(150)] == [1, 2]
    assert [peer.node_id for peer in table.heard(149)] == [1, 2, 3]


def test_of_two_incarnations_the_one_heard_last_counts_and_the_silent_one_soon_does_not() -> None:
    table = PeerTable(100, 10)
    old = table.add(1, 500, ("h", 1), now=0)
    new = table.add(1, 7, ("h", 1), now=20)
    assert table.heard(20) == [old, new]  # both are fresh: which of them is gone is not known yet
    new.last_heard = 25
    assert table.heard(25) == [new]
    old.last_heard = 30
    assert table.heard(30) == [new, old]  # both speak
    assert table.heard(200) == []


def test_a_link_that_takes_only_small_datagrams_is_none() -> None:
    table = PeerTable(limits.SUSPICION_NS, limits.HEARTBEAT_NS)
    peer = table.add(1, 9, ("h", 1), now=0)
    padded = limits.HEARTBEAT_PADDED_EVERY * limits.HEARTBEAT_NS
    for now in range(0, 10 * padded, limits.HEARTBEAT_NS):
        peer.last_heard = now
        if table.heard(now) == []:
            break
    assert 3 * padded < now < 4 * padded
    peer.last_large = now
    assert table.heard(now) == [peer]


def test_who_slept_counts_everyone_as_just_heard() -> None:
    table = PeerTable(limits.SUSPICION_NS, limits.HEARTBEAT_NS)
    peer, long_gone = table.add(1, 9, ("h", 1), now=10**15), table.add(2, 9, ("h", 2), now=0)
    later = 10**15 + 3000 * limits.SECOND_NS
    assert table.heard(later) == []
    table.count_as_heard(later)
    assert table.heard(later) == [peer]
    assert long_gone.last_heard == 0
