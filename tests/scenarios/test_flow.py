"""The two bounds: a member that acknowledges nothing, and a subscriber that is full, close the window and open it."""

from __future__ import annotations

from ocfcluster.limits import KIB, SECOND_NS
from ocfcluster.protocol.settings import Limits
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.transcript import check

WINDOW = 64 * KIB
BACKLOG = 256 * KIB


def figures(scenario: Scenario, node: int) -> dict:
    host = scenario.host(node)
    return host.node.status(host.clock())["data_plane"]


def window_is(scenario: Scenario, node: int) -> str:
    return "open" if figures(scenario, node)["window_bytes"] else "closed"


def test_a_member_that_acknowledges_nothing_closes_the_window_when_the_backlog_is_full():
    scenario = Scenario(
        nodes=3,
        window_bytes=WINDOW,
        backlog_bytes=BACKLOG,
        limits=Limits(event_bytes=64 * KIB),
        suspicion_ns=60 * SECOND_NS,  # it is silent and not suspected for all of the script
    )
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    mute = scenario.drop(source=3)
    scenario.say("a program on node 2 publishes 40 events of 16 KiB")
    for number in range(40):
        publisher.publish("t", f"{number:02}".encode() * (8 * KIB), quiet=True)
        scenario.run(ms=20)
    scenario.run(ms=1000)
    for node in (1, 2):
        kept = figures(scenario, node)["kept_bytes"]
        scenario.say(f"the window at node {node} is {window_is(scenario, node)}")
        assert BACKLOG <= kept <= BACKLOG + 2 * WINDOW
    assert scenario.host(1).cursor == scenario.host(2).cursor < 41
    scenario.heal(mute)
    scenario.run(ms=3000)
    for node in (1, 2):
        scenario.say(f"the window at node {node} is {window_is(scenario, node)}")
        assert figures(scenario, node)["kept_bytes"] == 0
    scenario.say(
        f"items delivered by nodes 1, 2 and 3: {[host.cursor for host in scenario.world.hosts.values()]}"
    )
    check(scenario, "backlog_closes_the_window")


def test_a_full_subscriber_closes_the_window_and_opens_it_again():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    scenario.say("a subscriber on node 3 is full")
    scenario.host(3).node.set_full(True)
    scenario.run(ms=250)
    for node in (1, 2, 3):
        scenario.say(f"the window at node {node} is {window_is(scenario, node)}")
    publisher.publish("t", "waits")
    scenario.run(ms=1000)
    scenario.show()
    scenario.say("it is free again")
    scenario.host(3).node.set_full(False)
    scenario.run(ms=250)
    scenario.show()
    scenario.say(f"the window at node 2 is {window_is(scenario, 2)}")
    check(scenario, "full_subscriber")


def test_a_subscriber_that_stays_full_holds_the_cluster_up_for_its_time_only():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    scenario.say("a subscriber on node 3 is full, and stays so")
    scenario.host(3).node.set_full(True)
    scenario.run(ms=250)
    publisher.publish("t", "waits")
    scenario.run(ms=4000)
    scenario.show(2)
    scenario.run(ms=1500)
    scenario.show(2)
    check(scenario, "full_subscriber_that_stays")


def test_free_again_is_heard_although_the_first_word_of_it_is_lost():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    scenario.host(3).node.set_full(True)
    scenario.run(ms=250)
    publisher.publish("t", "waits")
    lost = scenario.drop(MessageType.ACK, source=3)
    scenario.say("the subscriber on node 3 is free again")
    scenario.host(3).node.set_full(False)
    scenario.run(ms=400)
    scenario.show(2)
    assert lost.lost
    check(scenario, "free_again_lost")
