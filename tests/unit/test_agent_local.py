"""Local topics at the agent: what a wall clock that jumps does to what they keep."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ocfcluster.limits import SECOND_NS
from ocfcluster.wire.frames import Answer, Request, Subscribe, TopicCreate
from ocfcluster.wire.run import read_header, run_events
from ocfcluster.wire.topics import Retention, TopicSettings
from tests.unit.fake_node import RawClient, bench, read_all

NOW = 1_800_000_000 * SECOND_NS
DAY = 86_400 * SECOND_NS


class Clocks:
    """The two clocks of a machine; ``pass_`` time, or have the wall clock ``jump``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.monotonic = NOW, 5 * SECOND_NS
        fake = SimpleNamespace(time_ns=lambda: self.wall, monotonic_ns=lambda: self.monotonic)
        monkeypatch.setattr("ocfcluster.agent.local.time", fake)

    def jump(self, ns: int) -> None:
        self.wall += ns

    def pass_(self, seconds: int) -> None:
        self.wall += seconds * SECOND_NS
        self.monotonic += seconds * SECOND_NS


@pytest.mark.parametrize("jump", [0, DAY, -DAY])
def test_a_wall_clock_that_jumps_neither_empties_a_local_topic_nor_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    clocks = Clocks(monkeypatch)
    with bench(tmp_path) as agent:
        client: RawClient = agent.client()
        settings = TopicSettings(Retention(seconds=60))
        kind, topic = client.call(Request.TOPIC_CREATE, TopicCreate("t", True, settings))
        assert kind == Answer.TOPIC
        producer = client.open_producer(local=True)
        numbers = iter(range(1, 10))

        def publish(data: bytes) -> None:
            client.publish(topic.topic_id, producer, next(numbers), data)
            client.answers()

        def kept() -> list[tuple[bytes, int]]:
            """Data and seconds since the start, by order_time."""
            events = client.lend(Subscribe(next(numbers), ["t"], False, retained=True))[2]
            return [
                (data, (fields[10] - NOW) // SECOND_NS)
                for _, records in read_all(events, agent.step)
                for fields, run in records
                for data in run_events(run, read_header(run))
            ]

        publish(b"before")
        clocks.jump(jump)
        clocks.pass_(40)
        publish(b"after")
        assert kept() == [(b"before", 0), (b"after", 40)]
        clocks.pass_(40)
        assert kept() == [(b"after", 40)]
        clocks.pass_(40)
        assert kept() == []
