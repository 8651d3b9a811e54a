"""Nodes together: one order on every node, whatever is lost, repeated, late, paused or full."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from ocfcluster import limits
from ocfcluster.protocol.effects import Delivery, Multicast, Outcome
from ocfcluster.protocol.settings import Limits
from ocfcluster.wire import control
from ocfcluster.wire.datagram import BODY, MessageType
from ocfcluster.wire.run import RunKind, check_run, run_events
from tests.unit.protocol_world import SECOND_NS, World, publication, traffic

MS = 1_000_000


@pytest.mark.parametrize("delivery", ["safe", "agreed"])
@pytest.mark.parametrize(
    ("nodes", "loss", "duplicate"),
    [
        (1, 0.0, 0.0),
        (2, 0.1, 0.0),
        (3, 0.0, 0.0),
        (3, 0.05, 0.1),
        (3, 0.3, 0.1),
        (4, 0.1, 0.1),
        (5, 0.2, 0.0),
    ],
)
def test_all_nodes_deliver_the_same(nodes: int, loss: float, duplicate: float, delivery: str) -> None:
    world = World(nodes, loss=loss, duplicate=duplicate, delivery=delivery, seed=nodes).form()
    traffic(world, list(world.nodes), 40)
    world.agree()
    for node_id in world.nodes:
        receipts = [one for one in world.outcomes[node_id] if one.kind == RunKind.PUBLICATION]
        assert sum(one.count for one in receipts) == 120
        assert not any(one.error for one in receipts)
        assert [one.first_number for one in receipts] == sorted(one.first_number for one in receipts)


@pytest.mark.parametrize("seed", range(5))
def test_disorder_on_the_network_is_none_in_the_log(seed: int) -> None:
    world = World(3, seed=seed, delay_ns=(10_000, 30 * MS), loss=0.02).form()
    traffic(world, [1, 2, 3], 30, events=20, size=500)
    world.agree()


def test_receipts_say_what_subscribers_see() -> None:
    world = World(3, loss=0.1).form()
    producers = traffic(world, [1, 2], 10)
    for node_id, producer in producers.items():
        mine = {
            (one.seq, one.ev_id) for one in world.deliveries(3) if check_run(one.run).producer == producer
        }
        told = [one for one in world.outcomes[node_id] if one.kind == RunKind.PUBLICATION]
        assert {(one.seq, one.ev_id) for one in told} == mine


@pytest.mark.parametrize("size", [0, 1, 1400, 65_000, 1 << 20])
def test_events_of_any_size_arrive_whole(size: int) -> None:
    world = World(3, loss=0.05).form()
    topic_id, producer = world.topic(), world.producer(2)
    data = bytes(number % 251 for number in range(size))
    for number in (1, 2):
        world.publish(2, publication(topic_id, producer, number, [data]))
    world.until(lambda: all(world.count(node_id) == 2 for node_id in world.nodes))
    for one in world.deliveries(3):
        assert list(run_events(one.run, check_run(one.run))) == [data]
    world.agree()


def test_an_event_above_the_limit_is_refused_everywhere_and_the_next_is_not() -> None:
    world = World(3, limits=Limits(event_bytes=1000)).form()
    topic_id, producer = world.topic(), world.producer(2)
    world.publish(2, publication(topic_id, producer, 1, [b"x" * 1001]))
    world.publish(2, publication(topic_id, producer, 2, [b"x" * 1000]))
    world.until(lambda: all(world.count(node_id) == 1 for node_id in world.nodes))
    errors = [one.error for one in world.outcomes[2] if one.kind == RunKind.PUBLICATION]
    assert errors == [errno.EMSGSIZE, 0]


def test_safe_delivery_waits_for_more_than_half_of_the_votes() -> None:
    world = World(votes={1: 1, 2: 1, 3: 1, 4: 4}).form()
    topic_id, producer = world.topic(), world.producer(2)
    world.cut = {(2, 4), (1, 4)}  # the heavy member receives nothing
    world.publish(2, publication(topic_id, producer, 1, [b"x"]))
    world.run(40 * MS)
    assert [world.count(node_id) for node_id in world.nodes] == [0, 0, 0, 0]
    assert world.plane(3).log.held > world.plane(3).commit  # three of four hold it: three of seven votes
    world.cut = set()
    world.until(lambda: all(world.count(node_id) == 1 for node_id in world.nodes))
    world.agree()


def test_the_short_cut_delivers_before_the_commit_is_told() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(1)
    world.run(300 * MS)
    world.cut = {(2, 1), (3, 1)}  # the sequencer hears nothing: it can commit nothing
    world.publish(1, publication(topic_id, producer, 1, [b"x"]))
    world.run(5 * MS)
    assert [world.plane(node_id).commit < world.plane(node_id).log.held for node_id in (2, 3)] == [True, True]
    assert [world.count(node_id) for node_id in world.nodes] == [0, 1, 1]
    world.cut = set()
    world.until(lambda: world.count(1) == 1)
    world.agree()


def test_agreed_delivery_waits_for_the_order_alone() -> None:
    world = World(5, delivery="agreed").form()
    topic_id, producer = world.topic(), world.producer(2)
    world.cut = {(2, 4), (2, 5), (1, 4), (1, 5), (3, 1)}
    world.publish(2, publication(topic_id, producer, 1, [b"x"]))
    world.run(5 * MS)
    assert [world.count(node_id) for node_id in world.nodes] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("lost", [MessageType.DATA, MessageType.ORDER, MessageType.ACK])
@pytest.mark.parametrize("origin", [1, 2])
def test_the_loss_of_the_last_message_shows_and_is_made_good(lost: MessageType, origin: int) -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(origin)
    world.run(300 * MS)
    honest = {node_id: node.take_effects for node_id, node in world.nodes.items()}
    dropped: list[Any] = []

    def lossy(node_id: int) -> Any:
        def effects() -> list[Any]:
            kept = []
            for effect in honest[node_id]():
                kind = effect.buffer[BODY] if hasattr(effect, "buffer") else 0
                if kind == lost and len(dropped) < 3:
                    dropped.append(effect)
                else:
                    kept.append(effect)
            return kept

        return effects

    for node_id, node in world.nodes.items():
        node.take_effects = lossy(node_id)  # type: ignore[method-assign]
    began = world.now
    world.publish(origin, publication(topic_id, producer, 1, [b"x"]))
    world.until(lambda: all(world.count(node_id) == 1 for node_id in world.nodes))
    assert dropped or (lost, origin) == (MessageType.ORDER, 1)  # there it rides behind the DATA
    assert world.now - began < 60 * MS
    world.until(
        lambda: all(world.plane(node_id).stable == world.plane(node_id).log.held for node_id in world.nodes)
    )
    assert all(world.plane(node_id).log.entries_kept == 0 for node_id in world.nodes)


def test_a_paused_member_stalls_nobody_until_the_backlog_is_full() -> None:
    world = World(3, backlog_bytes=1 << 20, suspicion_ns=60 * SECOND_NS).form()  # nobody is removed
    topic_id, producer = world.topic(), world.producer(2)
    world.run(300 * MS)
    world.paused = {3}
    number, run_bytes = 0, 20_000

    def push() -> None:
        nonlocal number
        while world.nodes[2].room() > 0 and number < 200:
            number += 1
            world.publish(2, publication(topic_id, producer, number, [b"x" * run_bytes]))

    push()
    world.run(3 * SECOND_NS)
    push()
    delivered = world.count(1)
    assert delivered * run_bytes > 1 << 20  # more than the backlog's mark ...
    assert (
        world.plane(1).origins.present[2].kept_bytes
        < (1 << 20) + limits.FLOW_FLOOR_BYTES + limits.WINDOW_BYTES // 2
    )
    assert delivered < 200  # ... and then no more
    assert world.nodes[1].status(world.now)["data_plane"]["window_closed_because"]
    assert world.plane(2).window == 0
    assert world.nodes[2].room() <= limits.WINDOW_BYTES - world.plane(2)._outgoing.pending_bytes
    world.control(2, control.Barrier())  # a command passes the closed window
    world.paused = set()
    world.until(lambda: world.count(3) == number and world.count(1) == number)
    world.agree()
    world.run(SECOND_NS)
    assert world.plane(1).window > 0
    assert all(world.plane(node_id).origins.present[2].kept_bytes == 0 for node_id in world.nodes)


def test_small_events_that_come_alone_fill_the_backlog_by_what_they_take_in_memory() -> None:
    world = World(3, backlog_bytes=1 << 20, suspicion_ns=60 * SECOND_NS).form()
    topic_id, producer = world.topic(), world.producer(2)
    world.run(300 * MS)
    world.paused = {3}
    number = 0
    while world.plane(2).window and number < 10_000:
        number += 1
        world.publish(2, publication(topic_id, producer, number, [b"x"]))
        world.run(MS)
    stream = world.plane(1).origins.present[2]
    assert number < 10_000
    assert stream.extents_kept > 1000
    assert stream.kept_bytes < (1 << 20) // 2
    assert world.plane(1).origins.kept_cost_bytes < 2 << 20
    world.paused = set()
    world.until(lambda: world.count(3) == number)
    world.run(SECOND_NS)
    assert world.plane(1).origins.kept_cost_bytes == 0


def test_a_full_subscriber_closes_the_window_for_its_time_and_not_for_ever() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(2)
    world.nodes[3].set_full(True)
    world.settle(3)
    world.run(10 * MS)
    assert world.plane(2).window == 0
    assert world.nodes[1].status(world.now)["data_plane"]["window_closed_because"] == "a subscriber is full"
    world.publish(2, publication(topic_id, producer, 1, [b"x"]))
    world.run(SECOND_NS)
    assert world.count(1) == 0
    world.nodes[3].set_full(False)
    world.settle(3)
    world.run(10 * MS)
    assert world.count(1) == 1
    world.nodes[3].set_full(True)
    world.settle(3)
    world.run(10 * MS)
    world.publish(2, publication(topic_id, producer, 2, [b"x"]))
    world.run(limits.SLOW_SUBSCRIBER_TIMEOUT_NS)
    assert [world.count(node_id) for node_id in world.nodes] == [2, 2, 2]


def test_a_publisher_faster_than_the_cluster_is_told_to_wait() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(2)
    node, number = world.nodes[2], 0
    while node.room() > 0:
        number += 1
        node.publish(publication(topic_id, producer, number, [b"x" * 60_000]))
    assert number * 60_000 <= limits.WINDOW_BYTES + 2 * 60_100
    world.settle(2)
    most = world.plane(2).window + limits.SEGMENT_BUFFER_BYTES + limits.CONTROL_RESERVE_BYTES
    assert world.plane(2)._in_flight_bytes <= most
    world.until(lambda: all(world.count(node_id) == number for node_id in world.nodes))
    world.agree()
    assert node.room() >= limits.WINDOW_BYTES


def test_topics_change_at_the_same_place_for_all() -> None:
    world = World(3, delay_ns=(10_000, 2 * MS)).form()
    topic_id, producer = world.topic("t"), world.producer(2)
    for number in range(1, 40):
        world.publish(2, publication(topic_id, producer, number, [b"x"]))
        if number == 20:
            world.nodes[3].control(control.TopicRemove("t"))
            world.settle(3)
        world.run(200_000)
    world.until(lambda: sum(one.count for one in world.outcomes[2] if one.kind == RunKind.PUBLICATION) == 39)
    world.run(300 * MS)
    world.agree()
    told = [one.error for one in world.outcomes[2] if one.kind == RunKind.PUBLICATION]
    assert 0 < told.index(errno.EINVAL) == told.count(0)
    assert all(world.nodes[node_id].topic_by_id(topic_id) is None for node_id in world.nodes)
    assert world.nodes[1].last_seq(topic_id) == 0


def test_an_order_travels_behind_the_packets_it_is_about() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(1)
    world.nodes[1].publish(publication(topic_id, producer, 1, [b"x" * 5000]))
    world.nodes[1].end_burst(world.now)
    buffers = [effect for effect in world.nodes[1].take_effects() if isinstance(effect, Multicast)]
    assert {one.buffer[BODY] for one in buffers} <= {MessageType.DATA, MessageType.ORDER}
    for one in buffers:
        for target in (2, 3):
            world.receive(target, one.buffer, one.segment, ("net", 1))
    assert world.plane(2).log.held == world.plane(1).log.held
    assert [world.count(node_id) for node_id in (2, 3)] == [1, 1]


def test_outcomes_are_given_where_they_stand_in_the_order() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(2)
    items: list[Any] = []
    original = world.nodes[2].take_effects

    def watch() -> list[Any]:
        effects = original()
        items.extend(item for effect in effects if hasattr(effect, "items") for item in effect.items)
        return effects

    world.nodes[2].take_effects = watch  # type: ignore[method-assign]
    for number in (1, 2):
        world.publish(2, publication(topic_id, producer, number, [b"x"]))
    world.until(lambda: len(items) == 4)
    assert [type(item) for item in items] == [Delivery, Outcome] * 2
    assert [item.seq for item in items] == [1, 1, 2, 2]


def test_only_those_acknowledge_at_once_whom_somebody_waits_for() -> None:
    world = World(3).form()
    topic_id, of_member, of_sequencer = world.topic(), world.producer(2), world.producer(1)
    world.run(300 * MS)
    acknowledgements: list[int] = []
    send = world._send

    def watched(source: int, target: int, buffer: bytes, segment: int) -> None:
        if buffer[BODY] == MessageType.ACK:
            acknowledgements.append(source)
        send(source, target, buffer, segment)

    world._send = watched  # type: ignore[method-assign]
    world.publish(2, publication(topic_id, of_member, 1, [b"x"]))
    world.run(5 * MS)
    assert acknowledgements == [2]  # node 3's may wait: the sequencer and the origin are a commit quorum
    assert [world.count(node_id) for node_id in world.nodes] == [1, 1, 1]
    acknowledgements.clear()
    world.publish(1, publication(topic_id, of_sequencer, 1, [b"x"]))
    world.run(5 * MS)
    assert sorted(acknowledgements) == [2, 3]
    acknowledgements.clear()
    world.publish(2, publication(topic_id, of_member, 2, [bytes(1000)] * 60))
    world.publish(2, publication(topic_id, of_member, 62, [bytes(1000)] * 60))
    world.publish(2, publication(topic_id, of_member, 122, [bytes(1000)] * 60))
    world.run(20 * MS)
    assert 3 in acknowledgements
    world.run(300 * MS)
    assert len({world.plane(node_id).stable for node_id in world.nodes}) == 1
    assert world.plane(1).stable == world.plane(1).log.held  # heartbeats bring the rest
    world.agree()


def test_what_others_wait_for_goes_out_before_the_rest_is_worked_out() -> None:
    world = World(3).form()
    topic_id, producer = world.topic(), world.producer(1)
    world.run(300 * MS)
    node = world.nodes[1]
    node.publish(publication(topic_id, producer, 1, [b"x"]))
    held = world.plane(1).log.held
    steps = node.end_burst_in_steps(world.now)
    next(steps)
    effects = node.take_effects()
    assert [type(effect) for effect in effects] == [Multicast]
    assert world.plane(1).log.held == held
    for _ in steps:
        pass
    assert world.plane(1).log.held == held + 1
