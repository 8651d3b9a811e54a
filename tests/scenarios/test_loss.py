"""Losses at the worst places: the last message, its announcement, one direction only, pieces of one event."""

from __future__ import annotations

from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.transcript import check


def first_only():
    """A rule that loses the first datagram it is asked about, and no other."""
    asked = []

    def loses(datagram: bytes) -> bool:
        asked.append(datagram)
        return len(asked) == 1

    return loses


def test_the_last_message_and_its_announcement_are_lost():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    rules = [
        scenario.drop(MessageType.DATA, to=(1, 3), source=2),
        scenario.drop(MessageType.HEARTBEAT, source=2, loses=first_only()),
    ]
    publisher.publish("t", "last words")
    scenario.run(ms=1)
    scenario.show()
    assert rules[0].lost == 2
    scenario.heal(rules[0])
    scenario.run(ms=400)
    scenario.show()
    assert rules[1].lost == 1
    check(scenario, "loss_of_the_last")


def test_the_last_order_and_its_announcement_are_lost():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    rules = [
        scenario.drop(MessageType.ORDER, to=3),
        scenario.drop(MessageType.HEARTBEAT, source=1, to=3, loses=first_only()),
    ]
    publisher.publish("t", "last order")
    scenario.run(ms=5)
    scenario.show()
    assert rules[0].lost
    scenario.heal(rules[0])
    scenario.run(ms=500)
    scenario.show()
    check(scenario, "loss_of_the_last_order")


def test_pieces_of_a_large_event_are_lost():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=3)

    def every_third(datagram: bytes) -> bool:
        return wire.DATA.unpack_from(datagram, wire.BODY)[3] % 3 == 0

    rule = scenario.drop(MessageType.DATA, to=(1, 2), loses=every_third)
    publisher.publish("t", "small")
    publisher.publish("t", b"large---" * 20_000)
    publisher.publish("t", "small again")
    scenario.run(ms=1500)
    scenario.show()
    assert rule.lost > 20
    check(scenario, "loss_of_pieces")


def test_a_link_that_works_one_way_only():
    """Node 3 does not hear the origin: what it misses comes from the sequencer."""
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    rule = scenario.drop(source=2, to=3)
    publisher.publish("t", "one", "two")
    scenario.run(ms=1000)
    publisher.publish("t", "three")
    scenario.run(ms=1000)
    scenario.show()
    assert rule.lost
    check(scenario, "one_way_link")


def test_every_datagram_comes_twice_and_the_counters_say_so():
    scenario = Scenario(nodes=2)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=1)
    for link in scenario.world.network.links.values():
        link.profile = link.profile.__class__(jitter_ns=0, splitting=0.0, duplication=1.0)
    scenario.say("from now on every datagram comes twice")
    publisher.publish("t", "once")
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "duplicates")
