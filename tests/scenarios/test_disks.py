"""Slow nodes, and disks that hang or are full: no vote without its record, and nobody waits for one for ever."""

from __future__ import annotations

import itertools

import pytest

from ocfcluster.limits import KIB, SECOND_NS
from ocfcluster.protocol.effects import State
from ocfcluster.protocol.settings import Limits
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.simulator.script import notice_text
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import accepted, epoch, part_of_a_table, running, status, under_load
from tests.scenarios.transcript import check


def test_the_disk_of_the_sequencer_hangs():
    """Events go on: they need no disk. A topic needs those of more than half."""
    scenario, publisher = running()
    scenario.hang_disk(1)
    publisher.publish("t", "no disk needed")
    scenario.run(ms=200)
    assert scenario.order(2, control.TopicCreate("u", False)) == 0
    scenario.run(ms=5000)
    scenario.show()
    assert epoch(scenario, 1) == 1
    scenario.release_disk(1)
    scenario.run(ms=1000)
    scenario.show_states()
    check(scenario, "disk_sequencer")


@pytest.mark.parametrize("how", ["hangs", "is full"])
def test_the_disk_of_the_sequencer_fails_and_much_is_published_behind_a_topic(how: str):
    """What its disk does not have yet it has in memory: that is good enough for stable, and nobody waits for it."""
    scenario, publisher = running(backlog_bytes=KIB * KIB)
    (scenario.hang_disk if how == "hangs" else scenario.fill_disk)(1)
    assert scenario.order(2, control.TopicCreate("u", False)) == 0
    under_load(scenario, publisher, seconds=15)
    assert epoch(scenario, 1) == 1
    (scenario.release_disk if how == "hangs" else scenario.empty_disk)(1)
    scenario.run(ms=2000)
    assert publisher.unanswered == 0
    scenario.show_states()
    check(scenario, f"disk_sequencer_{how.rsplit(maxsplit=1)[-1]}_under_load")


def test_a_member_whose_disk_hangs_behind_a_topic_is_left_out_when_the_backlog_is_full():
    """Its ACKs stop before the topic, and nobody knows what of the rest it has."""
    scenario, publisher = running(backlog_bytes=KIB * KIB)
    scenario.hang_disk(3)
    assert scenario.order(2, control.TopicCreate("u", False)) == 0
    for _ in range(40):
        publisher.publish("t", b"x" * 60_000, quiet=True)
    scenario.wait_until(view=(1, 2), on=(1, 2))
    scenario.run(ms=300)
    scenario.show()
    scenario.release_disk(3)
    scenario.wait_until(view=(1, 2, 3))
    scenario.show()
    check(scenario, "disk_member_under_load")


def test_the_disk_of_the_sequencer_hangs_in_an_epoch_change():
    """It cannot promise to itself: another one goes on, and the sequencer is not waited for."""
    scenario, publisher = running(nodes=5)
    scenario.hang_disk(1)
    scenario.crash(5)
    publisher.publish("t", "meanwhile")
    scenario.run(ms=20_000)
    scenario.show()
    scenario.release_disk(1)
    scenario.wait_until(view=(1, 2, 3, 4))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "disk_sequencer_in_change")


def test_the_disk_of_the_new_sequencer_hangs_while_it_installs():
    """The others have installed; its heartbeats of the epoch before keep it alive for nobody (in_epoch)."""
    scenario, publisher = running(nodes=5, publisher=5)
    scenario.crash(1)
    scenario.wait_until(what=lambda: accepted(scenario, 2))
    scenario.hang_disk(2)
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(3, 4, 5), on=(3, 4, 5))
    scenario.run(ms=300)
    scenario.show()
    scenario.release_disk(2)
    scenario.wait_until(view=(2, 3, 4, 5))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "disk_new_sequencer")


def test_a_full_disk_gives_no_vote():
    """Two of three: with one dead and one whose disk is full there is no quorum of votes; with room, there is."""
    scenario, _ = running()
    scenario.fill_disk(3)
    scenario.crash(1)
    scenario.run(ms=5000)
    scenario.show()
    scenario.show_states()
    assert epoch(scenario, 2) == 1
    assert status(scenario, 3)["recovery"]["persist_failures"] > 0
    scenario.empty_disk(3)
    scenario.wait_until(view=(2, 3))
    scenario.run(ms=200)
    scenario.show()
    check(scenario, "disk_full")


def test_a_member_that_gets_no_events_is_removed_after_a_while():
    """The backlog fills, the window closes, and after a time of grace the others go on without it."""
    scenario, publisher = running(
        nodes=3, window_bytes=64 * KIB, backlog_bytes=256 * KIB, limits=Limits(event_bytes=64 * KIB)
    )
    scenario.drop(MessageType.DATA, MessageType.RETRANSMIT, to=3)
    scenario.say("a program on node 2 publishes 60 events of 16 KiB")
    for number in range(60):
        publisher.publish("t", f"{number:02}".encode() * (8 * KIB), quiet=True)
    began = scenario.world.now
    scenario.run(ms=3000)
    assert publisher.unanswered > 0
    scenario.say("the window is closed")
    scenario.wait_until(view=(1, 2), on=(1, 2))
    assert 9 * SECOND_NS < scenario.world.now - began < 15 * SECOND_NS
    scenario.run(ms=1000)
    assert publisher.unanswered == 0
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    assert len(scenario.delivered(1)) == len(scenario.delivered(2)) == 62
    scenario.forget(1, 2)
    scenario.show()
    check(scenario, "disk_lagging_member")


def test_a_member_that_is_heard_too_rarely_to_be_waited_for_fills_the_backlog_and_is_removed():
    """Its acknowledgements stand still and it is not suspected: the backlog closes the window, then it goes
    (DataPlane.lags, BACKLOG_GRACE_NS)."""
    scenario, publisher = running(
        nodes=3, window_bytes=64 * KIB, backlog_bytes=256 * KIB, limits=Limits(event_bytes=64 * KIB),
        heartbeat_ns=400_000_000, suspicion_ns=2 * SECOND_NS,
    )  # fmt: skip
    scenario.drop(MessageType.DATA, MessageType.RETRANSMIT, to=3)
    scenario.drop(MessageType.ACK, MessageType.NACK, source=3)
    scenario.say("a program on node 2 publishes 60 events of 16 KiB")
    began = scenario.world.now
    for number in range(60):
        publisher.publish("t", f"{number:02}".encode() * (8 * KIB), quiet=True)
    scenario.run(ms=5000)
    assert publisher.unanswered > 0
    scenario.say(f"the window is closed: {status(scenario, 1)['data_plane']['window_closed_because']}")
    scenario.wait_until(view=(1, 2), on=(1, 2))
    assert 9 * SECOND_NS < scenario.world.now - began < 25 * SECOND_NS
    scenario.run(ms=2000)
    assert publisher.unanswered == 0
    check(scenario, "disk_backlog_removed")


def test_a_window_that_stays_closed_is_told():
    """Table of five, view {1, 2, 3}, 3 dies: it cannot be removed, so the backlog fills for good; nobody is left in
    the dark (Primacy: backlogged)."""
    scenario, publisher = part_of_a_table(
        5, late=(4, 5), window_bytes=64 * KIB, backlog_bytes=256 * KIB, limits=Limits(event_bytes=64 * KIB)
    )
    scenario.crash(3)
    scenario.say("a program on node 2 publishes 60 events of 16 KiB")
    for number in range(60):
        publisher.publish("t", f"{number:02}".encode() * (8 * KIB), quiet=True)
    scenario.run(ms=15_000)
    assert publisher.unanswered > 0
    for node in (1, 2):
        scenario.say(
            f"node {node} {', '.join(map(notice_text, scenario.host(node).notices)) or 'says nothing'}"
        )
    assert not status(scenario, 1)["primary"]
    scenario.restart(3)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=2000)
    assert publisher.unanswered == 0
    check(scenario, "disk_window_closed_for_good")


def test_full_subscribers_are_counted_for_the_whole_cluster():
    """Three programs on three nodes, each stopped for five seconds: the window is not closed for all fifteen
    (Flow._count_full)."""
    scenario, publisher = running(nodes=3)
    closed_ms = 0
    for node in (1, 2, 3):
        scenario.say(f"a subscriber on node {node} is full for 5 s")
        scenario.host(node).running.set_full(True)
        for _ in range(50):
            publisher.publish("t", "x", quiet=True)
            scenario.run(ms=100)
            closed_ms += 100 * (status(scenario, 2)["data_plane"]["window_bytes"] == 0)
        scenario.host(node).running.set_full(False)
    assert 4000 < closed_ms <= 5000 + 15_000 // 6  # what was used comes back with the interval of 30 s
    scenario.run(ms=1000)
    assert publisher.unanswered == 0
    scenario.forget()
    scenario.show()
    check(scenario, "disk_full_subscribers")


@pytest.mark.parametrize("node", [1, 2])
def test_a_wall_clock_that_leaps_moves_the_order_time_slowly(node):
    """An hour, on the sequencer or elsewhere: the order's time neither leaps nor stands still."""
    scenario, publisher = running(nodes=3)
    times = []
    for second in range(5):
        if second == 1:
            scenario.set_clock(node, 3600)
        if second == 3:
            scenario.set_clock(node, -3600)
        publisher.publish("t", f"in second {second}")
        scenario.run(ms=1000)
        times.append(scenario.host(3).delivered[-1].order_time)
    steps = [(after - before) / SECOND_NS for before, after in itertools.pairwise(times)]
    assert all(0.9 < step < 1.1 for step in steps), steps
    scenario.show()
    check(scenario, f"disk_clock_{node}")


def test_who_could_not_write_its_topics_joins_nobody():
    """Node 1 lacks a topic on its disk, which is full, and was the lowest of those that begin the next history: it is
    ready when the table of its snapshot is on disk (DataPlane.caught_up)."""
    scenario = Scenario(nodes=4, history_wait_ns=SECOND_NS)
    scenario.form()
    scenario.create_topic("t1")
    scenario.run(ms=500)
    scenario.crash(1)
    scenario.wait_until(view=(2, 3, 4), on=(2, 3, 4))
    scenario.create_topic("t2", node=2)
    scenario.run(ms=500)
    scenario.power_cut()
    scenario.restart(2, 3, 4)
    scenario.wait_until(history="new", on=(2, 3, 4))
    publisher = scenario.publisher(node=2)
    scenario.run(ms=500)
    scenario.break_streams()
    scenario.restart(1)
    scenario.run(ms=1500)
    scenario.fill_disk(1)
    scenario.pause(4)
    publisher.publish("t2", "freed nowhere: node 4 sleeps")
    scenario.run(ms=5)
    scenario.mend_streams()
    scenario.run(ms=5000)
    scenario.show()
    scenario.show_states(1)
    assert scenario.host(1).state is State.LEARNING
    scenario.power_cut()
    scenario.empty_disk(1)
    scenario.restart(1, 2, 3)
    scenario.run(ms=6000)
    scenario.show()
    scenario.show_states(1, 2, 3)
    assert list(scenario.host(2).node.topics)[-2:] == ["t1", "t2"]
    check(scenario, "disk_full_joiner")
