"""Nodes that join, come back, or leave: nobody waits for a transfer, and nobody begins in the middle."""

from __future__ import annotations

import pytest

from ocfcluster.limits import KIB, SECOND_NS, SYNC_TIMEOUT_NS
from ocfcluster.protocol.effects import State
from ocfcluster.protocol.operator import BootstrapWithout
from ocfcluster.protocol.settings import Limits
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import (
    HOLDING,
    configuration,
    epoch,
    held,
    learners,
    part_of_a_table,
    running,
    says_ready,
    status,
    under_load,
)
from tests.scenarios.transcript import check


def test_a_member_dies_and_is_back_before_anybody_suspects_it():
    """It is no duplicate of itself: the old incarnation is silent, the new one joins (PeerTable.heard)."""
    scenario, publisher = running()
    scenario.crash(2)
    scenario.run(ms=30)
    scenario.restart(2)
    before = scenario.world.now
    scenario.wait_until(view=(1, 2, 3), delivered=1)
    assert scenario.world.now - before < SECOND_NS
    publisher.publish("t", "from the next incarnation")
    scenario.run(ms=300)
    scenario.show()
    assert not scenario.host(2).faults
    check(scenario, "join_restart")


def test_all_others_restart_at_once_and_the_log_is_kept():
    """Two of three lose their memory within a second; the one that has it all goes on with them."""
    scenario, publisher = running(publisher=1)
    publisher.publish("t", "held by all")
    scenario.run(ms=100)
    scenario.crash(2, 3)
    scenario.run(ms=200)
    scenario.restart(2, 3)
    scenario.wait_until(view=(1, 2, 3), delivered=1)
    publisher.publish("t", "after")
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, "join_two_of_three_restart")


@pytest.mark.parametrize("bytes_per_second", [400, 100], ids=["in_time", "too_late"])
def test_a_restart_is_one_view_where_the_state_arrives_in_time(bytes_per_second):
    """The others go on working without the one that restarted, and wait for it for a second."""
    scenario, publisher = running(nodes=3, publisher=1)
    publisher.publish("t", "held by all")
    scenario.run(ms=100)
    scenario.slow_streams(bytes_per_second)
    scenario.crash(3)
    scenario.restart(3)
    scenario.run(ms=150)
    publisher.publish("t", "while it is away")
    scenario.wait_until(view=(1, 2, 3), delivered=2)
    scenario.show()
    check(scenario, f"join_restart_{bytes_per_second}")


@pytest.mark.parametrize("bytes_per_second", [100_000_000, 100], ids=["fast", "slower_than_sync_timeout"])
def test_the_decisive_one_of_two_restarts(bytes_per_second):
    """Its vote would be enough; its memory is gone, so it waits for the other, however long the copy takes."""
    scenario, publisher = running(nodes=2, publisher=2)
    publisher.publish("t", "held by both")
    scenario.run(ms=100)
    scenario.slow_streams(bytes_per_second)
    scenario.partition(1, 2)
    scenario.crash(1)
    scenario.restart(1)
    scenario.run(ms=35_000)
    scenario.show()
    scenario.show_states()
    scenario.heal_all()
    began = scenario.world.now
    scenario.wait_until(view=(1, 2), delivered=1)
    assert (scenario.world.now - began > SYNC_TIMEOUT_NS) is (bytes_per_second == 100)
    publisher.publish("t", "after")
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, f"join_one_of_two_{bytes_per_second}")


def test_the_decisive_one_of_two_restarts_while_the_other_is_suspended_for_a_minute():
    scenario, publisher = running(nodes=2, publisher=2)
    scenario.pause(2)
    scenario.crash(1)
    scenario.restart(1)
    scenario.run(ms=60_000)
    scenario.show()
    scenario.show_states(1)
    scenario.resume(2)
    scenario.wait_until(view=(1, 2), delivered=1)
    publisher.publish("t", "after")
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, "join_one_of_two_suspended")


def test_a_learner_keeps_nothing_of_an_order_that_was_cut_off():
    """It has heard of an entry that the next epoch gives to another: it may hold what is committed only
    (DataPlane._limit)."""
    scenario, publisher = part_of_a_table(4, late=(4,), publisher=1)
    mute = scenario.drop(MessageType.HEARTBEAT, source=4, loses=says_ready)
    scenario.start(4)
    scenario.wait_until(what=lambda: scenario.host(4).state is State.LEARNING)
    scenario.drop(MessageType.ORDER, *HOLDING, MessageType.HEARTBEAT, source=1, to=(2, 3))
    publisher.publish("t", "ordered for the learner alone")
    scenario.run(ms=100)
    scenario.show()
    scenario.crash(1)
    scenario.heal(mute)
    scenario.wait_until(view=(2, 3, 4))
    another = scenario.publisher(node=2, name="another program")
    another.publish("t", "at the same place")
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "join_learner_ahead")


def test_a_node_joins_and_dies_while_it_catches_up():
    scenario, publisher = part_of_a_table(4, late=(4,))
    scenario.slow_streams(100)
    scenario.start(4)
    scenario.run(ms=500)
    publisher.publish("t", "meanwhile")
    scenario.run(ms=100)
    scenario.crash(4)
    scenario.run(ms=3000)
    scenario.show()
    assert epoch(scenario, 1) == 1
    assert status(scenario, 1)["data_plane"]["kept_bytes"] == 0  # nothing is kept for it any more
    scenario.slow_streams(1_000_000)
    scenario.restart(4)
    scenario.wait_until(view=(1, 2, 3, 4))
    scenario.run(ms=200)
    scenario.show()
    check(scenario, "join_dies")


def test_the_giver_dies_in_the_middle_of_the_snapshot():
    scenario, publisher = part_of_a_table(4, late=(4,), publisher=2)
    scenario.slow_streams(100)
    scenario.start(4)
    scenario.run(ms=300)
    scenario.crash(1)
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(2, 3, 4))
    scenario.run(ms=300)
    scenario.show()
    assert scenario.world.streams.given == 1  # the other giver's
    check(scenario, "join_giver_dies")


def test_a_long_snapshot_under_load():
    """What the learner needs behind its snapshot is kept for it: it takes one, not one after the other."""
    scenario, publisher = part_of_a_table(4, late=(4,), limits=Limits(event_bytes=64 * KIB))
    scenario.slow_streams(1000)
    scenario.say("a program on node 2 publishes 2 KiB every 5 ms")
    scenario.start(4)
    for number in range(1200):
        publisher.publish("t", f"{number:04}" * 512, quiet=True)
        scenario.run(ms=5)
    scenario.run(ms=1000)
    scenario.wait_until(view=(1, 2, 3, 4))
    scenario.run(ms=500)
    assert publisher.unanswered == 0
    assert status(scenario, 4)["recovery"]["snapshots_fetched"] == 1
    for node in (1, 2, 3):
        scenario.say(f"node {node} has delivered {scenario.delivered(node)[-1]}")
    check(scenario, "join_long_snapshot")


def test_who_was_to_be_admitted_dies_before_it_hears_so():
    """The view has it, and the one that made it has the decisive vote: it goes on alone (tie-breaker: the oldest)."""
    scenario = Scenario(nodes=2, late=(1,))
    scenario.run(ms=1500)
    scenario.operator(2, BootstrapWithout((1,)))
    scenario.form()
    scenario.create_topic("t", node=2)
    publisher = scenario.publisher(node=2)
    scenario.start(1)
    scenario.wait_until(what=lambda: scenario.host(1).shell is not None)
    scenario.crash_at(1, MessageType.SYNCED, more=1)
    scenario.wait_until(view=(1, 2), on=2)
    assert configuration(scenario, 2).tie_breaker == 2
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(2,), on=2)
    scenario.run(ms=300)
    scenario.show()
    scenario.heal_all()
    scenario.restart(1)
    scenario.wait_until(view=(1, 2))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "join_dies_before_install")


def test_four_are_admitted_by_one_that_dies():
    """They had what it takes before the view was decided (Proposer._consider_synced): they go on without it."""
    scenario, publisher = running(nodes=5, publisher=1, last_man_standing=True)
    for node in (5, 4, 3, 2):
        scenario.crash(node)
        scenario.wait_until(view=tuple(range(1, node)))
    publisher.publish("t", "of the first alone")
    scenario.run(ms=200)
    scenario.show(1)
    scenario.slow_streams(200)
    scenario.restart(2, 3, 4, 5)
    scenario.run(ms=300)
    scenario.crash_at(1, MessageType.INSTALL, more=1)
    scenario.wait_until(view=(2, 3, 4, 5))
    another = scenario.publisher(node=2, name="another program")
    another.publish("t", "of the four")
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "join_four_at_once")


def test_a_member_that_was_never_synced_is_not_evicted_while_somebody_may_still_serve_it():
    """It lacks what came before its epoch, two members sleep, one has restarted: no commit quorum of the epoch answers,
    so it waits (Primacy.cannot_catch_up)."""
    scenario, publisher = below_the_base()
    scenario.pause(2)
    scenario.pause(4)
    scenario.crash(1)
    scenario.restart(1)
    scenario.heal_all()
    scenario.run(ms=20_000)
    scenario.show(3)
    assert scenario.host(3).state is State.ACTIVE
    assert scenario.host(3).evictions == 0
    scenario.resume(2, 4)
    scenario.wait_until(view=(1, 2, 3, 4))
    scenario.wait_until(what=lambda: publisher.unanswered == 0)
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, "join_unsynced_waits")


def test_a_member_that_was_never_synced_does_not_count_as_lost_memory():
    """A restarts, C had not got the base: that is one lost memory, and not two (Promise: unsynced)."""
    scenario, _publisher = below_the_base()
    scenario.heal_all()
    scenario.partition((1, 3), (2, 4))
    scenario.crash(1)
    scenario.restart(1)
    scenario.run(ms=40_000)
    assert len(scenario.histories) == 1
    scenario.show(1, 3)
    scenario.show_states(1, 3)
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3, 4))
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, "join_unsynced_is_not_lost")


def below_the_base():
    """Node 3 is a member of epoch 2 of {1, 2, 3, 4}, and has not got all that came before it."""
    scenario, publisher = running(nodes=5, publisher=2)
    scenario.drop(MessageType.DATA, source=2, to=3)
    scenario.drop(MessageType.RETRANSMIT, to=3)
    publisher.publish("t", "not held by 3")
    scenario.run(ms=100)
    scenario.crash(5)
    scenario.wait_until(view=(1, 2, 3, 4), on=(1, 2, 4))
    scenario.run(ms=200)
    scenario.show()
    assert held(scenario, 3) <= configuration(scenario, 1).base
    return scenario, publisher


def test_a_member_that_nobody_can_serve_gives_up_and_comes_back():
    """A commit quorum of its epoch answers, and what it lacks does not come: its next incarnation takes a snapshot."""
    scenario, _ = below_the_base()
    scenario.run(ms=8000)
    scenario.show(3)
    scenario.wait_until(view=(1, 2, 3, 4))
    assert scenario.host(3).evictions == 1
    scenario.show()
    check(scenario, "join_unsynced_gives_up")


def test_two_nodes_come_back_at_once_in_one_view():
    scenario, publisher = running(nodes=5)
    scenario.crash(4, 5)
    scenario.wait_until(view=(1, 2, 3))
    scenario.restart(4, 5)
    scenario.wait_until(view=(1, 2, 3, 4, 5))
    publisher.publish("t", "after")
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "join_two_at_once")


def test_snapshots_that_break_are_taken_again():
    scenario, _ = part_of_a_table(4, late=(4,))
    scenario.break_streams()
    scenario.start(4)
    scenario.run(ms=3000)
    scenario.show_states(4)
    assert status(scenario, 4)["recovery"]["snapshots_failed"] > 2
    scenario.mend_streams()
    scenario.wait_until(view=(1, 2, 3, 4))
    scenario.run(ms=200)
    scenario.show()
    check(scenario, "join_broken_snapshots")


def test_two_of_three_go_on_while_the_third_cannot_fetch_its_state():
    """They are no half of the table of five, and may commit: the one that is back is taken when it is ready, and its
    view is not begun before (Initiative._would_be_primary)."""
    scenario, publisher = part_of_a_table(5, late=(4, 5))
    scenario.crash(3)
    scenario.run(ms=3000)
    scenario.break_streams()
    scenario.restart(3)
    scenario.run(ms=10_000)
    publisher.publish("t", "two of three, of five")
    scenario.run(ms=300)
    scenario.show()
    scenario.show_states()
    assert publisher.unanswered == 0
    assert epoch(scenario, 1) == 1
    scenario.mend_streams()
    scenario.wait_until(what=lambda: scenario.host(3).state is State.ACTIVE)
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "join_third_cannot_fetch")


@pytest.mark.parametrize("how", ["hangs", "is full"])
def test_the_disk_of_a_learner_fails_while_much_is_published(how: str):
    """It cannot become a member; what it has got it has, and nothing more is kept for it."""
    scenario, publisher = running(backlog_bytes=KIB * KIB)
    scenario.crash(3)
    scenario.wait_until(view=(1, 2), on=(1, 2))
    scenario.restart(3)
    scenario.wait_for(lambda: scenario.host(3).node.state is State.LEARNING, "a snapshot that is read")
    (scenario.hang_disk if how == "hangs" else scenario.fill_disk)(3)
    under_load(scenario, publisher, seconds=15)
    assert scenario.host(3).node.state is State.LEARNING
    assert learners(scenario) == [3]  # it was in nobody's way
    (scenario.release_disk if how == "hangs" else scenario.empty_disk)(3)
    scenario.wait_until(view=(1, 2, 3))
    scenario.show()
    check(scenario, f"join_disk_{how.rsplit(maxsplit=1)[-1]}_under_load")


def test_a_snapshot_that_takes_too_long_under_load():
    """The joiner is given up before the others have to stop, and joins when it may try again."""
    scenario, publisher = running(backlog_bytes=KIB * KIB)
    scenario.crash(3)
    scenario.wait_until(view=(1, 2), on=(1, 2))
    scenario.slow_streams(bytes_per_second=12)
    scenario.restart(3)
    under_load(scenario, publisher, seconds=20)
    assert status(scenario, 1)["members"]
    scenario.slow_streams(bytes_per_second=20_000)
    under_load(scenario, publisher, seconds=20)
    scenario.wait_until(view=(1, 2, 3))
    scenario.show()
    check(scenario, "join_too_slow")
