"""The data plane between epochs: what freezing stops and what goes on, installing, learners and the window."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.protocol.effects import Multicast, Send
from ocfcluster.protocol.order_log import Entry
from ocfcluster.protocol.settings import Configuration
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import BODY, Extent, MessageFlags, MessageType, Order, Range
from tests.unit.protocol_world import SECOND_NS, World, publication, traffic

MS = 1_000_000


def calm(**settings: Any) -> World:
    """Three nodes that suspect nobody, so that no epoch changes by itself."""
    world = World(3, suspicion_ns=600 * SECOND_NS, **settings).form()
    traffic(world, [1, 2, 3], 3)
    world.run(300 * MS)
    return world


def freeze(world: World, *node_ids: int) -> None:
    """Freeze without a promise: nobody thaws them."""
    for node_id in node_ids:
        world.plane(node_id).freeze()


def following(world: World, base: int, **fields: Any) -> Configuration:
    configuration = world.nodes[1].configuration
    assert configuration is not None
    epoch = configuration.epoch + 1
    values = {"epoch": epoch, "base": base, "epochs": [*configuration.epochs, (epoch, base)], **fields}
    return msgspec.structs.replace(configuration, **values)


# --- frozen -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1])
def test_who_promises_in_the_burst_that_installed_its_epoch_holds_the_view_if_it_holds_the_base(
    missing: int,
) -> None:
    world = calm()
    for node_id in (1, 2):
        plane = world.plane(node_id)
        plane.install(following(world, plane.log.held + missing), world.now)
        plane.freeze()
        assert plane.synced == (not missing)
        assert plane.acknowledged == plane.log.held


def test_a_frozen_sequencer_sends_and_orders_nothing() -> None:
    world = calm()
    topic_id, producer = world.topic(), world.producer(1)
    world.run(300 * MS)
    node, plane = world.nodes[1], world.plane(1)
    before = (plane.log.next_index, plane.log.held, plane.commit, plane.stable)
    freeze(world, 1)
    node.publish(publication(topic_id, producer, 1, [b"x"]))
    world.inject([1], world.forge(2, wire.encode_ack(0, 1, plane.log.held)))
    packet = wire.DATA_HEAD + (plane.origins.present[2].contiguous + 1).to_bytes(8, "little") + bytes(9)
    whole = world.forge(2, packet)
    node.datagram(whole, len(whole), ("net", 2), world.now)
    for _ in plane.end_burst(world.now):
        pass
    assert (plane.log.next_index, plane.log.held, plane.commit, plane.stable) == before
    assert not any(
        one.buffer[BODY] in (MessageType.DATA, MessageType.ORDER)
        for one in node.take_effects() if isinstance(one, Multicast)
    )  # fmt: skip
    assert plane.origins.present[2].has_gap is False  # it keeps what comes


def test_a_frozen_member_neither_acknowledges_nor_cuts_short_and_what_it_counts_for_stands_still() -> None:
    world = calm()
    topic_id, producer = world.topic(), world.producer(1)
    world.run(300 * MS)
    plane = world.plane(2)
    held, acknowledged = plane.log.held, plane.acknowledged
    freeze(world, 2)
    world.record = True
    world.publish(1, publication(topic_id, producer, 1, [b"x"]))
    world.run(SECOND_NS)
    mine = [one for source, _, one in world.wire if source == 2]
    assert not any(one[BODY] == MessageType.ACK for one in mine)
    beats = [wire.decode_heartbeat(one) for one in mine if one[BODY] == MessageType.HEARTBEAT]
    assert {one.held for one in beats} == {acknowledged}
    assert (plane.log.held, plane.acknowledged) == (held, acknowledged)
    assert [world.count(node_id) for node_id in world.nodes] == [28, 27, 28]  # 1 and 3 are enough
    stable = plane.stable
    plane._learn(2**40, plane.commit + 5, plane.commit + 5, 0)
    assert (plane.stable, plane.commit) == (stable, held + 5)  # what it has promised to serve it keeps


def test_a_frozen_member_still_answers_and_still_fetches_up_to_a_proposed_base() -> None:
    world = calm()
    topic_id, producer = world.topic(), world.producer(1)
    world.run(300 * MS)
    freeze(world, 2)
    for number in range(1, 6):
        world.publish(1, publication(topic_id, producer, number, [b"x"]))
    world.run(300 * MS)
    plane, base = world.plane(2), world.plane(1).log.held - 2
    counted = plane.acknowledged
    assert plane.log.held < base
    assert not plane.holds(base)
    plane.fetch(base, 3)
    world.settle(2)
    world.until(lambda: bool(plane.holds(base)), SECOND_NS)
    assert plane.log.held == base  # and no further
    assert plane.acknowledged == counted  # it does not count for this epoch
    node, ask = world.nodes[2], world.forge(3, wire.encode_nack(1, [Range(0, 5, 0, counted - 1)]))
    node.datagram(ask, len(ask), ("net", 3), world.now)
    node.end_burst(world.now)
    answers = [one for one in node.take_effects() if isinstance(one, Send)]
    assert [one.buffer[BODY] for one in answers] == [MessageType.ORDER]


def test_freezing_twice_is_freezing_once() -> None:
    world = calm()
    topic_id, producer = world.topic(), world.producer(1)
    world.run(300 * MS)
    plane = world.plane(2)
    freeze(world, 2)
    counted = plane.acknowledged
    world.publish(1, publication(topic_id, producer, 1, [b"x"]))
    world.run(100 * MS)
    plane.fetch(world.plane(1).log.held, 1)
    world.settle(2)
    world.run(300 * MS)
    assert plane.log.held > counted
    freeze(world, 2)
    assert plane.acknowledged == counted


# --- the next epoch ---------------------------------------------------------------------------------------------------


def install(world: World, configuration: Configuration, *node_ids: int) -> None:
    """As if it had been decided: by the node's own way, to disk first."""
    for node_id in node_ids:
        world.nodes[node_id].installation.take(configuration, world.now)
        world.settle(node_id)
    world.until(lambda: all(world.nodes[one].configuration == configuration for one in node_ids))


def test_an_epoch_goes_on_where_its_base_was_and_what_was_ordered_behind_it_is_ordered_anew() -> None:
    world = calm()
    topic_id, producer = world.topic(), world.producer(3)
    world.run(300 * MS)
    base = world.plane(1).log.held
    world.cut = {(1, 2), (1, 3)}  # the order of node 1 reaches nobody
    world.publish(3, publication(topic_id, producer, 1, [b"x" * 3000]))
    world.run(5 * MS)
    assert world.plane(1).log.held > base
    world.kill(1)
    world.cut = set()
    configuration = following(world, base, sequencer=2)
    install(world, configuration, 2, 3)
    assert world.plane(2).is_sequencer
    world.until(lambda: world.count(2) == world.count(3) == 28, 5 * SECOND_NS)
    world.agree([2, 3])


def test_a_publication_in_flight_is_not_sent_again_by_its_origin() -> None:
    """Its packets are ordered by the next sequencer, which has them; the window counts them once."""
    world = calm()
    topic_id, producer = world.topic(), world.producer(3)
    world.run(300 * MS)
    base = world.plane(2).log.held
    world.cut = {(1, 2), (1, 3)}
    world.publish(3, publication(topic_id, producer, 1, [b"x" * 3000]))
    world.run(5 * MS)
    assert world.plane(3)._in_flight_bytes > 3000
    world.record = True
    world.kill(1)
    install(world, following(world, base, sequencer=2), 2, 3)
    world.until(lambda: world.count(3) == 28)
    assert not [one for source, _, one in world.wire if source == 3 and one[BODY] == MessageType.DATA]
    assert world.plane(3)._in_flight_bytes == 0


def test_old_entries_are_taken_up_to_the_end_of_their_epoch_and_no_further() -> None:
    world = calm()
    topic_id, producer = world.topic(), world.producer(1)
    world.run(300 * MS)
    world.cut = {(1, 2), (3, 2)}  # node 2 misses the end of the epoch
    for number in range(1, 4):
        world.publish(1, publication(topic_id, producer, number, [b"x"]))
    world.run(50 * MS)
    base, behind = world.plane(3).log.held, world.plane(2).log.held
    assert base == behind + 3
    world.kill(1)
    install(world, following(world, base, sequencer=3), 2, 3)
    plane = world.plane(2)
    assert not plane.synced
    entries = list(world.plane(3).log.find(behind + 1, 3))
    assert [(one.first_index, one.count) for one in entries] == [(behind + number, 1) for number in (1, 2, 3)]

    def copy(number: int, epoch: int, count: int) -> None:
        one = entries[number]
        order = Order(
            MessageFlags.COPY, epoch, 0, one.first_index, one.order_time, 0, 0, [(1, count, one.first_packet)]
        )
        world.inject([2], world.forge(3, wire.encode_order(order)))

    copy(0, 9, 1)  # an epoch that it does not know
    assert plane.log.next_index == behind + 1
    copy(0, 1, 1)
    copy(1, 1, 1)
    assert plane.log.next_index == base
    copy(2, 1, 5)  # it says more than the epoch had
    assert plane.log.next_index == base + 2  # the rest, and the view
    assert plane.log.refused == 0
    world.cut = set()
    world.until(lambda: bool(plane.synced), 5 * SECOND_NS)
    world.agree([2, 3])


def test_a_member_below_the_base_counts_for_nothing() -> None:
    world = calm()
    topic_id, producer = world.topic(), world.producer(1)
    world.run(300 * MS)
    world.cut = {(1, 2), (3, 2)}
    world.publish(1, publication(topic_id, producer, 1, [b"x"]))
    world.run(50 * MS)
    base = world.plane(1).log.held
    install(world, following(world, base), 1, 2, 3)
    assert [world.plane(node_id).synced for node_id in (1, 2, 3)] == [True, False, True]
    assert world.plane(2).acknowledged < base
    world.publish(1, publication(topic_id, producer, 2, [b"y"]))
    world.run(100 * MS)
    assert [world.count(node_id) for node_id in (1, 2, 3)] == [29, 27, 29]


def test_what_came_with_an_epoch_of_a_smaller_mtu_is_cut_smaller() -> None:
    world = calm()
    topic_id, producer = world.topic(), world.producer(2)
    install(world, following(world, world.plane(1).log.held, mtu=limits.MTU_MINIMUM), 1, 2, 3)
    world.record = True
    world.publish(2, publication(topic_id, producer, 1, [b"x" * 20_000]))
    world.until(lambda: all(world.count(node_id) == 28 for node_id in world.nodes))
    sizes = {len(one) for _, _, one in world.wire}
    assert max(sizes) <= limits.MTU_MINIMUM - 28 - limits.SEAL_BYTES


# --- commands that act when they are held -----------------------------------------------------------------------------


def test_the_table_changes_where_a_command_is_held_and_for_programs_where_it_is_delivered() -> None:
    world = calm()
    world.cut = {(2, 1), (3, 1)}  # the sequencer commits nothing
    world.nodes[1].control(control.NodeVotes(3, 2))
    world.settle(1)
    world.run(20 * MS)
    plane = world.plane(1)
    assert plane.staged_table.votes == {1: 1, 2: 1, 3: 2}
    assert plane.state.node_table.votes == {1: 1, 2: 1, 3: 1}
    world.cut = set()
    world.until(
        lambda: all(node.configuration and node.configuration.table[3] == 2 for node in world.nodes.values())
    )
    assert world.nodes[1].configuration.epoch == 2  # type: ignore[union-attr]


# --- learners ---------------------------------------------------------------------------------------------------------


def test_what_the_sequencer_has_to_send_goes_when_its_window_opens() -> None:
    """In that burst: there may be no other input until the next heartbeat."""
    world = calm()
    node = world.nodes[1]
    node.set_full(True)
    node.end_burst(world.now)
    node.publish(publication(16, 1, 1, [b"waits"]))
    node.end_burst(world.now)
    assert (world.plane(1).window, world.plane(1).status()["in_flight_bytes"]) == (0, 0)
    node.take_effects()
    node.set_full(False)
    node.end_burst(world.now)
    sent = [effect.buffer[BODY] for effect in node.take_effects() if isinstance(effect, Multicast)]
    assert MessageType.DATA in sent


@pytest.mark.parametrize(
    ("origin", "first", "follows"),
    [(2, 1, False), (2, 2, True), (2, 0, False)],
    ids=["next", "hole", "again"],
)
def test_nothing_follows_from_the_next_packet_of_another_node_alone(
    origin: int, first: int, follows: bool
) -> None:
    world = calm()
    plane = world.plane(3)
    stream = plane.origins.present[origin]
    assert plane.on_packets(stream, Extent(stream.contiguous + first, 1, 4, b"data")) is follows
    assert not plane.log.unheld


def test_what_waits_for_the_end_of_a_burst_gets_one() -> None:
    world = calm()
    plane = world.plane(3)
    stream = plane.origins.present[2]
    plane.set_full(True)  # to be said at once
    assert plane.on_packets(stream, Extent(stream.contiguous + 1, 1, 4, b"data"))
    world.nodes[3].end_burst(world.now)
    assert not plane.on_packets(stream, Extent(stream.contiguous + 1, 1, 4, b"data"))
    plane.log.claimed(plane.log.next_index + 5)  # to be asked for
    assert plane.on_packets(stream, Extent(stream.contiguous + 1, 1, 4, b"data"))


def test_something_follows_from_packets_that_their_order_waits_for() -> None:
    world = calm()
    plane = world.plane(3)
    stream = plane.origins.present[2]
    ahead = stream.contiguous + 1
    plane.log.add([Entry(plane.log.next_index, 1, stream, ahead, 1, 1)])
    assert plane.on_packets(stream, Extent(ahead, 1, 4, b"data"))


def test_what_a_learner_needs_is_kept_and_the_window_gives_way() -> None:
    world = calm(backlog_bytes=1 << 20)
    plane = world.plane(1)
    topic_id, producer = world.topic(), world.producer(2)
    world.run(300 * MS)
    open_window, position = plane.window, plane.log.held
    plane.register_learner(9, 99, position)
    lose, plane.lose_learner = (
        plane.lose_learner,
        lambda *_: None,
    )  # nobody hears it, and it is kept all the same
    number = 0
    while sum(one.kept_bytes for one in plane.origins.present.values()) < (1 << 20) // 2:
        number += 1
        world.publish(2, publication(topic_id, producer, number, [b"x" * 30_000]))
        world.run(20 * MS)
        assert number < 100
    assert plane.stable <= position
    assert 0 < plane.window < open_window * 3 // 4
    lose(9, 99)
    world.run(SECOND_NS)
    assert plane.stable > position
    assert plane.window >= open_window


def test_learners_are_bounded_and_say_how_far_they_are() -> None:
    world = calm()
    plane = world.plane(1)
    for node_id in range(10, 10 + 2 * limits.NODES):
        plane.register_learner(node_id, 1, 5)
    assert len(plane.learners) == limits.NODES
    plane.register_learner(10, 1, 9)
    plane.register_learner(10, 1, 7)
    assert plane.learners[10, 1] == 9
