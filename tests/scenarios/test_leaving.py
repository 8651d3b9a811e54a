"""Nodes that are told to stop: the others go on at once where they can, and say why not where they cannot."""

from __future__ import annotations

import pytest

from ocfcluster.limits import SECOND_NS
from ocfcluster.protocol.effects import State
from ocfcluster.simulator.script import notice_text
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import HOLDING, running, wait_until_down
from tests.scenarios.transcript import check


@pytest.mark.parametrize("leaver", [1, 3], ids=["sequencer", "member"])
def test_a_node_leaves_under_load(leaver):
    """No suspicion is waited for; nothing is lost, and nothing delivered twice."""
    scenario, publisher = running(nodes=4)
    scenario.say("a program on node 2 publishes an event every 2 ms")
    for number in range(300):
        publisher.publish("t", f"{number:03}", quiet=True)
        scenario.run(ms=2)
        if number == 100:
            scenario.leave(leaver)
            began = scenario.world.now
        if number == 200:
            assert scenario.host(leaver).shell is None
    rest = tuple(node for node in (1, 2, 3, 4) if node != leaver)
    scenario.wait_until(view=rest)
    scenario.run(ms=300)
    assert scenario.world.now - began < SECOND_NS
    assert publisher.unanswered == 0
    for node in rest:
        texts = scenario.delivered(node)
        assert len(texts) == 301
        scenario.say(f"node {node} has delivered {texts[0]} ... {texts[-1]}")
    scenario.say(f"node {leaver} {notice_text(scenario.host(leaver).notices[-1])}")
    check(scenario, f"leaving_{leaver}")


def test_two_leave_with_what_the_last_one_needs():
    """The one that stays must hold the cut before the view is decided; nobody is left to give it afterwards."""
    scenario, publisher = running(nodes=3, publisher=1, last_man_standing=True)
    scenario.drop(*HOLDING, to=3)
    publisher.publish("t", "held by 1 and 2")
    scenario.run(ms=50)
    scenario.show()
    scenario.leave(1, 2)
    scenario.run(ms=500)
    scenario.heal_all()
    scenario.wait_until(view=(3,), on=3)
    scenario.run(ms=1000)
    scenario.show()
    check(scenario, "leaving_two_of_three")


def test_the_decisive_one_of_two_leaves_and_its_last_word_is_lost():
    """It stays until the other reports the view: INSTALL comes again with the answer to a heartbeat."""
    scenario, publisher = running(nodes=2, publisher=2)
    lost = scenario.drop_once(MessageType.INSTALL, to=2)
    scenario.leave(1)
    scenario.wait_until(view=(2,), on=2)
    wait_until_down(scenario, 1)
    assert lost.lost == 1
    publisher.publish("t", "alone")
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "leaving_install_lost")


def test_all_are_stopped_one_after_the_other():
    """The last ones cannot leave a primary behind: they say so and stop as if they had failed, in time."""
    scenario, _ = running(nodes=3)
    for node in (1, 2, 3):
        scenario.leave(node)
        wait_until_down(scenario, node)
    scenario.show()
    check(scenario, "leaving_one_after_the_other")


def test_a_leave_that_nobody_can_answer_ends_by_itself():
    scenario, _ = running(nodes=3)
    scenario.cut((1, 2), to=3)
    scenario.leave(3)
    began = scenario.world.now
    wait_until_down(scenario, 3)
    assert scenario.world.now - began < 6 * SECOND_NS
    scenario.wait_until(view=(1, 2))
    scenario.show()
    check(scenario, "leaving_deaf")


def test_shutdown_of_all():
    """One ordered command: everybody has delivered the same, and ends without asking the others."""
    scenario, publisher = running(nodes=5)
    publisher.publish("t", "last")
    scenario.run(ms=100)
    scenario.ask(4, control.Shutdown(), [])
    scenario.say("a program on node 4 orders Shutdown()")
    wait_until_down(scenario, 1, 2, 3, 4, 5)
    scenario.show()
    scenario.restart(1, 2, 3, 4, 5)
    scenario.wait_until(state=State.ACTIVE, history="new")
    scenario.show()
    check(scenario, "leaving_shutdown")


@pytest.mark.parametrize("victim", [1, 2])
@pytest.mark.parametrize("how", ["dies", "is cut off", "leaves"])
def test_two_nodes(victim, how):
    """Exactly half decides with the tie-breaker, node 1: the other alone waits."""
    scenario, _ = running(nodes=2)
    rest = 3 - victim
    if how == "dies":
        scenario.crash(victim)
    elif how == "leaves":
        scenario.leave(victim)
    else:
        scenario.partition(1, 2)
    scenario.run(ms=4000)
    scenario.show()
    scenario.show_states(rest)
    if how == "is cut off":
        scenario.heal_all()
    else:
        scenario.restart(victim)
    scenario.wait_until(view=(1, 2), delivered=1)
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, f"two_nodes_{victim}_{how.replace(' ', '_')}")


def test_last_man_standing():
    """A view may shrink step by step, below half of the table; who comes back joins what is left."""
    scenario, _ = running(nodes=3, last_man_standing=True)
    scenario.crash(3)
    scenario.wait_until(view=(1, 2))
    scenario.crash(2)
    scenario.wait_until(view=(1,))
    publisher = scenario.publisher(node=1, name="another program")
    publisher.publish("t", "alone")
    scenario.run(ms=200)
    scenario.show()
    scenario.restart(2, 3)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, "last_man_standing")


def test_last_man_standing_the_wrong_one_waits():
    """Of two, the one without the decisive vote does not go on alone."""
    scenario, _ = running(nodes=3, last_man_standing=True)
    scenario.crash(3)
    scenario.wait_until(view=(1, 2))
    scenario.crash(1)
    scenario.run(ms=5000)
    scenario.show()
    scenario.show_states(2)
    check(scenario, "last_man_standing_wrong_one")
