"""What containers are started with, and what they are replaced by: order, upgrades, mistakes, lost memories."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from integration.cluster import ContainerCluster, connect_docker, remove_leftovers
from integration.faults import ContainerDrill
from integration.work import TOPICS, Work
from ocfcluster.client.events import NoticeCode
from ocfcluster.errors import ClientError
from ocfcluster.wire.datagram import VERSION
from tests.cluster import BaseCluster
from tests.netns.faults import Fault
from tests.netns.oracle import check
from tests.netns.programs import Programs

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

Make = Callable[..., ContainerCluster]


class Inside:
    """A cluster whose programs run in the containers, each beside its agent."""

    def __init__(self, cluster: ContainerCluster) -> None:
        self._cluster = cluster

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return self._cluster.exec(i, argv, **options)


def one_order(cluster: BaseCluster, directory: Path, events: int, size: int = 64) -> None:
    """Publishers and subscribers on all nodes: every subscriber gets the same, and all of it."""
    with Programs(cluster, TOPICS, directory, size) as programs:
        programs.subscribe(resume=False)
        programs.publish(events)
        programs.published()
        programs.mark_the_end(1)
        for document in programs.received().values():
            assert document["notices"] == {}
        verdict = check(programs.traces, TOPICS, programs.known(), programs.answers)
        assert verdict.events == events * len(cluster.nodes) + 1


@pytest.mark.parametrize("transport", ["multicast", "unicast"])
def test_publishers_in_every_container_have_one_order(transport: str, cluster: Make) -> None:
    containers = cluster(3, topics=TOPICS, transport=transport)
    one_order(Inside(containers), containers.shared, 5_000)  # type: ignore[arg-type]


def test_a_network_that_delays_reorders_and_repeats_changes_nothing(cluster: Make, tmp_path: Path) -> None:
    containers = cluster(3, topics=TOPICS, link="switch")
    switch = containers.network.switch
    assert switch is not None
    switch.set(delay_ms=2.0, jitter_ms=2.0, reorder=0.05, reorder_ms=3.0, duplicate=0.05, loss=0.02)
    one_order(containers, tmp_path, 4_000)
    for row in switch.counters().values():
        assert row["reordered"] > 0
        assert row["duplicated"] > 0
        assert row["lost"] > 0


def test_a_container_that_another_run_removes_meanwhile_is_no_leftover(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.closing(connect_docker()) as client:
        listed = client.api.containers
        monkeypatch.setattr(client.api, "containers", lambda **asked: [*listed(**asked), {"Id": "0" * 64}])
        remove_leftovers(client)


# --- one after the other ----------------------------------------------------------------------------------------------


def test_a_rolling_restart_loses_nothing(cluster: Make, tmp_path: Path) -> None:
    with Work(cluster(3, topics=TOPICS), tmp_path) as work:
        restart = Fault("restart", lambda drill, victim: drill.containers.restart(victim))
        for i in work.cluster.nodes:
            work.do(restart, i)
        assert work.verdict().events > 300


def test_a_cluster_is_upgraded_one_node_at_a_time(cluster: Make, next_image: str, tmp_path: Path) -> None:
    """To a build that speaks a version of the protocol more, and has another version of the record: until all have
    it, and for as long as the history lasts, all speak the one that all understand."""

    def upgrade(drill: ContainerDrill, victim: int) -> None:
        assert drill.containers.stop_agent(victim) == 0
        drill.containers.remove(victim)
        drill.containers.images[victim] = next_image
        drill.containers.start_agent(victim)

    with Work(cluster(3, topics=TOPICS), tmp_path) as work:
        for i in work.cluster.nodes:
            work.do(Fault("upgrade", upgrade), i)  # type: ignore[arg-type]
            newest = [speaks(work.cluster, j)["newest"] for j in work.cluster.nodes]
            assert newest == [VERSION + (j <= i) for j in work.cluster.nodes]
            assert {work.drill.status(j)["protocol_version"] for j in work.cluster.nodes} == {VERSION}
        assert work.verdict().events > 300
        for i in work.cluster.nodes:
            assert work.drill.status(i)["datagrams"]["wrong_version"] == 0


def speaks(cluster: ContainerCluster, i: int) -> dict[str, int]:
    """The versions of the protocol that the build in node ``i``'s container knows."""
    code = "from ocfcluster.wire import datagram as d; print(d.OLDEST_VERSION, d.VERSION)"
    argv = ["/opt/ocfcluster/bin/python", "-c", code]
    done = cluster.exec(i, argv, stdout=subprocess.PIPE, text=True)
    oldest, newest = done.communicate(timeout=30)[0].split()
    return {"oldest": int(oldest), "newest": int(newest)}


# --- all at once ------------------------------------------------------------------------------------------------------


def test_after_all_were_killed_a_new_history_begins_with_the_same_topics(
    cluster: Make, tmp_path: Path
) -> None:
    containers = cluster(3, topics=TOPICS)
    with Work(containers, tmp_path) as work:
        work.verdict()
    with containers.connect(1, resume=True) as client, client.subscribe(TOPICS) as subscription:
        client.create_topic("made by a program")
        before = {topic.name: topic.topic_id for topic in client.topics()}
        history = containers.status(1)["cluster_id"]
        for i in containers.nodes:
            containers.kill(i)
        for i in containers.nodes:
            containers.start_agent(i)
        containers.wait_active(timeout_s=60.0)
        assert containers.status(1)["cluster_id"] != history
        told = []
        deadline = time.monotonic() + 20.0
        while NoticeCode.HISTORY_LOST not in told and time.monotonic() < deadline:
            event = subscription.get(timeout=1.0)
            if event is not None and event.notice is not None:
                told.append(event.notice.code)
        assert NoticeCode.HISTORY_LOST in told
    with containers.connect(2) as client:
        assert {topic.name: topic.topic_id for topic in client.topics()} == before
    second = tmp_path / "second"
    second.mkdir()
    one_order(containers, second, 200)


# --- programs ---------------------------------------------------------------------------------------------------------


def test_a_subscriber_that_takes_nothing_is_told_its_gap_and_holds_up_nobody_else(
    cluster: Make, tmp_path: Path
) -> None:
    containers = cluster(3, topics=TOPICS)
    with Programs(containers, TOPICS, tmp_path, size=16_384) as programs:
        programs.subscribe()
        stuck = programs._subscribers[2]
        stuck.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        programs.publish(2_000)  # each: 33 MB, and a subscriber is full at 16
        programs.published()
        print(f"published within {time.monotonic() - began:.1f} s")
        stuck.send_signal(signal.SIGCONT)
        until(
            lambda: not any(one["dropping"] for one in containers.status(2)["subscriptions"]),
            "it drops for ever",
        )
        programs.mark_the_end(1)
        programs.received()
        verdict = check(programs.traces, TOPICS, programs.known(), programs.answers)
        assert verdict.missed[2] > 0
        assert verdict.missed[1] == verdict.missed[3] == 0


# --- mistakes ---------------------------------------------------------------------------------------------------------


def until(good: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not good():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_node_of_another_cluster_on_the_same_network_is_no_part_of_this_one(
    cluster: Make, tmp_path: Path
) -> None:
    containers = cluster(3, topics=TOPICS)
    containers.differ(9, cluster={"name": "another"}, node={"id": 3})
    containers.start_agent(9)
    until(lambda: state(containers, 9) == "forming", "the stranger does not run")
    until(lambda: containers.status(9)["datagrams"]["foreign"] > 10, "it hears nobody")
    until(lambda: containers.status(1)["datagrams"]["foreign"] > 10, "nobody hears it")
    one_order(containers, tmp_path, 200)
    assert containers.status(1)["m_sequence"] == 1
    assert state(containers, 9) == "forming"


def test_the_second_of_two_nodes_with_one_id_ends_and_says_why(cluster: Make, tmp_path: Path) -> None:
    containers = cluster(3, topics=TOPICS)
    with Work(containers, tmp_path) as work:
        containers.differ(9, node={"id": 2})
        containers.start_agent(9)
        code = containers.container(9).wait(timeout=30)["StatusCode"]
        assert code == 3
        assert "another agent calls itself node 2" in containers.logs(9)
        work.drill.settled()
        assert work.drill.views == 1
        work.verdict()


def state(cluster: ContainerCluster, i: int) -> str:
    try:
        return str(cluster.status(i)["state"])
    except ClientError:
        return ""


def test_a_state_directory_of_another_node_is_refused(cluster: Make) -> None:
    containers = cluster(2, topics=TOPICS)
    containers.kill(1)
    containers.differ(1, node={"id": 2})
    containers.remove(1)
    containers.start_agent(1)
    assert containers.container(1).wait(timeout=30)["StatusCode"] == 3
    assert "belongs to node 1" in containers.logs(1)
