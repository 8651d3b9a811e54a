"""A fourth host without the key floods the cluster's group and port at full speed; programs of the others go on."""

from __future__ import annotations

import json
import time

import pytest

from ocfcluster.client import Client
from tests.attackers import TOPIC
from tests.netns.attacked import NODES, Attacked
from tests.netns.hosts import Hosts

pytestmark = pytest.mark.netns

SECONDS = 3.0
WHOLE_S = 10.0  # after a flood the cluster is whole again within so long
MIB = 1 << 20


def honest_work(publisher: Client, subscriber: Client, seconds: float) -> list[float]:
    """Events one after the other, each taken before the next one: how long each took, in seconds."""
    took: list[float] = []
    with subscriber.subscribe(TOPIC) as events:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began, data = time.monotonic(), b"%d" % len(took)
            publisher.publish(TOPIC, data).wait(30)
            event = events.get(timeout=30)
            assert event is not None
            assert event.notice is None, event
            assert bytes(event.data) == data
            took.append(time.monotonic() - began)
    return took


COUNTED = {  # by what nodes count what the attacker sends
    "noise": ["seal_foreign"], "foreign": ["seal_foreign"], "clear": ["seal_missing"],
    "send-back": ["seal_forged", "seal_missing", "seal_malformed"],
}  # fmt: skip


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "kind",
    ["noise", "send-back", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("foreign", "clear"))],
)
def test_a_flood_costs_time_and_nothing_else(kind: str) -> None:
    with (
        Hosts(4) as hosts,
        Attacked(hosts) as cluster,
        cluster.connect(2) as here,
        cluster.connect(3) as there,
    ):
        honest_work(here, there, 0.5)
        before = {i: cluster.memory_bytes(i) for i in NODES}
        attacker = cluster.attack(kind, SECONDS)
        during = honest_work(here, there, SECONDS)
        report, _ = attacker.communicate(timeout=60)
        assert attacker.returncode == 0
        sent = json.loads(report)["sent"]
        assert sent > 1000
        ended = time.monotonic()
        while (slowest := max(honest_work(here, there, 0.5))) > 0.3:
            assert time.monotonic() < ended + WHOLE_S, slowest
        for i in NODES:
            status = cluster.status(i)
            assert [one["node_id"] for one in status["members"]] == [1, 2, 3]
            assert (status["epoch"], status["evictions"]) == (1, 0)
            assert status["datagrams"]["malformed"] == status["datagrams"]["foreign"] == 0, "one came so far"
            assert all(cluster.dropped(i).get(name, 0) > 100 for name in COUNTED[kind]), cluster.dropped(i)
            assert cluster.memory_bytes(i) - before[i] < 64 * MIB
            assert cluster.log(i).read_text().count("datagram dropped") < 10
        print(f"{kind}: {sent} sent, {len(during)} honest events, the slowest in {max(during):.3f} s")
