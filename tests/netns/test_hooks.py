"""The hook of a node that is cut off from the others: told that it lost the primary, was left behind, and is back."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts

pytestmark = pytest.mark.netns

CUT_OFF = 3


def told(directory: Path, node: int) -> list[str]:
    file = directory / f"hook-{node}"
    return [json.loads(line)["event"] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.timeout(120)
def test_the_hook_of_a_node_that_is_cut_off(tmp_path: Path) -> None:
    script = f'cat >> {tmp_path}/hook-"$OCFCLUSTER_NODE_ID"; echo >> {tmp_path}/hook-"$OCFCLUSTER_NODE_ID"'
    hooks = {"command": ["/bin/sh", "-c", script], "topic": "node"}
    with Hosts(3) as hosts, Cluster(hosts, topics=["red"], hooks=hooks) as cluster:

        def until(*expected: str) -> None:
            deadline = time.monotonic() + 15
            while told(tmp_path, CUT_OFF) != [*expected]:
                assert time.monotonic() < deadline, told(tmp_path, CUT_OFF)
                time.sleep(0.02)

        until("primary")
        with cluster.connect(CUT_OFF) as client, client.subscribe("node") as subscription:
            hosts.isolate(CUT_OFF)
            event = subscription.get(15)
            assert event is not None
            assert json.loads(bytes(event.data))["event"] == "not_primary"
            until("primary", "not_primary")
            assert cluster.status(CUT_OFF)["hooks"]["state"] == "not_primary"
            hosts.heal()
            until("primary", "not_primary", "evicted", "primary")
        assert told(tmp_path, 1) == told(tmp_path, 2) == ["primary"]
