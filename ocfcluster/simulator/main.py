"""``ocfcluster sim``: runs seeds, says what was covered, and how to replay what broke."""

from __future__ import annotations

import argparse
import json as json_format
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ocfcluster.limits import SECOND_NS
from ocfcluster.simulator.runner import COUNTS, Result, run_seed

NODES_MOST = 9
JOBS_MOST = 64


def main(arguments: list[str]) -> int:
    """The command line of the simulator. Exit code 0: all promises kept; 1: one was broken; 2: usage."""
    parser = argparse.ArgumentParser(
        prog="ocfcluster sim",
        description="Run seeds in the virtual world and check every promise of the protocol.",
        epilog="Example: ocfcluster sim --first-seed 700 --seeds 500 --jobs 2",
    )
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="seed to begin with (1)")
    parser.add_argument("--seeds", type=int, default=100, metavar="K", help="how many seeds (100)")
    parser.add_argument(
        "--nodes", type=int, default=None, metavar="N", help="size of the cluster, 1 to 9 (by seed)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="seeds at the same time (1)")
    parser.add_argument("--trace", action="store_true", help="write every step as it happens")
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object")
    parser.add_argument("--keep-going", action="store_true", help="run all seeds, whatever breaks")
    given = parser.parse_args(arguments)
    if given.seeds < 1 or (given.nodes is not None and not 1 <= given.nodes <= NODES_MOST):
        parser.error("--seeds is at least 1 and --nodes between 1 and 9")
    if not 1 <= given.jobs <= JOBS_MOST:
        parser.error(f"--jobs is between 1 and {JOBS_MOST}")
    return run_cli(
        given.first_seed, given.seeds, given.nodes, given.trace, given.json, given.keep_going, given.jobs
    )


def run(first_seed: int, seeds: int, nodes: int | None = None, trace: bool = False) -> int:
    """Runs seeds and writes the summary to standard output; the exit code of the command."""
    return run_cli(first_seed, seeds, nodes, trace, json=False)


def run_cli(
    first_seed: int,
    seeds: int,
    nodes: int | None,
    trace: bool,
    json: bool,
    keep_going: bool = False,
    jobs: int = 1,
) -> int:
    """As ``run``; with ``json`` the summary is one object per line on standard output, and nothing else is."""
    console = Console(stderr=json, highlight=False, soft_wrap=True)
    total = Summary(first_seed, nodes)
    progress = Progress(
        TextColumn("seed {task.fields[seed]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or trace,
    )
    with progress:
        task = progress.add_task("seeds", total=seeds, seed=first_seed)
        for result in _results(first_seed, seeds, nodes, console if trace else None, jobs):
            total.add(result)
            progress.update(task, advance=1, seed=result.seed)
            if result.rule:
                _report(console, result, nodes, trace)
                if not keep_going:
                    break
    if json:
        sys.stdout.write(json_format.dumps(total.document()) + "\n")
    else:
        console.print(total.text())
    return 1 if total.violations else 0


def _results(
    first_seed: int, seeds: int, nodes: int | None, trace: Console | None, jobs: int
) -> Iterator[Result]:
    """Results in the order of their seeds, however many run at a time."""
    if jobs == 1 or trace is not None:
        for seed in range(first_seed, first_seed + seeds):
            yield run_seed(seed, nodes, trace.file if trace is not None else None)
        return
    # Else the other processes would go on by themselves.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ProcessPoolExecutor(jobs) as pool:
        waiting: list[Future[Result]] = []
        following = iter(range(first_seed, first_seed + seeds))
        try:
            for seed in following:
                waiting.append(pool.submit(run_seed, seed, nodes))
                if len(waiting) >= 4 * jobs:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
            signal.signal(signal.SIGTERM, before)


class Summary:
    """What a series of seeds covered."""

    __slots__ = ("_begun", "_results", "counts", "first_seed", "incidents", "nodes", "noise", "violations")

    def __init__(self, first_seed: int, nodes: int | None) -> None:
        self.first_seed = first_seed
        self.nodes = nodes
        self.counts = 0  # seeds in which enough happened
        self.incidents: Counter[str] = Counter()
        self.noise: Counter[str] = Counter()
        self.violations: list[Result] = []
        self._results: list[dict[str, int]] = []
        self._begun = time.monotonic()

    def add(self, result: Result) -> None:
        self.counts += result.counts
        self.incidents += result.incidents
        self.noise += result.noise
        self._results.append(
            {
                "steps": result.steps,
                "simulated_ns": result.simulated_ns,
                "events": result.events,
                "receipts": result.receipts,
                "unknown": result.unknown,
                "epochs": result.epochs,
                "views": result.views,
                "histories": result.histories,
                "evictions": result.evictions,
                "snapshots": result.snapshots,
                "operators": result.operators,
                "unseen": result.unseen,
                "faults": result.incidents.total(),
                "recovery_ns": result.recovery_ns,
                "latency_ns": int(median(result.latencies_ns)) if result.latencies_ns else 0,
            }
        )
        if result.rule:
            self.violations.append(result)

    @property
    def seeds(self) -> int:
        return len(self._results)

    @property
    def elapsed_s(self) -> float:
        return max(time.monotonic() - self._begun, 1e-9)

    def total(self, name: str) -> int:
        return sum(result[name] for result in self._results)

    def median(self, name: str) -> float:
        """Of the seeds that have it at all."""
        values = [result[name] for result in self._results]
        if name == "latency_ns":
            values = [value for value in values if value]
        return float(median(values)) if values else 0.0

    def most(self, name: str) -> int:
        return max((result[name] for result in self._results), default=0)

    def document(self) -> dict[str, object]:
        """Plain values, for --json."""
        return {
            "first_seed": self.first_seed,
            "seeds": self.seeds,
            "seeds_that_count": self.counts,
            "steps": self.total("steps"),
            "simulated_s": round(self.total("simulated_ns") / SECOND_NS, 3),
            "elapsed_s": round(self.elapsed_s, 3),
            **{
                name: self.total(name)
                for name in (
                    "events",
                    "receipts",
                    "unknown",
                    "epochs",
                    "views",
                    "histories",
                    "evictions",
                    "snapshots",
                    "operators",
                    "unseen",
                )
            },
            "median_epochs": self.median("epochs"),
            "median_faults": self.median("faults"),
            "median_events": self.median("events"),
            "median_receipt_us": round(self.median("latency_ns") / 1000, 1),
            "median_recovery_ms": round(self.median("recovery_ns") / 1_000_000, 1),
            "longest_recovery_ms": round(self.most("recovery_ns") / 1_000_000, 1),
            "faults": dict(sorted(self.incidents.items())),
            "noise": dict(sorted(self.noise.items())),
            "violations": [
                {
                    "seed": result.seed,
                    "rule": result.rule,
                    "text": result.violation,
                    "trace_hash": result.trace_hash,
                    "replay": replay_command(result.seed, self.nodes),
                }
                for result in self.violations
            ],
        }  # fmt: skip

    def text(self) -> str:
        verdict = "every promise kept" if not self.violations else f"{len(self.violations)} VIOLATED"
        epochs, faults, events = COUNTS
        return (
            f"{self.seeds} seeds from {self.first_seed}: {verdict}; {self.total('steps')} steps, "
            f"{self.total('simulated_ns') / SECOND_NS:.1f} simulated s in {self.elapsed_s:.1f} s "
            f"({self.seeds / self.elapsed_s:.1f} seeds/s)\n"
            f"  {self.total('events')} events delivered, {self.total('receipts')} receipts, "
            f"{self.total('unknown')} outcomes unknown, median publication to receipt "
            f"{self.median('latency_ns') / 1000:.0f} µs (median of seeds)\n"
            f"  {self.total('epochs')} epochs, {self.total('views')} views, {self.total('histories')} histories, "
            f"{self.total('evictions')} evictions, {self.total('snapshots')} snapshots, {self.total('operators')} "
            f"times an operator; back after the faults: median {self.median('recovery_ns') / 1_000_000:.0f} ms, "
            f"longest {self.most('recovery_ns') / 1_000_000:.0f} ms\n"
            f"  median of seeds: {self.median('epochs'):.0f} epochs, {self.median('faults'):.0f} faults, "
            f"{self.median('events'):.0f} events; {self.counts} seeds count (at least {epochs} epochs, "
            f"{faults} faults, {events} events)\n"
            f"  faults: {_listed(self.incidents)}\n"
            f"  besides: {_listed(self.noise)}"
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count) or "none"


def replay_command(seed: int, nodes: int | None) -> str:
    """The command that shows the same run again."""
    size = "" if nodes is None else f" --nodes {nodes}"
    return f"ocfcluster sim --first-seed {seed} --seeds 1{size} --trace"


def _report(console: Console, result: Result, nodes: int | None, traced: bool) -> None:
    out = console.file
    if not traced:
        out.write(f"the last part of seed {result.seed}'s trace:\n")
        out.writelines(f"  {line}\n" for line in result.tail)
    out.write(
        f"seed {result.seed}: {result.rule} VIOLATED after {result.steps} steps, "
        f"{result.simulated_ns / SECOND_NS:.6f} simulated s\n"
        f"  {result.violation}\n"
        f"  plan: {result.plan}\n"
        f"  replay: {replay_command(result.seed, nodes)}\n"
    )
    out.flush()  # a long series may be stopped before its end
