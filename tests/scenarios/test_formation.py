"""The first configuration of a cluster: who must be there, what must be alike, and that there is one."""

from __future__ import annotations

import errno

import pytest

from ocfcluster.protocol.effects import State
from ocfcluster.protocol.operator import BootstrapWithout
from ocfcluster.protocol.settings import Limits
from ocfcluster.protocol.state import TopicTable
from ocfcluster.simulator import observe
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType
from tests.scenarios.steps import configuration
from tests.scenarios.transcript import check


def test_eight_nodes_start_in_the_same_instant():
    scenario = Scenario(nodes=8)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=8)
    publisher.publish("t", "to all eight")
    scenario.run(ms=300)
    scenario.show()
    assert len(scenario.histories) == 1
    check(scenario, "formation_eight")


def test_bootstrap_without_nodes_that_never_were():
    scenario = Scenario(nodes=3, late=(3,))
    scenario.run(ms=3000)
    scenario.show_states()
    assert scenario.operator(1, BootstrapWithout((4,))) != ""
    assert scenario.operator(1, BootstrapWithout((1,))) != ""
    assert scenario.operator(1, BootstrapWithout((3,))) == ""
    scenario.form()
    assert scenario.operator(1, BootstrapWithout((3,))) != ""
    scenario.start(3)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=200)
    scenario.show()
    check(scenario, "formation_without")


@pytest.mark.parametrize(
    "other",
    [{"table": {1: 1, 2: 1, 3: 3}}, {"delivery": "agreed"}, {"limits": Limits(topics=200)}],
    ids=["votes", "delivery", "limits"],
)
def test_a_node_whose_file_differs_forms_nothing(other):
    """Three votes of its own make no majority of it, heard or cut off (formation.table_hash, Formation.decide)."""
    scenario = Scenario(nodes=3)
    scenario.configure(3, **other)
    scenario.run(ms=10_000)
    scenario.show_states()
    scenario.partition((1, 2), 3)
    scenario.run(ms=10_000)
    scenario.show_states()
    assert not scenario.histories
    check(scenario, f"formation_differs_{next(iter(other))}")


def test_limits_are_those_in_force_whatever_a_file_says():
    """The file of the one that joins allows more topics: the creation of one too many is refused alike."""
    allowed = len(TopicTable().by_name) + 2
    scenario = Scenario(nodes=3, late=(3,), bootstrap="majority", limits=Limits(topics=allowed))
    scenario.form()
    scenario.configure(3, limits=Limits(topics=200))
    scenario.start(3)
    scenario.wait_until(view=(1, 2, 3))
    answers = [scenario.order(3, control.TopicCreate(name, False)) for name in ("a", "b", "c")]
    assert answers == [0, 0, errno.ENOMEM]
    scenario.run(ms=300)
    scenario.show()
    for node in (1, 2, 3):
        assert "c" not in scenario.host(node).node.topics
    check(scenario, "formation_limits_in_force")


def test_two_bootstraps_at_once_decide_one_configuration():
    """Operators told two nodes that do not hear each other to go on; a third votes in both, as one acceptor."""
    scenario = Scenario(nodes=3)
    scenario.cut(1, to=2)
    scenario.cut(2, to=1)
    scenario.run(ms=2000)
    scenario.operator(1, BootstrapWithout((2,)))
    scenario.operator(2, BootstrapWithout((1,)))
    scenario.wait_until(state=State.ACTIVE, on=3)
    scenario.run(ms=10_000)
    assert len(scenario.histories) == 1
    scenario.show()
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    assert len(scenario.histories) == 1
    scenario.show()
    check(scenario, "formation_two_bootstraps")


def test_a_power_cut_between_accepting_and_installing_the_first_configuration():
    """Directories are not empty any more, and nobody has a configuration: what was accepted is finished."""
    scenario = Scenario(nodes=3)
    scenario.drop(MessageType.ACCEPTED, to=1)

    def all_accepted() -> bool:
        disks = [scenario.host(node).disk.durable for node in (1, 2, 3)]
        votes = [observe.read_record(disk).vote if disk else None for disk in disks]
        return all(vote is not None and vote.accepted is not None for vote in votes)

    scenario.wait_until(what=all_accepted)
    scenario.say("all have accepted the first configuration, and nobody has installed it")
    scenario.power_cut()
    scenario.heal_all()
    scenario.restart(1, 2, 3)
    scenario.wait_until(state=State.ACTIVE)
    scenario.run(ms=300)
    scenario.show()
    check(scenario, "formation_power_cut")


@pytest.mark.parametrize("moment", ["PROMISE", "ACCEPTED"])
def test_a_node_dies_in_the_middle_of_the_first_formation(moment):
    """Each of those named must answer: the others wait for it, and it finishes what was begun."""
    scenario = Scenario(nodes=3)
    scenario.wait_until(what=lambda: all(host.shell is not None for host in scenario.world.hosts.values()))
    scenario.crash_at(3, MessageType[moment])
    scenario.run(ms=5000)
    scenario.show_states()
    scenario.restart(3)
    scenario.wait_until(state=State.ACTIVE)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=300)
    assert len(scenario.histories) <= 2
    scenario.show()
    check(scenario, f"formation_dies_{moment.lower()}")


def test_the_smallest_link_of_all_is_in_force_and_large_events_pass():
    """One node's network takes 1400: nothing larger is sent by anybody, so nothing sticks."""
    scenario = Scenario(nodes=3)
    scenario.configure(3, mtu=1400)
    scenario.form()
    assert configuration(scenario, 1).mtu == 1400
    scenario.world.network.drops.append(
        lambda source, to, datagram: 3 in (source, to) and len(datagram) > 1372
    )
    scenario.create_topic("t")
    publisher = scenario.publisher(node=1)
    publisher.publish("t", b"large---" * 5000)
    scenario.run(ms=5000)
    scenario.show()
    assert configuration(scenario, 1).epoch == 1
    check(scenario, "formation_mtu")
