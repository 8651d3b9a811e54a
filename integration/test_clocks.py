"""Agents whose wall clocks differ, by up to ten years, and jump: the order and what is kept do not mind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import ocfcluster
from integration.cluster import ContainerCluster
from integration.faults import CLOCK_JUMPS, HOUR_S, KILL, WRONG_CLOCKS
from integration.work import TOPICS, Work
from ocfcluster import Retention, TopicSettings
from tests.netns.traces import Got, Membership, read

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

NS: Final = 10**9
KEPT: Final = TOPICS[0]
KEPT_S: Final = 600  # the jumps are hours
SLACK_S: Final = 30.0
NODES: Final = (1, 2, 3)


def order_times(trace: Path) -> list[int]:
    """Of all that a subscriber got at its place in the order."""
    return [
        line.order_time
        for line in read(trace)
        if isinstance(line, Got) or (isinstance(line, Membership) and not line.local and not line.retained)
    ]


def oldest_kept(client: ocfcluster.Client) -> int:
    """The seq of the oldest event that ``client``'s agent keeps."""
    with client.subscribe(KEPT, retained=True) as subscription:
        event = subscription.get(timeout=5.0)
    assert event is not None
    assert event.retained
    return event.seq


def test_clocks_that_differ_and_jump_change_nothing(
    cluster: Callable[..., ContainerCluster], tmp_path: Path
) -> None:
    containers = cluster(3, topics=TOPICS, clocks={i: WRONG_CLOCKS[i] for i in NODES})
    began = time.time()
    with Work(containers, tmp_path) as work:
        first = work.drill.sequencer()
        with containers.connect(first) as client:
            client.alter_topic(KEPT, TopicSettings(Retention(seconds=KEPT_S)))
            time.sleep(0.3)
            oldest = oldest_kept(client)
        work.do(KILL, first)  # and one with another clock goes on
        second = work.drill.sequencer()
        with containers.connect(second) as client:
            assert oldest_kept(client) == oldest, "another sequencer's clock has let go of what is kept"
            was = containers.clocks[second]
            for hours in (5, -7, 0):
                containers.set_clock(second, was + hours * HOUR_S)
                time.sleep(0.3)
                assert oldest_kept(client) == oldest, f"a jump of {hours} hours has let go of what is kept"
        work.do(CLOCK_JUMPS, work.drill.others(second)[-1])
        work.verdict()
    assert first != second
    for trace in work.programs.traces.values():
        times = order_times(trace)
        assert times == sorted(times), "order_time goes back"
        # The clocks were wrong indeed, and order_time has followed no jump and no other sequencer's clock.
        assert abs(times[0] / NS - began - WRONG_CLOCKS[first]) < SLACK_S
        assert abs(times[-1] / NS - began - WRONG_CLOCKS[first]) < SLACK_S
