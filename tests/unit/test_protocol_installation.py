"""Installing a configuration: what comes from the next epoch while this node's disk is not done with it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ocfcluster.limits import EARLY_ORDERS
from ocfcluster.protocol.effects import Delivery, Persist
from ocfcluster.protocol.judgement import next_configuration
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.settings import Record
from ocfcluster.wire import control
from tests.unit.protocol_world import (
    SECOND_NS,
    START_NS,
    WALL_NS,
    World,
    configuration_of,
    publication,
    settings_of,
)

SLOW_NODE = 3
SLOW_NS = 20_000_000


class SlowDisk(World):
    """The disk of one node is slower than the others'."""

    slow = False

    def _persist(self, node_id: int, effect: Persist) -> None:
        quick = self.persist_ns
        if self.slow and node_id == SLOW_NODE:
            self.persist_ns = SLOW_NS
        super()._persist(node_id, effect)
        self.persist_ns = quick


def after_the_sequencer(publications: int) -> tuple[SlowDisk, dict[int, int]]:
    """Node 1 dies, node 2 goes on as sequencer; when node 3 had its configuration on disk, and node 2."""
    world = SlowDisk()
    world.form()
    topic, producer = world.topic(), world.producer(2)
    world.run(200_000_000)
    world.slow = True
    world.kill(1)
    installed: dict[int, int] = {}

    def both() -> bool:
        for node_id in (2, SLOW_NODE):
            configuration: Any = world.nodes[node_id].configuration
            if configuration.epoch == 2 and node_id not in installed:
                installed[node_id] = world.now
                if node_id == 2:
                    for number in range(1, publications + 1):
                        world.publish(2, publication(topic, producer, number, [b"x"]))
        return len(installed) == 2

    world.until(both)
    assert installed[SLOW_NODE] - installed[2] > 10_000_000
    return world, installed


def test_what_was_ordered_before_the_disk_was_done_is_not_asked_for() -> None:
    world, installed = after_the_sequencer(3)
    asked = world.plane(SLOW_NODE).status()["nacks_sent"]
    world.until(lambda: world.count(2) == world.count(SLOW_NODE) == 3)
    assert world.now - installed[SLOW_NODE] < 2_000_000
    assert world.plane(SLOW_NODE).status()["nacks_sent"] == asked


def test_what_is_too_much_to_keep_is_asked_for() -> None:
    world, _ = after_the_sequencer(EARLY_ORDERS + 5)
    world.until(lambda: world.count(2) == world.count(SLOW_NODE) == EARLY_ORDERS + 5)
    assert world.plane(SLOW_NODE).status()["nacks_sent"]
    world.agree([2, SLOW_NODE])


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [([(3, 40), (4, 100), (5, 120)], 100), ([(3, 40), (4, 99), (5, 120)], 0), ([(5, 120)], 0)],
)
def test_a_topic_change_that_never_was_goes_before_no_other(epochs: list[tuple[int, int]], kept: int) -> None:
    """Held as index 100 of epoch 3, which ended there, or one before, or nobody knows where."""
    table = {1: 1, 2: 1, 3: 1}
    before = configuration_of(table, epoch=3, base=40, epochs=[(2, 7), (3, 40)])
    disk = msgspec.msgpack.encode(Record(before, [], 17, 100))
    node = Node(settings_of(1, table, record=disk, incarnation=77), START_NS, WALL_NS)
    node.installation.take(configuration_of(table, epoch=5, base=120, epochs=epochs), START_NS)
    node.end_burst(START_NS)
    [effect] = [one for one in node.take_effects() if isinstance(one, Persist)]
    assert msgspec.msgpack.decode(effect.record, type=Record).topics_index == kept


def test_nothing_is_ordered_while_what_follows_is_on_its_way_to_the_disk() -> None:
    """A sequencer that was absent when the view was decided, and is kept in it, has promised nothing."""
    world = World(5, persist_ns=SLOW_NS)
    world.form()
    topic, producer = world.topic(), world.producer(1)
    world.run(SECOND_NS)
    node, plane = world.nodes[1], world.plane(1)
    known = node.configuration
    assert known is not None
    assert known.sequencer == 1
    following = next_configuration(
        known, known.members, [], known.table, 2, plane.log.held, known.order_time + SECOND_NS
    )
    world.cut |= {pair for other in (2, 3, 4, 5) for pair in ((1, other), (other, 1))}
    node.installation.take(following, world.now)
    world.settle(1)
    world.run(SLOW_NS // 4)
    world.publish(1, publication(topic, producer, 1, [b"in the place of the view"]))
    world.run(5 * SLOW_NS)
    assert plane.state.configuration == following
    assert not [one for one in world.log[1] if isinstance(one, Delivery)]


@pytest.mark.parametrize("base", [2, None], ids=["a view", "a new history"])
def test_what_was_fetched_for_another_proposal_is_not_held_behind_the_base(base: int | None) -> None:
    world = World()
    world.form()
    world.topic()
    world.run(SECOND_NS)
    plane, known = world.plane(3), world.nodes[3].configuration
    assert known is not None
    plane.freeze()
    plane.fetch(20, 1)
    plane.end(None if base is None else msgspec.structs.replace(known, epoch=2, base=base))
    assert plane._limit == (plane.log.held if base is None else base)


def test_an_order_to_stop_ends_with_its_history() -> None:
    """Delivered, and not carried out yet when another history begins: whoever goes into that looks after it."""
    world = World(3).form()
    world.control(1, control.Shutdown())
    world.until(lambda: world.plane(3).state.shut_down)
    node = world.nodes[3]
    assert node.configuration is not None
    supersedes = [node.configuration.cluster_id]
    fresh = msgspec.structs.replace(node.configuration, cluster_id="9" * 32, supersedes=supersedes)
    node.installation.take(msgspec.structs.replace(fresh, topics_digest=0), world.now)
    node.end_burst(world.now)
    world.carry(3)
    world.until(lambda: all(one.configuration.supersedes == supersedes for one in world.nodes.values()))  # type: ignore[union-attr]
    world.kill(1)
    world.until(lambda: world.members(2) == world.members(3) == [2, 3])
