"""How long subscribers see nothing when the sequencer dies, leaves, and when a node joins: three hosts, traced agents.

    python -m bench.failover --rounds 20 --json failover.json
    python -m bench.failover --rounds 3 --suspicion-ms 500     # a first look

One round: kill -9 of the sequencer's agent, its start (a join), SIGTERM of the sequencer's agent, its start (a join).
A publisher on every host publishes an event of 64 B every few ms, a subscriber on every host stamps all arrivals. Needs
root (network namespaces). ``docs/performance.md`` says what the figures mean and what they were.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from rich.console import Console
from rich.table import Table

from bench.beat import STAMP
from bench.run import environment
from ocfcluster.agent.state_dir import StateDirectory, is_volatile
from ocfcluster.errors import ClientError
from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts

TOPIC: Final = "beat"
HOSTS: Final = 3
CALM_S: Final = 1.0  # between two steps; the longest pause in the last part of it is what there is anyway
GO_ON_S: Final = 20.0
FSYNCS: Final = 100
RECORD_BYTES: Final = 600  # about what a record of three nodes is
MS: Final = 1e6  # ns

Stamped = tuple[int, str, Any]  # ns, phase, about


class PhasedCluster(Cluster):
    """Every agent writes down the phases of its epoch changes."""

    def phases(self, i: int) -> Path:
        return self.directory / f"{i}.phases"

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        if list(argv[1:4]) == ["-m", "ocfcluster", "agent"]:
            argv = [argv[0], "-m", "bench.phases", str(self.phases(i)), *argv[4:]]
        return super().popen(i, argv, **options)


class Bench:
    """The cluster under a steady load, and what its programs write down."""

    def __init__(self, cluster: PhasedCluster, interval_ms: float) -> None:
        self.cluster = cluster
        self._interval_ms = interval_ms
        self._programs: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        cluster = self.cluster
        try:
            for i in cluster.nodes:
                self._start(i, "subscribe", str(cluster.directory / f"{i}.stamps"))
            for i in cluster.nodes:
                self._start(i, "publish", str(self._interval_ms))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs:
            program.terminate()
        for program in self._programs:
            program.communicate()

    def _start(self, i: int, role: str, argument: str) -> None:
        argv = [sys.executable, "-m", "bench.beat", role, self.cluster.socket(i), TOPIC, argument]
        program = self.cluster.popen(i, argv, stdout=subprocess.PIPE, text=True)
        self._programs.append(program)
        if program.stdout is None or program.stdout.readline() != "ready\n":
            raise RuntimeError(f"the {role}r of node {i} did not begin")

    # --- what was written down --------------------------------------------------------------------------------

    def arrivals(self, i: int, begin: int, end: int) -> list[tuple[int, int]]:
        """(ns, ev_id or 0) of what node ``i``'s subscriber got in that time."""
        content = (self.cluster.directory / f"{i}.stamps").read_bytes()
        whole = content[: len(content) - len(content) % STAMP.size]
        return [stamp for stamp in STAMP.iter_unpack(whole) if begin <= stamp[0] <= end]

    def phases(self, i: int, begin: int, end: int) -> list[Stamped]:
        lines = self.cluster.phases(i).read_bytes().splitlines()
        found: list[Stamped] = [msgspec.json.decode(line, type=Stamped) for line in lines]
        return [one for one in found if begin <= one[0] <= end]

    # --- steps ------------------------------------------------------------------------------------------------

    def epoch(self, nodes: Iterable[int], members: int, timeout_s: float = GO_ON_S) -> int:
        """Wait until ``nodes`` are in one epoch of so many members; that."""
        deadline = time.monotonic() + timeout_s
        while True:
            said = [self._status(i) for i in nodes]
            epochs = {(one.get("state"), one.get("epoch"), len(one.get("members", ()))) for one in said}
            if len(epochs) == 1:
                state, epoch, count = epochs.pop()
                if (state, count) == ("active", members):
                    return int(epoch or 0)
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"nodes {list(nodes)} did not come together within {timeout_s:g} s: {epochs}"
                )
            time.sleep(0.05)

    def _status(self, i: int) -> dict[str, Any]:
        try:
            return self.cluster.status(i)
        except ClientError:
            return {}

    def calm(self) -> int:
        """Let it run for a while. When that began."""
        time.sleep(CALM_S)
        return time.monotonic_ns() - int(CALM_S / 2 * 1e9)

    def longest(self, nodes: Iterable[int], begin: int, end: int) -> float:
        """The longest pause, in ms, that a subscriber of ``nodes`` saw of events in that time."""
        return max(longest([at for at, ev_id in self.arrivals(i, begin, end) if ev_id]) for i in nodes) / MS


def longest(times: list[int]) -> int:
    return max((after - before for before, after in pairwise(times)), default=0)


def main() -> int:
    arguments = _parse()
    if os.geteuid() != 0:
        print("network namespaces need root: run this with sudo", file=sys.stderr)
        return 3
    if arguments.directory:
        tempfile.tempdir = arguments.directory
    timing = {"suspicion_ms": arguments.suspicion_ms, "heartbeat_ms": min(100, arguments.suspicion_ms // 10)}
    steps: list[dict[str, Any]] = []
    console = Console(stderr=True, highlight=False)
    settings = argparse.Namespace(event_loop="asyncio", delivery="safe", mtu=1500)
    document: dict[str, Any] = {"environment": environment(settings), "rounds": arguments.rounds}
    with Hosts(HOSTS) as hosts, PhasedCluster(hosts, topics=[TOPIC], timing=timing) as cluster:
        document["environment"] |= disk(cluster.directory) | timing | {"interval_ms": arguments.interval_ms}
        with Bench(cluster, arguments.interval_ms) as bench:
            bench.epoch(cluster.nodes, HOSTS)
            for number in range(1, arguments.rounds + 1):
                for end in (signal.SIGKILL, signal.SIGTERM):
                    steps.append(_end_sequencer(bench, end, arguments.suspicion_ms))
                    console.print(f"[dim]{number}/{arguments.rounds}[/] {_line(steps[-1])}", soft_wrap=True)
                    steps.append(_join(bench, steps[-1]["node"]))
                    console.print(f"[dim]{number}/{arguments.rounds}[/] {_line(steps[-1])}", soft_wrap=True)
    document["environment"]["load_average_after"] = os.getloadavg()
    document["steps"] = steps
    document["summary"] = {name: summary(values) for name, values in _series(steps).items()}
    _show(document)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.failover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="of kill, join, leave, join (default 10)")
    parser.add_argument("--suspicion-ms", type=int, default=1000, help="timing.suspicion_ms (default 1000)")
    parser.add_argument(
        "--interval-ms", type=float, default=5.0, help="between two events of a publisher (default 5)"
    )
    parser.add_argument("--directory", help="where state directories are made: on the disk that is meant")
    parser.add_argument("--json", metavar="FILE", help="write all measurements and the environment there")
    return parser.parse_args()


def disk(directory: Path) -> dict[str, Any]:
    """What a write of a state directory costs here: the file and its directory synced, ms."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        state = StateDirectory(Path(place) / "state", "bench", 1)
        times = []
        for _ in range(FSYNCS):
            began = time.monotonic_ns()
            state.write_record(os.urandom(RECORD_BYTES))
            times.append((time.monotonic_ns() - began) / MS)
        state.close()
    return {"state_directory": str(directory), "volatile": is_volatile(directory), "write_ms": summary(times)}


# --- one step -----------------------------------------------------------------------------------------------------


def _end_sequencer(bench: Bench, how: signal.Signals, suspicion_ms: int) -> dict[str, Any]:
    """The sequencer's agent is ended; what the subscribers of the other nodes saw."""
    cluster = bench.cluster
    node = int(cluster.status(1)["sequencer"])
    rest = [i for i in cluster.nodes if i != node]
    quiet = bench.calm()
    before = bench.longest(rest, quiet, time.monotonic_ns())
    began = time.monotonic_ns()
    cluster.agent(node).send_signal(how)
    bench.epoch(rest, HOSTS - 1)
    cluster.agent(node).wait(GO_ON_S)
    time.sleep(0.3)
    now = time.monotonic_ns()
    views = {i: next(at for at, ev_id in bench.arrivals(i, began, now) if not ev_id) for i in rest}
    after = {
        i: next(at for at, ev_id in bench.arrivals(i, began, now) if ev_id and at >= views[i]) for i in rest
    }
    # From a little before: what was on its way when it began still comes.
    pause = bench.longest(rest, began - int(0.1 * 1e9), max(after.values()) + int(0.1 * 1e9))
    step = {
        "step": "kill" if how is signal.SIGKILL else "leave",
        "node": node,
        "pause_ms": pause,
        "quiet_ms": before,
    }
    next_ms = (max(after.values()) - began) / MS
    if how is signal.SIGKILL:
        step["beyond_ms"] = next_ms - suspicion_ms
    else:
        step["next_ms"] = next_ms
    base = began + (suspicion_ms * 10**6 if how is signal.SIGKILL else 0)
    return step | {"phases": _phases(bench, rest, began, base, now, max(after.values()))}


def _join(bench: Bench, node: int) -> dict[str, Any]:
    """The agent is started again; what the subscribers of the others saw about the time when it is admitted."""
    cluster = bench.cluster
    rest = [i for i in cluster.nodes if i != node]
    quiet = bench.calm()
    before = bench.longest(rest, quiet, time.monotonic_ns())
    began = time.monotonic_ns()
    cluster.start_agent(node)
    bench.epoch(cluster.nodes, HOSTS)
    time.sleep(0.3)
    now = time.monotonic_ns()
    view = max(at for i in rest for at, ev_id in bench.arrivals(i, began, now) if not ev_id)
    prepared = [at for i in rest for at, phase, _ in bench.phases(i, began, now) if phase == "prepare"]
    begin = max(prepared, default=view)
    pause = bench.longest(rest, begin - int(0.05 * 1e9), view + int(0.1 * 1e9))
    starting = bench.longest(rest, began, begin - int(0.05 * 1e9))
    return {
        "step": "join", "node": node, "pause_ms": pause, "quiet_ms": before, "starting_ms": starting,
        "joined_ms": (view - began) / MS, "phases": _phases(bench, rest, began, begin, now, view),
    }  # fmt: skip


def _phases(bench: Bench, rest: list[int], began: int, base: int, now: int, end: int) -> dict[str, float]:
    """How long each phase took, ms, of the proposer whose view came into force; the last of ``rest`` counts."""
    found = {i: bench.phases(i, began, now) for i in bench.cluster.nodes}
    decided = [(at, i) for i, stamps in found.items() for at, phase, _ in stamps if phase == "decided"]
    if not decided:
        return {}
    decided_at, proposer = max(decided)
    moments = {  # the last of each: of the attempt that was decided
        phase: at
        for at, phase, _ in found[proposer]
        if at <= decided_at and phase in ("prepare", "sync", "accept", "decided")
    }

    def last(name: str) -> int:
        """When the last of the others came to it, after the decision."""
        return max(
            min((at for at, phase, _ in found[i] if phase == name and at >= decided_at), default=0)
            for i in rest
        )

    suspects = [at for i in rest for at, phase, _ in found[i] if phase == "suspects" and at <= decided_at]
    attempts = sum(phase == "prepare" for stamps in found.values() for _, phase, _ in stamps)
    installed, first = last("installed"), last("first")
    steps = {
        "detection": (max(suspects) if suspects else moments["prepare"]) - base,
        "turn": moments["prepare"] - max(suspects) if suspects else 0,
        "promise": moments["sync"] - moments["prepare"],
        "sync": moments["accept"] - moments["sync"],
        "accept": decided_at - moments["accept"],
        "install": installed - decided_at,
        "order": first - installed,
        "client": end - first,
    }
    writes = [about for stamps in found.values() for at, phase, about in stamps
              if phase == "disk" and moments["prepare"] <= at <= installed]  # fmt: skip
    result = {name: round(ns / MS, 2) for name, ns in steps.items()}
    return result | {"attempts": attempts, "writes": len(writes), "writes_ms": round(sum(writes) / MS, 2)}


# --- figures ------------------------------------------------------------------------------------------------------


def _series(steps: list[dict[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for step in steps:
        for key in ("beyond_ms", "next_ms", "pause_ms", "starting_ms", "joined_ms", "quiet_ms"):
            if key in step:
                found.setdefault(f"{step['step']} {key}", []).append(step[key])
        for phase, value in step["phases"].items():
            found.setdefault(f"{step['step']} phase {phase}", []).append(value)
    return found


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at95 = min(len(ordered) - 1, -(-95 * len(ordered) // 100) - 1)
    figures = {"min": ordered[0], "p50": statistics.median(ordered), "p95": ordered[at95], "max": ordered[-1]}
    return {name: round(value, 2) for name, value in figures.items()} | {"count": len(ordered)}


def _line(step: dict[str, Any]) -> str:
    figures = [f"{key} {value:.1f}" for key, value in step.items() if key.endswith("_ms")]
    phases = " ".join(f"{name} {value:g}" for name, value in step["phases"].items())
    return f"{step['step']:6}{', '.join(figures)}; {phases}"


def _show(document: dict[str, Any]) -> None:
    written = document["environment"]["write_ms"]
    place = document["environment"]["state_directory"]
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    volatile = ", which is NOT on a disk" if document["environment"]["volatile"] else ""
    table = Table(title=f"{document['rounds']} rounds, ms")
    table.add_column("what")
    for name in ("p50", "p95", "max", "count"):
        table.add_column(name, justify="right")
    for name, figures in document["summary"].items():
        table.add_row(
            name.replace("_ms", ""), *(f"{figures[key]:g}" for key in ("p50", "p95", "max", "count"))
        )
    console.print(table)
    console.print(
        f"A write of the state directory ({place}{volatile}) takes {written['p50']} ms (p95 {written['p95']})."
    )


if __name__ == "__main__":
    sys.exit(main())
