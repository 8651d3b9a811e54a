"""Three real agents on loopback, where one is paused, removed, refused or told to stop: what the agents make of it.

What programs see of views is in tests/conformance, and what the protocol does in every order of things is the
simulator's; here are the processes, their sockets, state by TCP, exit codes and commands.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from ocfcluster.agent.incarnations import EXIT_EVICTED
from ocfcluster.errors import ClientError, InvalidArgument, Refused
from ocfcluster.wire.frames import NoticeCode
from tests.cluster import ROOT, LoopbackCluster

TIMING = {"suspicion_ms": 600, "leave_timeout_ms": 2000}


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except ClientError:
            pass  # an agent between two incarnations
        assert time.monotonic() < deadline
        time.sleep(0.02)


def members(cluster: LoopbackCluster, i: int) -> list[int]:
    return [member["node_id"] for member in cluster.status(i)["members"]]


def pause(cluster: LoopbackCluster, i: int, other: int) -> None:
    """Stop node ``i`` until ``other`` goes on without it."""
    cluster.agent(i).send_signal(signal.SIGSTOP)
    until(lambda: i not in members(cluster, other))
    cluster.agent(i).send_signal(signal.SIGCONT)


def test_a_paused_agent_comes_back_in_the_same_process_with_the_state_it_missed() -> None:
    with LoopbackCluster(3, timing=TIMING) as cluster, cluster.connect(3, resume=True) as client:
        client.create_topic("t")
        events = client.subscribe("t")
        pause(cluster, 3, 1)
        with cluster.connect(1) as other:
            other.publish("t", b"missed").wait(5)
        until(lambda: cluster.status(3)["evictions"] == 1 and cluster.status(3)["state"] == "active")
        assert cluster.agent(3).poll() is None
        seen = []
        while not seen or not (seen[-1].notice and seen[-1].notice.code is NoticeCode.RESUMED):
            seen.append(events.get(timeout=10))
        with cluster.connect(
            1
        ) as other:  # not before the client is back: what passes until then is in the gap
            other.publish("t", b"seen").wait(5)
        seen.append(events.get(timeout=10))
        assert (seen[-1].seq, bytes(seen[-1].data)) == (2, b"seen")
        gaps = [
            (one.notice.first_seq, one.notice.last_seq) for one in seen if one.notice and one.notice.first_seq
        ]
        assert gaps == [(1, 1)]
        counters = cluster.status(3)["counters"]
        assert counters["snapshots_fetched"] == 1
        given = sum(cluster.status(i)["counters"]["snapshots_given_bytes"] for i in (1, 2))
        assert given == counters["snapshots_fetched_bytes"] > 0
        assert "evicted" in cluster.log(3).read_text()


def test_where_it_may_not_rejoin_it_ends_and_says_so() -> None:
    cluster = LoopbackCluster(3, timing=TIMING, cluster={"rejoin": False}).start()
    try:
        pause(cluster, 3, 1)
        assert cluster.agent(3).wait(10) == EXIT_EVICTED
        cluster.start_agent(3)  # an operator's decision
        cluster.wait_active()
    finally:
        cluster.stop()
        shutil.rmtree(cluster.directory)


def test_a_sequencer_that_is_told_to_stop_is_not_missed() -> None:
    with LoopbackCluster(3, topics=["t"], timing=TIMING) as cluster:
        first = cluster.status(1)["sequencer"]
        other = next(i for i in cluster.nodes if i != first)
        with cluster.connect(other) as client:
            client.publish("t", b"before").wait(5)
            began = time.monotonic()
            assert cluster.stop_agent(first) == 0
            client.publish("t", b"after").wait(5)
            assert time.monotonic() - began < 0.5  # nobody waited for a suspicion
        shutil.rmtree(cluster.state_dir(first))  # with its disk gone it is a stranger, and joins all the same
        cluster.start_agent(first)
        cluster.wait_active()
        assert cluster.status(first)["sequencer"] != first


def test_commands_of_an_operator() -> None:
    with LoopbackCluster(3) as cluster, cluster.connect(1) as client:
        admin = client.admin
        told = client.subscribe("oc.connectivity")
        with pytest.raises(InvalidArgument, match="node 9 is not in the node table"):
            admin.remove_node(9, timeout=5)
        with pytest.raises(InvalidArgument, match="node 2 is in the node table with other votes"):
            admin.add_node(2, votes=2, timeout=5)
        with pytest.raises(Refused, match="no majority"):
            admin.add_node(4, votes=9, timeout=5)
        for refused in (lambda: admin.bootstrap_without([3]), admin.new_history, admin.rejoin):
            with pytest.raises(Refused):
                refused()
        admin.add_node(4, timeout=5)
        until(lambda: cluster.status(3)["table"] == {1: 1, 2: 1, 3: 1, 4: 1})
        admin.remove_node(4, timeout=5)
        admin.set_votes(3, 2, timeout=5)
        until(lambda: cluster.status(2)["table"] == {1: 1, 2: 1, 3: 2})
        admin.sequence(2, timeout=5)
        until(lambda: cluster.status(3)["sequencer"] == 2)
        asked = subprocess.run(
            [sys.executable, "-m", "ocfcluster", "shutdown", "--socket", cluster.socket(3)],
            capture_output=True, text=True, timeout=30, cwd=ROOT,
        )  # fmt: skip
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, "the cluster stops\n", "")
        assert [cluster.agent(i).wait(10) for i in cluster.nodes] == [0, 0, 0]
        last = None
        while last is None:
            last = told.get(timeout=5).notice
        assert (last.code, last.final, last.reason) == (
            NoticeCode.SHUTDOWN,
            True,
            "the cluster was told to stop",
        )


def test_a_cluster_forms_without_a_node_that_is_missing_when_it_is_told() -> None:
    cluster = LoopbackCluster(3, timing=TIMING)
    try:
        for i in (1, 2):
            cluster.start_agent(i)
        until(lambda: [cluster.status(i)["waiting_for"] for i in (1, 2)] == ["nodes 3", "nodes 3"])
        with cluster.connect(1) as client:
            with pytest.raises(Refused, match=r"not in cluster\.nodes"):
                client.admin.bootstrap_without([7], timeout=5)
            client.admin.bootstrap_without([3], timeout=5)
        cluster.wait_active([1, 2])
        cluster.start_agent(3)
        cluster.wait_active([3])
        until(lambda: members(cluster, 1) == [1, 2, 3])
    finally:
        cluster.stop()
        shutil.rmtree(cluster.directory)


def test_a_node_of_another_history_joins_the_live_one_when_it_is_told() -> None:
    with LoopbackCluster(3, timing=TIMING) as cluster:
        for i in cluster.nodes:
            cluster.stop_agent(i, kill=True)
        for i in (2, 3):
            shutil.rmtree(cluster.state_dir(i))
            cluster.start_agent(i)
        until(lambda: cluster.status(2)["waiting_for"] == "nodes 1")
        with cluster.connect(2) as client:
            client.admin.bootstrap_without([1], timeout=5)
        cluster.wait_active([2, 3])
        cluster.start_agent(1)
        until(lambda: "another history" in cluster.status(1)["waiting_for"])
        before = (cluster.state_dir(1) / "identity.json").read_bytes()
        with cluster.connect(1) as client:
            client.admin.rejoin(timeout=5)
        until(lambda: cluster.status(1)["state"] == "active")
        assert members(cluster, 2) == [2, 3, 1]
        assert (cluster.state_dir(1) / "identity.json").read_bytes() != before
