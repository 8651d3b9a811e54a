"""Programs that do harm to the agent of their node, at full speed: honest ones beside them do not miss an event, memory
is bounded, and everything comes back when they are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocfcluster import limits
from ocfcluster.client import Client
from ocfcluster.errors import ClientError
from tests.attackers import FLOODED, TOPIC
from tests.cluster import LoopbackCluster

SECONDS = 1.5
MIB = 1 << 20
# What an attacker may make an agent hold: what waits to be published, a queue of events, answers, and the heap's slack.
MEMORY_BYTES = 200 * MIB


def attack(cluster: LoopbackCluster, kind: str, seconds: float = SECONDS) -> subprocess.Popen[str]:
    argv = [
        sys.executable,
        "-m",
        "tests.attackers",
        kind,
        "--seconds",
        str(seconds),
        "--socket",
        cluster.socket(1),
    ]
    attacker: subprocess.Popen[str] = cluster.popen(1, argv, stdout=subprocess.PIPE, text=True)
    assert attacker.stdout is not None
    assert attacker.stdout.readline() == "ready\n"
    return attacker


def memory_bytes(pid: int) -> int:
    """Resident, without what is shared with others."""
    text = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(text[1]) - int(text[2])) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def honest_work(publisher: Client, subscriber: Client, seconds: float, size: int = 100) -> int:
    """Events one after the other, each taken before the next one; how many. None is missing and none comes twice."""
    with subscriber.subscribe(TOPIC) as events:
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            publisher.publish(TOPIC, number.to_bytes(8, "little") + bytes(size)).wait(20)
            event = events.get(timeout=20)
            assert event is not None
            assert event.notice is None, event
            assert int.from_bytes(event.data[:8], "little") == number
            number += 1
        return number


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "kind", ["crowd", "come-and-go", "requests", "publications", "subscriptions", "deaf"]
)
def test_honest_programs_go_on_and_everything_comes_back(kind: str) -> None:
    with (
        LoopbackCluster(2, topics=[TOPIC, FLOODED]) as cluster,
        cluster.connect(1) as here,
        cluster.connect(2) as there,
    ):
        pid = cluster.agent(1).pid
        honest_work(there, here, 0.3)
        time.sleep(0.2)
        before, used = descriptors(pid), memory_bytes(pid)
        attacker = attack(cluster, kind)
        done = honest_work(there, here, SECONDS) + honest_work(here, here, 0.5)
        most = memory_bytes(pid)
        report, _ = attacker.communicate(timeout=60)
        assert attacker.returncode == 0
        assert done > 20
        assert most - used < MEMORY_BYTES
        status = cluster.status(1)
        assert (status["evictions"], len(status["members"])) == (0, 2)
        assert sum(json.loads(report).values()) > 0
        deadline = time.monotonic() + 10
        while descriptors(pid) > before:
            assert time.monotonic() < deadline, f"{descriptors(pid)} descriptors, {before} before"
            time.sleep(0.05)
        assert memory_bytes(pid) - used < limits.HEAP_KEEP_BYTES + 16 * MIB
        assert cluster.status(1)["client_count"] == 2  # who asks, and the honest one
        print(f"{kind}: {report.strip()}, {done} honest events, memory {used >> 20} {most >> 20} "
              f"{memory_bytes(pid) >> 20} MiB")  # fmt: skip


@pytest.mark.timeout(120)
def test_a_full_agent_says_so_and_places_of_who_never_says_hello_come_back() -> None:
    with LoopbackCluster(1, topics=[TOPIC], limits={"clients": 1000}) as cluster:
        attacker = attack(cluster, "crowd", limits.GREETING_NS / limits.SECOND_NS + 1)
        deadline = time.monotonic() + limits.GREETING_NS / limits.SECOND_NS - 1
        refusal = ""
        while not refusal and time.monotonic() < deadline:
            try:
                cluster.connect(1).close()
            except ClientError as error:
                if "try again" not in str(error):  # so many wait to be taken in that the kernel takes no more
                    refusal = str(error)
        assert "has its 1000 clients (limits.clients)" in refusal
        time.sleep(limits.GREETING_NS / limits.SECOND_NS)
        with cluster.connect(1) as client:  # though the attacker still holds all its connections
            honest_work(client, client, 0.2)
            status = client.status()
        assert attacker.poll() is None or attacker.returncode == 0
        assert status["counters"]["clients_failed"] == 1000
        assert status["counters"]["clients_refused"] >= 100
        report, _ = attacker.communicate(timeout=60)
        assert json.loads(report)["refused"] >= 100
