"""Who hears whom, as a node reports it: its own row, and what heartbeats say of the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ocfcluster.agent.config import AgentConfig, Network, RedundantNetwork
from ocfcluster.agent.links import connections
from ocfcluster.net.redundant import Link
from ocfcluster.protocol.report import LinkReport, links
from tests.unit.protocol_world import World, settings_of
from tests.unit.test_protocol_detector import THREE, Ear


def reported(ear: Ear, all_pairs: bool, table: dict[int, int] | None = None) -> list[LinkReport]:
    ear.detector.update(ear.now)
    node: Any = SimpleNamespace(
        settings=settings_of(ear.own, table or dict(THREE.table)), configuration=THREE
    )
    return links(node, ear.detector, all_pairs)


def test_the_own_row_names_all_nodes_of_the_table() -> None:
    ear = Ear()
    assert reported(ear, False) == [LinkReport(2, 1, False, False), LinkReport(2, 3, False, False)]
    ear.beat(1)
    ear.beat(3, hears=(1,))
    assert reported(ear, False) == [LinkReport(2, 1, True, True), LinkReport(2, 3, True, False)]


def test_whoever_is_heard_is_known_though_not_in_the_table() -> None:
    ear = Ear()
    ear.beat(1)
    ear.beat(5, hears=(2,))
    assert [one.heard for one in reported(ear, False)] == [1, 3, 5]


def test_who_falls_silent_is_not_heard() -> None:
    ear = Ear()
    ear.beat(1)
    ear.now += 1001
    assert reported(ear, False)[0] == LinkReport(2, 1, False, False)


def test_heartbeats_tell_of_the_others() -> None:
    ear = Ear()
    ear.beat(1, hears=(2,))
    ear.beat(3, hears=(1, 2))
    assert reported(ear, True)[2:] == [
        LinkReport(1, 2, True, True), LinkReport(1, 3, False, True),
        LinkReport(3, 1, True, False), LinkReport(3, 2, True, True),
    ]  # fmt: skip
    ear.now += 1001
    ear.beat(1)
    assert [one[:2] for one in reported(ear, True)[2:]] == [(1, 2), (1, 3)]  # node 3 says nothing any more


def test_a_node_gives_its_links() -> None:
    world = World(2)
    world.run(2_000_000_000)
    for own, other in ((1, 2), (2, 1)):
        assert world.nodes[own].links(False) == [LinkReport(own, other, True, True)]
        assert world.nodes[own].links(True) == [
            LinkReport(own, other, True, True), LinkReport(other, own, True, True),
        ]  # fmt: skip


# --- per network, as events have it ---------------------------------------------------------------------------


def test_with_one_network_the_failure_detector_says_it() -> None:
    config = AgentConfig()
    reports = [LinkReport(1, 2, True, True), LinkReport(1, 3, False, False), LinkReport(2, 3, True, False)]
    found = connections(config, reports, [], 1000, 5000)
    assert [tuple(one[:4]) for one in found] == [(1, 2, 0, 3), (1, 3, 0, 0), (2, 3, 0, 1)]


def test_with_several_each_has_its_own_last_datagram() -> None:
    config = AgentConfig(
        network=Network(networks=[RedundantNetwork("a", "red"), RedundantNetwork("b", "blue")])
    )
    heard = [
        Link(2, 9, "red", ("h", 1), 4500), Link(2, 9, "blue", ("h", 1), 3900), Link(3, 9, "blue", ("h", 1), 4999),
    ]  # fmt: skip
    reports = [LinkReport(1, 2, True, True), LinkReport(1, 3, True, False), LinkReport(2, 3, True, True)]
    found = connections(config, reports, heard, 1000, 5000)
    assert [tuple(one[:4]) for one in found] == [
        (1, 2, 0, 3), (1, 2, 1, 0), (1, 3, 0, 0), (1, 3, 1, 1), (2, 3, 0, 3),
    ]  # fmt: skip
