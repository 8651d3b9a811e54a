"""The topic table on disk: how far may be acknowledged, where the short cut ends, and writes that fail."""

from __future__ import annotations

import itertools

import msgspec

from ocfcluster import limits
from ocfcluster.protocol.effects import Effect, Persist
from ocfcluster.protocol.settings import Configuration, Limits, Member, Record
from ocfcluster.protocol.topic_disk import NO_LIMIT, TopicDisk
from ocfcluster.wire import control
from ocfcluster.wire.run import RunKind, build_run
from tests.unit.protocol_world import World, publication

CONFIGURATION = Configuration(
    "0" * 32,
    [],
    1,
    0,
    {1: 1},
    [Member(1, 1, 1, 1, 1)],
    1,
    1,
    "safe",
    False,
    1,
    1500,
    Limits(),
    1,
    [(1, 0)],
    0,
)


class Disk:
    def __init__(self) -> None:
        self.disk = TopicDisk(CONFIGURATION, itertools.count(1).__next__)

    def stage(self, index: int, operand: control.Operand) -> None:
        self.disk.stage(index, control.control_run(operand, 1), Limits())

    def write(self, now: int = 0) -> tuple[int, Record] | None:
        effects: list[Effect] = []
        self.disk.write(effects, now)
        if not effects:
            return None
        [effect] = effects
        assert isinstance(effect, Persist)
        return effect.token, msgspec.msgpack.decode(effect.record, type=Record)


def test_nothing_is_acknowledged_past_a_change_that_is_not_on_disk() -> None:
    one = Disk()
    assert one.disk.limit == NO_LIMIT
    one.stage(10, control.TopicCreate("a", False))
    one.stage(14, control.TopicCreate("b", True))
    assert one.disk.limit == 9
    written = one.write()
    assert written is not None
    token, record = written
    assert record == Record(CONFIGURATION, [(16, "a", False), (17, "b", True)], 18, 14)
    assert one.write() is None  # one write at a time
    one.stage(20, control.TopicRemove("a"))
    assert one.disk.limit == 9
    assert one.disk.written(token, True, 0)
    assert one.disk.limit == 19
    again = one.write()
    assert again is not None
    assert again[1].topics == [(17, "b", True)]
    assert one.disk.written(again[0], True, 0)
    assert one.disk.limit == NO_LIMIT


def test_commands_that_change_nothing_hold_up_nothing() -> None:
    one = Disk()
    one.stage(5, control.TopicRemove("unknown"))
    one.stage(6, control.TopicCreate("oc.mine", False))
    one.disk.stage(7, build_run(RunKind.TOPIC_CREATE, 0, 0, 1, [b"\xc1"]), Limits())
    assert (one.disk.limit, one.disk.before_uncommitted(0), one.write()) == (NO_LIMIT, NO_LIMIT, None)


def test_the_short_cut_ends_before_the_first_uncommitted_change() -> None:
    one = Disk()
    one.stage(10, control.TopicCreate("a", False))
    one.stage(20, control.TopicCreate("b", False))
    assert one.disk.before_uncommitted(9) == 9
    assert one.disk.before_uncommitted(10) == 19
    assert one.disk.before_uncommitted(20) == NO_LIMIT


def test_a_failed_write_is_tried_again_after_a_while() -> None:
    one = Disk()
    one.stage(10, control.TopicCreate("a", False))
    written = one.write()
    assert written is not None
    assert one.disk.written(written[0], False, 1000)
    assert (one.disk.failures, one.disk.limit) == (1, 9)
    due = 1000 + limits.PERSIST_RETRY_NS
    assert one.disk.next_timer() == due
    assert one.write(due - 1) is None
    again = one.write(due)
    assert again is not None
    assert one.disk.next_timer() == NO_LIMIT
    assert not one.disk.written(written[0], True, due)  # the answer to the first one, late
    assert one.disk.limit == 9
    assert one.disk.written(again[0], True, due)
    assert one.disk.limit == NO_LIMIT


def test_a_change_is_delivered_only_when_a_commit_quorum_has_it_on_disk() -> None:
    world = World(3).form()
    world.persist_fails = {2, 3}
    token = world.nodes[1].control(control.TopicCreate("t", False))
    world.settle(1)
    world.run(300_000_000)
    assert not any("t" in node.topics for node in world.nodes.values())
    assert any(fault.code == "persist_failed" for fault in world.faults[2])
    world.persist_fails = {2}
    world.until(lambda: all("t" in node.topics for node in world.nodes.values()))
    assert [one.error for one in world.outcomes[1] if one.first_number == token] == [0]
    assert world.plane(1).stable < world.plane(1).commit  # node 2 has it not on disk
    topic_id, producer = world.nodes[1].topics["t"].topic_id, world.producer(2)
    world.publish(2, publication(topic_id, producer, 1, [b"x"]))
    world.until(lambda: all(world.count(node_id) == 1 for node_id in world.nodes))
    world.agree()


def test_indexes_of_committed_changes_are_forgotten_on_every_node() -> None:
    for settings in ({"nodes": 3}, {"nodes": 5}, {"nodes": 3, "delivery": "agreed"}):
        world = World(**settings).form()  # type: ignore[arg-type]
        for number in range(30):
            world.topic(f"topic {number}")
        world.run(300_000_000)
        world.topic("last")
        world.run(300_000_000)
        for node_id in world.nodes:
            assert len(world.plane(node_id)._topic_disk._changes) <= 1


def test_topics_of_the_history_before_stay_on_disk_until_they_are_made_again() -> None:
    one = Disk()
    one.disk = TopicDisk(
        CONFIGURATION, itertools.count(1).__next__, [(16, "old", False), (17, "older", True)]
    )
    one.stage(10, control.TopicCreate("older", True))
    written = one.write()
    assert written is not None
    assert [(name, local) for _, name, local in written[1].topics] == [("older", True), ("old", False)]
    one.disk.written(written[0], True, 0)
    one.stage(11, control.TopicCreate("old", False))
    one.stage(12, control.TopicRemove("old"))
    written = one.write()
    assert written is not None
    assert [name for _, name, _ in written[1].topics] == ["older"]
