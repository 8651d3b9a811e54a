"""The failure detector: links, who counts the sequencer as alive, and what a decision quorum thinks of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ocfcluster.protocol.detector import Detector, history_numbers, in_epoch
from ocfcluster.protocol.peers import Peer, PeerTable
from ocfcluster.protocol.settings import Configuration
from ocfcluster.wire.datagram import Heartbeat, MessageFlags
from tests.unit.protocol_world import configuration_of, settings_of

SUSPICION = 1000
START = 10_000
THREE = configuration_of({1: 1, 2: 1, 3: 1})
FOUR = configuration_of(dict.fromkeys(range(1, 5), 1))
FIVE = configuration_of(dict.fromkeys(range(1, 6), 1))
ALL = (1, 2, 3, 4, 5)


class Ear:
    """The detector of node ``own``, and the heartbeats that it hears."""

    def __init__(self, own: int = 2, **settings: Any) -> None:
        self.peers = PeerTable(SUSPICION, SUSPICION // 10)
        table = dict.fromkeys(ALL, 1)
        self.detector = Detector(
            settings_of(own, table, suspicion_ns=SUSPICION, **settings), self.peers, START
        )
        self.own = own
        self.now = START

    def beat(
        self,
        node_id: int,
        hears: tuple[int, ...] = ALL,
        *,
        incarnation: int = 0,
        configuration: Configuration = THREE,
        **fields: Any,
    ) -> Peer:
        """A heartbeat of a node, that hears others in the incarnations that they usually have."""
        incarnation = incarnation or 1000 + node_id
        peer = self.peers.get(node_id, incarnation)
        if peer is None:
            peer = self.peers.add(node_id, incarnation, ("h", node_id), self.now)
        peer.last_heard = peer.last_large = self.now
        history = history_numbers(configuration.cluster_id)
        heard = [(one, 1000 + one) for one in hears if one != node_id]
        values = dict.fromkeys(Heartbeat._fields, 0) | {
            "epoch": configuration.epoch, "history_time": history[0], "history_random": history[1],
            "store_id": 2000 + node_id, "heard": heard,
        }  # fmt: skip
        peer.beat = Heartbeat(**{**values, **fields})
        self.detector.update(self.now)
        return peer

    def alive(self, configuration: Configuration = THREE, resigned: bool = False) -> bool:
        self.detector.update(self.now)
        return self.detector.sequencer_alive(configuration, resigned, self.now)


def test_histories_are_two_numbers() -> None:
    assert history_numbers("") == (0, 0)
    assert history_numbers("00000000000000ff" + "0" * 15 + "a") == (255, 10)
    beat = Ear().beat(1).beat
    assert beat is not None
    assert in_epoch(beat, THREE)
    assert not in_epoch(beat, msgspec.structs.replace(THREE, epoch=2))
    assert not in_epoch(beat, msgspec.structs.replace(THREE, cluster_id="f" * 32))


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hears_1", "hears_3", "pair", "linked"),
    [
        (ALL, ALL, (1, 3), True),
        (ALL, ALL, (2, 3), True),
        (ALL, ALL, (3, 2), True),
        ((2,), ALL, (1, 3), False),  # 1 does not hear 3
        ((2,), ALL, (3, 1), False),
        (ALL, (1,), (2, 3), False),  # 3 does not hear this node
        (ALL, (1,), (3, 2), False),
        (ALL, (1,), (1, 3), True),
        (ALL, ALL, (1, 4), False),  # 4 is not heard
        (ALL, ALL, (4, 2), False),
    ],
)
def test_a_link_is_one_both_ways(
    hears_1: tuple[int, ...], hears_3: tuple[int, ...], pair: tuple[int, int], linked: bool
) -> None:
    ear = Ear()
    ear.beat(1, hears_1)
    ear.beat(3, hears_3)
    assert ear.detector.linked(*pair) is linked


def test_a_restarted_node_does_not_keep_its_old_self_linked() -> None:
    ear = Ear()
    ear.beat(1)
    ear.beat(3)
    assert ear.detector.linked(1, 3)
    ear.now += SUSPICION // 2
    ear.beat(3, incarnation=7777)
    ear.beat(1)  # which still says that it hears 3 as it was
    assert not ear.detector.linked(1, 3)
    assert ear.detector.linked(2, 3)
    assert ear.detector.member_linked(3, 7777)
    assert not ear.detector.member_linked(3, 1003)


def test_a_node_whose_heartbeat_did_not_come_yet_is_not_linked() -> None:
    ear = Ear()
    ear.peers.add(1, 1001, ("h", 1), ear.now)
    ear.detector.update(ear.now)
    assert ear.detector.hears(1, 1001)
    assert not ear.detector.linked(2, 1)
    assert not ear.detector.member_linked(1, 1001)


def test_who_is_silent_for_the_suspicion_time_is_not_heard() -> None:
    ear = Ear()
    ear.beat(1)
    ear.now += 10
    ear.beat(3)
    assert ear.detector.next_suspicion == START + SUSPICION
    ear.now = START + SUSPICION - 1
    ear.detector.update(ear.now)
    assert ear.detector.hears(1, 1001)
    ear.now += 1
    ear.detector.update(ear.now)
    assert not ear.detector.hears(1, 1001)
    assert ear.detector.present(1) is None
    assert ear.detector.hears(3, 1003)
    assert ear.detector.next_suspicion == START + 10 + SUSPICION


# --- the sequencer ----------------------------------------------------------------------------------------------------


def test_the_sequencer_is_alive_while_it_is_heard_in_this_epoch() -> None:
    ear = Ear()
    ear.now += 2 * SUSPICION
    ear.beat(1)
    assert ear.alive()
    ear.now += SUSPICION
    assert not ear.alive()


def test_only_datagrams_of_this_epoch_keep_the_sequencer_alive() -> None:
    ear = Ear()
    old = msgspec.structs.replace(THREE, epoch=9)
    ear.beat(1, configuration=old)
    assert ear.alive()  # it may not have installed this one yet: that is given time
    ear.now += SUSPICION
    ear.beat(1, configuration=old)
    assert not ear.alive()
    ear.detector.installed_at = ear.now
    assert ear.alive()


def test_a_sequencer_that_was_never_heard_is_given_the_suspicion_time() -> None:
    ear = Ear()
    assert ear.alive()
    ear.now += SUSPICION - 1
    assert ear.alive()
    ear.now += 1
    assert not ear.alive()
    ear.detector.installed_at = ear.now
    assert ear.alive()


def test_a_sequencer_that_resigned_or_restarted_is_not_alive() -> None:
    ear = Ear()
    ear.beat(1, flags=int(MessageFlags.SUSPECTS))
    assert not ear.alive()
    ear.beat(1)
    assert ear.alive()
    ear.now += SUSPICION // 2
    ear.beat(1, incarnation=7777)
    assert not ear.alive()  # at once, not when the old one is suspected


def test_this_node_as_the_sequencer_is_alive_unless_it_resigned_or_restarted() -> None:
    ear = Ear(own=1)
    assert ear.alive()
    assert not ear.alive(resigned=True)
    assert not Ear(own=1, incarnation=5).alive()


# --- what others think ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beat", "suspects"),
    [
        ({}, False),
        ({"flags": int(MessageFlags.SUSPECTS)}, True),
        ({"flags": int(MessageFlags.SUSPECTS | MessageFlags.READY | MessageFlags.LEARNING)}, True),
        ({"epoch": 0}, False),  # of another epoch: it hears the sequencer
        ({"epoch": 0, "flags": int(MessageFlags.SUSPECTS)}, False),  # that was about another one
        ({"epoch": 0, "heard": [(2, 1002)]}, True),
        ({"epoch": 0, "heard": [(1, 5)]}, True),  # another incarnation of it
    ],
)
def test_who_suspects_the_sequencer(beat: dict[str, Any], suspects: bool) -> None:
    ear = Ear()
    assert ear.detector.suspects(ear.beat(3, **beat), THREE) is suspects


def test_the_sequencer_itself_in_another_epoch_suspects_nobody() -> None:
    ear = Ear()
    assert not ear.detector.suspects(ear.beat(1, epoch=0), THREE)
    peer = ear.peers.add(3, 1003, ("h", 3), ear.now)
    assert not ear.detector.suspects(peer, THREE)  # it has said nothing


def test_voices_are_acceptors_with_the_disk_that_they_had() -> None:
    ear = Ear()
    ear.beat(1)
    ear.beat(3, store_id=5)
    assert set(ear.detector.voices(THREE)) == {1}
    ear.beat(3, incarnation=9999)  # restarted, with its disk: still an acceptor
    assert set(ear.detector.voices(THREE)) == {1, 3}
    ear.beat(5)
    assert set(ear.detector.voices(THREE)) == {1, 3}
    assert ear.detector.is_acceptor(THREE)
    assert not Ear(store_id=5).detector.is_acceptor(THREE)
    assert not Ear(own=5).detector.is_acceptor(THREE)


@pytest.mark.parametrize(
    ("configuration", "links", "proposer", "connected"),
    [
        (THREE, {1: ALL}, 2, True),  # this node and 1
        (THREE, {1: (3,)}, 2, False),  # 1 does not hear this node
        (THREE, {}, 2, False),
        (THREE, {1: ALL, 3: ALL}, 1, True),
        (THREE, {1: (2,), 3: ALL}, 1, True),  # this node and 1
        (THREE, {1: (3,), 3: ALL}, 1, True),  # 3 and 1
        (THREE, {1: (), 3: ALL}, 1, False),
        (FOUR, {3: ALL}, 2, False),  # half, without the tie-breaker
        (FOUR, {1: ALL}, 2, True),  # half, with it
        (FIVE, {1: ALL, 3: ALL}, 2, True),
        (FIVE, {1: ALL, 3: (1,)}, 2, False),
        (FIVE, {1: (2,), 3: (2,)}, 2, True),  # a star is enough
    ],
)
def test_a_proposer_is_connected_with_a_decision_quorum(
    configuration: Configuration, links: dict[int, tuple[int, ...]], proposer: int, connected: bool
) -> None:
    ear = Ear()
    for node_id, hears in links.items():
        ear.beat(node_id, hears)
    assert ear.detector.connected(configuration, proposer) is connected


def test_a_stranger_is_no_part_of_the_quorum_that_it_asks() -> None:
    ear = Ear(store_id=5)
    ear.beat(1)
    assert not ear.detector.connected(THREE, 2)
    ear.beat(3)
    assert ear.detector.connected(THREE, 2)


@pytest.mark.parametrize(
    ("suspecting", "own", "abandoned"),
    [({3}, True, True), ({3}, False, False), (set(), True, False), ({1, 3}, False, True)],
)
def test_the_sequencer_is_abandoned_when_a_decision_quorum_suspects_it(
    suspecting: set[int], own: bool, abandoned: bool
) -> None:
    ear = Ear()
    for node_id in (1, 3):
        ear.beat(node_id, flags=int(MessageFlags.SUSPECTS) if node_id in suspecting else 0)
    assert ear.detector.abandoned(THREE, own) is abandoned


@pytest.mark.parametrize(
    ("promised", "own", "elsewhere"),
    [({3}, True, True), ({3}, False, False), (set(), True, False), ({1, 3}, False, True)],
)
def test_promises_of_a_decision_quorum_show_in_heartbeats(
    promised: set[int], own: bool, elsewhere: bool
) -> None:
    ear = Ear()
    for node_id in (1, 3):
        ear.beat(node_id, promised_round=int(node_id in promised))
    assert ear.detector.promised_elsewhere(THREE, own) is elsewhere
    for node_id in (1, 3):  # of another epoch
        ear.beat(node_id, promised_round=1, epoch=7)
    assert not ear.detector.promised_elsewhere(THREE, own)
