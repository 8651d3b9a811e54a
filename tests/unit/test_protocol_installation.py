"""Installing a configuration: what comes from the next epoch while this node's disk is not done with it."""

from __future__ import annotations

from typing import Any

from ocfcluster.limits import EARLY_ORDERS
from ocfcluster.protocol.effects import Persist
from tests.unit.protocol_world import World, publication

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
