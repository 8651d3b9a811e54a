"""The way of datagrams through a node: foreign, broken and repeated ones are counted and dropped."""

from __future__ import annotations

import errno
import random

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.errors import ConfigurationError, InvalidArgument
from ocfcluster.protocol import Node, messages
from ocfcluster.protocol.effects import Deliver, Multicast, Outcome, Send, State, StateChange, View
from ocfcluster.protocol.settings import Timing
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Extent, MessageType
from ocfcluster.wire.group import LeaveReason
from tests.unit.protocol_world import (
    CLUSTER,
    SECOND_NS,
    WALL_NS,
    World,
    datagram,
    publication,
    settings_of,
    traffic,
)


def counted(world: World, node_id: int, buffer: bytes) -> dict[str, int]:
    """Which counters one datagram moves."""
    node = world.nodes[node_id]
    before = dict(node.counters)
    world.inject([node_id], buffer)
    return {name: value - before[name] for name, value in node.counters.items() if value != before[name]}


def beat_of(world: World, node_id: int) -> bytes:
    """The body of a heartbeat that a node sends now."""
    node = world.nodes[node_id]
    node._beat(world.now)
    body = b""
    for effect in node.take_effects():
        if isinstance(effect, Multicast) and effect.buffer[wire.BODY] == MessageType.HEARTBEAT:
            body = effect.buffer[wire.BODY :]
    assert body
    return body


def test_datagrams_of_others_are_counted_by_what_is_wrong_with_them() -> None:
    world = World(3).form()
    ack = wire.encode_ack(0, 1, 1)
    good = world.forge(2, ack)
    wrong_version = good[:2] + b"\x09" + good[3:]
    assert counted(world, 1, good) == {"datagrams": 1}
    assert counted(world, 1, good) == {"replayed": 1}
    assert counted(world, 1, wrong_version) == {"wrong_version": 1}
    assert counted(world, 1, datagram(ack, 1, 2, 1002, cluster="another")) == {"foreign": 1}
    assert counted(world, 1, b"\0\0" + good[2:]) == {"foreign": 1}
    assert counted(world, 1, good[:3] + b"\x01" + good[4:]) == {"foreign": 1}
    assert counted(world, 1, datagram(ack, 1, 9, 9)) == {"strangers": 1}
    assert counted(world, 1, datagram(ack, 1, 2, 9)) == {
        "strangers": 1
    }  # another incarnation, not introduced
    assert counted(world, 1, datagram(beat_of(world, 2), 1, 9, 9)) == {"strangers": 1}  # not in the table


def test_truncated_datagrams_are_malformed() -> None:
    world = World(3).form()
    bodies = [
        wire.encode_ack(0, 1, 1), wire.encode_nack(1, [wire.Range(1, 1, 1001, 1)]), beat_of(world, 2),
        wire.encode_config_request(0), wire.retransmit_head(1, 1001) + bytes(8), wire.DATA_HEAD + bytes(8),
        wire.encode_order(wire.Order(0, 1, 0, 2, 0, 0, 0, [(2, 1, 1)])), b"\x08\0\0\0\1\0\0\0",
    ]  # fmt: skip
    for body in bodies:
        for length in range(0, len(body), 3):
            moved = counted(world, 1, world.forge(2, body[:length]))
            assert moved in ({"malformed": 1}, {"malformed": 1, "datagrams": 1})
    for length in range(wire.BODY + 1):
        assert counted(world, 1, world.forge(2, b"")[:length]) == {"malformed": 1}


def test_messages_of_unknown_types_are_malformed() -> None:
    world = World(3).form()
    assert max(MessageType) == 15
    for kind in (0, *range(9, 256)):  # 9 to 15 with nonsense in them
        assert counted(world, 1, world.forge(2, bytes([kind]) + bytes(60))) == {
            "datagrams": 1,
            "malformed": 1,
        }


def test_a_malformed_heartbeat_makes_nobody_known() -> None:
    world = World(3)
    body = bytes([MessageType.HEARTBEAT]) + bytes(20)
    assert counted(world, 1, datagram(body, 1, 2, 555)) == {"malformed": 1}
    assert world.nodes[1].peers.get(2, 555) is None


def test_replayed_datagrams_keep_nobody_alive() -> None:
    world = World(3, suspicion_ns=2 * SECOND_NS).form()
    world.record = True
    world.run(SECOND_NS)
    recorded = [one for source, target, one in world.wire if (source, target) == (3, 1)]
    assert recorded
    world.record = False
    world.paused = {3}
    for _ in range(19):
        world.run(SECOND_NS // 10)
        for one in recorded:
            world.inject([1], one)
    assert world.members(1) == [1, 2, 3]
    ages = {m["node_id"]: m["heard_ms_ago"] for m in world.nodes[1].status(world.now)["members"]}
    assert ages[2] < 200
    assert ages[3] > 1800
    world.run(SECOND_NS)
    assert world.members(1) == [1, 2]


def test_traffic_of_another_history_changes_nothing() -> None:
    """A member goes from one history to the next in the same incarnation, and counts from 1 again in each."""
    world = World(2).form()
    traffic(world, [1, 2], 3)
    node, origin = world.nodes[1], world.plane(1).origins.present[2]
    before = (origin.contiguous, world.plane(1).commit)
    bodies = [
        wire.DATA_HEAD + (origin.contiguous + 1).to_bytes(8, "little") + b"x" * 70,
        wire.encode_ack(0, 1, world.plane(1).log.held + 5),
        wire.encode_nack(1, [wire.Range(1, 1, 1001, 1)]),
        wire.encode_order(wire.Order(0, 1, 9, 99, 1, 98, 98, [])),
    ]
    for number, body in enumerate(bodies):
        late = datagram(body, 10_000 + number, 2, 1002, history=world.history() ^ 1)
        assert counted(world, 1, late) == {"datagrams": 1, "other_history": 1}
    prefix = wire.clear_prefix(wire.cluster_hash(CLUSTER), 2, 1002, world.history() ^ 1)
    buffer, segment = wire.encode_packets(
        prefix, 20_000, wire.DATA_HEAD, Extent(origin.contiguous + 1, 4, 10, bytes(40))
    )
    node.datagram(buffer, segment, ("net", 2), world.now)
    assert node.counters["other_history"] == 8
    world.settle(1)
    assert (origin.contiguous, world.plane(1).commit) == before
    traffic(world, [1, 2], 3)
    world.agree()


def test_a_replayed_buffer_is_dropped_packet_by_packet() -> None:
    world = World(2).form()
    buffer, segment = wire.encode_packets(
        world.nodes[2].outbox.prefix, 10_000, wire.DATA_HEAD, Extent(1, 4, 10, bytes(35))
    )
    world.inject([1], buffer, segment)
    assert world.plane(1).origins.present[2].contiguous == 4
    before = world.nodes[1].counters["replayed"]
    world.inject([1], buffer, segment)
    assert world.nodes[1].counters["replayed"] == before + 4


def test_own_datagrams_that_come_back_are_ignored() -> None:
    world = World(2).form()
    assert counted(world, 1, world.forge(1, wire.encode_ack(0, 1, 1))) == {}
    assert world.faults[1] == []


def test_a_heartbeat_that_was_overtaken_says_nothing() -> None:
    world = World(2).form()
    old, new = world.forge(2, beat_of(world, 2)), world.forge(2, beat_of(world, 2))
    world.inject([1], new)
    beat = world.nodes[1].peers.get(2, 1002).beat  # type: ignore[union-attr]
    world.inject([1], old)
    assert world.nodes[1].peers.get(2, 1002).beat is beat  # type: ignore[union-attr]


def test_order_of_a_member_that_is_not_the_sequencer_is_refused() -> None:
    world = World(3).form()
    order = wire.encode_order(wire.Order(0, 1, 99, 2, 0, 0, 0, []))
    assert counted(world, 2, world.forge(3, order)) == {"datagrams": 1, "malformed": 1}


def test_messages_of_another_epoch_say_nothing() -> None:
    world = World(3).form()
    window = world.plane(2).window
    for body in (
        wire.encode_order(wire.Order(0, 2, 1, 2, 0, 0, 0, [(1, 1, 1)])),
        wire.encode_nack(2, [wire.Range(0, 9, 0, 1)]),
        wire.encode_ack(0, 2, 9),
    ):
        assert counted(world, 2, world.forge(1, body)) == {"datagrams": 1}
    assert (world.plane(2).window, world.plane(2).log.next_index) == (window, 2)


def test_a_configuration_in_force_or_older_is_not_installed_again() -> None:
    world = World(3).form()
    first = world.nodes[1].configuration
    assert first is not None
    world.kill(3)
    world.until(lambda: world.members(2) == [1, 2])
    for one in (first, world.nodes[1].configuration):
        assert one is not None
        assert counted(world, 2, world.forge(1, messages.encode_install(one))) == {"datagrams": 1}
    assert world.members(2) == [1, 2]
    assert not world.nodes[2].installation.under_way


def test_install_of_two_epochs_or_of_what_cannot_be_is_malformed() -> None:
    world = World(2).form()
    configuration = world.nodes[1].configuration
    assert configuration is not None
    other = msgspec.structs.replace(configuration, epoch=2, mtu=1)
    for body in (
        wire.encode_structure(MessageType.INSTALL, 7, configuration),
        messages.encode_install(other),
        b"\x08" + bytes(99),
    ):
        assert counted(world, 2, world.forge(1, body)) == {"datagrams": 1, "malformed": 1}
    assert world.nodes[2].configuration is configuration or world.nodes[2].configuration == configuration


def test_who_asks_for_the_configuration_gets_it() -> None:
    world = World(2).form()
    world.run(SECOND_NS // 2)
    world.nodes[1].take_effects()
    world.nodes[1].datagram(world.forge(2, wire.encode_config_request(0)), 1500, ("net", 2), world.now)
    [answer] = world.nodes[1].take_effects()
    assert isinstance(answer, Send)
    assert answer.address == ("net", 2)
    assert messages.decode_install(answer.buffer) == world.nodes[1].configuration


def test_who_hears_a_later_epoch_asks_for_its_configuration_and_not_for_every_heartbeat() -> None:
    world = World(3).form()
    world.run(SECOND_NS // 2)
    node = world.nodes[2]
    node.take_effects()
    later = wire.decode_heartbeat(bytes(wire.BODY) + beat_of(world, 1))._replace(epoch=9)
    asked = []
    for _ in range(5):
        body = world.forge(1, wire.encode_heartbeat(later._replace(flags=0)))
        node.datagram(body, len(body), ("net", 1), world.now)
        asked += [one for one in node.take_effects() if isinstance(one, Send)]
    assert [one.buffer[wire.BODY] for one in asked] == [MessageType.CONFIG_REQUEST]


def test_publishing_before_the_first_epoch_is_the_callers_fault() -> None:
    world = World(2)
    assert world.nodes[1].room() == 0
    with pytest.raises(RuntimeError):
        world.nodes[1].publish(publication(16, 1, 1, [b"x"]))
    with pytest.raises(InvalidArgument):
        world.nodes[1].control(control.TopicCreate("", False))


def test_a_node_that_leaves_serves_until_the_others_go_on_without_it() -> None:
    world = World(3).form()
    traffic(world, [1, 3], 5)
    world.nodes[3].leave(world.now)
    world.nodes[3].leave(world.now)  # twice does no harm
    world.settle(3)
    assert world.nodes[3].state is State.ACTIVE
    assert world.nodes[3].room() <= 0  # it takes nothing to publish any more
    began = world.now
    world.until(lambda: world.nodes[3].state is State.STOPPED)
    assert world.now - began < SECOND_NS // 2  # it was not waited for until it would have been suspected
    assert world.members(1) == world.members(2) == [1, 2]
    assert world.nodes[3].next_timer() > world.now + 1000 * SECOND_NS
    last = world.log[1][-1]
    assert isinstance(last, View)
    assert [one.node_id for one in last.left] == [3]
    world.nodes[3].take_effects()
    world.nodes[3].timer(world.now, WALL_NS)
    world.nodes[3].end_burst(world.now)
    assert world.nodes[3].take_effects() == []
    traffic(world, [1, 2], 5)


def test_a_sequencer_that_leaves_hands_its_work_on() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(2)
    world.nodes[1].leave(world.now)
    world.settle(1)
    for number in range(1, 20):
        world.publish(2, publication(topic_id, producer, number, [b"x"]))
        world.run(5_000_000)
    world.until(lambda: world.nodes[1].state is State.STOPPED)
    world.until(lambda: world.count(2) == world.count(3) == 19)
    configuration = world.nodes[2].configuration
    assert configuration is not None
    assert (configuration.sequencer, world.members(2)) == (2, [2, 3])
    world.agree([2, 3])


def test_others_see_who_leaves() -> None:
    world = World(3).form()
    world.cut = {(1, 2), (1, 3)}  # the sequencer cannot change the view
    world.nodes[3].leave(world.now)
    world.settle(3)
    world.run(SECOND_NS // 10)
    assert [m["leaving"] for m in world.nodes[1].status(world.now)["members"]] == [False, False, True]
    assert [m["leaving"] for m in world.nodes[3].status(world.now)["members"]] == [False, False, True]


def test_a_node_that_nobody_lets_go_stops_in_time() -> None:
    world = World(3, leave_timeout_ns=3 * SECOND_NS, suspicion_ns=60 * SECOND_NS).form()
    world.paused = {1, 2}
    began = world.now
    world.nodes[3].leave(world.now)
    world.until(lambda: world.nodes[3].state is State.STOPPED)
    assert 3 * SECOND_NS <= world.now - began < 4 * SECOND_NS


def test_a_node_whose_others_would_be_too_few_stops_at_once_and_says_so() -> None:
    world = World(3).form()
    world.kill(3)
    world.until(lambda: world.members(1) == [1, 2])
    world.nodes[2].leave(world.now)
    node = world.nodes[2]
    node.end_burst(world.now)
    [change] = [one for one in node.take_effects() if isinstance(one, StateChange)]
    assert change.state is State.STOPPED
    assert "too few" in change.reason


def test_the_last_member_stops_at_once() -> None:
    world = World(1).form()
    world.nodes[1].leave(world.now)
    world.settle(1)
    assert world.nodes[1].state is State.STOPPED


def test_an_ordered_shutdown_stops_all_in_order() -> None:
    world = World(3).form()
    producers = traffic(world, [1, 2], 3)
    assert producers
    world.nodes[2].control(control.Shutdown())
    world.settle(2)
    world.until(lambda: all(node.state is State.STOPPED for node in world.nodes.values()), SECOND_NS)
    world.agree()


def test_a_node_that_stopped_while_it_wrote_stays_stopped() -> None:
    world = World(2, persist_ns=SECOND_NS)
    world.run(SECOND_NS // 2)
    [persist] = world.persists[1]
    world.nodes[1].leave(world.now)
    world.settle(1)
    assert world.nodes[1].state is State.STOPPED
    world.nodes[1].take_effects()
    world.nodes[1].persisted(persist.token, True, world.now)
    world.nodes[1].snapshot_fetched(1, None, world.now)
    world.nodes[1].end_burst(world.now)
    assert world.nodes[1].take_effects() == []


def test_status_is_plain_before_and_after() -> None:
    world = World(2)
    for _ in range(2):
        for node in world.nodes.values():
            status = node.status(world.now)
            assert status["state"] == node.state.value
            assert set(status["data_plane"]) == set() or status["data_plane"]["broken_streams"] == 0
        world.form()
    assert world.nodes[1].topic_by_id(1) is not None
    assert (world.nodes[1].last_seq(1), world.nodes[1].last_seq(99)) == (1, 0)


def test_no_bytes_make_a_node_raise_and_nothing_changes() -> None:
    world = World(3).form()
    chance = random.Random(7)
    # A header of a member would spoil its counters: without a key anyone may forge those.
    tag = world.history()
    headers = [
        datagram(b"", 5, 2, 77, history=tag),
        datagram(b"\x06", 6, 2, 78),
        datagram(b"", 5, 9, 9),
        b"\xf1\x0c",
    ]
    for _ in range(3000):
        noise = chance.randbytes(chance.randrange(200))
        if chance.random() < 0.5:
            noise = chance.choice(headers) + noise
        world.nodes[1].datagram(noise, chance.choice([len(noise) or 1, 1, 44, 45, 60]), ("x", 1), world.now)
        world.settle(1)
    traffic(world, [1, 2, 3], 10)
    world.agree()
    assert len(world.nodes[1].peers._peers) <= 2 * limits.NODES


def test_a_command_that_takes_something_away_comes_behind_what_was_published_before_it() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(2)
    world.nodes[3].set_full(True)
    world.settle(3)
    world.run(300_000_000)
    assert world.plane(2).window == 0
    world.nodes[2].publish(publication(topic_id, producer, 1, [b"x"]))
    world.nodes[2].control(control.Close(producer))
    world.nodes[2].control(control.TopicRemove("t"))
    barriers = [world.nodes[2].control(control.Barrier(), behind) for behind in (True, False)]
    world.settle(2)
    world.run(300_000_000)
    tokens = [one.first_number for one in world.outcomes[2]]
    assert barriers[1] in tokens  # it passes a closed window
    assert barriers[0] not in tokens
    world.nodes[3].set_full(False)
    world.settle(3)
    world.until(lambda: barriers[0] in [one.first_number for one in world.outcomes[2]])
    world.run(300_000_000)
    assert [one.error for one in world.outcomes[2]] == [0] * len(world.outcomes[2])
    assert world.count(1) == 1
    world.agree()


def test_a_node_table_that_does_not_fit_a_datagram_is_refused_at_the_start() -> None:
    table = dict.fromkeys(range(1, 21), 1)
    Node(settings_of(1, table), 0, WALL_NS)
    with pytest.raises(ConfigurationError, match="use fewer nodes or a network with a larger mtu"):
        Node(settings_of(1, table, mtu=1280), 0, WALL_NS)
    Node(settings_of(1, dict.fromkeys(range(1, 65), 1), mtu=9000), 0, WALL_NS)
    with pytest.raises(ConfigurationError, match="names 65 nodes; at most 64"):
        Node(settings_of(1, dict.fromkeys(range(1, 66), 1), mtu=9000), 0, WALL_NS)
    with pytest.raises(ConfigurationError, match="node 70 is not in it"):
        Node(settings_of(70, table), 0, WALL_NS)


def test_a_command_that_waits_to_form_can_be_withdrawn() -> None:
    world = World(2)
    node = world.nodes[2]
    ghost = node.control(control.TopicCreate("ghost", False))
    kept = node.control(control.TopicCreate("kept", False))
    assert (node.withdraw(ghost), node.withdraw(ghost)) == (True, False)
    world.form()
    world.until(lambda: any(one.first_number == kept for one in world.outcomes[2]))
    assert "ghost" not in world.nodes[1].topics
    assert not node.withdraw(kept)


@pytest.mark.parametrize(("nodes", "here", "gone"), [(3, 1, {2, 3}), (3, 2, {1, 3}), (5, 1, {3, 4, 5})])
def test_without_a_majority_commands_wait_in_the_node_and_can_be_withdrawn(
    nodes: int, here: int, gone: set[int]
) -> None:
    world = World(nodes).form()
    topic_id, producer = world.topic(), world.producer(here)
    node = world.nodes[here]
    world.paused = gone
    world.until(lambda: not node.primary)
    stop, ghost, kept = (
        node.control(one)
        for one in (control.Shutdown(), control.TopicCreate("ghost", False), control.TopicRemove("t"))
    )
    world.run(SECOND_NS)
    assert node.withdraw(stop)
    assert node.withdraw(ghost)
    world.paused = set()
    world.until(lambda: node.room() > 0)
    world.publish(here, publication(topic_id, producer, 1, [b"behind the command"]))
    world.until(lambda: any(one.producer == producer for one in world.outcomes[here]))
    [removed] = [one for one in world.outcomes[here] if (one.producer, one.first_number) == (0, kept)]
    assert removed.error == 0
    assert world.count(here) == 0  # the topic was gone before it
    assert [one.state for one in world.nodes.values()] == [State.ACTIVE] * nodes
    assert not {"ghost", "t"} & set(node.topics)


def test_a_command_waits_while_the_sequencer_is_suspected() -> None:
    world = World(3).form()
    node = world.nodes[3]
    world.kill(1)
    world.until(lambda: node.suspects)
    assert (node.primary, world.plane(3).frozen) == (True, False)
    assert node.withdraw(node.control(control.TopicCreate("ghost", False)))
    kept = node.control(control.TopicCreate("kept", False))
    world.until(lambda: any(one.first_number == kept for one in world.outcomes[3]))
    assert ("ghost" in node.topics, "kept" in node.topics) == (False, True)


def test_a_command_waits_while_the_epoch_changes_for_a_node_that_joins() -> None:
    world = World(3).form()
    node = world.nodes[2]
    world.kill(3)
    world.until(lambda: world.members(2) == [1, 2])
    world.restart(3)
    world.until(lambda: world.plane(2).frozen)
    assert (node.primary, node.suspects) == (True, False)
    assert node.withdraw(node.control(control.TopicCreate("ghost", False)))
    kept = node.control(control.TopicCreate("kept", False))
    world.until(lambda: any(one.first_number == kept for one in world.outcomes[2]))
    assert ("ghost" in node.topics, "kept" in node.topics) == (False, True)


def test_a_command_on_its_way_into_the_order_cannot_be_withdrawn() -> None:
    world = World(3).form()
    token = world.nodes[2].control(control.TopicCreate("made", False))
    assert not world.nodes[2].withdraw(token)
    world.settle(2)
    world.until(lambda: any(one.first_number == token for one in world.outcomes[2]))
    assert "made" in world.nodes[1].topics


def test_commands_that_nobody_can_order_do_not_pile_up() -> None:
    node = Node(settings_of(1, {1: 1, 2: 1}), 0, WALL_NS)  # forms for ever
    tokens = [node.control(control.Barrier()) for _ in range(limits.COMMANDS_WAITING + 2)]
    node.end_burst(0)
    [delivered] = [effect for effect in node.take_effects() if isinstance(effect, Deliver)][:1]
    [outcome] = delivered.items
    assert isinstance(outcome, Outcome)
    assert (outcome.first_number, outcome.error) == (tokens[-2], errno.ENOMEM)


def refused(node: Node) -> list[int]:
    """Tokens of commands that the node has not taken, since this was asked before."""
    items = [one for effect in node.take_effects() if isinstance(effect, Deliver) for one in effect.items]
    return [one.first_number for one in items if isinstance(one, Outcome) and one.error == errno.ENOMEM]


@pytest.mark.parametrize(
    ("operand", "behind"),
    [
        (control.Barrier(), True),
        (control.TopicRemove("t"), False),
        (control.GroupJoin("group:g", 1), False),
    ],
)
def test_commands_behind_publications_do_not_pile_up_either(operand: control.Operand, behind: bool) -> None:
    node = Node(settings_of(1, {1: 1, 2: 1}), 0, WALL_NS)
    tokens = [node.control(operand, behind) for _ in range(limits.COMMANDS_WAITING)]
    assert refused(node) == []
    beyond = [node.control(operand, behind), node.control(control.Barrier())]
    assert refused(node) == beyond
    assert node.withdraw(tokens[0])
    assert not node.withdraw(tokens[0])
    node.control(operand, behind)
    assert refused(node) == []


def test_what_programs_give_up_is_taken_where_other_commands_are_refused_but_not_without_end() -> None:
    node = Node(settings_of(1, {1: 1, 2: 1}), 0, WALL_NS)
    for _ in range(limits.COMMANDS_WAITING):
        node.control(control.Barrier())
    for number in range(limits.PRODUCERS_PER_NODE):
        node.control(control.Close(number + 1))
    for number in range(limits.MEMBERSHIPS_PER_NODE):
        node.control(control.GroupLeave("group:g", number + 1, LeaveReason.DIED))
    assert refused(node) == []
    beyond = [node.control(one) for one in (control.Barrier(), control.Close(1), control.TopicRemove("t"))]
    assert refused(node) == beyond


def test_commands_behind_publications_wait_for_room_as_these_do() -> None:
    world = World(3).form()
    node = world.nodes[2]
    topic_id, producer = world.topic(), world.producer(2)
    world.nodes[3].set_full(True)
    world.settle(3)
    world.run(300_000_000)
    assert world.plane(2).window == 0
    number = 1
    while node.room() > 0:
        node.publish(publication(topic_id, producer, number, [bytes(60_000)]))
        number += 1
    room = world.plane(2).room()
    closed, ghost = node.control(control.Close(producer)), node.control(control.TopicRemove("t"))
    behind = node.control(control.Barrier(), behind=True)
    assert world.plane(2).room() == room
    world.settle(2)
    assert node.next_timer() > world.now  # nothing turns in circles meanwhile
    assert node.withdraw(ghost)
    passing = node.control(control.Barrier())
    world.settle(2)
    world.until(lambda: passing in [one.first_number for one in world.outcomes[2]])
    assert closed not in [one.first_number for one in world.outcomes[2] if not one.producer]
    world.nodes[3].set_full(False)
    world.settle(3)
    world.until(lambda: behind in [one.first_number for one in world.outcomes[2] if not one.producer])
    assert [one.error for one in world.outcomes[2]] == [0] * len(world.outcomes[2])
    last = [one.first_number for one in world.outcomes[2] if one.producer == producer][-1]
    assert (last, world.count(2)) == (number - 1, number - 1)
    assert not world.plane(2).state.producers
    assert "t" in node.topics
    assert node.room() > 0
    world.run(300_000_000)
    world.agree()


def test_an_operator_is_told_what_became_of_the_view() -> None:
    world = World(3).form()
    world.run(300_000_000)
    world.news[3].clear()
    world.cut = {(1, 3), (1, 2)}
    world.run(SECOND_NS * 3 // 4)
    assert world.news[3] == []
    world.until(lambda: world.members(3) == [2, 3])
    assert world.news[3] == ["node 1 is no member any more", "epoch 2 with 2 members; sequencer: node 2"]
    assert world.nodes[3].waiting_for == ""
    world.cut = set()
    world.until(lambda: world.members(3) == [2, 3, 1])
    assert world.news[3][2:] == ["node 1 is a member", "epoch 3 with 3 members; sequencer: node 2"]


def test_who_proposes_has_said_before_that_it_suspects_the_sequencer() -> None:
    """Else the others ignore its first PREPARE, and every failover waits for the second one."""
    for seed in range(10):
        world = World(seed=seed, delay_ns=(50_000, 60_000), persist_ns=1000)
        world.form()
        world.run(seed * 7_000_000)
        world.kill(1)
        world.until(lambda world=world: world.members(2) == world.members(3) == [2, 3])
        ignored = [
            world.nodes[node_id].status(world.now)["recovery"]["prepares_ignored"] for node_id in (2, 3)
        ]
        assert ignored == [0, 0]


def test_other_times_count_from_then_on() -> None:
    world = World(3).form()
    slow = Timing(heartbeat_ns=50_000_000, suspicion_ns=3 * SECOND_NS, leave_timeout_ns=SECOND_NS)
    for node in world.nodes.values():
        node.retime(slow, world.now)
    world.kill(1)
    world.run(2 * SECOND_NS)
    assert world.members(2) == [1, 2, 3]
    assert world.nodes[2].settings.leave_timeout_ns == SECOND_NS
    world.run(2 * SECOND_NS)
    assert world.members(2) == [2, 3]
    world.kill(3)
    for node in world.nodes.values():
        node.retime(slow._replace(suspicion_ns=200_000_000), world.now)
    world.run(400_000_000)
    assert [peer.node_id for peer in world.nodes[2]._detector.heard] == []


def test_a_shorter_heartbeat_does_not_wait_for_the_long_one() -> None:
    world = World(3).form()
    node = world.nodes[1]
    node.retime(Timing(heartbeat_ns=3600 * SECOND_NS, suspicion_ns=4 * 3600 * SECOND_NS), world.now)
    world.run(SECOND_NS // 2)
    node.retime(Timing(), world.now)
    assert node.next_timer() <= world.now + Timing().heartbeat_ns
