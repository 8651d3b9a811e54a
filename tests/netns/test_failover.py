"""Three hosts, of which one after the other is killed, paused, cut off, stopped, while publishers on all three go on.

Each subscriber writes down all that it got, and ``oracle`` judges the traces of the whole test: one order, nothing lost
that was confirmed, nothing twice, no hole that was not announced, the same memberships everywhere, true receipts.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.netns.cluster import Cluster
from tests.netns.faults import FAULTS, Drill, Fault
from tests.netns.hosts import Hosts
from tests.netns.oracle import Verdict, check
from tests.netns.programs import COMPONENTS, Programs

pytestmark = pytest.mark.netns

NODES = (1, 2, 3)
TOPICS = ["red", "blue"]
RATE = 300.0  # events per second of each publisher
CALM_S = 0.5  # between two faults
ROUNDS = 2
LONG_ROUNDS = 20


def run(faults: list[Fault], directory: Path, seed: int) -> Verdict:
    """One cluster, one fault after the other; every other time the sequencer's node is hit, else any."""
    chance = random.Random(seed)
    changes = 0
    with (
        Hosts(len(NODES)) as hosts,
        Cluster(hosts, topics=TOPICS, components=COMPONENTS) as cluster,
        Programs(cluster, TOPICS, directory) as programs,
    ):
        programs.subscribe()
        programs.load(RATE)
        drill = Drill(cluster)
        first = drill.settled()
        for number, fault in enumerate(faults):
            victim = drill.sequencer() if number % 2 == 0 else chance.choice(NODES)
            before = drill.views
            time.sleep(CALM_S)
            began = time.monotonic()
            print(
                f"{number}: {fault.name} of node {victim}, sequencer {drill.sequencer()}", end="", flush=True
            )
            fault.act(drill, victim)
            acted = time.monotonic()
            drill.settled()
            print(
                f", {acted - began:.1f} s and {time.monotonic() - acted:.1f} s, views {before} to {drill.views}"
            )
            assert drill.views > before or not fault.changes
            changes += drill.views - before
        last = {i: drill.status(i) for i in NODES}
        assert {one["cluster_id"] for one in last.values()} == {first[1]["cluster_id"]}
        published = programs.published()
        assert all(document["flushed"] for document in published.values()), published
        programs.mark_the_end(1)
        received = programs.received()
        # Inside the block, so that a failure keeps the agents' logs.
        verdict = check(programs.traces, TOPICS, programs.known(), programs.answers)
        print(f"published {published}, received {received}, {verdict}")
        assert verdict.views == 1 + changes
    return verdict


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_was_confirmed_survives(fault: Fault, tmp_path: Path) -> None:
    verdict = run([fault] * ROUNDS, tmp_path, 1)
    assert verdict.events > 500


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_was_confirmed_survives_many_rounds(fault: Fault, tmp_path: Path) -> None:
    run([fault] * LONG_ROUNDS, tmp_path, 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_what_was_confirmed_survives_everything_in_turn(seed: int, tmp_path: Path) -> None:
    run(random.Random(seed).choices(FAULTS, k=40), tmp_path, seed)
