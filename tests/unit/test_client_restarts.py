"""Restarts at any moment, under load from several threads: each publication is delivered once, in order."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

import ocfcluster
from ocfcluster.client.events import Receipt
from ocfcluster.wire.run import read_header, run_events
from tests.unit.fake_agent import Cluster, FakeAgent


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exactly_once_over_restarts(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = str(tmp_path / "agent.sock")
    cluster = Cluster()
    cluster.create("t")
    agents = [FakeAgent(path, cluster)]
    receipts: dict[int, list[Receipt]] = {0: [], 1: [], 2: []}
    seen: list[tuple[int, bytes]] = []
    gaps: list[tuple[int, int]] = []
    failures: list[OSError] = []

    with ocfcluster.connect(path) as client:
        events = client.subscribe("t")

        def publish(number: int) -> None:
            try:
                with client.publisher("t") as publisher:
                    for i in range(1500):
                        receipts[number].append(publisher.publish(b"%d %d" % (number, i)))
                        if i % 97 == 0:
                            receipts[number][-1].wait(10)
                    publisher.flush(10)
            except OSError as error:
                failures.append(error)

        def subscribe() -> None:
            for event in events:
                if event.notice is None:
                    seen.append((event.seq, event.data))
                elif event.notice.name == "gap":
                    gaps.append((event.notice.first_seq, event.notice.last_seq))

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
        reader = threading.Thread(target=subscribe)
        for thread in (*threads, reader):
            thread.start()
        for _ in range(6):
            time.sleep(chance.uniform(0.005, 0.05))
            agents[-1].kill()
            time.sleep(chance.uniform(0, 0.03))
            agents.append(FakeAgent(path, cluster))
        for thread in threads:
            thread.join(20)
        assert not failures
        time.sleep(0.05)
        events.close()
        reader.join(5)
    agents[-1].kill()

    log = [data for run in cluster.log for data in run_events(run, read_header(run))]
    assert len(log) == 4500
    for number in range(3):
        own = [int(data.split()[1]) for data in log if data.startswith(b"%d " % number)]
        assert own == list(range(1500))
        assert [log[receipt.result().seq - 1] for receipt in receipts[number]] == [
            b"%d %d" % (number, i) for i in range(1500)
        ]
    numbers = [seq for seq, _ in seen]
    assert numbers == sorted(set(numbers))
    assert all(log[seq - 1] == data for seq, data in seen)
    told = {seq for first, last in gaps for seq in range(first, last + 1)}
    assert set(numbers) | told == set(range(1, 4501))
