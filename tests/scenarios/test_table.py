"""The node table, and who is the sequencer, changed by ordered commands; refused ones change nothing."""

from __future__ import annotations

import errno

import pytest

from ocfcluster.protocol.effects import State
from ocfcluster.protocol.operator import NewHistory
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import configuration, epoch, part_of_a_table, running, status
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


def test_a_refused_command_stays_refused_where_it_is_held_later():
    """Node 2 installs the view with node 5 below its base, and holds the command that was refused before it then: it
    counts for the view that is gone (DataPlane._stage)."""
    scenario = Scenario(nodes=5, late=(5,), bootstrap="majority")
    scenario.form()
    scenario.create_topic("t")
    scenario.start(5)
    deaf = [
        scenario.drop(kind, to=2) for kind in (MessageType.DATA, MessageType.ORDER, MessageType.RETRANSMIT)
    ]
    assert (
        scenario.order(1, control.NodeVotes(5, 200)) == errno.EBUSY
    )  # no member yet: it would be the quorum
    scenario.wait_until(view=(1, 2, 3, 4, 5), on=(1, 3, 4))
    for one in deaf:
        scenario.heal(one)
    scenario.run(ms=500)
    scenario.crash(1)
    scenario.wait_until(view=(2, 3, 4, 5), on=(2, 3, 4, 5))
    scenario.show()
    for node in (2, 3, 4, 5):
        assert configuration(scenario, node).table == dict.fromkeys(range(1, 6), 1)
    check(scenario, "table_refused_stays_refused")


def test_a_member_that_dies_while_the_sequencer_changes_stops_nobody():
    """Three of five: two may commit, and are no half of the table. Bound by their promises they would go on no more, so
    the dead one stays in their view (judgement._view_without)."""
    scenario, publisher = part_of_a_table(5, late=(4, 5))
    scenario.crash_at(3, MessageType.PROMISE)
    scenario.ask(1, control.Sequence(2), [])
    scenario.run(ms=3000)
    publisher.publish("t", "two of three, of five")
    scenario.run(ms=300)
    scenario.show()
    scenario.show_states(1, 2)
    assert publisher.unanswered == 0
    assert [one.node_id for one in configuration(scenario, 1).members] == [1, 2, 3]
    scenario.restart(3)
    scenario.wait_until(what=lambda: scenario.host(3).state is State.ACTIVE)
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "table_member_dies_in_change")


def test_a_sequencer_that_dies_while_it_is_changed_leaves_the_rest_to_an_operator():
    """Those who have promised are no half of the table: their programs are told, and an operator has them go on, in the
    same history."""
    scenario, publisher = part_of_a_table(5, late=(4, 5))
    scenario.crash_at(1, MessageType.SYNC)
    scenario.drop(MessageType.ACCEPT)
    scenario.ask(2, control.Sequence(2), [])
    scenario.run(ms=10_000)
    scenario.show()
    scenario.show_states(2, 3)
    assert not scenario.host(2).node.primary
    scenario.heal_all()
    assert scenario.operator(2, NewHistory()) == ""
    scenario.wait_until(what=lambda: scenario.host(2).node.primary and scenario.host(3).node.primary)
    publisher.publish("t", "two of three, of five")
    scenario.run(ms=300)
    scenario.show()
    assert publisher.unanswered == 0
    assert len(scenario.histories) == 1
    check(scenario, "table_sequencer_dies_in_change")


def test_who_is_bound_by_a_promise_that_leads_nowhere_says_so():
    """All hear all, and no proposal comes to an end: their programs are told (Primacy._in_reach)."""
    scenario, publisher = running()
    scenario.drop(MessageType.ACCEPT)
    scenario.ask(1, control.Sequence(2), [])
    scenario.run(ms=15_000)
    scenario.show()
    scenario.show_states()
    assert not any(scenario.host(node).node.primary for node in (1, 2, 3))
    scenario.heal_all()
    scenario.wait_until(what=lambda: all(scenario.host(node).node.primary for node in (1, 2, 3)))
    publisher.publish("t", "after all")
    scenario.run(ms=300)
    scenario.show()
    assert publisher.unanswered == 0
    check(scenario, "table_promise_leads_nowhere")
