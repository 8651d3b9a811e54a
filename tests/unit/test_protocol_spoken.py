"""Nodes of two versions of the protocol in one cluster: one is upgraded after the other, and nobody is left out.

There is one version yet, so the "newer" build of these tests is this one, told that it speaks a version more.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from ocfcluster.errors import StateDirectoryError
from ocfcluster.protocol import Node
from ocfcluster.protocol.effects import State
from ocfcluster.wire import datagram as wire
from tests.unit.protocol_world import WALL_NS, World, publication

OLD = (wire.VERSION, wire.VERSION)
NEW = (wire.VERSION, wire.VERSION + 1)


def build(world: World, node_id: int, versions: tuple[int, int]) -> None:
    """This node's agent is of that build, from its next start on."""
    world.settings[node_id] = replace(world.settings[node_id], versions=versions)


def world_of(**versions: tuple[int, int]) -> World:
    world = World(len(versions))
    for node_id, spoken in enumerate(versions.values(), 1):
        build(world, node_id, spoken)
        world.nodes[node_id] = Node(world.settings[node_id], world.now, WALL_NS)
    return world


def spoken(world: World) -> set[int]:
    return {node.spoken.version for node in world.nodes.values()}


def all_get_what_each_publishes(world: World) -> None:
    topic = world.topic(f"t{world.now}")
    before = {node_id: world.count(node_id) for node_id in world.nodes}
    for node_id in world.nodes:
        world.publish(node_id, publication(topic, world.producer(node_id), 1, [b"x"]))
    world.until(
        lambda: all(world.count(node_id) == before[node_id] + len(world.nodes) for node_id in world.nodes)
    )


def test_a_cluster_is_upgraded_node_by_node_and_back() -> None:
    world = world_of(one=OLD, two=OLD, three=OLD).form()
    for versions in (NEW, OLD):
        for node_id in world.nodes:
            others = [other for other in world.nodes if other != node_id]
            world.kill(node_id)
            world.until(lambda others=others: all(set(world.members(one)) == set(others) for one in others))
            build(world, node_id, versions)
            world.restart(node_id)
            world.until(lambda: all(len(world.members(one)) == 3 for one in world.nodes))
            world.until(lambda: all(node.state is State.ACTIVE for node in world.nodes.values()))
            assert spoken(world) == {wire.VERSION}
            all_get_what_each_publishes(world)
    assert not any(node.counters["wrong_version"] for node in world.nodes.values())


@pytest.mark.parametrize("old", [1, 2, 3])
def test_builds_of_two_versions_form_a_cluster_of_the_older_one(old: int) -> None:
    world = world_of(**{str(node_id): OLD if node_id == old else NEW for node_id in (1, 2, 3)}).form()
    assert spoken(world) == {wire.VERSION}
    all_get_what_each_publishes(world)


def test_a_wiped_node_of_the_newer_build_joins_a_cluster_of_the_older_version() -> None:
    world = world_of(one=OLD, two=OLD, three=OLD).form()
    world.kill(3)
    world.until(lambda: world.members(1) == [1, 2])
    build(world, 3, NEW)
    world.restart(3, wiped=True)
    world.until(lambda: all(len(world.members(one)) == 3 for one in world.nodes))
    all_get_what_each_publishes(world)


def test_a_cluster_of_the_newer_build_alone_speaks_its_version_and_an_older_node_says_why_it_stays_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "VERSION", NEW[1])  # what a configuration may say
    world = world_of(one=NEW, two=NEW, three=NEW).form()
    assert spoken(world) == {NEW[1]}
    all_get_what_each_publishes(world)
    world.kill(3)
    world.until(lambda: world.members(1) == [1, 2])

    build(world, 3, OLD)
    with pytest.raises(StateDirectoryError, match=r"speaks version 2 .* run a newer agent"):
        world.restart(3)
    world.restart(3, wiped=True)
    world.run(3 * 10**9)
    assert world.nodes[3].state is State.FORMING
    assert world.nodes[3].counters["wrong_version"] > 0
    assert [text for text in world.news[3] if "upgrade this agent" in text] == [
        "node 1 speaks version 2: upgrade this agent"
    ]
    assert world.members(1) == [1, 2]
    assert all(node.spoken.version == NEW[1] for node_id, node in world.nodes.items() if node_id != 3)


def test_a_stranger_does_not_change_the_version_that_a_node_begins_with() -> None:
    world = world_of(one=NEW, two=NEW, three=NEW)
    prefix = wire.clear_prefix(wire.cluster_hash("test"), 9, 9)
    world.receive(1, prefix + bytes(64), len(prefix) + 64, ("evil", 666))
    assert world.nodes[1].spoken.version == NEW[1]
