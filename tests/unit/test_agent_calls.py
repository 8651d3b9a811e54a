"""The hot path costs the same number of calls per run, whatever the run holds: nothing is done per event."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from ocfcluster.wire.run import RunKind, build_run
from tests.unit.fake_node import Bench, FakeNode, RawClient, bench, publish_frame, read_all

RUNS = 20  # what fits a read of the largest, so that nothing is read before it is counted


class FreeNode(FakeNode):
    """Numbers in no time, so that what is counted is the agent's alone."""

    def publish(self, run: bytes) -> None:
        self._apply(run)


def calls_per_run(agent: Bench, client: RawClient, run_of: Any) -> tuple[float, float]:
    """Python and C calls from the client's bytes to the subscriber's sendmsg and the receipt, per run."""
    client.send(b"".join(publish_frame(run_of(number)) for number in range(RUNS)))
    counts = {"call": 0, "c_call": 0}

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event in counts and not frame.f_code.co_filename.endswith(("state.py", "fake_node.py")):
            counts[event] += 1

    connected = next(iter(agent.agent.clients.values()))
    gc.disable()  # others hang callbacks on it
    sys.setprofile(count)
    try:
        while connected.read(agent.agent.connections._read_buffer) > 0:
            agent.agent.intake.arrived(connected)
        agent.agent.settle(0)
    finally:
        sys.setprofile(None)
        gc.enable()
    return counts["call"] / RUNS, counts["c_call"] / RUNS


def test_calls_per_run_do_not_depend_on_its_events(tmp_path: Path) -> None:
    with bench(tmp_path) as agent:
        client = agent.client()
        topic_id = client.create_topic("t")
        events = client.subscribe(1, "t")
        producer = client.open_producer()
        client.publish(topic_id, producer, 1, b"")  # whether it may publish is found out once
        client.answers()
        read_all(events, agent.step)
        results = []
        number = 2
        for count, sizes in ((1, 1), (1000, 1), (1000, 2)):
            starts = [number + count * i for i in range(RUNS)]
            number += count * RUNS
            batch = [b"x" * (1 + i % sizes) for i in range(count)]
            runs = [build_run(RunKind.PUBLICATION, topic_id, producer, start, batch) for start in starts]
            results.append(calls_per_run(agent, client, runs.__getitem__))
            delivered = read_all(events, agent.step)
            assert sum(header[3] for header, _ in delivered) == RUNS
            client.answers()
            assert [receipt[2:4] for receipt in client.receipts[-RUNS:]] == [(count, 0)] * RUNS
        one, thousand, table = results
        print("calls per run (Python, C):", results)
        # Larger runs fill more messages and reads, which costs a few calls each; a call per event would cost 1000.
        assert one[0] <= 12
        assert one[1] <= 36
        assert thousand[0] <= one[0] + 2
        assert thousand[1] <= one[1] + 10
        assert table[0] <= thousand[0] + 4
        assert table[1] <= thousand[1] + 8


def test_calls_are_equal_where_frames_are(tmp_path: Path) -> None:
    """Runs of one event and of a thousand empty ones take the same path exactly."""
    with bench(tmp_path) as agent:
        client = agent.client()
        topic_id = client.create_topic("t")
        events = client.subscribe(1, "t")
        producer = client.open_producer()
        client.answers()
        client.publish(topic_id, producer, 1, b"")  # whether it may publish is found out once
        client.answers()
        read_all(events, agent.step)
        results = []
        number = 2
        for count in (1, 1000):
            runs = [
                build_run(RunKind.PUBLICATION, topic_id, producer, number + count * i, [b""] * count)
                for i in range(RUNS)
            ]
            number += count * RUNS
            results.append(calls_per_run(agent, client, runs.__getitem__))
            read_all(events, agent.step)
            client.answers()
        assert results[0] == results[1]
