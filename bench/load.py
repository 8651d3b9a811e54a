"""What is measured, and one measurement of it: programs in the hosts of a cluster, and what they and agents used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.netns.cluster import Cluster

TOPIC: Final = "bench"
TOPICS: Final = (TOPIC, f"{TOPIC}.warm")
LATENCY_BYTES: Final = 64
TIMEOUT_S: Final = 120.0
SUBSCRIBING: Final = {
    "runs": "runs(), opened on access",
    "data": "runs(), each event's bytes",
    "events": "iteration of Event",
    "ocf": "callback, oc_ev_event_done",
}
PUBLISHING: Final = {"many": "publish_many", "one": "publish"}
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Throughput:
    """``publishers`` publish ``events`` together; a subscriber on every host takes all of them."""

    name: str
    publishers: (
        str  # "elsewhere": one, not on the sequencer's host; "sequencer": one, there; "all": one on each host
    )
    event_bytes: int
    events: int
    take: str = "runs"  # key of SUBSCRIBING
    publish: str = "many"  # key of PUBLISHING


@dataclass(frozen=True)
class Latency:
    """One event at a time, ``Client.publish`` to ``Subscription.get`` in one thread of one process."""

    name: str
    publisher: str  # "elsewhere" or "sequencer"
    samples: int
    embedded: bool = False  # the program has the host's agent in itself, in the place of the one beside it


Workload = Throughput | Latency


def workloads(quick: bool) -> list[Workload]:
    """All that is measured, in the order in which it is shown."""
    part = 5 if quick else 1
    counts = {64: 1_500_000, 1024: 240_000, 16_384: 20_000, 262_144: 1_200}
    found: list[Workload] = [
        Throughput(f"{publishers}-{size}", publishers, size, count // part)
        for publishers in ("elsewhere", "sequencer", "all")
        for size, count in counts.items()
    ]
    found += [
        Throughput("data-64", "elsewhere", 64, 1_200_000 // part, take="data"),
        Throughput("events-64", "elsewhere", 64, 600_000 // part, take="events"),
        Throughput("ocf-64", "elsewhere", 64, 600_000 // part, take="ocf"),
        Throughput("publish-64", "elsewhere", 64, 500_000 // part, publish="one"),
    ]
    found += [Latency(f"latency-{where}", where, 5000 // part) for where in ("elsewhere", "sequencer")]
    found.append(Latency("latency-embedded", "elsewhere", 5000 // part, embedded=True))
    return found


class Load:
    """Runs workloads on a cluster that is up. ``worker`` is the command that runs ``bench.worker``, by role."""

    def __init__(self, cluster: Cluster, worker: dict[str, list[str]] | None = None) -> None:
        self.cluster = cluster
        self._worker = worker or {}
        self.sequencer = int(cluster.status(1)["sequencer"])
        self.elsewhere = next(i for i in cluster.nodes if i != self.sequencer)

    def measure(self, workload: Workload) -> dict[str, Any]:
        """One measurement; plain values (see docs/performance.md). Raises RuntimeError when a program fails."""
        if isinstance(workload, Latency):
            return self._latency(workload)
        return self._throughput(workload)

    def all_ready(self, programs: list[subprocess.Popen[str]]) -> None:
        """Called when all programs are ready and nothing is published yet."""

    def hosts_of(self, publishers: str) -> list[int]:
        if publishers == "all":
            return list(self.cluster.nodes)
        return [self.sequencer if publishers == "sequencer" else self.elsewhere]

    def _throughput(self, workload: Throughput) -> dict[str, Any]:
        hosts = self.hosts_of(workload.publishers)
        share = workload.events // len(hosts)
        events = share * len(hosts)
        programs: list[subprocess.Popen[str]] = []
        try:
            subscribers = [
                self._start(i, "subscribe", TOPIC, workload.take, str(events)) for i in self.cluster.nodes
            ]
            programs += subscribers
            publishers = [
                self._start(i, "publish", TOPIC, workload.publish, str(share), str(workload.event_bytes))
                for i in hosts
            ]
            programs += publishers
            for program in programs:
                _wait_ready(program)
            self.all_ready(programs)
            before = self._agents_cpu()
            for program in publishers:
                _write(program, "go\n")
            published = [_report(program) for program in publishers]
            taken = [_report(program) for program in subscribers]
            after = self._agents_cpu()
        finally:
            _end(programs)
        rates = [one["events"] / (one["last"] - one["first"]) for one in taken]
        agents_s = sum(after.values()) - sum(before.values())
        programs_s = sum(one["cpu_s"] for one in published + taken)
        deliveries = events * len(taken)
        return {
            "events_per_s": min(rates),
            "mb_per_s": min(rates) * workload.event_bytes / 1e6,
            "each_events_per_s": rates,
            "publish_to_last_s": max(one["last"] for one in taken) - min(one["first"] for one in published),
            "cpu_s_per_million": (agents_s + programs_s) / deliveries * 1e6,
            "agents_cpu_s": {str(i): round(after[i] - before[i], 2) for i in after},
            "subscribers_cpu_s": [round(one["cpu_s"], 3) for one in taken],
            "publishers_cpu_s": [round(one["cpu_s"], 3) for one in published],
        }

    def _latency(self, workload: Latency) -> dict[str, Any]:
        (host,) = self.hosts_of(workload.publisher)
        if workload.embedded:
            with self._without_agent(host) as configuration:
                return self._latency_at(host, workload, configuration)
        return self._latency_at(host, workload, self.cluster.socket(host))

    @contextmanager
    def _without_agent(self, host: int) -> Iterator[str]:
        """The agent of a host ends, and begins again behind this: the file that it was configured by."""
        self.cluster.stop_agent(host)
        try:
            yield str(self.cluster.configuration_file(host))
        finally:
            self.cluster.start_agent(host)
            self.cluster.wait_active()

    def _latency_at(self, host: int, workload: Latency, place: str) -> dict[str, Any]:
        """``place``: the socket of an agent, or a configuration for one in the program."""
        program = self._start_at(host, place, "latency", TOPIC, str(workload.samples), str(LATENCY_BYTES))
        try:
            _wait_ready(program)
            self.all_ready([program])
            before = self._agents_cpu()
            _write(program, "go\n")
            report = _report(program)
            after = self._agents_cpu()
        finally:
            _end([program])
        report["agents_cpu_s"] = {str(i): round(after[i] - before[i], 2) for i in after}
        return report

    def _start(self, i: int, role: str, *arguments: str) -> subprocess.Popen[str]:
        return self._start_at(i, self.cluster.socket(i), role, *arguments)

    def _start_at(self, i: int, place: str, role: str, *arguments: str) -> subprocess.Popen[str]:
        command = self._worker.get(role, [sys.executable, "-m", "bench.worker"])
        return self.cluster.popen(
            i,
            [*command, role, place, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _agents_cpu(self) -> dict[int, float]:
        """CPU seconds of each agent so far, user and system."""
        used = {}
        for i in self.cluster.nodes:
            if self.cluster.agent(i).poll() is not None:  # its work is done in a program
                continue
            fields = (
                Path(f"/proc/{self.cluster.agent(i).pid}/stat").read_text("ascii").rpartition(")")[2].split()
            )
            used[i] = (int(fields[11]) + int(fields[12])) / _TICKS
        return used


def _wait_ready(program: subprocess.Popen[str]) -> None:
    if program.stdout is None or program.stdout.readline() != "ready\n":
        raise RuntimeError("a program of the benchmark did not start: its error is above")


def _write(program: subprocess.Popen[str], text: str) -> None:
    if program.stdin is not None:
        program.stdin.write(text)
        program.stdin.flush()


def _report(program: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        line, _ = program.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"a program of the benchmark did not end in {TIMEOUT_S:g} s: {program.args}"
        ) from None
    if program.returncode != 0:
        raise RuntimeError(f"a program of the benchmark failed: {program.args}")
    report: dict[str, Any] = json.loads(line)
    return report


def _end(programs: list[subprocess.Popen[str]]) -> None:
    for program in programs:
        if program.poll() is None:
            program.kill()
            program.wait()
        for stream in (program.stdin, program.stdout):
            if stream is not None and not stream.closed:
                stream.close()
