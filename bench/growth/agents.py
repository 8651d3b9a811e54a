"""One round of a point with real agents: a cluster in network namespaces of its own, measured, and taken down."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import ocfcluster
from bench.compare.peers.peer import Program
from bench.growth.axes import Point, spread_over
from bench.growth.worker import TOPIC, topic_names
from bench.worker import WARM_UP_SAMPLES
from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts

ANSWER_S: Final = 120.0  # for a program to do what a round asks of it
SETTLE_S: Final = 0.5  # from the formation to the look at the memory of idle agents
SAMPLE_S: Final = 0.2  # between two looks at the memory of loaded ones
CREATING: Final = 200  # topics asked for at once; an agent takes 256 unanswered requests of a client
KIB_PER_MIB: Final = 1024
_TICKS: Final = os.sysconf("SC_CLK_TCK")

Result = dict[str, Any]


def measure(point: Point, *, seconds: float, samples: int) -> Result:
    """One round: rates and CPU time while is published for ``seconds``, the latency of ``samples`` events one at a time
    (0: none), and memory. Raises RuntimeError, PeerError, ClusterError, ClientError, OSError."""
    with Hosts(point.nodes) as hosts, Cluster(hosts) as cluster:
        time.sleep(SETTLE_S)
        idle = memory(cluster)
        begun = time.monotonic()
        asyncio.run(_create_topics(cluster.socket(1), [*topic_names(point.topics), f"{TOPIC}.warm"]))
        created_s = time.monotonic() - begun
        if point.loss:
            hosts.set_loss(point.loss)
        with Work(cluster, point) as work, MemoryPeak(cluster) as peak:
            result = work.throughput(seconds)
            result |= {"idle": idle, "loaded": peak.stop(), "topics_created_s": created_s}
            if samples:
                result |= work.latency(samples)
    return result


def line(result: Result) -> str:
    """One round, in words."""
    lost = f", {result['left_out_percent']:.2g} % left out" if result["lost"] else ""
    latency = f", p50 {result['p50_us']:.0f} µs, p99 {result['p99_us']:.0f} µs" if "p50_us" in result else ""
    return (
        f"{result['events_per_s'] / 1000:.1f} k/s {result['mb_per_s']:.1f} MB/s, "
        f"{result['cpu_s_per_million']:.2f} CPU s per million{lost}{latency}"
    )


async def _create_topics(socket: str, names: list[str]) -> None:
    gate = asyncio.Semaphore(CREATING)
    async with ocfcluster.aio.connect(socket) as client:

        async def create(name: str) -> None:
            async with gate:
                await client.create_topic(name, timeout=ANSWER_S)

        await asyncio.gather(*map(create, names))


class Work:
    """The programs of a point, for as long as it is measured; a context manager.

    Publishers are on the nodes in turn, the sequencer's the last of them; the node with many subscribers is neither
    the first publisher's nor the sequencer's.
    """

    def __init__(self, cluster: Cluster, point: Point) -> None:
        self._cluster = cluster
        self._point = point
        self._stack = ExitStack()
        sequencer = int(cluster.status(1)["sequencer"])
        self._publishing = [*(i for i in cluster.nodes if i != sequencer), sequencer]
        self._subscribers: list[Program] = []
        self._publishers: list[Program] = []

    def __enter__(self) -> Self:
        point, crowded = self._point, self._publishing[1 % len(self._publishing)]
        with ExitStack() as stack:
            self._stack = stack
            for i, count in spread_over(point.publishers, self._publishing).items():
                self._publishers.append(
                    self._start(i, "publish", point.topics, count, point.events_per_call, point.event_bytes)
                )
            for program in self._publishers:
                program.wait_ready()
            # Only now, as publishers publish to get ready.
            for i in self._cluster.nodes:
                count = point.subscribers if i == crowded else 1
                self._subscribers.append(self._start(i, "subscribe", point.topics, count))
            for program in self._subscribers:
                program.wait_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, i: int, role: str, *numbers: int, module: str = "bench.growth.worker") -> Program:
        command = [sys.executable, "-m", module, role, self._cluster.socket(i), *map(str, numbers)]
        return self._popen(i, command)

    def _popen(self, i: int, command: list[str]) -> Program:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        program = Program(self._cluster.popen(i, command, **pipes))
        self._stack.callback(program.end)
        return program

    def throughput(self, seconds: float) -> Result:
        """One round. Rates are from a subscriber's first run to its last event; the slowest subscriber counts."""
        before = self._agents_cpu_s()
        for program in self._publishers:
            program.write(f"{seconds:g}")
        published = [program.report(ANSWER_S) for program in self._publishers]
        events = sum(one["events"] for one in published)
        taken = self._taken(events)
        agents_s = self._agents_cpu_s() - before
        return summary(published, taken, agents_s, self._point.event_bytes)

    def latency(self, samples: int) -> Result:
        """One event at a time, from ``publish`` to ``get`` in one program; all subscribers take it, too."""
        point = self._point
        command = [sys.executable, "-m", "bench.worker", "latency", self._cluster.socket(self._publishing[0])]
        command += [topic_names(1)[0], str(samples), str(point.event_bytes)]
        program = self._popen(self._publishing[0], command)
        program.wait_ready()
        program.go()
        report = program.report(ANSWER_S)
        self._taken(WARM_UP_SAMPLES + samples)
        return {"p50_us": report["p50_us"], "p99_us": report["p99_us"]}

    def _taken(self, events: int) -> list[Result]:
        for program in self._subscribers:
            program.write(str(events))
        return [program.report(ANSWER_S) for program in self._subscribers]

    def _agents_cpu_s(self) -> float:
        return sum(cpu_s(self._cluster.agent(i).pid) for i in self._cluster.nodes)


def summary(published: list[Result], taken: list[Result], agents_s: float, event_bytes: int) -> Result:
    """The figures of a round, from what publishers and subscribers said and the CPU seconds of all agents."""
    events = sum(one["events"] for one in published)
    rates = [rate for one in taken for rate in one["rates"]]
    lost = sum(one["lost"] for one in taken)
    programs_s = sum(one["cpu_s"] for one in published + taken)
    deliveries = events * len(rates) - lost
    return {
        "events": events,
        "deliveries": deliveries,
        "lost": lost,
        "left_out_percent": 100 * lost / (deliveries + lost),
        "seconds": max(one["last"] for one in taken) - min(one["first"] for one in published),
        "events_per_s": min(rates),
        "mb_per_s": min(rates) * event_bytes / 1e6,
        "deliveries_per_s": sum(rates),
        "cpu_s_per_million": (agents_s + programs_s) / max(1, deliveries) * 1e6,
        "first_use_s": max(one["first_use_s"] for one in published),
        "agents_cpu_s": agents_s,
        "programs_cpu_s": programs_s,
    }


# --- what the kernel says of a process -----------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rollup(text: str) -> dict[str, float]:
    """RSS and PSS, MiB, of the text of ``/proc/PID/smaps_rollup``. PSS shares what several processes have in memory
    among them, which for agents on one machine is the interpreter's code."""
    sizes = dict(line.split()[:2] for line in text.splitlines()[1:])
    return {"rss_mib": int(sizes["Rss:"]) / KIB_PER_MIB, "pss_mib": int(sizes["Pss:"]) / KIB_PER_MIB}


def memory(cluster: Cluster) -> dict[str, float]:
    """RSS and PSS, MiB, each of the agent that has most."""
    pids = [cluster.agent(i).pid for i in cluster.nodes]
    return most([rollup(Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")) for pid in pids])


def most(samples: list[dict[str, float]]) -> dict[str, float]:
    """The largest of each figure."""
    return {name: max(one[name] for one in samples) for name in samples[0]}


class MemoryPeak:
    """Looks at the agents' memory again and again in a thread; a context manager."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._samples = [memory(cluster)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            try:
                self._samples.append(memory(self._cluster))
            except OSError:  # an agent has ended; the measurement says so
                return

    def stop(self) -> dict[str, float]:
        """The most that was seen so far."""
        self._ended.set()
        self._thread.join()
        return most(self._samples)
