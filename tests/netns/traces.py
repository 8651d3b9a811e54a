"""The oracle of the order test: compares what subscribers wrote down with each other and with what was published.

It is a plain module, so pytest leaves its assertions alone: explaining how megabytes differ would take minutes.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from xxhash import xxh3_64_intdigest

from tests.netns.worker import TRACE, payload


def check(traces: dict[int, Path], topics: list[str], size: int, events: int) -> None:
    """All traces are the same, and that one is complete, without holes, and in every publisher's own order.

    ``traces`` are of fresh topics, by node; each of those nodes published ``events`` events of ``size`` bytes
    (``worker.payload``) under its number. AssertionError says in words what is wrong.
    """
    first, *others = (path.read_bytes() for path in traces.values())
    for node, other in zip(list(traces)[1:], others, strict=True):
        assert other == first, difference(first, other, next(iter(traces)), node)
    records = list(TRACE.iter_unpack(first))
    origin = {
        xxh3_64_intdigest(payload(node, number, size)): (node, number)
        for node in traces
        for number in range(events)
    }
    assert len(records) == len(origin), f"{len(records)} events instead of {len(origin)}"
    for place in range(len(topics)):
        seqs = [seq for seq, _, _, topic, _ in records if topic == place]
        assert seqs == list(range(1, len(seqs) + 1)), f"seq of {topics[place]} has a hole or a repeat"
    assert all(earlier[1] < later[1] for earlier, later in pairwise(records)), "ev_id does not grow"
    numbers: dict[int, list[int]] = {node: [] for node in traces}
    for seq, _, node, topic, digest in records:
        assert digest in origin, f"an event that nobody published: {topics[topic]} seq {seq}"
        publisher, number = origin[digest]
        assert publisher == node, f"node_id {node} for an event of node {publisher}"
        numbers[publisher].append(number)
    for node, got in numbers.items():
        assert got == list(range(events)), f"the events of node {node} are not complete and in order"


def difference(one: bytes, other: bytes, node: int, other_node: int) -> str:
    """Where two traces part, in words."""
    for index, (a, b) in enumerate(
        zip(TRACE.iter_unpack(whole(one)), TRACE.iter_unpack(whole(other)), strict=False)
    ):
        if a != b:
            return f"event {index} is {a} on node {node} and {b} on node {other_node}"
    return f"node {node} has {len(one) / TRACE.size} events and node {other_node} {len(other) / TRACE.size}"


def whole(trace: bytes) -> bytes:
    return trace[: len(trace) - len(trace) % TRACE.size]
