"""``ocfcluster sim``: runs seeds, says what was covered, and how to replay what broke."""

from __future__ import annotations

import argparse
import json as json_format
import sys
import time
from collections import Counter
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ocfcluster.limits import SECOND_NS
from ocfcluster.simulator.runner import Result, run_seed

NODES_MOST = 9


def main(arguments: list[str]) -> int:
    """The command line of the simulator. Exit code 0: all promises kept; 1: one was broken; 2: usage."""
    parser = argparse.ArgumentParser(
        prog="ocfcluster sim",
        description="Run seeds in the virtual world and check every promise of the protocol.",
    )
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="seed to begin with (1)")
    parser.add_argument("--seeds", type=int, default=100, metavar="K", help="how many seeds (100)")
    parser.add_argument(
        "--nodes", type=int, default=None, metavar="N", help="size of the cluster, 1 to 9 (by seed)"
    )
    parser.add_argument("--trace", action="store_true", help="write every step as it happens")
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object")
    parser.add_argument("--keep-going", action="store_true", help="run all seeds, whatever breaks")
    given = parser.parse_args(arguments)
    if given.seeds < 1 or (given.nodes is not None and not 1 <= given.nodes <= NODES_MOST):
        parser.error("--seeds is at least 1 and --nodes between 1 and 9")
    return run_cli(given.first_seed, given.seeds, given.nodes, given.trace, given.json, given.keep_going)


def run(first_seed: int, seeds: int, nodes: int | None = None, trace: bool = False) -> int:
    """Runs seeds and writes the summary to standard output; the exit code of the command."""
    return run_cli(first_seed, seeds, nodes, trace, json=False)


def run_cli(
    first_seed: int, seeds: int, nodes: int | None, trace: bool, json: bool, keep_going: bool = False
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
        for seed in range(first_seed, first_seed + seeds):
            result = run_seed(seed, nodes, console.file if trace else None)
            total.add(result)
            progress.update(task, advance=1, seed=seed)
            if result.rule:
                _report(console, result, nodes, trace)
                if not keep_going:
                    break
    if json:
        sys.stdout.write(json_format.dumps(total.document()) + "\n")
    else:
        console.print(total.text())
    return 1 if total.violations else 0


class Summary:
    """What a series of seeds covered."""

    __slots__ = (
        "_begun",
        "events",
        "faults",
        "first_seed",
        "latencies_ns",
        "nodes",
        "receipts",
        "seeds",
        "simulated_ns",
        "steps",
        "violations",
    )

    def __init__(self, first_seed: int, nodes: int | None) -> None:
        self.first_seed = first_seed
        self.nodes = nodes
        self.seeds = 0
        self.steps = 0
        self.simulated_ns = 0
        self.events = 0
        self.receipts = 0
        self.faults: Counter[str] = Counter()
        self.latencies_ns: list[int] = []  # the median of each seed
        self.violations: list[Result] = []
        self._begun = time.monotonic()

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.steps += result.steps
        self.simulated_ns += result.simulated_ns
        self.events += result.events
        self.receipts += result.receipts
        self.faults += result.faults
        if result.latencies_ns:
            self.latencies_ns.append(int(median(result.latencies_ns)))
        if result.rule:
            self.violations.append(result)

    @property
    def elapsed_s(self) -> float:
        return max(time.monotonic() - self._begun, 1e-9)

    @property
    def latency_us(self) -> float:
        return median(self.latencies_ns) / 1000 if self.latencies_ns else 0.0

    def document(self) -> dict[str, object]:
        """Plain values, for --json."""
        return {
            "first_seed": self.first_seed,
            "seeds": self.seeds,
            "steps": self.steps,
            "simulated_s": round(self.simulated_ns / SECOND_NS, 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "events": self.events,
            "receipts": self.receipts,
            "median_receipt_us": round(self.latency_us, 1),
            "faults": dict(sorted(self.faults.items())),
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
        }

    def text(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())) or "none"
        verdict = "every promise kept" if not self.violations else f"{len(self.violations)} VIOLATED"
        return (
            f"{self.seeds} seeds from {self.first_seed}: {verdict}; {self.steps} steps, "
            f"{self.simulated_ns / SECOND_NS:.1f} simulated s in {self.elapsed_s:.1f} s "
            f"({self.seeds / self.elapsed_s:.1f} seeds/s)\n"
            f"  {self.events} events delivered, {self.receipts} receipts, "
            f"median publication to receipt {self.latency_us:.0f} µs (median of seeds)\n"
            f"  faults: {faults}"
        )


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
