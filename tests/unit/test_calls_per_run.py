"""What a run costs in protocol/ and wire/ is counted in calls and depends on its bytes, never on how many events it
holds: nobody can put work per event into the agent."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

import ocfcluster
from ocfcluster.wire.run import RunKind, build_run
from tests.unit.protocol_world import World, publication

ROOT = Path(ocfcluster.__file__).parent
INSIDE = (str(ROOT / "protocol"), str(ROOT / "wire"))


class CallCount:
    """Counts Python and C calls made by code of protocol/ and wire/, by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(INSIDE):
            return
        if event == "call":
            self.calls[f"{Path(code.co_filename).name}:{code.co_name}"] += 1
        elif event == "c_call":
            self.calls[f"{Path(code.co_filename).name}:{code.co_name} → {argument.__qualname__}"] += 1

    def __enter__(self) -> Self:
        gc.disable()  # a collection in between would call what it finds
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        gc.enable()


def calls_of(events: list[bytes], **settings: Any) -> Counter[str]:
    """The calls from publishing one run until all three nodes have delivered it."""
    world = World(3, seed=5, **settings).form()
    topic_id, producer = world.topic(), world.producer(2)
    number = 1
    for _ in range(3):  # what happens once only (caches of formats) has happened
        world.publish(2, publication(topic_id, producer, number, events))
        number += len(events)
        world.run(20_000_000)
    world.run(500_000_000 - world.now % 100_000_000)  # the same phase of heartbeats each time
    run = build_run(RunKind.PUBLICATION, topic_id, producer, number, events)
    before = len(world.deliveries(1))
    with CallCount() as counted:
        world.publish(2, run)
        world.until(lambda: all(len(world.deliveries(node_id)) == before + 1 for node_id in world.nodes))
    assert all(world.deliveries(node_id)[-1].count == len(events) for node_id in world.nodes)
    assert all(world.deliveries(node_id)[-1].run == run for node_id in world.nodes)
    return counted.calls


def difference(one: Counter[str], other: Counter[str]) -> dict[str, int]:
    return {name: other[name] - one[name] for name in {*one, *other} if one[name] != other[name]}


@pytest.mark.parametrize("delivery", ["safe", "agreed"])
def test_many_events_cost_as_many_calls_as_one_of_the_same_bytes(delivery: str) -> None:
    one = calls_of([b"x" * (937 * 64)], delivery=delivery)
    many = calls_of([b"x" * 64] * 937, delivery=delivery)
    assert sum(one.values()) > 100  # it counts at all
    assert difference(one, many) == {}


def test_a_table_of_lengths_costs_a_constant_number_more() -> None:
    events = [b"x" * (60 + number % 9) for number in range(900)]
    table = 4 * len(events)
    one = calls_of([b"x" * (sum(map(len, events)) + table)])
    many = calls_of(events)
    assert 0 < sum(difference(one, many).values()) <= 30


def test_a_short_run_costs_little_less_than_one_of_forty_packets() -> None:
    short, long = calls_of([b"x" * 64]), calls_of([b"x" * 64] * 937)
    assert sum(long.values()) <= 1.5 * sum(short.values())


def test_empty_events_are_counted_by_the_run_too() -> None:
    """32 768 events in 64 bytes: the most that a run may count."""
    assert difference(calls_of([b""]), calls_of([b""] * 32_768)) == {}
