"""When memory is lost: what may go on, what ends declared, and what waits for an operator."""

from __future__ import annotations

import pytest

from ocfcluster.protocol.effects import State
from ocfcluster.protocol.operator import BootstrapWithout, NewHistory, Rejoin
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import accepted, epoch, part_of_a_table, promised, running, status
from tests.scenarios.transcript import check


def test_a_power_cut_of_all_ends_the_history_declared():
    """All have lost what they held: a new history, with the topics, and everybody is told."""
    scenario, publisher = running(nodes=3)
    publisher.publish("t", "lost with the memory")
    scenario.run(ms=100)
    scenario.show()
    scenario.power_cut()
    scenario.restart(1, 2, 3)
    scenario.wait_until(view=(1, 2, 3), history="new")
    scenario.wait_until(what=lambda: publisher.producer != 0)
    publisher.publish("t", "the first of the new history")
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 2
    check(scenario, "history_power_cut")


def test_two_of_three_lose_their_memory_and_the_third_is_waited_for():
    """Half a minute; then their loss alone is more than half: it is declared (judgement.judge: waited)."""
    scenario, _ = running(nodes=3)
    scenario.power_cut()
    scenario.restart(2, 3)
    scenario.run(ms=20_000)
    scenario.show_states()
    assert len(scenario.histories) == 1
    scenario.wait_until(view=(2, 3), history="new")
    scenario.restart(1)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "history_two_of_three")


def test_one_of_three_lost_and_one_that_stays_away_are_waited_for():
    """One lost memory is not more than half: they wait for the third for ever, unless an operator says otherwise."""
    scenario, publisher = running(nodes=3, publisher=2)
    scenario.partition((1, 3), 2)
    scenario.crash(1)
    scenario.restart(1)
    scenario.crash(2)
    scenario.run(ms=40_000)
    scenario.show_states()
    assert len(scenario.histories) == 1
    assert scenario.operator(1, NewHistory()) == ""
    scenario.wait_until(view=(1, 3), history="new", on=(1, 3))
    scenario.heal_all()
    scenario.restart(2)
    scenario.wait_until(view=(1, 2, 3))
    scenario.wait_until(what=lambda: publisher.producer != 0)
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 2
    check(scenario, "history_recover")


def test_recover_is_refused_where_the_cluster_runs():
    scenario, _ = running(nodes=3)
    assert scenario.operator(1, NewHistory()) != ""
    scenario.run(ms=3000)
    scenario.show()
    check(scenario, "history_recover_refused")


@pytest.mark.parametrize("last_man_standing", [True, False], ids=["last_man", "table"])
def test_old_disks_do_not_form_beside_a_view_that_went_on(last_man_standing):
    """3 died, the view {1, 2} went on, then 1 alone where it may; 2 comes back wiped and 3 with its old disk: what 3
    remembers needs 1, or 2's disk."""
    scenario, publisher = running(nodes=3, publisher=1, last_man_standing=last_man_standing)
    scenario.crash(3)
    scenario.wait_until(view=(1, 2))
    scenario.partition(1, (2, 3))
    if last_man_standing:
        scenario.wait_until(view=(1,), on=1)
    publisher.publish("t", "on node 1")
    scenario.crash(2)
    scenario.restart(2, wiped=True)
    scenario.restart(3)
    scenario.run(ms=40_000)
    scenario.show()
    scenario.show_states()
    assert len(scenario.histories) == 1
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3))
    scenario.wait_until(what=lambda: publisher.unanswered == 0)
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, f"history_old_disks_{'last_man' if last_man_standing else 'table'}")


@pytest.mark.parametrize("back", [(1, 2, 3), (2, 3)], ids=["all", "without_the_holder"])
def test_a_power_cut_while_a_view_is_decided(back):
    """Two have accepted a view whose cut nobody can fetch any more: it is finished without SYNC (Proposer, finishing),
    and what follows is judged by memory."""
    scenario, publisher = running(nodes=3, publisher=1)
    publisher.publish("t", "in the cut")
    scenario.run(ms=100)
    scenario.show()
    scenario.crash(3)
    scenario.drop(MessageType.ACCEPTED, to=1)
    scenario.wait_until(what=lambda: accepted(scenario, 1) and accepted(scenario, 2))
    scenario.power_cut()
    scenario.heal_all()
    scenario.restart(*back)
    scenario.run(ms=35_000)
    scenario.show_states()
    for node in {1, 2, 3} - set(back):  # it may have gone on: the view that was finished needs it
        assert len(scenario.histories) == 1
        scenario.restart(node)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 2
    check(scenario, f"history_power_cut_in_view_{'_'.join(map(str, back))}")


@pytest.mark.parametrize("first", [(2, 3, 4, 5), (1, 2, 3, 4, 5)], ids=["without_who_installed", "all"])
def test_a_view_that_one_node_installed_is_finished_before_its_history_may_end(first):
    """Epoch 2 was decided and installed by node 1: nothing else may follow epoch 1 (judgement.accepted_value)."""
    scenario, _ = running(nodes=5)
    scenario.drop(MessageType.INSTALL, source=1)
    scenario.crash(5)
    scenario.wait_until(epoch=2, on=1)
    scenario.power_cut()
    scenario.heal_all()
    scenario.restart(*first)
    scenario.run(ms=40_000)  # for the rest of epoch 1, then of epoch 2
    scenario.wait_until(view=first)
    scenario.run(ms=300)
    for node in {1, 2, 3, 4, 5} - set(first):
        scenario.restart(node)
    scenario.wait_until(view=(1, 2, 3, 4, 5))
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 2
    check(scenario, f"history_installed_by_one_{len(first)}")


def test_a_view_is_finished_by_members_and_those_who_come_back():
    """1 and 2 accepted {1, 2, 3}; the other three crash, two come back: they are no members of it and never hold its
    cut, and accept it all the same."""
    scenario, publisher = running(nodes=5, publisher=1)
    scenario.partition((1, 2, 3), (4, 5))
    scenario.drop(MessageType.ACCEPT, source=1, to=3)
    scenario.wait_until(what=lambda: accepted(scenario, 1) and accepted(scenario, 2))
    scenario.crash(3, 4, 5)
    scenario.heal_all()
    publisher.publish("t", "meanwhile")
    scenario.restart(4, 5)
    scenario.wait_until(view=(1, 2, 4, 5))
    scenario.wait_until(what=lambda: publisher.unanswered == 0)
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, "history_finished_by_strangers")


def test_a_view_that_cannot_have_been_decided_ends_no_history():
    """{1, 2, 3} was accepted by 1 alone, then 1 and 2 lost their memory; 3, 4 and 5 hold everything."""
    scenario, publisher = running(nodes=5, publisher=3)
    scenario.partition((1, 2, 3), (4, 5))
    scenario.drop(MessageType.ACCEPT, source=1)
    scenario.wait_until(what=lambda: accepted(scenario, 1))
    scenario.crash(1, 2)
    scenario.restart(1, 2)
    scenario.heal_all()
    publisher.publish("t", "goes on")
    scenario.wait_until(view=(1, 2, 3, 4, 5))
    scenario.wait_until(what=lambda: publisher.unanswered == 0)
    scenario.run(ms=1000)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, "history_undecided_view")


def test_the_declared_history_counts_for_who_comes_back_with_the_older_one():
    """5 was down when the others declared a new history; what it knows is older, and superseded."""
    scenario, _ = running(nodes=5)
    scenario.power_cut()
    scenario.restart(1, 2, 3, 4)
    scenario.wait_until(view=(1, 2, 3, 4), history="new")
    publisher = scenario.publisher(node=2, name="another program")
    publisher.publish("t", "of the new history")
    scenario.run(ms=300)
    scenario.restart(5)
    scenario.wait_until(view=(1, 2, 3, 4, 5))
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 2
    check(scenario, "history_older_comes_back")


def test_who_was_cut_off_when_its_history_ended_is_told():
    """An operator went on without it; it still runs when it hears so."""
    scenario, publisher = running(nodes=3, publisher=3)
    scenario.partition((1, 2), 3)
    scenario.crash(1, 2)
    scenario.restart(1, 2)
    publisher.publish("t", "in a minority")
    scenario.run(ms=2500)
    scenario.operator(1, NewHistory())
    scenario.wait_until(view=(1, 2), history="new", on=(1, 2))
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    assert publisher.unknown == 1
    check(scenario, "history_ended_without_it")


def test_new_members_where_a_disk_is_dead():
    """Table of five, view {1, 2, 3}; power cut, the disk of 1 never comes back; 4 and 5 have never been members: no
    primary without them, and they are made ready by SYNC."""
    scenario, _ = part_of_a_table(5, late=(4, 5))
    scenario.power_cut()
    scenario.restart(2, 3)
    scenario.start(4, 5)
    scenario.wait_until(view=(2, 3, 4, 5), history="new")
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "history_dead_disk")


def test_a_wiped_node_beside_nodes_on_their_first_start_forms_nothing():
    """Three of five formed; one of them is wiped and cut off with two that never started: they wait for the others."""
    scenario, publisher = running(nodes=3, publisher=1)
    scenario.crash(3)
    scenario.wait_until(view=(1, 2))
    publisher.publish("t", "on node 1")
    scenario.run(ms=100)
    scenario.partition((1, 2), 3)
    scenario.restart(3, wiped=True)
    scenario.run(ms=40_000)
    scenario.show()
    scenario.show_states()
    assert len(scenario.histories) == 1
    check(scenario, "history_wiped_beside_first_start")


def test_five_of_whom_three_formed_and_two_never_started():
    scenario = Scenario(nodes=5, late=(4, 5))
    scenario.run(ms=1500)
    assert scenario.operator(1, BootstrapWithout((4, 5))) == ""
    scenario.form()
    scenario.crash(3)
    scenario.partition((1, 2), (3, 4, 5))
    scenario.restart(3, wiped=True)
    scenario.start(4, 5)
    scenario.run(ms=40_000)
    scenario.show_states()
    assert len(scenario.histories) == 1
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3, 4, 5))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "history_majority_that_never_was")


def test_a_node_of_another_history_rejoins_when_it_is_told():
    """1 waits in a history that the others have forgotten: it says so, and waits for an operator."""
    scenario, _ = running(nodes=3)
    scenario.power_cut()
    scenario.restart(2, 3, wiped=True)
    scenario.run(ms=1500)
    assert scenario.operator(2, BootstrapWithout((1,))) == ""
    scenario.wait_until(view=(2, 3), history="new")
    assert scenario.operator(2, Rejoin()) != ""
    scenario.restart(1)
    scenario.run(ms=5000)
    scenario.show_states()
    assert [fault.code for fault in scenario.host(1).faults] == ["foreign_history"]
    assert scenario.operator(1, Rejoin()) == ""
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "history_rejoin")


def test_an_operators_word_makes_a_new_history_whatever_was_accepted():
    """3 is let go by a view of {1, 2} that it has accepted and not installed; 1 and 2 lose their disks. Its vote
    alone could not tell whether that view was decided, or what followed it: it is not finished."""
    scenario, _ = running(nodes=3)
    scenario.drop(MessageType.INSTALL, to=3)
    scenario.leave(3)
    scenario.wait_until(what=lambda: accepted(scenario, 3) and epoch(scenario, 1) == epoch(scenario, 2) == 2)
    scenario.power_cut()
    scenario.heal_all()
    scenario.forget()
    scenario.restart(1, 2, wiped=True)
    scenario.restart(3)
    scenario.run(ms=3000)
    scenario.show_states()
    assert "say it to node 3" in scenario.operator(1, NewHistory())
    assert scenario.operator(3, NewHistory()) == ""
    scenario.wait_until(history="new", on=(3,))
    scenario.run(ms=3000)
    scenario.show()
    scenario.show_states()
    check(scenario, "history_operators_word")


def test_a_packet_of_the_old_history_is_none_of_the_new_one():
    """3 goes from one history into the next in the same incarnation, and its packets count from 1 again: one of the
    old ones comes late, where the new one of that number has not been sent yet."""
    scenario, publisher = running(nodes=3, publisher=3)
    late = scenario.late(MessageType.DATA, source=3, to=1, ms=1500)
    for number in range(9):
        publisher.publish("t", f"old {number}")
        scenario.run(ms=5)
    scenario.crash(1, 2)
    scenario.heal(late)
    scenario.restart(1, 2)
    scenario.wait_until(view=(1, 2, 3), history="new")
    scenario.wait_until(what=lambda: publisher.producer != 0)
    scenario.run(ms=1500)
    scenario.forget()
    for number in range(9):
        publisher.publish("t", f"new {number}")
        scenario.run(ms=5)
    scenario.run(ms=300)
    scenario.show()
    assert status(scenario, 1)["datagrams"]["other_history"] > 0
    check(scenario, "history_late_packet")


def test_two_histories_that_meet_do_not_end_each_other():
    """Operators formed two halves apart: both are reported, neither gives up by itself."""
    scenario = Scenario(nodes=4)
    scenario.partition((1, 2), (3, 4))
    scenario.run(ms=1500)
    scenario.operator(1, BootstrapWithout((3, 4)))
    scenario.operator(3, BootstrapWithout((1, 2)))
    scenario.wait_until(state=State.ACTIVE)
    scenario.forget()
    scenario.heal_all()
    scenario.run(ms=10_000)
    scenario.show()
    scenario.show_states()
    for node in (1, 2, 3, 4):
        assert [fault.code for fault in scenario.host(node).faults] == ["foreign_history"]
        assert scenario.host(node).evictions == 0
    check(scenario, "history_two_meet")


def test_topics_that_not_all_disks_have():
    """The creation is on two of three disks: the history that follows begins with the highest table."""
    scenario, _ = running(nodes=3)
    scenario.hang_disk(1)
    assert scenario.order(2, control.TopicCreate("u", False)) == 0
    scenario.run(ms=200)
    scenario.show()
    scenario.release_disk(1)
    scenario.power_cut()
    scenario.restart(1, 2, 3)
    scenario.wait_until(view=(1, 2, 3), history="new")
    for node in (1, 2, 3):
        assert {"t", "u"} <= set(scenario.host(node).node.topics)
    scenario.show()
    check(scenario, "history_topics_of_the_highest")


def test_topics_survive_the_replacement_of_all_nodes():
    """Each is wiped in turn and gets its topic table with its snapshot: that is on disk, too."""
    scenario, _ = running(nodes=3)
    for node in (1, 2, 3):
        scenario.crash(node)
        scenario.wait_until(view=tuple(one for one in (1, 2, 3) if one != node))
        scenario.restart(node, wiped=True)
        scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    scenario.show()
    scenario.power_cut()
    scenario.restart(1, 2, 3)
    scenario.wait_until(view=(1, 2, 3), history="new")
    for node in (1, 2, 3):
        assert "t" in scenario.host(node).node.topics
    scenario.show()
    check(scenario, "history_all_replaced")


def test_a_topic_that_members_got_by_log_is_on_their_disks_before_the_view():
    """1 and 5 leave, and with 2 they are enough to decide; 3 and 4 fetch the creation of a topic for the view and say
    so only once it is on their disks (DataPlane.holds)."""
    scenario, _ = running(nodes=5, publisher=2)
    scenario.drop(MessageType.DATA, MessageType.ORDER, MessageType.RETRANSMIT, to=(3, 4))
    assert scenario.order(2, control.TopicCreate("u", False)) == 0
    scenario.run(ms=200)
    scenario.show()
    scenario.leave(1, 5)
    scenario.wait_until(what=lambda: promised(scenario, 3) and promised(scenario, 4))
    scenario.run(ms=3)
    scenario.hang_disk(3)
    scenario.hang_disk(4)
    scenario.heal_all()
    scenario.run(ms=1500)
    assert epoch(scenario, 2) == 1
    scenario.show_states(2)
    scenario.release_disk(3)
    scenario.release_disk(4)
    scenario.wait_until(view=(2, 3, 4), on=(2, 3, 4))
    scenario.power_cut()
    scenario.restart(3, 4)
    scenario.restart(5, wiped=True)
    scenario.wait_until(view=(3, 4, 5), history="new")
    for node in (3, 4, 5):
        assert "u" in scenario.host(node).node.topics
    scenario.show()
    check(scenario, "history_topic_by_log")


def test_a_confirmed_topic_survives_a_power_cut_before_the_others_wrote_it():
    """The short cut stops before a topic change that the sequencer's disk has not: no receipt, so nothing is lost."""
    scenario, _ = running(nodes=3)
    scenario.hang_disk(1)
    scenario.hang_disk(3)
    answers = []
    scenario.ask(2, control.TopicCreate("u", False), answers)
    scenario.say("a program on node 2 orders TopicCreate('u')")
    scenario.run(ms=500)
    assert not answers
    scenario.show()
    scenario.power_cut()
    scenario.release_disk(1)
    scenario.release_disk(3)
    scenario.restart(1, 3)
    scenario.wait_until(view=(1, 3), history="new")
    scenario.show()
    check(scenario, "history_topic_not_confirmed")
