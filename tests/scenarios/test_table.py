"""The node table, and who is the sequencer, changed by ordered commands; refused ones change nothing."""

from __future__ import annotations

import errno

import pytest

from ocfcluster.protocol.effects import State
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import configuration, epoch, running, status
from tests.scenarios.transcript import check


def test_a_node_is_added_and_joins():
    scenario = Scenario(nodes=4, late=(4,))
    for node in (1, 2, 3):
        scenario.configure(node, table={1: 1, 2: 1, 3: 1})
    scenario.form()
    scenario.start(4)
    scenario.run(ms=3000)
    scenario.show_states(4)
    assert scenario.order(2, control.NodeAdd(4, 1)) == 0
    scenario.wait_until(view=(1, 2, 3, 4))
    scenario.run(ms=200)
    scenario.show()
    for node in (1, 2, 3, 4):
        assert configuration(scenario, node).table == {1: 1, 2: 1, 3: 1, 4: 1}
    check(scenario, "table_add")


def test_nodes_are_added_before_they_are_started():
    """As far as what is there stays primary; one more is refused, at its place in the order (NodeTable.apply)."""
    scenario, publisher = running(nodes=3)
    answers = [scenario.order(1, control.NodeAdd(node, 1)) for node in (4, 5, 6, 7)]
    assert answers == [0, 0, 0, errno.EBUSY]
    scenario.wait_until(what=lambda: len(configuration(scenario, 3).table) == 6)
    scenario.crash(3)
    scenario.run(ms=3000)
    publisher.publish("t", "two of three in a table of six")
    scenario.run(ms=300)
    scenario.show()
    assert len(configuration(scenario, 1).table) == 6
    check(scenario, "table_add_too_many")


def test_a_member_is_removed():
    scenario, publisher = running(nodes=4)
    assert scenario.order(1, control.NodeRemove(4)) == 0
    scenario.wait_until(view=(1, 2, 3), on=(1, 2, 3))
    publisher.publish("t", "without it")
    scenario.run(ms=2000)
    scenario.show()
    scenario.show_states(4)
    assert scenario.host(4).state is State.FORMING
    check(scenario, "table_remove")


def test_the_sequencer_is_removed():
    scenario, publisher = running(nodes=3)
    assert scenario.order(3, control.NodeRemove(1)) == 0
    scenario.wait_until(view=(2, 3), on=(2, 3))
    publisher.publish("t", "without it")
    scenario.run(ms=1000)
    scenario.show()
    check(scenario, "table_remove_sequencer")


@pytest.mark.parametrize(
    ("operand", "error"),
    [
        (control.NodeRemove(9), errno.EINVAL),
        (control.NodeVotes(9, 2), errno.EINVAL),
        (control.Sequence(9), errno.EINVAL),
        (control.NodeAdd(2, 3), errno.EEXIST),
        (control.NodeAdd(2, 1), 0),
        (control.NodeAdd(4, 200), errno.EBUSY),
    ],
    ids=[
        "remove_unknown",
        "votes_of_unknown",
        "sequence_unknown",
        "add_with_other_votes",
        "add_again",
        "add_majority",
    ],
)
def test_commands_that_change_nothing(operand, error):
    """Refused, or so already: no epoch change follows."""
    scenario, _ = running(nodes=3)
    assert scenario.order(2, operand) == error
    scenario.run(ms=3000)
    assert epoch(scenario, 1) == 1
    scenario.show_states()
    check(scenario, f"table_refused_{type(operand).__name__}_{error}")


def test_all_but_one_cannot_be_removed_below_a_primary():
    """{1, 2} of a table of four is primary, {1} of the three that are left is not."""
    scenario, _ = running(nodes=4)
    scenario.crash(3, 4)
    scenario.wait_until(view=(1, 2))
    assert scenario.order(1, control.NodeVotes(4, 3)) == errno.EBUSY
    assert scenario.order(1, control.NodeRemove(4)) == 0
    scenario.wait_until(what=lambda: len(configuration(scenario, 1).table) == 3)
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "table_remove_dead")


def test_votes_that_only_one_holds_when_the_sequencer_dies():
    """The table of the next view is what the order makes of it up to the cut, and the promise with it says so."""
    scenario, _ = running(nodes=3)
    scenario.drop(MessageType.ORDER, MessageType.DATA, MessageType.RETRANSMIT, source=1, to=2)
    scenario.drop(MessageType.ACK, MessageType.HEARTBEAT, source=3, to=1)
    scenario.ask(1, control.NodeVotes(3, 3), [])
    scenario.say("a program on node 1 orders NodeVotes(3, 3), which node 2 does not get")
    scenario.run(ms=20)
    scenario.crash(1)
    scenario.heal_all()
    scenario.wait_until(view=(2, 3))
    scenario.run(ms=300)
    scenario.show()
    for node in (2, 3):
        assert configuration(scenario, node).table == {1: 1, 2: 1, 3: 3}
    check(scenario, "table_votes_held_by_one")


def test_more_votes_decide():
    """With three votes node 3 goes on alone, and the other two do not."""
    scenario, publisher = running(nodes=3, publisher=3)
    assert scenario.order(1, control.NodeVotes(3, 3)) == 0
    scenario.wait_until(epoch=2)
    scenario.partition((1, 2), 3)
    publisher.publish("t", "alone")
    scenario.wait_until(view=(3,), on=3)
    scenario.run(ms=3000)
    scenario.show()
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "table_more_votes")


def test_another_sequencer_is_asked_for():
    """The members stay: no event, no gap, and the old one is an ordinary member."""
    scenario, publisher = running(nodes=3)
    assert scenario.order(2, control.Sequence(3)) == 0
    scenario.wait_until(view=(1, 2, 3), sequencer=3)
    publisher.publish("t", "ordered by 3")
    scenario.run(ms=3000)
    scenario.show()
    assert epoch(scenario, 1) == 2
    check(scenario, "table_sequence")


def test_another_sequencer_is_asked_for_that_dies_at_once():
    scenario, publisher = running(nodes=3)
    assert scenario.order(2, control.Sequence(3)) == 0
    scenario.crash(3)
    publisher.publish("t", "all the same")
    scenario.wait_until(view=(1, 2))
    scenario.run(ms=1000)
    scenario.show()
    check(scenario, "table_sequence_dies")


def test_a_file_that_disagrees_is_told_and_does_not_count():
    scenario, _ = running(nodes=3)
    assert scenario.order(1, control.NodeVotes(3, 2)) == 0
    scenario.wait_until(epoch=2)
    scenario.crash(2)
    scenario.wait_until(view=(1, 3))
    scenario.configure(2, table={1: 9, 2: 9, 3: 9})
    scenario.restart(2)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    assert status(scenario, 2)["table"] == {1: 1, 2: 1, 3: 2}
    check(scenario, "table_file_disagrees")
