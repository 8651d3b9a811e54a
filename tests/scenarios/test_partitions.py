"""Networks that fall apart and come together: one part goes on, the others say so, nobody is a second primary."""

from __future__ import annotations

import pytest

from ocfcluster.limits import SECOND_NS
from ocfcluster.protocol.effects import State
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import (
    HOLDING,
    configuration,
    epoch,
    part_of_a_table,
    promised,
    running,
    says_ready,
    status,
    too_large,
)
from tests.scenarios.transcript import check


@pytest.mark.parametrize(
    ("nodes", "sides", "primary"),
    [
        (4, ((1, 2), (3, 4)), (1, 2)),  # the tie-breaker decides
        (4, ((3, 4), (1, 2)), (1, 2)),
        (5, ((1, 2), (3, 4, 5)), (3, 4, 5)),
        (5, ((1, 2, 5), (3, 4)), (1, 2, 5)),
        (3, ((1,), (2,), (3,)), ()),
        (2, ((1,), (2,)), (1,)),
    ],
    ids=["2-2", "2-2_again", "2-3", "3-2", "1-1-1", "1-1"],
)
def test_splits_and_heals(nodes, sides, primary):
    """Quorums.decision and Quorums.commit: at most one side publishes on; the others say so, and come back."""
    scenario, publisher = running(nodes=nodes, publisher=1)
    other = scenario.publisher(node=nodes, name="another program")
    scenario.partition(*sides)
    publisher.publish("t", "on node 1")
    other.publish("t", f"on node {nodes}")
    if primary:
        scenario.wait_until(view=primary, on=primary)
    scenario.run(ms=4000)
    scenario.show()
    for node in range(1, nodes + 1):
        assert status(scenario, node)["primary"] is (node in primary)
    scenario.heal_all()
    scenario.wait_until(view=tuple(range(1, nodes + 1)))
    scenario.wait_until(what=lambda: publisher.unanswered == other.unanswered == 0)
    scenario.run(ms=200)
    scenario.show()
    check(scenario, "partition_" + "_".join("".join(map(str, side)) for side in sides))


def test_a_sequencer_that_hears_the_wrong_one_gives_way_to_a_healthy_pair():
    """1 hears 2 and is heard by 3 and 2 ... in one direction each: nobody is linked with it, 2 and 3 are."""
    scenario, publisher = running(publisher=3)
    scenario.cut(1, to=3)
    scenario.cut(2, to=1)
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(2, 3), on=(2, 3))
    scenario.run(ms=3000)
    scenario.show()
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=200)
    scenario.show()
    check(scenario, "partition_crossed_links")


def test_a_sequencer_that_is_heard_by_too_few_says_so():
    """The others have gone on without it, and it does not learn so: its programs are told that it is not primary."""
    scenario, publisher = running(publisher=1)
    scenario.cut(1, to=3)
    scenario.cut(2, to=1)
    publisher.publish("t", "waits")
    scenario.run(ms=10_000)
    assert status(scenario, 2)["epoch"] == 2
    assert not status(scenario, 1)["primary"]


def test_a_deaf_node_disturbs_nobody():
    """It is heard and hears nobody: its proposals are ignored (Recovery._supports), its ballots raise nothing."""
    scenario, publisher = running()
    scenario.cut((1, 2), to=3)
    scenario.wait_until(view=(1, 2), on=(1, 2))
    settled = epoch(scenario, 1)
    scenario.run(ms=20_000)
    publisher.publish("t", "after a long time")
    scenario.run(ms=200)
    scenario.show()
    assert epoch(scenario, 1) == settled
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=200)
    scenario.show()
    check(scenario, "partition_deaf")


def test_a_node_frozen_by_its_own_proposal_is_thawed():
    """Node 2 promised itself while it was cut off from the sequencer; nobody else did. A higher round of the sequencer
    frees it, with the same members: no event."""
    scenario, publisher = running(publisher=2)
    scenario.drop(MessageType.PREPARE, source=2)
    scenario.partition(1, (2, 3))
    scenario.wait_until(what=lambda: promised(scenario, 2))
    assert not promised(scenario, 3)
    scenario.say("node 2 has promised itself, and is frozen")
    scenario.heal_all()
    publisher.publish("t", "thawed")
    scenario.wait_until(view=(1, 2, 3), epoch=2, delivered=2)
    scenario.run(ms=200)
    scenario.show()
    assert configuration(scenario, 1).m_sequence == 1
    check(scenario, "partition_own_promise")


def test_who_is_evicted_while_cut_off_is_told_nothing_else_between():
    """NOT_PRIMARY, then evicted: hearing the others again is not enough to say that all is well (Primacy._is_back)."""
    scenario, _publisher = running()
    scenario.partition(1, (2, 3))
    scenario.wait_until(view=(2, 3), on=(2, 3))
    scenario.run(ms=3000)
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    told = list(scenario.host(1).notices)
    assert len(told) == 2
    check(scenario, "partition_evicted")


def test_a_short_cut_restores_what_was_there():
    """Everybody lost the quorum, nobody could form a view: the same members go on, and say so."""
    scenario, publisher = running()
    scenario.partition(1, 2, 3)
    publisher.publish("t", "waits")
    scenario.run(ms=4000)
    scenario.show()
    scenario.heal_all()
    scenario.wait_until(primary=True)
    scenario.run(ms=1000)
    scenario.show()
    assert configuration(scenario, 1).m_sequence == 1
    check(scenario, "partition_restored")


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_a_paused_sequencer_wakes_up(nodes):
    """The others have gone on where they could; it orders nothing more, and evicts nobody."""
    scenario, publisher = running(nodes=nodes, publisher=2)
    scenario.pause(1)
    publisher.publish("t", "while it sleeps")
    scenario.run(ms=5000)
    scenario.show()
    scenario.resume(1)
    scenario.wait_until(view=tuple(range(1, nodes + 1)), primary=True)
    scenario.wait_until(what=lambda: publisher.unanswered == 0)
    scenario.run(ms=300)
    scenario.show()
    assert nodes > 2 or epoch(scenario, 1) == 1
    check(scenario, f"partition_paused_sequencer_{nodes}")


def test_who_slept_does_not_suspect_the_others():
    """Two nodes, and the one with the decisive vote slept: its timer fires before it reads its socket (Node.timer)."""
    scenario, publisher = running(nodes=2)
    scenario.pause(1)
    scenario.run(ms=5000)
    scenario.resume(1)
    publisher.publish("t", "after")
    scenario.run(ms=3000)
    scenario.show()
    assert epoch(scenario, 1) == epoch(scenario, 2) == 1
    check(scenario, "partition_slept")


def test_a_working_pair_is_not_frozen_for_a_view_that_may_not_be():
    """Table of five, three have formed, one dies: two of five are no primary, two of three commit."""
    scenario, publisher = part_of_a_table(5, late=(4, 5))
    scenario.crash(3)
    scenario.run(ms=3000)
    publisher.publish("t", "two of three")
    scenario.run(ms=300)
    scenario.show()
    assert status(scenario, 1)["recovery"]["attempts"] == 1  # the bootstrap
    assert not status(scenario, 1)["frozen"]
    scenario.start(4)
    scenario.wait_until(view=(1, 2, 4))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "partition_pair_of_five")


def test_the_same_bad_link_for_ever_does_not_form_the_cluster_again_and_again():
    """Only small datagrams pass between the sequencer and one member: it goes, and stays out for longer each time."""
    scenario, publisher = running(nodes=4)
    scenario.say("from now on nothing large passes between node 1 and node 4")
    scenario.world.network.drops.append(
        lambda source, to, datagram: {source, to} == {1, 4} and too_large(datagram)
    )
    scenario.wait_until(view=(1, 2, 3), on=(1, 2, 3))
    scenario.run(ms=30_000)
    before = epoch(scenario, 1)
    scenario.run(ms=100_000)
    after = epoch(scenario, 1)
    assert after - before <= 2  # Peer.last_large, Readmission
    scenario.forget()
    publisher.publish("t", "all the same")
    scenario.run(ms=300)
    scenario.show(1, 2, 3)
    check(scenario, "partition_bad_link")


def test_a_link_that_flaps_keeps_its_node_out_for_longer_each_time():
    """Readmission: who was left out for its link has to show it good, for longer the more often it was."""
    scenario, _ = running(nodes=3)
    outs = []
    for _ in range(5):
        scenario.partition((1, 2), 3)
        scenario.wait_until(view=(1, 2), on=(1, 2))
        scenario.heal_all()
        began = scenario.world.now
        scenario.wait_until(view=(1, 2, 3))
        outs.append((scenario.world.now - began) / SECOND_NS)
    assert outs[-1] > 4 * outs[0]
    assert outs == sorted(outs)
    check(scenario, "partition_flapping")


def test_one_percent_of_loss_forms_nothing_anew():
    """One datagram lost is no suspicion, and a padded heartbeat lost is no bad link."""
    scenario, publisher = running(nodes=5)
    scenario.lossy(0.01)
    for _ in range(60):
        publisher.publish("t", "every second", quiet=True)
        scenario.run(ms=1000)
    scenario.heal_all()
    scenario.run(ms=1000)
    for node in range(1, 6):
        assert epoch(scenario, node) == 1
        scenario.say(f"node {node} has delivered {len(scenario.delivered(node))} events, in epoch 1")
    check(scenario, "partition_one_percent")


def test_a_sequencer_in_agreed_mode_delivers_on_alone_and_a_learner_that_followed_it_begins_anew():
    """What it delivered beyond the cut never was: neither the old sequencer nor the learner keeps it."""
    scenario, publisher = part_of_a_table(5, late=(5,), publisher=1, delivery="agreed")
    scenario.drop(MessageType.HEARTBEAT, source=5, loses=says_ready)  # nobody admits it yet
    scenario.start(5)
    scenario.wait_until(what=lambda: scenario.host(5).state is State.LEARNING)
    scenario.partition((1, 5), (2, 3, 4))
    publisher.publish("t", "delivered alone")
    scenario.run(ms=50)
    scenario.show()
    scenario.show_states(5)
    scenario.wait_until(view=(2, 3, 4), on=(2, 3, 4))
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3, 4, 5))
    scenario.run(ms=1000)
    scenario.show()
    check(scenario, "partition_agreed")


def test_a_member_that_hears_no_sequencer_is_served_by_third_parties():
    scenario, publisher = running(nodes=3, publisher=2)
    lost = scenario.drop(*HOLDING, source=2, to=3)
    publisher.publish("t", "one", "two")
    scenario.run(ms=2000)
    scenario.show()
    assert lost.lost
    assert scenario.host(3).state is State.ACTIVE
    check(scenario, "partition_third_party")
