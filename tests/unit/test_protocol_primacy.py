"""When programs are told that this is no primary any more, and that it is again: never twice, and in the right view."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.effects import HistoryLost, Notification, NotificationCode, State, View
from ocfcluster.protocol.operator import NewHistory
from ocfcluster.wire import control
from tests.unit.protocol_world import SECOND_NS, World, publication, traffic

SOON = limits.SUSPICION_NS + limits.QUORUM_LOST_AFTER_NS


def told(world: World, node_id: int) -> list[NotificationCode]:
    return [one.code for one in world.notices[node_id] if isinstance(one, Notification)]


def split(world: World, *sides: set[int]) -> None:
    world.cut = {(one, other) for side in sides for one in side for other in world.nodes if other not in side}


NOT, RESTORED = NotificationCode.NOT_PRIMARY, NotificationCode.PRIMARY_RESTORED


def test_a_minority_is_told_once_and_takes_nothing_to_publish() -> None:
    world = World(3).form()
    split(world, {3}, {1, 2})
    began = world.now
    world.until(lambda: bool(told(world, 3)))
    assert SOON - 2 * limits.HEARTBEAT_NS < world.now - began < SOON + SECOND_NS // 2
    assert world.notices[3] == [Notification(NOT, 1, 1)]
    assert world.nodes[3].room() == 0
    assert not world.nodes[3].primary
    assert world.nodes[3].status(world.now)["primary"] is False
    world.run(5 * SECOND_NS)
    assert told(world, 3) == [NOT]
    assert told(world, 1) == told(world, 2) == []
    assert world.members(1) == [1, 2]


def test_all_in_minorities_come_back_with_the_same_members_and_miss_nothing() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(2)
    split(world, {1}, {2}, {3})
    world.publish(2, publication(topic_id, producer, 1, [b"while cut off"]))
    world.run(SOON + SECOND_NS)
    assert [told(world, node_id) for node_id in world.nodes] == [[NOT]] * 3
    assert [world.count(node_id) for node_id in world.nodes] == [0, 0, 0]
    world.cut = set()
    world.until(lambda: all(told(world, node_id) == [NOT, RESTORED] for node_id in world.nodes))
    world.until(lambda: all(world.count(node_id) == 1 for node_id in world.nodes))
    assert all(node.configuration and node.configuration.m_sequence == 1 for node in world.nodes.values())
    assert all(node.room() > 0 for node in world.nodes.values())
    traffic(world, [1, 2, 3], 5)
    world.agree()


def test_who_comes_back_to_a_view_without_it_is_evicted_and_told_nothing_of_primacy() -> None:
    world = World(3).form()
    old = world.nodes[3]
    split(world, {3}, {1, 2})
    world.run(SOON + SECOND_NS)
    world.cut = set()
    world.until(lambda: old.state is State.EVICTED)
    assert told(world, 3) == [NOT]
    world.until(lambda: world.nodes[3].state is State.ACTIVE)
    assert world.members(1) == [1, 2, 3]
    last = world.log[1][-1]
    assert isinstance(last, View)
    assert [one.incarnation for one in last.joined] == [2003]


def test_a_short_cut_off_is_not_told() -> None:
    world = World(3).form()
    split(world, {1}, {2}, {3})
    world.run(SOON - SECOND_NS // 2)
    world.cut = set()
    world.run(3 * SECOND_NS)
    assert [told(world, node_id) for node_id in world.nodes] == [[]] * 3


def test_an_install_that_changed_the_members_says_so_by_its_view_alone() -> None:
    world = World(5).form()
    split(world, {1, 2}, {3}, {4, 5})
    world.run(SOON + SECOND_NS)
    assert all(told(world, node_id) == [NOT] for node_id in world.nodes)
    split(world, {1, 2, 3}, {4, 5})
    world.until(lambda: world.members(1) == [1, 2, 3])
    world.run(SECOND_NS)
    assert [told(world, node_id) for node_id in (1, 2, 3)] == [[NOT]] * 3
    assert all(world.nodes[node_id].primary for node_id in (1, 2, 3))
    assert not world.nodes[4].primary


def waiting_for_a_full_backlog(*, dead: bool) -> World:
    """Two of three members, in a table of five, keep everything for the third, which is away: no view without it."""
    world = World(5, backlog_bytes=1 << 16, window_bytes=1 << 15).form()
    topic, producer = world.topic(), world.producer(1)
    world.kill(4, 5)
    world.until(lambda: world.members(1) == [1, 2, 3])
    world.run(2 * SECOND_NS)
    if dead:
        world.kill(3)
    else:
        world.paused.add(3)
    world.run(2 * SECOND_NS)
    for number in range(1, 200):
        if world.nodes[1].room() > 0:
            world.publish(1, publication(topic, producer, number, [b"x" * 1000]))
        world.run(2_000_000)
    world.until(lambda: not world.nodes[1].primary, 30 * SECOND_NS)
    return world


def test_an_operator_ends_a_history_that_waits_for_a_full_backlog() -> None:
    world = waiting_for_a_full_backlog(dead=True)
    old = world.nodes[1].configuration
    assert old is not None
    assert old.sequencer == 1
    assert world.nodes[1].operator(NewHistory(), world.now) == ""
    world.settle(1)
    world.until(lambda: world.nodes[1].primary and world.nodes[2].primary, 5 * SECOND_NS)
    new = world.nodes[1].configuration
    assert new is not None
    assert new.supersedes == [old.cluster_id]
    assert not world.nodes[1].recovery.initiative.forced


def test_an_operators_word_is_forgotten_when_the_order_goes_on() -> None:
    """Said to a member that begins nothing itself, it would end the history at its next change."""
    world = waiting_for_a_full_backlog(dead=False)
    old = world.nodes[2].configuration
    assert world.nodes[2].operator(NewHistory(), world.now) == ""
    assert world.nodes[2].recovery.initiative.forced
    world.paused.discard(3)
    world.until(lambda: world.nodes[2].primary, 30 * SECOND_NS)
    world.run(SECOND_NS)
    assert world.nodes[2].configuration == old
    assert not world.nodes[2].recovery.initiative.forced


def test_an_operators_new_history_is_told_before_its_first_view() -> None:
    world = World(3).form()
    traffic(world, [1, 2], 3)
    old = world.nodes[1].configuration
    assert old is not None
    assert world.nodes[1].operator(NewHistory(), world.now) == "the cluster runs"
    world.kill(2, 3)
    world.until(lambda: told(world, 1) == [NOT])
    assert (
        world.nodes[1].operator(NewHistory(), world.now) == ""
    )  # also while an attempt waits for the others
    world.settle(1)
    world.until(lambda: world.nodes[1].configuration != old, SECOND_NS)
    new = world.nodes[1].configuration
    assert new is not None
    assert (new.supersedes, new.epoch, world.members(1)) == ([old.cluster_id], 1, [1])
    assert world.notices[1][1:] == [HistoryLost(new.cluster_id, old.cluster_id)]
    topics = set(world.nodes[1].topics)
    assert len(topics) == 3  # those that the old one had
    world.until(lambda: world.nodes[1].primary)
    world.restart(2)
    world.until(lambda: world.nodes[2].state is State.ACTIVE)
    assert set(world.nodes[2].topics) == topics
    world.outcomes[1].clear()
    traffic(world, [1, 2], 3)


def test_a_window_that_a_member_closes_which_cannot_be_removed_is_told_and_restored_in_the_same_epoch() -> (
    None
):
    """Three of five run: without node 3 they would be no primary."""
    world = World(5, bootstrap="majority", backlog_bytes=1 << 18, suspicion_ns=60 * SECOND_NS)
    world.kill(4, 5)
    world.until(lambda: all(world.nodes[one].state is State.ACTIVE for one in (1, 2, 3)))
    topic_id, producer = world.topic(), world.producer(2)
    world.run(SECOND_NS)
    world.paused = {3}
    for number in range(1, 60):
        world.publish(2, publication(topic_id, producer, number, [b"x" * 20_000]))
    world.run(limits.BACKLOG_GRACE_NS // 2)
    assert world.nodes[1].status(world.now)["data_plane"]["window_closed_because"]
    assert told(world, 1) == []
    world.run(limits.BACKLOG_GRACE_NS)
    assert told(world, 1) == told(world, 2) == [NOT]
    assert world.control(2, control.TopicCreate("through the closed window", False)).error == 0
    assert told(world, 1) == told(world, 2) == [NOT]
    world.paused = set()
    world.until(lambda: told(world, 1) == told(world, 2) == [NOT, RESTORED])
    assert all(world.nodes[one].configuration.epoch == 1 for one in (1, 2, 3))  # type: ignore[union-attr]
    world.until(lambda: all(world.count(one) == 59 for one in (1, 2, 3)))


def test_who_slept_is_not_told_that_it_is_back_by_what_waited_in_its_socket() -> None:
    world = World(3).form()
    node = world.nodes[1]
    primacy, suspicion_ns = node._primacy, node.settings.suspicion_ns
    primacy.primary = False
    primacy.woke(world.now)
    world.run(suspicion_ns - SECOND_NS // 5)
    assert not node.primary  # although it hears everybody, in its epoch
    world.settle(1)
    assert node.withdraw(node.control(control.TopicCreate("ghost", False)))
    node.control(control.TopicCreate("kept", False))
    assert node.next_timer() > world.now
    primacy.primary = True
    assert node.next_timer() == world.now  # it goes its way at once
    primacy.primary = False
    world.run(SECOND_NS // 2)
    assert node.primary
