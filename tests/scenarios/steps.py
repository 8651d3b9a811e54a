"""What many scripts begin with, and what they look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ocfcluster.protocol.settings import Configuration
from ocfcluster.simulator import observe
from ocfcluster.simulator.scenario import Scenario, ScriptPublisher
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import MessageFlags, MessageType

HOLDING = (MessageType.DATA, MessageType.RETRANSMIT)  # what a node needs to hold an event
TELLING = (MessageType.ACK, MessageType.HEARTBEAT)  # what tells the sequencer that it does
BIG_DATAGRAM_BYTES = 1372  # of a link whose mtu is 1400


def running(nodes: int = 3, publisher: int = 2, **settings: Any) -> tuple[Scenario, ScriptPublisher]:
    """A cluster with topic t, and a program on one of the nodes whose first event everybody has delivered."""
    scenario = Scenario(nodes=nodes, **settings)
    scenario.form()
    scenario.create_topic("t")
    program = scenario.publisher(node=publisher)
    program.publish("t", "before")
    scenario.run(ms=300)
    scenario.forget()
    return scenario, program


def part_of_a_table(
    nodes: int, late: Sequence[int], publisher: int = 2, **settings: Any
) -> tuple[Scenario, ScriptPublisher]:
    """As ``running``, of a table some of whose nodes have never been switched on: more than half of it forms."""
    return running(nodes, publisher, late=late, bootstrap="majority", **settings)


def configuration(scenario: Scenario, node: int) -> Configuration:
    """What is in force on this node."""
    found = scenario.host(node).node.configuration
    assert found is not None
    return found


def epoch(scenario: Scenario, node: int) -> int:
    return configuration(scenario, node).epoch


def held(scenario: Scenario, node: int) -> int:
    return observe.held_index(scenario.host(node).node)


def accepted(scenario: Scenario, node: int) -> bool:
    """Whether the disk of this node has a value that it accepted, and not installed yet."""
    record = scenario.host(node).disk.durable
    vote = observe.read_record(record).vote if record else None
    return vote is not None and vote.accepted is not None


def promised(scenario: Scenario, node: int) -> bool:
    """Whether the node is frozen by a promise."""
    return scenario.host(node).node.recovery.promised is not None


def status(scenario: Scenario, node: int) -> dict[str, Any]:
    host = scenario.host(node)
    return host.node.status(host.clock())


def too_large(datagram: bytes) -> bool:
    """What does not fit a link whose mtu is 1400."""
    return len(datagram) > BIG_DATAGRAM_BYTES


def says_ready(datagram: bytes) -> bool:
    """A heartbeat of a learner that could be admitted."""
    return bool(wire.decode_heartbeat(datagram).flags & MessageFlags.READY)


def learners(scenario: Scenario) -> list[int]:
    """Whom the sequencer keeps something for."""
    plane = scenario.host(scenario.sequencer).node.plane
    assert plane is not None
    return [node_id for node_id, _ in plane.learners]


def under_load(scenario: Scenario, publisher: ScriptPublisher, seconds: float) -> None:
    """Publish as fast as the cluster takes it, which is not to be shown. Fails where a member says NOT_PRIMARY."""
    for _ in range(int(seconds * 20)):
        if publisher.unanswered < 20:
            for _ in range(10):
                publisher.publish("t", b"x" * 8000, quiet=True)
        scenario.run(ms=50)
        members = [one.node_id for one in configuration(scenario, scenario.sequencer).members]
        assert all(scenario.host(node).node.primary for node in members)
    scenario.wait_for(lambda: not publisher.unanswered, "the answers")
    scenario.forget()


def wait_until_down(scenario: Scenario, *nodes: int) -> None:
    """Until these nodes have ended by themselves."""
    scenario.wait_for(lambda: all(scenario.host(node).shell is None for node in nodes), f"the end of {nodes}")
