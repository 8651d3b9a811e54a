"""Sequencers and proposers that die at the worst moments: what was delivered stays, what was not is nobody's."""

from __future__ import annotations

import pytest

from ocfcluster.limits import KIB, MILLISECOND_NS, SECOND_NS, SUSPICION_NS, SYNC_TIMEOUT_NS
from ocfcluster.protocol.effects import Deliver, State
from ocfcluster.protocol.settings import Limits
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import HOLDING, TELLING, accepted, configuration, epoch, held, promised, running
from tests.scenarios.transcript import check


def test_the_sequencer_dies_before_anybody_suspects_it():
    """Who restarts within the suspicion time does not keep its old self alive: the others wait for no suspicion."""
    scenario, publisher = running()
    scenario.crash(1)
    scenario.run(ms=50)
    scenario.restart(1)
    publisher.publish("t", "meanwhile")
    before = scenario.world.now
    scenario.wait_until(view=(1, 2, 3), delivered=1)
    assert scenario.world.now - before < 900 * MILLISECOND_NS  # Detector.sequencer_alive: "it has restarted"
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "failover_restart_before_suspicion")


def test_the_sequencer_dies_with_an_event_that_a_majority_holds():
    """All hold it and nobody knows: the cut takes it (judgement.new_view: the highest held)."""
    scenario, publisher = running(nodes=5)
    rules = [scenario.drop(kind, to=1) for kind in TELLING]
    publisher.publish("t", "held by all")
    scenario.run(ms=30)
    scenario.show()
    scenario.crash(1)
    for rule in rules:
        scenario.heal(rule)
    scenario.wait_until(view=(2, 3, 4, 5))
    scenario.run(ms=100)
    scenario.show()
    check(scenario, "failover_held_by_a_majority")


def test_the_sequencer_dies_with_an_event_that_only_one_other_holds():
    """It was delivered nowhere; the one that holds it brings it to the others before the view."""
    scenario, publisher = running(nodes=5, publisher=1)
    scenario.drop(*HOLDING, source=1, to=(2, 3, 4))
    publisher.publish("t", "held by 1 and 5")
    scenario.run(ms=30)
    scenario.show()
    scenario.crash(1)
    scenario.wait_until(view=(2, 3, 4, 5))
    scenario.run(ms=100)
    scenario.show()
    check(scenario, "failover_held_by_one")


def test_the_only_holder_of_the_cut_dies_after_its_promise():
    """SYNC of that view gets nowhere; the next round goes without (Proposer._give_up_phase)."""
    scenario, publisher = running(nodes=5, publisher=1)
    scenario.drop(*HOLDING, source=1, to=(2, 3, 4))
    publisher.publish("t", "held by 1 and 5")
    scenario.run(ms=30)
    lost = scenario.drop(*HOLDING, source=5)
    scenario.crash_at(5, MessageType.PROMISE, more=1)
    scenario.crash(1)
    began = scenario.world.now
    scenario.wait_until(view=(2, 3, 4))
    assert scenario.world.now - began < SUSPICION_NS + SYNC_TIMEOUT_NS + SECOND_NS
    assert lost.lost or scenario.host(5).shell is None
    scenario.show()
    program = scenario.publisher(node=2, name="another program")
    program.publish("t", "after")
    scenario.run(ms=200)
    scenario.show()
    scenario.heal_all()
    scenario.restart(1, 5)
    scenario.wait_until(view=(1, 2, 3, 4, 5))
    scenario.run(ms=500)
    scenario.show()
    check(scenario, "failover_holder_of_the_cut_dies")


def test_a_proposal_that_one_node_accepted_is_finished_by_others():
    """The proposer is the sequencer of its value and dies: SYNC is tried and not required, ACCEPT goes out."""
    scenario, publisher = running(nodes=5, publisher=4)
    scenario.drop(MessageType.ACCEPT, source=2, to=(4, 5))
    scenario.crash(1)
    scenario.wait_until(what=lambda: accepted(scenario, 3))
    scenario.crash(2)
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(3, 4, 5), delivered=1)
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "failover_accepted_by_one")


def test_the_proposer_dies_right_after_its_own_install():
    """Decided, and installed by nobody else: the others find it accepted and finish it unchanged."""
    scenario, publisher = running(nodes=5, publisher=4)
    scenario.drop(MessageType.INSTALL, source=2)
    scenario.crash(1)
    scenario.wait_until(epoch=2, on=2)
    scenario.crash(2)
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(3, 4, 5))
    scenario.run(ms=300)
    scenario.show()
    assert configuration(scenario, 3).epochs[-2][0] == 2  # epoch 2 was, with node 2 in it
    check(scenario, "failover_installed_by_one")


def test_an_accepted_value_does_not_lose_to_a_cut_off_sequencer_that_comes_back():
    """The sequencer has ordered an event alone; another value, without it, may have been decided. What is fetched
    while frozen counts for nothing, and what may have been decided is finished (judgement.accepted_value)."""
    scenario, publisher = running(publisher=1)
    scenario.partition(1, (2, 3))
    publisher.publish("t", "ordered alone")
    lost = scenario.drop(MessageType.ACCEPT, source=2, to=3)
    scenario.wait_until(what=lambda: accepted(scenario, 2))
    assert lost.lost
    scenario.heal_all()
    scenario.partition(2, (1, 3))
    mute = scenario.drop(MessageType.ACCEPT, source=1)
    before = held(scenario, 3)
    scenario.wait_until(what=lambda: held(scenario, 3) > before)
    scenario.say("node 3 has fetched it, frozen")
    scenario.run(ms=500)
    assert mute.lost
    scenario.show()
    scenario.crash(1)
    scenario.heal_all()
    scenario.wait_until(view=(2, 3), on=(2, 3))
    scenario.show()
    scenario.restart(1)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=1500)
    scenario.show()
    check(scenario, "failover_accepted_against_cut_off")


def test_a_holder_that_stops_after_its_promise_is_waited_for():
    """Without it the memory rule fails, so the others do not go on without what it holds."""
    scenario, publisher = running(publisher=1)
    scenario.drop(*HOLDING, source=1, to=2)
    publisher.publish("t", "held by 1 and 3")
    scenario.run(ms=30)
    scenario.show()
    mute = scenario.drop(*HOLDING, source=3)
    scenario.crash(1)
    scenario.wait_until(what=lambda: promised(scenario, 3))
    scenario.pause(3)
    scenario.restart(1)
    scenario.run(ms=5000)
    scenario.show()
    scenario.show_states(1, 2)
    scenario.heal(mute)
    scenario.resume(3)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=500)
    scenario.show()
    check(scenario, "failover_holder_stops")


def test_a_bad_link_between_two_members_makes_a_star_elsewhere():
    """The oldest that is left reaches two of four only: who reaches all is the sequencer (judgement._sequencers)."""
    scenario, publisher = running(nodes=5, publisher=5)
    scenario.cut(2, to=(4, 5))
    scenario.cut((4, 5), to=2)
    scenario.crash(1)
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(2, 3, 4, 5), sequencer=3)
    scenario.run(ms=300)
    settled = epoch(scenario, 3)
    scenario.run(ms=20_000)
    scenario.show()
    assert epoch(scenario, 3) == settled
    check(scenario, "failover_star")


def test_who_reaches_the_sequencer_alone_is_primary_too():
    """A member of a star counts for its commits and is served; its programs may publish."""
    scenario, publisher = running(nodes=5, publisher=2)
    scenario.cut(2, to=(3, 4, 5))
    scenario.cut((3, 4, 5), to=2)
    scenario.run(ms=5000)
    publisher.publish("t", "by way of the sequencer")
    scenario.run(ms=1000)
    scenario.show()
    assert publisher.unanswered == 0


def test_a_sequencer_that_cannot_commit_gives_up_and_is_not_made_one_again():
    """It hears everybody and nothing that it orders is held: it resigns, and stays a member."""
    scenario, publisher = running(nodes=5)
    rules = [scenario.drop(MessageType.ORDER, source=1), scenario.drop(MessageType.RETRANSMIT, to=(3, 4, 5))]
    publisher.publish("t", "ordered for nobody")
    scenario.wait_until(what=lambda: scenario.host(1).node.plane.resigned)
    scenario.say("the sequencer has resigned")
    for rule in rules:
        scenario.heal(rule)
    scenario.wait_until(view=(1, 2, 3, 4, 5), sequencer=2)
    scenario.run(ms=5000)
    scenario.show()
    assert epoch(scenario, 1) == 2
    check(scenario, "failover_resigned")


@pytest.mark.parametrize("bad", [3, 4], ids=["between_members", "to_the_joiner"])
def test_a_bad_link_elsewhere_does_not_move_the_sequencer(bad):
    """The sequencer freezes for a join; that is no resigning, and no healthy member goes for the link of another."""
    scenario, publisher = running(nodes=4, late=(4,), bootstrap="majority")
    scenario.cut(2, to=bad)
    scenario.cut(bad, to=2)
    scenario.start(4)
    scenario.wait_until(view=(1, 2, 3, 4), sequencer=1)
    publisher.publish("t", "after")
    scenario.run(ms=3000)
    scenario.show()
    assert epoch(scenario, 1) == 2
    check(scenario, f"failover_bad_link_{bad}")


def test_more_than_two_thousand_messages_are_sent_again_at_failover():
    """Sent, ordered by nobody, and kept by their origin: the new sequencer orders all of them, once each."""
    scenario, publisher = running(nodes=3, publisher=3, limits=Limits(event_bytes=64 * KIB))
    lost = [scenario.drop(MessageType.ORDER, source=1), scenario.drop(*HOLDING, source=3)]
    scenario.say("a program on node 3 publishes 2500 events")
    for number in range(2500):
        publisher.publish("t", f"{number:04}" * 8, quiet=True)
    scenario.run(ms=200)
    scenario.crash(1)
    scenario.heal_all()
    assert lost[1].lost > 20
    scenario.wait_until(view=(2, 3))
    scenario.run(ms=3000)
    assert publisher.unanswered == 0
    for node in (2, 3):
        texts = scenario.delivered(node)
        assert len([text for text in texts if text.startswith("t:")]) == 2500
        scenario.say(f"node {node} has delivered them: {texts[1]} ... {texts[-1]}")
    check(scenario, "failover_two_thousand")


def test_the_last_message_and_the_last_announcement_of_it_are_lost_with_the_sequencer():
    """Nobody but the origin has it, and nobody has heard of it: the new sequencer asks the origin."""
    scenario, publisher = running()
    rules = [scenario.drop(*HOLDING, source=2), scenario.drop(MessageType.HEARTBEAT, source=2, to=1)]
    publisher.publish("t", "last words")
    scenario.run(ms=5)
    scenario.crash(1)
    scenario.run(ms=5)
    for rule in rules:
        scenario.heal(rule)
    scenario.wait_until(view=(2, 3), delivered=2)
    scenario.run(ms=200)
    scenario.show()
    check(scenario, "failover_last_message")


def test_a_run_whose_origin_dies_with_its_last_packet_is_dropped_whole():
    """Two of its packets are within the cut; nobody numbers a part (DataPlane: OriginStream.depart)."""
    scenario, publisher = running(nodes=3, publisher=3)

    def last_packet(datagram: bytes) -> bool:
        return len(datagram) < 1300

    scenario.drop(MessageType.DATA, source=3, loses=last_packet)
    scenario.drop(MessageType.RETRANSMIT, source=3)
    publisher.publish("t", b"three packets" * 300)
    scenario.run(ms=50)
    scenario.show()
    scenario.crash(3)
    scenario.wait_until(view=(1, 2))
    another = scenario.publisher(node=1, name="another program")
    another.publish("t", "after")
    scenario.run(ms=300)
    scenario.show()
    scenario.heal_all()
    scenario.restart(3)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=1000)
    scenario.show()  # the program has sent it again, and it is delivered once
    check(scenario, "failover_unfinished_run")


def test_install_is_lost_to_one_member():
    """It learns the view from the first heartbeat of the others and asks."""
    scenario, publisher = running(nodes=3)
    lost = scenario.drop_once(MessageType.INSTALL, to=3)
    scenario.crash(1)
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(2, 3), delivered=2)
    assert lost.lost == 1
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "failover_install_lost")


def test_a_view_is_late_at_one_node_while_messages_of_it_arrive():
    """What belongs to a view that a node does not know yet is not lost to it, and not delivered before the view."""
    scenario, publisher = running(nodes=3)
    late = scenario.late(MessageType.INSTALL, to=3, ms=400)
    mute = scenario.drop(MessageType.CONFIG_REQUEST, source=3)
    scenario.crash(1)
    scenario.wait_until(view=(2, 3), on=2)
    publisher.publish("t", "one of the new view", "another one")
    scenario.run(ms=200)
    scenario.show()
    assert epoch(scenario, 3) == 1
    scenario.heal(late)
    scenario.heal(mute)
    scenario.wait_until(view=(2, 3))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "failover_view_late")


def test_an_agent_dies_between_the_delivery_and_the_receipt():
    """Its program sends again what was delivered, gets the old receipt, and nothing is delivered twice."""
    scenario, publisher = running()
    scenario.crash_at(2, Deliver)
    publisher.publish("t", "once")
    scenario.run(ms=200)
    assert scenario.host(2).shell is None
    scenario.show()
    scenario.restart(2)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=500)
    scenario.show()
    check(scenario, "failover_receipt_lost")


@pytest.mark.parametrize("moment", ["PREPARE", "SYNC", "ACCEPT", "INSTALL"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_the_proposer_dies_at_each_step(moment, before):
    scenario, publisher = running(nodes=5, publisher=5)
    scenario.crash_at(2, MessageType[moment], more=0 if before else 1)
    scenario.crash(1)
    publisher.publish("t", "meanwhile")
    scenario.wait_until(view=(3, 4, 5))
    scenario.run(ms=500)
    scenario.show()
    scenario.restart(1, 2)
    scenario.wait_until(view=(1, 2, 3, 4, 5))
    scenario.run(ms=1000)
    scenario.show()
    check(scenario, f"failover_proposer_{'before' if before else 'after'}_{moment.lower()}")


def test_a_new_sequencer_that_lags_does_not_begin_before_it_has_the_cut():
    """The others confirmed; it did not, and ACCEPT waits for it (Proposer._consider_synced)."""
    scenario, publisher = running(nodes=5, publisher=1)
    scenario.drop(MessageType.DATA, source=1, to=2)
    slow = scenario.drop(MessageType.RETRANSMIT, to=2)
    publisher.publish("t", "held by all but 2")
    scenario.run(ms=30)
    scenario.show()
    scenario.crash(1)
    scenario.run(ms=4000)
    scenario.show()
    for node in (3, 4, 5):
        assert epoch(scenario, node) == 1
    scenario.heal(slow)
    scenario.wait_until(view=(2, 3, 4, 5))
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "failover_sequencer_lags")


def test_a_member_below_the_base_is_served_after_the_install():
    """What it lacks is kept for it, and taken although it belongs to the epoch before."""
    scenario, publisher = running(nodes=5, publisher=1)
    scenario.drop(MessageType.DATA, source=1, to=5)
    scenario.drop(MessageType.RETRANSMIT, to=5)
    publisher.publish("t", "not held by 5")
    scenario.run(ms=100)
    scenario.show()
    scenario.crash(1)
    scenario.wait_until(view=(2, 3, 4, 5), on=(2, 3, 4))
    another = scenario.publisher(node=2, name="another program")
    another.publish("t", "of the next view")
    scenario.run(ms=1000)
    scenario.show()
    assert held(scenario, 5) <= configuration(scenario, 2).base
    assert scenario.host(5).state is State.ACTIVE
    scenario.heal_all()
    scenario.run(ms=500)
    scenario.show()
    check(scenario, "failover_below_the_base")
