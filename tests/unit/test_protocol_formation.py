"""Formation: every node of the table found, heard and agreed with, once; and what a node says that it waits for."""

from __future__ import annotations

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.errors import StateDirectoryError
from ocfcluster.protocol import Node
from ocfcluster.protocol.effects import Deliver, Effect, Multicast, Persist, Send, State, StateChange, View
from ocfcluster.protocol.settings import Configuration, Limits, Record
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import MessageType
from tests.unit.protocol_world import SECOND_NS, START_NS, WALL_NS, World, settings_of, traffic


def forming(world: World) -> None:
    world.run(2 * SECOND_NS)
    assert all(node.state is State.FORMING for node in world.nodes.values())


def test_all_nodes_get_the_same_configuration() -> None:
    world = World(3, loss=0.3).form()
    configurations = [node.configuration for node in world.nodes.values()]
    assert configurations[0] is not None
    assert configurations[1:] == configurations[:-1]
    one = configurations[0]
    assert [(member.node_id, member.incarnation, member.store_id) for member in one.members] == [
        (1, 1001, 2001), (2, 1002, 2002), (3, 1003, 2003),
    ]  # fmt: skip
    assert (one.epoch, one.base, one.sequencer, one.m_sequence) == (1, 0, 1, 1)


def test_it_is_on_disk_before_anything_is_sent_in_the_epoch() -> None:
    world = World(2, persist_ns=SECOND_NS)
    world.record = True

    def of_the_epoch() -> list[int]:
        """Who has sent heartbeats of epoch 1."""
        beats = [(source, one) for source, _, one in world.wire if one[wire.BODY] == MessageType.HEARTBEAT]
        return [source for source, one in beats if wire.decode_heartbeat(one).epoch]

    def written(node_id: int) -> Configuration | None:
        return (
            msgspec.msgpack.decode(world.disks[node_id], type=Record).configuration
            if world.disks[node_id]
            else None
        )

    while world.nodes[2].state is not State.ACTIVE:
        world.step()
        assert all(written(source) is not None for source in of_the_epoch())
        for node_id, node in world.nodes.items():
            assert (node.state is State.ACTIVE) <= (written(node_id) is not None)
    world.form()
    assert written(1) == written(2) == world.nodes[1].configuration == world.nodes[2].configuration
    # A promise, what was accepted, and the configuration: each on disk before the next step.
    assert world.now - START_NS >= 3 * SECOND_NS


def test_a_failed_write_is_told_and_tried_again_and_nobody_votes_without_it() -> None:
    world = World(2)
    world.persist_fails = {1, 2}
    forming(world)
    assert {fault.code for fault in world.faults[1]} == {"persist_failed"}
    world.persist_fails = {2}
    forming(world)  # each of the table must have accepted
    world.persist_fails = set()
    world.form()
    assert world.nodes[1].configuration == world.nodes[2].configuration


def test_a_node_that_is_missing_is_waited_for_by_name() -> None:
    world = World(3)
    world.paused = {3}
    forming(world)
    assert world.nodes[1].waiting_for == "nodes 3"
    assert world.nodes[1].room() <= 0
    world.paused = set()
    world.form()
    assert world.nodes[1].waiting_for == ""


def test_a_node_that_does_not_hear_all_others_is_waited_for() -> None:
    world = World(3)
    world.cut = {(3, 2)}
    forming(world)
    assert "node 2 to hear all" in world.nodes[1].waiting_for
    assert "nodes 3" in world.nodes[2].waiting_for
    world.cut = set()
    world.form()


@pytest.mark.parametrize("other", [{"delivery": "agreed"}, {"limits": Limits(topics=7)}])
def test_nodes_that_disagree_do_not_form(other: dict[str, object]) -> None:
    world = World(2)
    table = {1: 1, 2: 1}
    world.nodes[2] = Node(settings_of(2, table, **other), world.now, WALL_NS)
    forming(world)
    assert "same nodes, delivery, limits" in world.nodes[1].waiting_for


def test_other_votes_are_a_disagreement_too() -> None:
    world = World(2)
    world.nodes[2] = Node(settings_of(2, {1: 1, 2: 3}), world.now, WALL_NS)
    forming(world)


def test_two_agents_of_one_node_id_are_reported_and_keep_the_cluster_from_forming() -> None:
    world = World(2)
    double = Node(settings_of(2, {1: 1, 2: 1}, incarnation=77), world.now, WALL_NS)

    def beat() -> None:
        double.timer(world.now, WALL_NS)
        double.end_burst(world.now)
        for effect in double.take_effects():
            if not isinstance(effect, StateChange):
                world.inject([1, 2], effect.buffer)  # type: ignore[union-attr]
        world.later(50_000_000, beat)

    world.later(0, beat)
    forming(world)
    assert "only one of the nodes that call themselves 2" in world.nodes[1].waiting_for
    assert {fault.code for fault in world.faults[2]} == {"duplicate_node_id"}
    assert len(world.faults[2]) <= 3  # not for every datagram


def test_a_node_that_comes_back_to_a_running_cluster_joins_it_as_another_incarnation() -> None:
    world = World(3).form()
    traffic(world, [1, 2], 10)
    world.kill(3)
    world.restart(3)
    assert world.nodes[3].waiting_for
    world.until(lambda: world.nodes[3].state is State.ACTIVE)
    configuration = world.nodes[3].configuration
    assert configuration is not None
    assert configuration.cluster_id == world.nodes[1].configuration.cluster_id  # type: ignore[union-attr]
    assert [(one.node_id, one.incarnation, one.born_on) for one in configuration.members][-1] == (
        3, 2003, configuration.m_sequence,
    )  # fmt: skip
    first = world.log[3][0]
    assert isinstance(first, View)
    assert first.configuration == configuration
    assert [one.node_id for one in first.joined] == [3]
    traffic(world, [1, 2, 3], 5)
    after = world.log[1][world.log[1].index(first) :]
    assert world.log[3] == after  # from its view on it delivers what the others do


def test_a_node_without_a_table_runs_alone_at_once() -> None:
    node = Node(settings_of(4, {}), START_NS, WALL_NS)
    seen: list[Effect] = []
    for _ in range(9):  # what it has promised, accepted and installed is written
        node.timer(START_NS, WALL_NS)
        node.end_burst(START_NS)
        effects = node.take_effects()
        seen += effects
        for effect in effects:
            if isinstance(effect, Persist):
                node.persisted(effect.token, True, START_NS)
    assert node.state is State.ACTIVE
    assert not any(isinstance(effect, Multicast | Send) for effect in seen)  # nobody is there to listen
    [view] = [item for effect in seen if isinstance(effect, Deliver) for item in effect.items]
    assert isinstance(view, View)
    assert (view.seq, view.ev_id) == (1, 1)


def test_the_smallest_mtu_is_in_force() -> None:
    world = World(2)
    world.nodes[2] = Node(settings_of(2, {1: 1, 2: 1}, mtu=1400), world.now, WALL_NS)
    world.form()
    assert [node.configuration and node.configuration.mtu for node in world.nodes.values()] == [1400, 1400]


def test_commands_that_came_before_the_first_epoch_are_ordered_in_it() -> None:
    world = World(2)
    token = world.nodes[2].control(control.TopicCreate("early", False))
    world.form()
    world.until(lambda: any(one.first_number == token for one in world.outcomes[2]))
    assert "early" in world.nodes[1].topics


def test_the_first_thing_that_is_delivered_is_the_first_view() -> None:
    world = World(3).form()
    configuration = world.nodes[1].configuration
    assert configuration is not None
    world.until(lambda: all(world.log.values()))
    for node_id in world.nodes:
        assert world.log[node_id] == [View(configuration, 1, 1, tuple(configuration.members), ())]
        assert world.nodes[node_id].last_seq(1) == 1


def test_a_cluster_that_lost_its_memory_begins_a_new_history_with_its_topics() -> None:
    world = World(2).form()
    world.topic("kept")
    world.topic("removed")
    world.control(1, control.TopicRemove("removed"))
    old = world.nodes[1].configuration
    assert old is not None
    world.run(SECOND_NS)
    world.kill(1, 2)
    for node_id in world.nodes:
        world.restart(node_id)
    world.form()
    new = world.nodes[1].configuration
    assert new is not None
    assert new.supersedes == [old.cluster_id]
    assert (new.epoch, new.m_sequence) == (1, 1)
    for node in world.nodes.values():
        assert set(node.topics) == {
            "oc.membership",
            "oc.connectivity",
            "kept",
        }  # from the start, not made again
        assert node.topics["kept"].topic_id == 16
    assert world.topic("next") == 18  # ids are never used twice, not in the next history either
    world.run(SECOND_NS)
    world.agree()


def test_what_is_no_record_is_refused() -> None:
    for record in (b"\xc1", b"x", b"\x91" * 2000):
        with pytest.raises(StateDirectoryError):
            Node(settings_of(1, {1: 1}, record=record), START_NS, WALL_NS)


@pytest.mark.parametrize("mtu", [0, 1, limits.MTU_MINIMUM - 1])
def test_an_impossible_mtu_of_another_node_forms_nothing(mtu: int) -> None:
    world = World(2)
    world.nodes[2] = Node(settings_of(2, {1: 1, 2: 1}), world.now, WALL_NS)
    honest = wire.encode_heartbeat

    def lie(beat: wire.Heartbeat, fill_bytes: int = 0) -> bytes:
        return honest(beat._replace(mtu=mtu), fill_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "encode_heartbeat", lie)
        forming(world)
    assert "node 2" in world.nodes[1].waiting_for
