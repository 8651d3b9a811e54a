"""The programs of a test on a cluster: a recording subscriber and a publisher on every node, and what they leave."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

from tests.cluster import BaseCluster
from tests.netns.oracle import Key, Published, published
from tests.netns.worker import LAST, payload

# For the configuration of clusters whose traces are judged: nobody but these programs publishes, so that a place of the
# order that no trace has is a loss.
COMPONENTS: Final = {"connectivity": "external"}
WORKER: Final = [sys.executable, "-m", "tests.netns.worker"]
READY_S: Final = 20.0
END_S: Final = 200.0  # for what a program still has to do, or to get
LAST_KEY: Final[Key] = (0, 0)  # of the event that says to subscribers that there is no more


class Programs:
    """``traces`` and ``answers`` are their files, by node; the publisher on node i calls itself i.

    A context manager: at its end what still runs is ended.
    """

    def __init__(self, cluster: BaseCluster, topics: list[str], directory: Path, size: int = 64) -> None:
        self._cluster = cluster
        self._topics = topics
        self._size = size
        self._subscribers: dict[int, subprocess.Popen[Any]] = {}
        self._publishers: dict[int, subprocess.Popen[Any]] = {}
        self._counts: dict[int, int] = {}
        self._last_from = 0
        self.traces = {i: directory / f"{i}.trace" for i in cluster.nodes}
        self.answers = {i: directory / f"{i}.answers" for i in cluster.nodes}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._publishers.values(), *self._subscribers.values()):
            process.kill()
            process.communicate()

    def subscribe(self, *, resume: bool = True, idle_s: float = 60.0) -> None:
        """Start the subscribers; returns once all of their subscriptions stand."""
        for i, trace in self.traces.items():
            options = ["--resume" if resume else "--no-resume", f"--idle={idle_s}", f"--trace={trace}"]
            self._subscribers[i] = self._start(i, "subscribe", *options)
        self._wait_ready(self._subscribers)

    def publish(self, events: int) -> None:
        """Start publishers of so many events each."""
        for i in self.answers:
            self._publishers[i] = self._start(i, "publish", *self._publisher(i), f"--count={events}")

    def load(self, rate: float) -> None:
        """Start publishers of ``rate`` events per second each, until ``published``; returns once all are connected."""
        for i in self.answers:
            self._publishers[i] = self._start(i, "load", *self._publisher(i), f"--rate={rate}")
        self._wait_ready(self._publishers)

    def _publisher(self, i: int) -> list[str]:
        return [f"--publisher={i}", f"--answers={self.answers[i]}", f"--size={self._size}"]

    def published(self) -> dict[int, dict[str, Any]]:
        """Have publishers come to their end; what each says."""
        for process in self._publishers.values():
            if "load" in process.args:
                process.send_signal(signal.SIGTERM)
        said = {i: _summary(process) for i, process in self._publishers.items()}
        self._counts = {i: document["published"] for i, document in said.items()}
        return said

    def mark_the_end(self, node: int) -> None:
        """Publish the event that is the last one for all subscribers."""
        self._last_from = node
        with self._cluster.connect(node) as client:
            client.publish(self._topics[0], LAST).wait(READY_S)

    def received(self) -> dict[int, dict[str, Any]]:
        """What each subscriber says at its end: it has got the last event."""
        said = {i: _summary(process) for i, process in self._subscribers.items()}
        for i, document in said.items():
            assert document["complete"], f"the subscriber of node {i} has not got the last event: {document}"
        return said

    def known(self) -> Published:
        payloads = [
            ((publisher, number), payload(publisher, number, self._size))
            for publisher, count in self._counts.items()
            for number in range(count)
        ]
        return published([*payloads, (LAST_KEY, LAST)], {**{i: i for i in self._counts}, 0: self._last_from})

    def _start(self, i: int, command: str, *arguments: str) -> subprocess.Popen[Any]:
        argv = [*WORKER, command, f"--socket={self._cluster.socket(i)}", f"--topics={','.join(self._topics)}"]
        return self._cluster.popen(i, [*argv, *arguments], stdout=subprocess.PIPE, text=True)

    @staticmethod
    def _wait_ready(processes: dict[int, subprocess.Popen[Any]]) -> None:
        for i, process in processes.items():
            assert process.stdout is not None
            there, _, _ = select.select([process.stdout], [], [], READY_S)
            assert there, f"a program of node {i} did not begin"
            assert process.stdout.readline() == "ready\n"


def _summary(process: subprocess.Popen[Any]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=END_S)
    assert process.returncode == 0, f"a program left with {process.returncode}"
    document: dict[str, Any] = json.loads(output)
    return document
