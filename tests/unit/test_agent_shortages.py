"""Real agents that run out of something: descriptors, memory, room on a disk, or somebody who reads their log."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

import ocfcluster
from ocfcluster.agent.config import AgentConfig, Limits
from ocfcluster.agent.main import descriptor_warnings, loop_runner
from ocfcluster.errors import ClientError
from tests.cluster import ROOT, LoopbackCluster


def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except ClientError:
            pass  # an agent that cannot answer just now
        assert time.monotonic() < deadline
        time.sleep(0.02)


def leave_no_descriptor(pid: int) -> tuple[int, int]:
    """The process gets none from here on; the limits that it had."""
    time.sleep(0.3)  # those of connections that have just ended are closed
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = next(number for number in count() if number not in used)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    return before


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def members(cluster: LoopbackCluster, i: int) -> list[int]:
    return [one["node_id"] for one in cluster.status(i)["members"]]


@pytest.mark.timeout(120)
def test_without_descriptors_an_agent_refuses_and_stays_in_the_cluster() -> None:
    with (
        LoopbackCluster(3, topics=["news"]) as cluster,
        cluster.connect(1) as client,
        cluster.connect(2) as other,
    ):
        pid = cluster.agent(1).pid
        events = client.subscribe("news")
        epoch = cluster.status(1)["epoch"]
        before = leave_no_descriptor(pid)
        used, began = cpu_s(pid), time.monotonic()
        for _ in range(10):
            with pytest.raises(ClientError, match="no descriptors left"):
                cluster.connect(1)
        for number in range(300):
            other.publish("news", b"%d" % number)
        other.flush(10)
        assert [bytes(events.get(timeout=10).data) for _ in range(300)] == [b"%d" % n for n in range(300)]
        time.sleep(1)
        took = time.monotonic() - began
        assert cpu_s(pid) - used < took / 2, "it spins"
        other.publish("news", bytes(200_000)).wait(10)
        assert len(events.get(timeout=10).data) == 200_000
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        status = cluster.status(1)
        assert (status["epoch"], status["evictions"], members(cluster, 1)) == (epoch, 0, [1, 2, 3])
        assert status["counters"]["clients_refused"] == 10
        assert cluster.log(1).read_text().count("no more clients can be taken") == 1


@pytest.mark.timeout(120)
def test_a_subscription_that_no_descriptor_is_left_for_is_refused() -> None:
    with LoopbackCluster(1, topics=["news"]) as cluster, cluster.connect(1) as client:
        before = leave_no_descriptor(cluster.agent(1).pid)
        with pytest.raises(ClientError, match="no descriptors left"):
            client.subscribe("news")
        client.publish("news", b"x").wait(5)  # it has lost nothing else
        resource.prlimit(cluster.agent(1).pid, resource.RLIMIT_NOFILE, before)
        events = client.subscribe("news")
        client.publish("news", b"y").wait(5)
        assert bytes(events.get(timeout=5).data) == b"y"


@pytest.mark.timeout(120)
def test_without_descriptors_no_state_is_given_and_who_joins_waits() -> None:
    with LoopbackCluster(3, topics=["news"]) as cluster:
        pid = cluster.agent(1).pid
        cluster.stop_agent(3)
        until(lambda: members(cluster, 2) == [1, 2])
        before = leave_no_descriptor(pid)
        used, began = cpu_s(pid), time.monotonic()
        cluster.start_agent(3)
        time.sleep(3)
        assert cpu_s(pid) - used < (time.monotonic() - began) / 2, "it spins"
        assert cluster.status(3)["state"] == "forming"
        assert members(cluster, 2) == [1, 2]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        cluster.wait_active()
        assert members(cluster, 1) == [1, 2, 3]


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_without_memory_an_agent_ends_and_says_so_and_the_others_lose_nothing() -> None:
    with (
        LoopbackCluster(3, topics=["news"], limits={"event_bytes": 16 << 20}) as cluster,
        cluster.connect(3) as publisher,
        cluster.connect(1) as subscriber,
        cluster.connect(2) as idle,
    ):
        events = subscriber.subscribe("news")
        untouched = idle.subscribe("news")  # and takes nothing: that fills the memory there
        pid = cluster.agent(2).pid
        resource.prlimit(pid, resource.RLIMIT_AS, (memory_bytes(pid) + (6 << 20), resource.RLIM_INFINITY))
        sent = 0
        while cluster.agent(2).poll() is None:
            assert sent < 100
            publisher.publish("news", bytes([sent]) * (8 << 20)).wait(20)
            sent += 1
        for number in range(sent):
            event = events.get(timeout=20)
            assert event is not None
            assert event.notice is None
            assert (len(event.data), bytes(event.data[:1])) == (8 << 20, bytes([number]))
        untouched.close()
        assert cluster.agent(2).returncode == 1
        log = cluster.log(2).read_text()
        assert "out of memory" in log
        assert "internal error" not in log
        until(lambda: members(cluster, 1) == members(cluster, 3) == [1, 3])
        cluster.start_agent(2)
        cluster.wait_active()


def memory_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_a_disk_that_takes_nothing_keeps_a_node_in_the_cluster_and_its_log_ends_nothing() -> None:
    """Neither its record nor a line of its log can be written, as on a full disk that both are on."""
    with (
        LoopbackCluster(3, topics=["news"]) as cluster,
        cluster.connect(1) as client,
        cluster.connect(2) as other,
    ):
        pid = cluster.agent(2).pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
        logged = cluster.log(2).stat().st_size
        client.create_topic("more")  # the others' disks are enough
        events = other.subscribe("more")
        client.publish("more", b"goes on").wait(5)
        assert bytes(events.get(timeout=5).data) == b"goes on"
        until(lambda: cluster.status(2)["disk_error"])
        status = cluster.status(2)
        assert status["disk_error"] == status["log_error"] == "File too large"
        assert status["log_lost"] > 0
        assert members(cluster, 1) == [1, 2, 3]
        assert cluster.log(2).stat().st_size == logged
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        until(lambda: not cluster.status(2)["disk_error"])
        assert not cluster.status(2)["log_error"]
        assert "can be written again" in cluster.log(2).read_text()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("target", ["full", "closed"])
def test_a_log_that_nobody_takes_ends_no_agent(tmp_path: Path, target: str) -> None:
    path = tmp_path / "agent.sock"
    file = tmp_path / "agent.toml"
    file.write_text(f'[cluster]\nname = "one"\n[node]\nsocket = "{path}"\n')
    if target == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, descriptor = os.pipe()
        os.close(reading)
    argv = [sys.executable, "-m", "ocfcluster", "agent", "--config", str(file)]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor)
    os.close(descriptor)
    try:
        until(lambda: ocfcluster.connect(str(path), timeout=2).close() is None)
        with ocfcluster.connect(str(path), timeout=5) as client:
            status = client.status()
            assert status["log_lost"] > 0
            assert status["log_error"] == ("No space left on device" if target == "full" else "Broken pipe")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(60)
def test_what_an_agent_dies_of_is_its_exit_code_also_where_it_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("[node]\nsocket = 5\n")
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "ocfcluster", "agent", "--config", str(file)]
        done = subprocess.run(argv, cwd=ROOT, stdout=full, stderr=full, timeout=30, check=False)
    assert done.returncode == 2


def test_where_descriptors_cannot_suffice_the_agent_says_so_at_its_start() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = AgentConfig(limits=Limits(clients=1000))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3064, before[1]))
        assert descriptor_warnings(config) == []
        resource.setrlimit(resource.RLIMIT_NOFILE, (3063, before[1]))
        [warning] = descriptor_warnings(config)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "limits.clients is 1000, for which 3064 descriptors" in warning
    assert "may have 3063" in warning


def test_where_no_thread_can_be_started_an_agent_still_says_what_it_ended_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def work() -> int:
        await asyncio.to_thread(int)  # a loop that has had threads waits for them, in a thread
        monkeypatch.setattr(threading.Thread, "start", start)
        return 7

    assert loop_runner(AgentConfig())(work()) == 7
