"""A topic change counts only once it is on the disks of a commit quorum; the short cut stops before it."""

from __future__ import annotations

from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire import control
from tests.scenarios.transcript import check


def test_the_short_cut_stops_before_a_topic_change_while_the_sequencers_disk_hangs():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    scenario.hang_disk(scenario.sequencer)
    scenario.hang_disk(3)
    answers = []
    scenario.say("a program on node 2 creates topic u")
    scenario.ask(2, control.TopicCreate("u", False), answers)
    scenario.run(ms=20)
    publisher.publish("t", "behind the creation")
    scenario.run(ms=500)
    scenario.show()
    assert not answers
    scenario.release_disk(3)
    scenario.run(ms=500)
    scenario.show()
    assert answers[0].error == 0
    check(scenario, "topic_change_and_short_cut")


def test_events_behind_a_removal_are_refused_alike_everywhere():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    scenario.hang_disk(2)
    answers = []
    scenario.say("a program on node 3 removes topic t")
    scenario.ask(3, control.TopicRemove("t"), answers)
    scenario.run(ms=1)
    publisher.publish("t", "too late")
    scenario.run(ms=300)
    scenario.show()
    scenario.release_disk(2)
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "events_behind_a_removal")
