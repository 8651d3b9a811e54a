"""Nodes together when some die, sleep, lose a link, come back, or join: one order, and every change for its reason."""

from __future__ import annotations

import errno

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.protocol import messages
from ocfcluster.protocol.departure import may_stop
from ocfcluster.protocol.effects import Delivery, HistoryLost, Notification, State, View
from ocfcluster.protocol.operator import BootstrapWithout, NewHistory, Rejoin
from ocfcluster.protocol.settings import Configuration
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import BODY, MessageType
from tests.unit.protocol_world import SECOND_NS, World, datagram, publication, settings_of, traffic

MS = 1_000_000


def configuration(world: World, node_id: int) -> Configuration:
    found = world.nodes[node_id].configuration
    assert found is not None
    return found


def cut_off(world: World, *nodes: int) -> None:
    world.cut = {(one, other) for one in nodes for other in world.nodes if other not in nodes}
    world.cut |= {(other, one) for one, other in world.cut}


def flow(world: World, sender: int, runs: int = 200, each_ns: int = 5 * MS) -> tuple[int, int]:
    """A publisher on ``sender`` that publishes a run every few milliseconds from now on; topic and producer."""
    topic_id, producer = world.topic(f"flow {world.now}", sender), world.producer(sender)
    node = world.nodes[sender]

    def publish(number: int) -> None:
        if number <= runs and world.nodes[sender] is node and sender not in world.dead:
            if node.room() > 0:
                world.publish(sender, publication(topic_id, producer, number, [number.to_bytes(4, "little")]))
                number += 1
            world.later(each_ns, lambda: publish(number))

    publish(1)
    return topic_id, producer


def numbers(world: World, node_id: int, topic_id: int) -> list[int]:
    """What a node delivered of a topic, as its events say it."""
    return [
        int.from_bytes(one.run[-4:], "little")
        for one in world.deliveries(node_id)
        if one.topic_id == topic_id
    ]


def same(world: World, *nodes: int) -> None:
    """Sooner or later these have delivered the same."""
    world.until(lambda: all(world.log[one] == world.log[nodes[0]] for one in nodes), 5 * SECOND_NS)
    world.agree(nodes)


# --- death ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", [1, 2, 3])
@pytest.mark.parametrize("delivery", ["safe", "agreed"])
def test_the_others_go_on_when_one_dies(dies: int, delivery: str) -> None:
    world = World(3, delivery=delivery, loss=0.02, seed=dies).form()
    sender = 2 if dies != 2 else 3
    topic_id, _ = flow(world, sender)
    world.run(200 * MS)
    world.kill(dies)
    rest = [node_id for node_id in world.nodes if node_id != dies]
    world.until(lambda: all(len(numbers(world, one, topic_id)) == 200 for one in rest), 20 * SECOND_NS)
    world.until(lambda: all(world.members(one) == rest for one in rest), 3 * SECOND_NS)
    for one in rest:
        assert numbers(world, one, topic_id) == list(range(1, 201))
        assert world.news[one][-1].startswith("epoch 2 with 2 members")
    same(world, *rest)
    views = [item for item in world.log[rest[0]] if isinstance(item, View)]
    assert [(one.seq, [gone.node_id for gone in one.left]) for one in views] == [(1, []), (2, [dies])]


def test_failover_takes_little_more_than_the_suspicion_time() -> None:
    world = World(3).form()
    world.run(300 * MS)
    began = world.now
    world.kill(1)
    world.until(lambda: world.members(2) == world.members(3) == [2, 3])
    assert world.now - began < limits.SUSPICION_NS + SECOND_NS // 2
    assert configuration(world, 2).sequencer == 2  # the oldest


def test_what_a_dead_origin_began_and_did_not_finish_is_dropped_everywhere() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(3)
    run = publication(topic_id, producer, 1, [b"x" * 4000])
    world.run(300 * MS)
    plane = world.plane(3)
    begun = wire.DATA_HEAD + (plane.last_packet + 1).to_bytes(8, "little") + run[:1400]
    world.paused = {3}
    world.inject([1, 2], world.forge(3, begun))
    world.run(100 * MS)
    assert world.plane(1).origins.present[3].assembler.unfinished
    world.until(lambda: world.members(1) == world.members(2) == [1, 2])
    traffic_before = world.count(1)
    topic, sender = world.topic("after"), world.producer(1)
    world.publish(1, publication(topic, sender, 1, [b"y"]))
    world.until(lambda: world.count(1) == world.count(2) == traffic_before + 1)
    same(world, 1, 2)
    world.run(SECOND_NS)
    assert all(len(world.plane(one).origins.streams) == 2 for one in (1, 2))  # nothing of node 3 is kept


def test_five_lose_two_at_once_and_then_a_third() -> None:
    world = World(5, seed=3).form()
    topic_id, _ = flow(world, 4, runs=300)
    world.run(100 * MS)
    world.kill(1, 3)
    world.until(lambda: world.members(4) == [2, 4, 5])
    world.kill(2)
    world.run(5 * SECOND_NS)
    assert world.members(4) == [2, 4, 5]  # two of five would be no primary: nothing is proposed
    assert not world.nodes[4].primary
    done = len(numbers(world, 4, topic_id))
    world.restart(2)
    world.until(lambda: len(numbers(world, 4, topic_id)) == 300, 30 * SECOND_NS)
    assert done < 300
    assert numbers(world, 4, topic_id) == list(range(1, 301))
    same(world, 4, 5)


def test_last_man_standing_shrinks_to_one() -> None:
    world = World(3, last_man_standing=True).form()
    topic_id, _ = flow(world, 1, runs=1000)
    world.kill(3)
    world.until(lambda: world.members(1) == [1, 2])
    world.kill(2)
    world.until(lambda: world.members(1) == [1])
    done = len(numbers(world, 1, topic_id))
    world.run(SECOND_NS)
    assert len(numbers(world, 1, topic_id)) > done


def test_a_member_that_keeps_the_backlog_full_is_removed_after_a_grace() -> None:
    world = World(3, backlog_bytes=1 << 18, suspicion_ns=60 * SECOND_NS).form()
    topic_id, producer = world.topic(), world.producer(2)
    world.run(300 * MS)
    world.paused = {3}
    for number in range(1, 60):
        world.publish(2, publication(topic_id, producer, number, [b"x" * 20_000]))
    world.run(limits.BACKLOG_GRACE_NS - SECOND_NS)
    assert world.members(1) == [1, 2, 3]
    assert world.plane(1).window == 0
    world.until(lambda: world.members(1) == [1, 2], 3 * SECOND_NS)
    world.until(lambda: world.count(1) == world.count(2) == 59)
    same(world, 1, 2)


# --- sleep and links --------------------------------------------------------------------------------------------------


def test_who_slept_drains_its_sockets_before_it_judges_others() -> None:
    world = World(3).form()
    world.run(300 * MS)
    world.paused = {2}
    world.run(800 * MS)  # nobody suspects it yet; by its own clock it has heard nobody for long
    world.paused = set()
    world.run(3 * SECOND_NS)
    assert configuration(world, 1).epoch == 1
    assert world.nodes[2].recovery.counters["attempts"] == 0


def test_who_slept_too_long_comes_back_as_another_incarnation() -> None:
    world = World(3).form()
    traffic(world, [1, 2], 3)
    world.paused = {3}
    world.until(lambda: world.members(1) == [1, 2])
    traffic(world, [1, 2], 3)
    world.paused = set()
    world.until(lambda: world.members(1) == [1, 2, 3])
    assert configuration(world, 1).members[-1].incarnation == 2003
    world.until(lambda: world.nodes[3].state is State.ACTIVE)
    traffic(world, [1, 2, 3], 3)


@pytest.mark.parametrize("link", [(2, 3), (3, 2)])
def test_a_bad_link_between_two_that_are_not_the_sequencer_changes_nothing(link: tuple[int, int]) -> None:
    world = World(3).form()
    world.cut = {link}
    topic_id, _ = flow(world, link[0])
    world.until(lambda: all(len(numbers(world, one, topic_id)) == 200 for one in world.nodes))
    world.run(3 * SECOND_NS)
    assert configuration(world, 1).epoch == 1
    same(world, *world.nodes)


@pytest.mark.parametrize("link", [(1, 3), (3, 1)])
def test_a_bad_link_with_the_sequencer_leaves_that_member_out_until_it_is_good(link: tuple[int, int]) -> None:
    world = World(3).form()
    topic_id, _ = flow(world, 2)
    world.cut = {link}
    world.until(lambda: world.members(1) == [1, 2])
    world.run(10 * SECOND_NS)
    assert configuration(world, 1).epoch == 2  # it does not form again and again
    world.cut = set()
    world.until(lambda: world.members(1) == [1, 2, 3] and world.nodes[3].state is State.ACTIVE)
    assert numbers(world, 1, topic_id) == list(range(1, 201))
    same(world, 1, 2)


def test_one_that_flaps_waits_longer_each_time() -> None:
    world = World(3).form()
    epochs = []
    for _ in range(6):
        cut_off(world, 3)
        world.until(lambda: 3 not in world.members(1))
        world.cut = set()
        began = world.now
        world.until(lambda: 3 in world.members(1))
        epochs.append(world.now - began)
    assert epochs[-1] > 3 * epochs[0]
    assert epochs[-1] <= limits.READMISSION_MAX_NS + 5 * SECOND_NS


def test_a_link_that_passes_only_small_datagrams_is_none() -> None:
    world = World(3).form()
    send = world._send

    def small(source: int, target: int, buffer: bytes, segment: int) -> None:
        if {source, target} != {1, 3} or segment < 1000:
            send(source, target, buffer, segment)

    world._send = small  # type: ignore[method-assign]
    world.until(lambda: world.members(1) == [1, 2])


def test_a_proposal_of_one_that_is_mistaken_is_not_listened_to() -> None:
    """Node 3 does not hear the sequencer; 1 and 2 hear everybody. Its PREPARE would freeze them for nothing."""
    world = World(3).form()
    world.cut = {(1, 3)}
    ballot = messages.Ballot(9, 3, 1003)
    current = configuration(world, 2)
    body = messages.encode(messages.Prepare(current.cluster_id, 1, ballot, current, [], 0))
    world.inject([1, 2], world.forge(3, body))
    assert world.nodes[2].recovery.counters["prepares_ignored"] == 1
    assert not world.plane(1).frozen
    assert not world.plane(2).frozen


def test_a_member_that_was_frozen_for_a_lost_cause_is_thawed_by_the_sequencer() -> None:
    world = World(3).form()
    current = configuration(world, 2)
    world.nodes[2].recovery.acceptor._promise(
        messages.Instance(current.cluster_id, 1), messages.Ballot(5, 3, 1003), None
    )
    world.plane(2).freeze()
    world.nodes[2].beat_soon()
    world.settle(2)
    world.until(lambda: configuration(world, 2).epoch == 2, 3 * SECOND_NS)
    assert not world.plane(2).frozen
    assert world.members(1) == [1, 2, 3]
    assert configuration(world, 1).m_sequence == 1  # the same members: no event
    world.until(lambda: all(len(world.log[one]) == 2 for one in world.nodes))
    last = world.log[2][-1]
    assert isinstance(last, View)
    assert (last.seq, last.ev_id, last.joined, last.left) == (0, 0, (), ())


def test_a_minority_sequencer_resigns_and_the_others_go_on() -> None:
    world = World(5).form()
    topic_id, _ = flow(world, 4)
    cut_off(world, 1, 2)
    world.until(lambda: world.members(3) == [3, 4, 5])
    assert "gives up its work" in " ".join(world.news[1])
    held = world.plane(1).log.held
    world.until(lambda: len(numbers(world, 3, topic_id)) == 200)
    assert world.plane(1).log.held <= held + 1
    world.cut = set()
    world.until(lambda: world.members(3) == [3, 4, 5, 1, 2])
    world.until(lambda: all(node.state is State.ACTIVE for node in world.nodes.values()))
    assert [one for one in world.log[3] if isinstance(one, Delivery)] == [
        one for one in world.log[5] if isinstance(one, Delivery)
    ]


# --- restarts and histories -------------------------------------------------------------------------------------------


def test_a_restarted_member_is_left_and_joined_in_one_view() -> None:
    world = World(3).form()
    world.kill(3)
    world.restart(3)
    world.until(lambda: world.nodes[3].state is State.ACTIVE)
    changes = [one for one in world.log[1] if isinstance(one, View)][1:]
    assert [[gone.incarnation for gone in one.left] for one in changes if one.left] == [[1003]]
    assert [[new.incarnation for new in one.joined] for one in changes if one.joined] == [[2003]]


def test_all_restart_one_after_the_other_and_the_history_goes_on() -> None:
    world = World(3).form()
    cluster_id = configuration(world, 1).cluster_id
    topic_id = world.topic("through it all")
    for node_id in (1, 2, 3):
        world.kill(node_id)
        world.run(2 * SECOND_NS)
        world.restart(node_id, wiped=node_id == 2)
        world.until(lambda node_id=node_id: world.nodes[node_id].state is State.ACTIVE)  # type: ignore[misc]
    assert {configuration(world, one).cluster_id for one in world.nodes} == {cluster_id}
    assert all(node.topics["through it all"].topic_id == topic_id for node in world.nodes.values())
    world.until(
        lambda: world.nodes[1].last_seq(1) == world.nodes[2].last_seq(1) == world.nodes[3].last_seq(1) > 3
    )


def test_two_of_three_that_lost_their_memory_wait_for_the_third_that_may_have_it() -> None:
    world = World(3).form()
    traffic(world, [1, 2, 3], 3)
    cluster_id = configuration(world, 1).cluster_id
    world.paused = {3}
    world.kill(1, 2)
    world.restart(1)
    world.restart(2)
    world.run(5 * SECOND_NS)
    assert all(world.nodes[one].state is State.FORMING for one in (1, 2))
    assert "3" in world.nodes[1].waiting_for
    world.paused = set()
    # The third has what it held; but the two alone may have committed more, and all have answered.
    world.until(lambda: configuration(world, 3).cluster_id != cluster_id, 20 * SECOND_NS)
    assert configuration(world, 3).supersedes == [cluster_id]
    lost = [one for one in world.notices[3] if not isinstance(one, Notification)]
    assert lost == [HistoryLost(configuration(world, 3).cluster_id, cluster_id)]


def test_nothing_of_the_old_history_is_taken_until_programs_are_told_of_the_new_one() -> None:
    world = World(3).form()
    node = world.nodes[3]
    assert node.room() > 0
    node.lose_history(HistoryLost("1" * 32, "2" * 32))
    assert node.room() == 0
    node.take_effects()
    assert node.room() > 0


def test_a_wiped_majority_begins_a_new_history_only_after_a_while() -> None:
    world = World(3, history_wait_ns=5 * SECOND_NS).form()
    world.topic("kept")
    old = configuration(world, 1).cluster_id
    world.run(SECOND_NS)
    world.kill(1, 2, 3)
    world.restart(1)
    world.restart(2)
    world.run(3 * SECOND_NS)
    assert configuration(world, 1).cluster_id == old
    world.until(lambda: world.nodes[1].state is world.nodes[2].state is State.ACTIVE, 20 * SECOND_NS)
    assert configuration(world, 1).supersedes == [old]
    assert "kept" in world.nodes[2].topics
    world.restart(3)
    world.until(lambda: world.nodes[3].state is State.ACTIVE)
    assert configuration(world, 3).cluster_id == configuration(world, 1).cluster_id


def test_an_unrelated_history_is_reported_and_joined_on_an_operators_word() -> None:
    world = World(2).form()
    other = World(2, seed=9)
    other.now += 10 * SECOND_NS
    other.form()
    foreign = configuration(other, 1)
    world.kill(2)
    world.run(3 * SECOND_NS)
    node = world.nodes[1]
    assert node.operator(Rejoin(), world.now) == "no other history of this cluster is heard"
    install = messages.encode_install(msgspec.structs.replace(foreign, cluster_id="f" * 32))
    world.inject([1], datagram(install, 10**6, 2, 1002))
    assert [one.code for one in world.faults[1]] == ["foreign_history"]
    world.inject([1], datagram(install, 10**6 + 1, 2, 1002))
    assert len(world.faults[1]) == 1  # told once


def test_a_bootstrap_without_nodes_that_are_missing() -> None:
    world = World(3)
    world.kill(3)
    world.run(3 * SECOND_NS)
    assert world.nodes[1].state is State.FORMING
    assert "4" in world.nodes[1].operator(BootstrapWithout((4,)), world.now)
    assert world.nodes[1].operator(BootstrapWithout((1,)), world.now)
    assert world.nodes[1].operator(BootstrapWithout((3,)), world.now) == ""
    world.settle(1)
    world.until(lambda: world.nodes[1].state is world.nodes[2].state is State.ACTIVE, 5 * SECOND_NS)
    assert world.nodes[1].operator(BootstrapWithout((3,)), world.now) == "the cluster has been formed already"
    world.restart(3)
    world.until(lambda: world.members(1) == [1, 2, 3])


def test_a_bootstrap_of_more_than_half_where_the_file_says_so() -> None:
    world = World(5, bootstrap="majority")
    world.kill(4, 5)
    world.until(lambda: all(world.nodes[one].state is State.ACTIVE for one in (1, 2, 3)), 5 * SECOND_NS)
    assert world.members(1) == [1, 2, 3]
    few = World(5, bootstrap="majority")
    few.kill(3, 4, 5)
    few.run(5 * SECOND_NS)
    assert few.nodes[1].state is State.FORMING


def test_new_history_is_refused_where_there_is_none_to_give_up() -> None:
    world = World(2)
    assert "knows no cluster" in world.nodes[1].operator(NewHistory(), world.now)


# --- the node table and the sequencer, by command ---------------------------------------------------------------------


def test_a_node_that_a_command_adds_joins_and_one_that_it_removes_goes() -> None:
    world = World(3).form()
    world.settings[4] = settings_of(4, {1: 1, 2: 1, 3: 1, 4: 1})
    world.disks[4] = b""
    for one in (world.notices, world.log, world.outcomes, world.news, world.faults, world.persists):
        one[4] = []  # type: ignore[index]
    world._counts[4] = 0
    world.restart(4)
    world.run(2 * SECOND_NS)
    assert world.members(1) == [1, 2, 3]
    assert world.control(1, control.NodeAdd(4, 1)).error == 0
    world.until(lambda: world.members(1) == [1, 2, 3, 4])
    world.until(lambda: world.nodes[4].state is State.ACTIVE)
    assert configuration(world, 4).table == {1: 1, 2: 1, 3: 1, 4: 1}
    traffic(world, [4, 1], 3)
    assert world.control(2, control.NodeRemove(1)).error == 0
    world.until(lambda: world.members(2) == [2, 3, 4])
    assert configuration(world, 2).sequencer == 2
    world.run(SECOND_NS)
    assert world.members(2) == [2, 3, 4]
    same(world, 2, 3)


def test_commands_that_would_end_primacy_are_refused_at_their_place() -> None:
    world = World(3).form()
    world.kill(3)
    world.until(lambda: world.members(1) == [1, 2])
    assert world.control(1, control.NodeVotes(3, 9)).error == errno.EBUSY
    assert world.control(2, control.NodeRemove(9)).error == errno.EINVAL
    world.run(SECOND_NS)
    assert configuration(world, 1).epoch == 2


def test_the_sequencers_work_is_handed_over_by_command() -> None:
    world = World(3).form()
    topic_id, _ = flow(world, 3)
    assert world.control(1, control.Sequence(3)).error == 0
    world.until(lambda: configuration(world, 1).sequencer == 3, 2 * SECOND_NS)
    assert configuration(world, 1).m_sequence == 1
    world.until(lambda: all(len(numbers(world, one, topic_id)) == 200 for one in world.nodes))
    same(world, *world.nodes)
    world.run(3 * SECOND_NS)
    assert configuration(world, 1).sequencer == 3


# --- disks ------------------------------------------------------------------------------------------------------------


def test_nobody_votes_with_a_disk_that_fails() -> None:
    world = World(3).form()
    world.run(300 * MS)
    world.persist_fails = {2, 3}
    world.kill(1)
    world.run(5 * SECOND_NS)
    assert world.members(2) == [1, 2, 3]
    assert {one.code for one in world.faults[2]} == {"persist_failed"}
    sent: list[bytes] = []
    world.record = True
    world.run(SECOND_NS)
    sent = [one for _, _, one in world.wire]
    assert not any(one[BODY] in (MessageType.PROMISE, MessageType.ACCEPTED) for one in sent)
    world.persist_fails = set()
    world.until(lambda: world.members(2) == world.members(3) == [2, 3])


def test_a_configuration_is_on_disk_before_anything_is_said_in_its_epoch() -> None:
    world = World(3, persist_ns=300 * MS).form()
    world.record = True
    world.kill(1)
    while configuration(world, 2).epoch == 1 or configuration(world, 3).epoch == 1:
        world.step()
        for source, _, one in world.wire:
            if one[BODY] == MessageType.HEARTBEAT and wire.decode_heartbeat(one).epoch == 2:
                record = world.nodes[source]._store
                assert record.record.configuration is not None
                assert record.record.configuration.epoch == 2
                assert record.durable >= 1
        world.wire.clear()


def test_who_leaves_waits_for_others_of_its_own_history() -> None:
    """Others have epochs of their own: a higher one says nothing of what follows this one."""
    world = World(3).form()
    world.run(SECOND_NS)
    node, plane = world.nodes[1], world.plane(1)
    for peer in node.peers.all():
        assert peer.beat is not None
        peer.beat = peer.beat._replace(epoch=20)
    node._detector.update(world.now)
    assert may_stop(plane, node._detector, node.recovery.initiative) == "asked to stop; the others go on"
    for peer in node.peers.all():
        assert peer.beat is not None
        peer.beat = peer.beat._replace(history_time=peer.beat.history_time - 1)
    assert may_stop(plane, node._detector, node.recovery.initiative) == ""
