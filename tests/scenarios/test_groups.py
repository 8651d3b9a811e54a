"""Groups: their members leave at one place of the order, whatever it is that takes them away."""

from __future__ import annotations

from ocfcluster.protocol.effects import State
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire.group import GroupCode, message
from tests.scenarios.steps import configuration
from tests.scenarios.transcript import check

GROUP = "group:g"


def members(scenario: Scenario, node: int) -> list[tuple[int, int]]:
    """Id and node of each member of the group, as this node has it."""
    group = scenario.host(node).node.groups.by_name.get(GROUP)
    return [] if group is None else [(one.member, one.node_id) for one in group.present]


def same_members(scenario: Scenario, *nodes: int) -> None:
    tables = [scenario.host(node).node.groups.images for node in nodes]
    assert all(table == tables[0] for table in tables)
    scenario.say(f"nodes {', '.join(map(str, nodes))} agree on the members: {members(scenario, nodes[0])}")


def test_a_process_dies_and_another_leaves():
    scenario = Scenario(nodes=3)
    scenario.form()
    first = scenario.member(1, GROUP, "first")
    second = scenario.member(2, GROUP, "second")
    scenario.member(3, GROUP, "third")
    second.dies()
    scenario.run(ms=50)
    first.leaves()
    scenario.run(ms=50)
    scenario.show()
    same_members(scenario, 1, 2, 3)
    assert [node for _, node in members(scenario, 1)] == [3]
    check(scenario, "groups_process_dies")


def test_what_a_process_said_comes_before_its_leave():
    scenario = Scenario(nodes=3)
    scenario.form()
    process = scenario.member(2, GROUP)
    program = scenario.publisher(node=2, name="its other half")
    scenario.show()
    program.publish(GROUP, message(GroupCode.CAST, process.member, b"last words"))
    process.dies()
    scenario.run(ms=100)
    texts = scenario.delivered(1)
    assert texts[-2].endswith("last words")
    assert "died" in texts[-1]
    scenario.show()
    check(scenario, "groups_last_words")


def test_a_node_dies_and_its_members_leave_behind_the_view():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.member(1, GROUP, "stays")
    for name in ("one", "two"):
        scenario.member(3, GROUP, name)
    scenario.member(3, "group:h", "alone")
    scenario.show()
    scenario.crash(3)
    scenario.wait_until(view=(1, 2), on=(1, 2))
    scenario.run(ms=50)
    scenario.show()
    same_members(scenario, 1, 2)
    check(scenario, "groups_node_dies")


def test_the_sequencer_dies_with_a_join_that_one_node_holds():
    """Either it never was, or its member leaves at the view: nobody keeps a member that another has not."""
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.member(2, GROUP, "stays")
    process = scenario.member(scenario.sequencer, GROUP, "with the sequencer")
    scenario.show()
    process.leaves()
    process.dies()
    scenario.crash(scenario.sequencer)
    rest = [node for node in (1, 2, 3) if scenario.host(node).shell is not None]
    scenario.wait_until(view=rest, on=rest)
    scenario.run(ms=50)
    scenario.show()
    same_members(scenario, *rest)
    assert [node for _, node in members(scenario, rest[0])] == [2]
    check(scenario, "groups_sequencer_dies")


def test_a_minority_keeps_its_members_until_it_is_back():
    """Nothing is ordered there, so nobody leaves; behind the view that is without it its members are gone."""
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.member(1, GROUP, "with the most")
    cut_off = scenario.member(3, GROUP, "cut off")
    scenario.show()
    scenario.partition((1, 2), (3,))
    scenario.wait_until(view=(1, 2), on=(1, 2))
    scenario.run(ms=1500)
    scenario.show()
    assert [node for _, node in members(scenario, 3)] == [1, 3]
    cut_off.dies()  # its LEAVE cannot be ordered
    scenario.run(ms=100)
    scenario.heal_all()
    scenario.wait_until(view=(1, 2, 3), state=State.ACTIVE)
    scenario.run(ms=100)
    scenario.show()
    same_members(scenario, 1, 2, 3)
    assert [node for _, node in members(scenario, 3)] == [1]
    check(scenario, "groups_minority")


def test_a_short_partition_changes_no_membership():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.member(1, GROUP)
    scenario.member(3, GROUP)
    before = configuration(scenario, 1).epoch
    scenario.show()
    scenario.partition((1, 2), (3,))
    scenario.run(ms=300)
    scenario.heal_all()
    scenario.run(ms=500)
    scenario.show()
    assert configuration(scenario, 1).epoch == before
    same_members(scenario, 1, 2, 3)
    assert len(members(scenario, 3)) == 2
    check(scenario, "groups_short_partition")


def test_a_node_that_joins_gets_the_members_with_the_state():
    scenario = Scenario(nodes=3, late=(3,), bootstrap="majority")
    scenario.form()
    first = scenario.member(1, GROUP, "first")
    scenario.member(2, GROUP, "second")
    program = scenario.publisher(node=1)
    program.publish(GROUP, message(GroupCode.CAST, first.member, b"before"))
    first.leaves()
    scenario.run(ms=50)
    scenario.start(3)
    scenario.wait_until(view=(1, 2, 3))
    scenario.run(ms=100)
    same_members(scenario, 1, 2, 3)
    scenario.show()
    scenario.member(3, GROUP, "third")
    program.publish(GROUP, message(GroupCode.CAST, 0, b"after"))
    scenario.run(ms=100)
    scenario.show()
    same_members(scenario, 1, 2, 3)
    check(scenario, "groups_joiner")


def test_a_node_that_restarts_before_it_is_suspected_has_no_members_of_before():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.member(2, GROUP, "stays")
    scenario.member(3, GROUP, "of before")
    scenario.show()
    scenario.crash(3)
    scenario.restart(3)
    scenario.wait_until(view=(1, 2, 3), state=State.ACTIVE, what=lambda: len(members(scenario, 1)) == 1)
    scenario.member(3, GROUP, "of now")
    scenario.run(ms=100)
    scenario.show()
    same_members(scenario, 1, 2, 3)
    check(scenario, "groups_restart")


def test_a_new_history_begins_without_groups():
    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.member(1, GROUP)
    scenario.show()
    scenario.power_cut()
    scenario.restart(1, 2, 3)
    scenario.wait_until(history="new", view=(1, 2, 3))
    assert not members(scenario, 1)
    scenario.member(2, GROUP)
    scenario.run(ms=100)
    scenario.show()
    check(scenario, "groups_new_history")
