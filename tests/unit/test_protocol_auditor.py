"""The order auditor: checkpoints at agreed indexes, and a difference that cannot stay hidden."""

from __future__ import annotations

import pytest

from ocfcluster import limits
from ocfcluster.protocol.auditor import NO_CHECKPOINT, Auditor
from tests.unit.protocol_world import World, configuration_of, publication, traffic

EVERY = limits.AUDIT_EVERY
FIVE = configuration_of(dict.fromkeys(range(1, 6), 1))


def test_a_checkpoint_is_taken_before_the_first_run_behind_its_index() -> None:
    one = Auditor(0)
    assert (one.next_index, one.latest) == (EVERY, NO_CHECKPOINT)
    one.passed(EVERY + 1, 111)
    assert (one.latest, one.next_index) == ((EVERY, 111), 2 * EVERY)
    one.passed(5 * EVERY + 7, 222)  # several were passed over: their value is the same, the last one counts
    assert (one.latest, one.next_index) == ((5 * EVERY, 222), 6 * EVERY)


@pytest.mark.parametrize(
    ("delivered", "following"),
    [(0, EVERY), (1, EVERY), (EVERY - 1, EVERY), (EVERY, 2 * EVERY), (EVERY + 1, 2 * EVERY)],
)
def test_who_joins_takes_the_next_one(delivered: int, following: int) -> None:
    assert Auditor(delivered).next_index == following


def test_only_what_commit_covers_is_announced_and_compared() -> None:
    one = Auditor(0)
    one.take(EVERY, 111)
    assert one.announced(EVERY - 1) == NO_CHECKPOINT
    assert one.announced(EVERY) == (EVERY, 111)
    assert one.compare(2, EVERY, 999, EVERY - 1)
    assert one.compare(2, 0, 999, EVERY)
    assert not one.compare(2, EVERY, 999, EVERY)
    assert one.compare(3, EVERY, 111, EVERY)
    assert one.compare(3, 2 * EVERY, 999, 3 * EVERY)  # this node has not got there
    assert one.differences == 1


def test_who_has_another_value_than_most_is_outvoted() -> None:
    one = Auditor(0)
    one.take(EVERY, 111)
    for node_id, chain in ((2, 999), (3, 999), (4, 111), (5, 888)):
        one.compare(node_id, EVERY, chain, EVERY)
    assert not one.outvoted(EVERY, FIVE, 1)  # two of five
    one.compare(5, EVERY, 999, EVERY)
    assert one.outvoted(EVERY, FIVE, 1)
    assert not one.outvoted(2 * EVERY, FIVE, 1)
    one.forget_others()
    assert not one.outvoted(EVERY, FIVE, 1)


def test_checkpoints_are_bounded() -> None:
    one = Auditor(0)
    for number in range(1, 5 * limits.AUDIT_CHECKPOINTS):
        one.take(number * EVERY, number)
    assert len(one._checkpoints) == limits.AUDIT_CHECKPOINTS
    assert not one.compare(2, (number - 1) * EVERY, 0, 2**60)


def test_nodes_that_deliver_the_same_have_the_same_values() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "AUDIT_EVERY", 16)
        world = World(3, loss=0.05).form()
        traffic(world, [1, 2, 3], 20)
        world.kill(3)
        world.restart(3)
        world.until(lambda: world.members(3) == [1, 2, 3])
        traffic(world, [1, 2, 3], 20)
        world.run(300_000_000)
        latest = {world.plane(node_id).auditor.latest for node_id in world.nodes}
        assert len(latest) == 1
        assert latest.pop()[0] > 100
        assert all(world.plane(node_id).auditor.differences == 0 for node_id in world.nodes)
        assert all(world.faults[node_id] == [] for node_id in world.nodes)


def test_a_minority_that_differs_is_told_and_stops() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "AUDIT_EVERY", 16)
        world = World(3).form()
        topic_id, producer = world.topic(), world.producer(1)
        world.run(300_000_000)
        old = world.nodes[3]
        assert old.plane is not None
        old.plane.state.ev_id += 1  # a machine that computes wrongly
        for number in range(1, 40):
            world.publish(1, publication(topic_id, producer, number, [b"x"]))
            world.run(1_000_000)
        world.until(lambda: world.nodes[3] is not old)
        assert "differs" in old.last_eviction
        for node_id in world.nodes:
            assert {one.code for one in world.faults[node_id]} == {"order_differs"}
        world.until(lambda: world.members(1) == [1, 2, 3])
        traffic(world, [1, 2, 3], 10)
