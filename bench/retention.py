"""What keeping events costs: ``python -m bench.retention``. In one process, without a network, in less than a minute.

The replicated state applies runs to a topic that keeps nothing, then to one that keeps; snapshots are taken and
restored of a state that keeps as much as it may.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import msgspec

from ocfcluster import limits
from ocfcluster.protocol.effects import Delivery, Item
from ocfcluster.protocol.retention import Retained, RetainedImage, Taken
from ocfcluster.protocol.settings import Configuration, Limits, Member
from ocfcluster.protocol.snapshot import _seal
from ocfcluster.protocol.state import ReplicatedState
from ocfcluster.wire import control
from ocfcluster.wire.datagram import VERSION
from ocfcluster.wire.run import RunKind, build_run
from ocfcluster.wire.topics import Retention, TopicSettings

RUNS = 50_000
ROUNDS = 9
HEAD_BYTES = 12  # of a snapshot, before its header
BOUNDS = {
    "keeps nothing": Retention(),
    "10 000 events": Retention(events=10_000),
    "10 000 events, 8 MiB, 60 s": Retention(10_000, 8 * limits.MIB, 60),
}


def state_of(retention: Retention) -> tuple[ReplicatedState, int, int]:
    """A state with one topic; the topic's id and a producer."""
    members = [Member(1, 1, 1, 1, 1)]
    configuration = Configuration(
        "0" * 32, [], 1, 0, {1: 1}, members, 1, 1, "safe", False, VERSION, 1500, Limits(), 1, [(1, 0)], 1
    )
    state = ReplicatedState(configuration)
    items: list[Item] = []
    state.view(configuration, items)
    state.apply(
        control.control_run(control.TopicCreate("t", False, TopicSettings(retention)), 1),
        1,
        1,
        1,
        False,
        items,
    )
    state.apply(control.control_run(control.Open(), 2), 1, 1, 1, False, items)
    (producer,) = state.producers
    return state, 16, producer


def timed(work: Callable[[], object]) -> float:
    begin = time.process_time_ns()
    work()
    return (time.process_time_ns() - begin) / 1e9


def applying(retention: Retention) -> float:
    """CPU ns per run of 8 events of 64 B."""
    state, topic_id, producer = state_of(retention)
    runs = [
        build_run(RunKind.PUBLICATION, topic_id, producer, 1 + 8 * place, [b"x" * 64] * 8)
        for place in range(RUNS)
    ]
    items: list[Item] = []

    def work() -> None:
        apply = state.apply
        for place, run in enumerate(runs):
            apply(run, 1, 1, 10**9 + 1000 * place, False, items)
            if len(items) > 100:
                items.clear()

    return timed(work) * 1e9 / RUNS


def snapshot(event_bytes: int) -> tuple[int, int, float, float, float]:
    """Of four topics that together keep all that may be kept, in runs of one event: runs, MiB, s to take it (the node
    waits), to make and to read it (in a thread)."""
    retained = Retained()
    most = Retention(bytes=limits.RETAINED_BYTES_PER_TOPIC)
    for topic_id in range(16, 20):
        retained.alter(topic_id, most, 0)
    cost = event_bytes + limits.RUN_HEADER_BYTES + limits.RETAINED_RUN_OVERHEAD_BYTES
    per_topic = limits.RETAINED_BYTES_PER_TOPIC // cost - 1
    for topic_id in range(16, 20):
        for place in range(1, per_topic + 1):
            run = build_run(RunKind.PUBLICATION, topic_id, 9, place, [b"x" * event_bytes])
            retained.add(Delivery(run, topic_id, 1, 0, place, 4 * place + topic_id, 1, 2, 3, 10**18 + place))
    made: list[bytes] = []
    kept: list[Taken] = []
    takes = timed(lambda: kept.append(retained.taken()))
    makes = timed(lambda: made.extend(_seal(kept[0].image(), kept[0].blobs())))
    restored = Retained()
    for topic_id in range(16, 20):
        restored.alter(topic_id, most, 0)
    image = msgspec.msgpack.decode(made[0][HEAD_BYTES:], type=RetainedImage)
    blobs = iter(made[1:])
    reads = timed(
        lambda: restored.restore(image, lambda _size: next(blobs), dict.fromkeys(range(16, 20), per_topic))
    )
    return 4 * per_topic, retained.bytes // limits.MIB, takes, makes, reads


def main() -> None:
    rounds: dict[str, list[float]] = {name: [] for name in BOUNDS}
    for _ in range(ROUNDS):
        for name, retention in BOUNDS.items():
            rounds[name].append(applying(retention))
    for name, figures in rounds.items():
        print(
            f"apply, {name}: {statistics.median(figures):.0f} ns ({min(figures):.0f}-{max(figures):.0f}) of CPU per run"
        )
    for event_bytes in (64, 1024, 16_384):
        runs, kept, takes, makes, reads = snapshot(event_bytes)
        print(
            f"snapshot, {runs} runs of one event of {event_bytes} B ({kept} MiB counted): "
            f"{takes:.3f} s to take, {makes:.2f} s to make, {reads:.2f} s to read"
        )


if __name__ == "__main__":
    main()
