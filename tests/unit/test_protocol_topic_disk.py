"""The topic table on disk: how far may be acknowledged, where the short cut ends, and writes that fail."""

from __future__ import annotations

import msgspec

from ocfcluster import limits
from ocfcluster.protocol.effects import Effect, Persist
from ocfcluster.protocol.settings import Limits, Record
from ocfcluster.protocol.state import TopicTable
from ocfcluster.protocol.store import NO_LIMIT, Store
from ocfcluster.protocol.topic_disk import TopicDisk
from ocfcluster.wire import control
from ocfcluster.wire.run import RunKind, build_run
from ocfcluster.wire.topics import DEFAULT_SETTINGS as PLAIN
from ocfcluster.wire.topics import Retention, TopicSettings
from tests.unit.protocol_world import World, publication


class Disk:
    """A TopicDisk and the store below it; ``write`` begins what is due, ``done`` says that it is durable."""

    def __init__(self, table: TopicTable | None = None) -> None:
        self.store = Store(b"")
        self.disk = TopicDisk(self.store, table or TopicTable())
        self._token = 0

    def stage(self, index: int, operand: control.Operand) -> None:
        self.disk.stage(index, control.control_run(operand, 1), Limits())

    def write(self, now: int = 0) -> Record | None:
        self.disk.flush(everything=True)
        effects: list[Effect] = []
        self.store.write(effects, now)
        if not effects:
            return None
        [effect] = effects
        assert isinstance(effect, Persist)
        self._token = effect.token
        return msgspec.msgpack.decode(effect.record, type=Record)

    def done(self, ok: bool = True, now: int = 0) -> None:
        assert self.store.written(self._token, ok, now) == ok


def test_nothing_is_acknowledged_past_a_change_that_is_not_on_disk() -> None:
    one = Disk()
    assert one.disk.limit == NO_LIMIT
    one.stage(10, control.TopicCreate("a", False))
    one.stage(14, control.TopicCreate("b", True))
    assert one.disk.limit == 9
    assert one.write() == Record(None, [(16, "a", False, PLAIN), (17, "b", True, PLAIN)], 18, 14)
    assert one.write() is None  # one write at a time
    one.stage(20, control.TopicRemove("a"))
    assert one.disk.limit == 9
    one.done()
    assert one.disk.limit == 19
    again = one.write()
    assert again is not None
    assert (again.topics, again.topics_index) == ([(17, "b", True, PLAIN)], 20)
    one.done()
    assert one.disk.limit == NO_LIMIT


def test_a_change_that_comes_while_the_one_before_is_written_waits_for_the_next_write() -> None:
    one = Disk()
    one.stage(10, control.TopicCreate("a", False))
    one.write()
    one.stage(11, control.TopicCreate("b", False))
    one.disk.flush(everything=True)
    one.done()
    assert one.disk.limit == 10
    assert one.write() is not None
    one.done()
    assert one.disk.limit == NO_LIMIT


def test_changes_that_cancel_each_other_are_written_for_their_place() -> None:
    """Another node may have the first of them alone, and would say that its table reaches further."""
    one = Disk(TopicTable.of([(16, "t", False, PLAIN)], 17))
    one.store.change(topics=[(16, "t", False, PLAIN)], next_topic_id=17, topics_index=5)
    one.stage(10, control.TopicAlter("t", TopicSettings(Retention(events=5))))
    one.stage(11, control.TopicAlter("t", PLAIN))
    assert one.write() is not None
    assert (one.store.record.topics, one.store.record.topics_index) == ([(16, "t", False, PLAIN)], 11)


def test_of_a_history_that_has_ended_nothing_is_written() -> None:
    one = Disk()
    one.stage(10, control.TopicCreate("a", False))
    one.disk.end()
    assert one.write() is None
    assert one.store.record.topics_index == 0


def test_a_table_that_came_with_a_snapshot_is_written_when_all_that_is_committed_is_in_it() -> None:
    """The disk may have a newer one, on which others count until then."""
    one = Disk(TopicTable.of([(16, "came", False, PLAIN)], 17))
    one.store.change(
        topics=[(16, "came", False, PLAIN), (17, "later", False, PLAIN)],
        next_topic_id=18,
        topics_index=55,
    )
    one.disk.require(50)
    assert one.disk.limit == 49
    one.disk.flush(everything=False)
    assert one.store.record.next_topic_id == 18
    one.stage(55, control.TopicCreate("later", False))
    one.stage(60, control.TopicCreate("more", False))
    assert one.write() is not None
    assert one.store.record.next_topic_id == 19
    one.done()
    assert one.disk.limit == NO_LIMIT


def test_the_table_goes_on_from_what_was_on_disk() -> None:
    one = Disk(TopicTable.of([(16, "old", False, PLAIN), (17, "older", True, PLAIN)], 30))
    one.stage(10, control.TopicCreate("older", True))  # it is there: no change
    assert one.write() is None
    one.stage(11, control.TopicCreate("new", False))
    one.stage(12, control.TopicRemove("old"))
    written = one.write()
    assert written is not None
    assert (written.topics, written.next_topic_id) == (
        [(17, "older", True, PLAIN), (30, "new", False, PLAIN)],
        31,
    )


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


def test_a_failed_write_holds_up_as_before() -> None:
    one = Disk()
    one.stage(10, control.TopicCreate("a", False))
    assert one.write() is not None
    one.done(ok=False, now=1000)
    assert one.disk.limit == 9
    due = 1000 + limits.PERSIST_RETRY_NS
    assert one.write(due - 1) is None
    assert one.write(due) is not None
    one.done()
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


def test_topics_of_a_snapshot_that_are_there_already_are_as_new_as_it() -> None:
    """Else their disk would go behind any that has older ones, where a history begins from disks."""
    table = TopicTable()
    one = Disk(table)
    one.stage(10, control.TopicCreate("a", False))
    one.write()
    one.done()
    one.store.change(topics_index=0)  # nobody knew any more where its epoch had ended
    one.disk.require(51)
    again = one.write()
    assert again is not None
    assert again.topics_index == 51
