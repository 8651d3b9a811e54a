"""A cluster of containers to which one thing after the other happens, while publishers on all nodes go on.

What must hold is judged from the traces of all nodes' subscribers, in the end: one order, nothing lost that was
confirmed, nothing twice, the same memberships everywhere. ``Drill`` says within which times the
rest goes on and all are back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from integration import faults
from integration.cluster import ContainerCluster
from integration.faults import FAULTS
from integration.work import TOPICS, Work
from tests.netns.faults import Fault

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

BY_NAME = {fault.name: fault for fault in FAULTS}
GROUPS = {
    "processes": (3, ["kill", "stop", "kill_and_start_at_once", "remove", "wipe", "out_of_memory"]),
    "pauses": (3, ["pause", "long_pause", "pause_all"]),
    "interfaces": (3, ["disconnect", "partition_in_three", "disconnect"]),
    "five": (5, ["partition", "kill_several", "partition_in_three", "all_apart"]),
    "one_way": (3, ["deaf", "mute"]),
    "loss": (3, ["loss_1", "loss_10", "loss_30", "kill"]),
}


@pytest.mark.parametrize("group", GROUPS)
def test_what_was_confirmed_survives(
    group: str, cluster: Callable[..., ContainerCluster], tmp_path: Path
) -> None:
    nodes, names = GROUPS[group]
    with Work(cluster(nodes, topics=TOPICS), tmp_path) as work:
        work.do_all([BY_NAME[name] for name in names], random.Random(1))
        assert work.verdict().events > 500


def test_what_was_confirmed_survives_over_unicast(
    cluster: Callable[..., ContainerCluster], tmp_path: Path
) -> None:
    with Work(cluster(3, topics=TOPICS, transport="unicast"), tmp_path) as work:
        work.do_all([BY_NAME[name] for name in ("kill", "disconnect")], random.Random(1))
        assert work.verdict().events > 500


@pytest.mark.parametrize("wrong", [faults.full, faults.read_only], ids=lambda wrong: wrong.__name__)
def test_a_node_whose_disk_takes_nothing_promises_nothing(
    wrong: Callable[..., None], cluster: Callable[..., ContainerCluster], tmp_path: Path
) -> None:
    containers = cluster(3, topics=TOPICS, started=False)
    disk = containers.small_disk(2, faults.DISK_BYTES)
    containers.start()
    fault = Fault(wrong.__name__, lambda drill, victim: faults.bad_disk(drill, victim, wrong(disk)))
    with Work(containers, tmp_path) as work:
        work.do(fault, 2)
        work.verdict()


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("nodes", [3, 5])
def test_what_was_confirmed_survives_everything_in_turn(
    nodes: int, cluster: Callable[..., ContainerCluster], tmp_path: Path
) -> None:
    chance = random.Random(nodes)
    with Work(cluster(nodes, topics=TOPICS), tmp_path) as work:
        work.do_all(chance.sample(FAULTS, len(FAULTS)) + chance.choices(FAULTS, k=len(FAULTS)), chance)
        work.verdict()
