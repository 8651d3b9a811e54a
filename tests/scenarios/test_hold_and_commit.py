"""What is held is not yet committed: between the two, nothing may be delivered or confirmed (safe delivery)."""

from __future__ import annotations

import pytest

from ocfcluster.simulator.scenario import Scenario, ScriptPublisher
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.transcript import check


def five_nodes(delivery: str = "safe") -> tuple[Scenario, ScriptPublisher]:
    scenario = Scenario(nodes=5, delivery=delivery)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    publisher.publish("t", "before")
    scenario.run(ms=300)
    scenario.show()
    return scenario, publisher


def hold_without_commit(scenario: Scenario, publisher: ScriptPublisher) -> list:
    """All nodes hold the next event, and the sequencer hears of none of it."""
    rules = [scenario.drop(kind, to=scenario.sequencer) for kind in (MessageType.ACK, MessageType.HEARTBEAT)]
    since = scenario.held
    publisher.publish("t", "in the window")
    scenario.run(ms=60)
    scenario.show_held(since)
    assert rules[0].lost
    return rules


@pytest.mark.parametrize("victim", ["sequencer", "member", "origin"])
def test_death_between_hold_and_commit(victim):
    scenario, publisher = five_nodes()
    rules = hold_without_commit(scenario, publisher)
    scenario.show()
    node = {"sequencer": scenario.sequencer, "member": 5, "origin": 2}[victim]
    scenario.kill(node)
    scenario.run(ms=500)
    scenario.show()
    for rule in rules:
        scenario.heal(rule)
    scenario.wait_until(view=tuple(sorted({1, 2, 3, 4, 5} - {node})))
    scenario.run(ms=500)
    scenario.show()
    check(scenario, f"hold_and_commit_{victim}")


def test_agreed_delivery_delivers_on_receipt():
    scenario, publisher = five_nodes(delivery="agreed")
    hold_without_commit(scenario, publisher)
    scenario.show()
    check(scenario, "hold_and_commit_agreed")


def test_a_member_dies_after_its_ack_and_what_it_held_still_counts():
    scenario, publisher = five_nodes()
    scenario.drop(MessageType.DATA, MessageType.RETRANSMIT, to=(4, 5))
    publisher.publish("t", "held by 1, 2 and 3")
    scenario.run(ms=60)
    scenario.show()
    scenario.kill(3)
    publisher.publish("t", "held by 1 and 2")
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "hold_and_commit_dead_holder")


def test_of_two_nodes_none_delivers_what_the_other_does_not_hold():
    """Half of the votes decides a view, and delivers nothing (Quorums.commit): the sequencer dies with what it alone
    had, and the program that published it sends it again."""
    scenario = Scenario(nodes=2)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=1)
    lost = scenario.drop(MessageType.DATA, MessageType.RETRANSMIT, source=1)
    publisher.publish("t", "held by half")
    scenario.run(ms=500)
    scenario.show()
    assert lost.lost
    scenario.crash(1)
    scenario.heal(lost)
    scenario.run(ms=3000)
    scenario.restart(1)
    scenario.wait_until(view=(1, 2))
    scenario.run(ms=500)
    scenario.show()
    check(scenario, "hold_and_commit_half")
