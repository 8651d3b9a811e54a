"""Random faults on a cluster of real containers under load, and a report.

    python -m integration.chaos --minutes 10 --nodes 5                 # another seed each time, which is printed
    python -m integration.chaos --minutes 10 --nodes 5 --seed 7        # the same faults of the same nodes again

Publishers and recording subscribers work on every node all the while. After each fault the cluster must be whole again
in the time that ``tests.netns.faults`` states; in the end all traces are judged. Exit code 0: nothing was lost, doubled
or misordered. 1: something was; logs and traces are in an archive beside the report.

The report is DIRECTORY/report.txt, report.json and report.svg: a time line of throughput, pauses and faults.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from integration import faults, image
from integration.cluster import ContainerCluster
from integration.collect import collect
from integration.faults import CLOCK_JUMPS, FAULTS, ContainerDrill
from integration.timeline import Timeline, draw, longest_pause
from integration.work import TOPICS, Work
from ocfcluster.simulator.trace import Violation
from tests.cluster import ClusterError
from tests.netns.faults import Fault

WARM_S: Final = 5.0  # before memory is measured for the first time
COOL_S: Final = 3.0  # and for the last
END_S: Final = 15.0  # kept of the time that was given, for the last fault to pass
LOSSES: Final = (1.0, 3.0, 5.0)  # percent, during a fault


@dataclass
class Resources:
    """Of one agent."""

    resident_kib: int
    descriptors: int


@dataclass
class Report:
    """What a chaos run has shown. ``error`` is empty where nothing was wrong."""

    seed: int
    nodes: int
    minutes: float
    seconds: float = 0.0
    error: str = ""
    archive: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    slowest_return_s: dict[str, float] = field(default_factory=dict)  # by fault: until all were members again
    events: int = 0  # published, and delivered on every node or announced as missed there
    missed: dict[int, int] = field(default_factory=dict)  # by node: announced to it, for it was away
    memberships: int = 0
    epochs: int = 0
    longest_pause_s: float = 0.0  # nobody got anything
    longest_wait_s: float = 0.0  # of a publisher, to be let publish
    before: dict[int, Resources] = field(default_factory=dict)
    after: dict[int, Resources] = field(default_factory=dict)

    def text(self) -> str:
        result = f"VIOLATION: {self.error}" if self.error else "no violation"
        lines = [
            f"{result}: seed {self.seed}, {self.nodes} nodes, {self.seconds:.0f} s, {sum(self.faults.values())} faults",
            f"{self.events} events, {self.epochs} epochs, {self.memberships} memberships",
            f"longest pause: {self.longest_pause_s:.2f} s without a delivery anywhere",
            f"longest wait of a publisher: {self.longest_wait_s:.2f} s",
            f"missed and announced, by node: {self.missed}",
            "",
            f"{'fault':36}{'times':>6}{'slowest return':>16}",
            *(
                f"{name:36}{count:6}{self.slowest_return_s[name]:14.1f} s"
                for name, count in sorted(self.faults.items())
            ),
            "",
            f"{'agent':8}{'resident before':>16}{'after':>12}{'descriptors':>14}{'after':>7}",
        ]
        for i, before in self.before.items():
            after = self.after.get(i, Resources(0, 0))
            memory = f"{before.resident_kib:12} KiB{after.resident_kib:8} KiB"
            lines.append(f"node {i:<3}{memory}{before.descriptors:14}{after.descriptors:7}")
        if self.archive:
            lines += ["", f"logs, status, configurations and traces are in {self.archive}"]
        return "\n".join(lines)


# --- faults that need more than one thing -----------------------------------------------------------------------------


def lossy_meanwhile(fault: Fault, percent: float) -> Fault:
    """The same on a network that loses."""

    def act(drill: ContainerDrill, victim: int) -> None:
        drill.bridge.set_loss(percent)
        try:
            fault.act(drill, victim)
        finally:
            drill.bridge.heal()

    return Fault(f"{fault.name}, {percent:g} % loss", act, fault.changes)  # type: ignore[arg-type]


def full_disk(drill: ContainerDrill, victim: int) -> None:
    """A node cannot write while another one dies and comes back."""
    other = drill.others(victim)[-1]
    with faults.full(drill.containers.state_dir(victim)):
        drill.containers.kill(other)
        time.sleep(2.0)
        drill.containers.start_agent(other)
        time.sleep(1.0)


def sleepy_subscriber(drill: ContainerDrill, victim: int) -> None:
    """A program takes nothing for a while: nothing happens to anybody."""
    with drill.containers.connect(victim) as client, client.subscribe(TOPICS):
        time.sleep(2.0)


# Those by which a busy machine's slowness would be taken for a mistake are not made worse by loss.
PLAIN: Final = [
    *FAULTS,
    Fault("full_disk", full_disk),  # type: ignore[arg-type]
    CLOCK_JUMPS,
    Fault("sleepy_subscriber", sleepy_subscriber, changes=False),  # type: ignore[arg-type]
]
WITH_LOSS: Final = [
    fault
    for fault in FAULTS
    if fault.name in ("kill", "stop", "restart", "wipe", "long_pause", "partition", "deaf")
]


def choose(chance: random.Random) -> Fault:
    if chance.random() < 0.25:
        return lossy_meanwhile(chance.choice(WITH_LOSS), chance.choice(LOSSES))
    return chance.choice(PLAIN)


# --- the run ----------------------------------------------------------------------------------------------------------


def resources(cluster: ContainerCluster) -> dict[int, Resources]:
    """Of all agents; what cannot be read is 0."""
    found = {}
    for i in cluster.nodes:
        process = Path("/proc", str(cluster.pid(i)))
        status = (process / "status").read_text().splitlines()
        resident = next((int(line.split()[1]) for line in status if line.startswith("VmRSS")), 0)
        found[i] = Resources(resident, len(list((process / "fd").iterdir())))
    return found


def run(
    cluster: ContainerCluster, traces: Path, report: Report, rate: float, chance: random.Random
) -> Timeline:
    """Do it; what is found goes into ``report``. Raises what was wrong, with the report as far as it goes."""
    started = time.monotonic_ns()
    deadline = time.monotonic() + 60 * report.minutes - END_S
    counts: Counter[str] = Counter()
    slowest: dict[str, float] = {}
    work = Work(cluster, traces, rate)
    try:
        with work:
            time.sleep(WARM_S)
            report.before = resources(cluster)
            while time.monotonic() < deadline:
                victim = (
                    work.drill.sequencer() if chance.random() < 0.5 else chance.choice(list(cluster.nodes))
                )
                done = work.do(choose(chance), victim)
                counts[done.name] += 1
                slowest[done.name] = max(slowest.get(done.name, 0.0), done.back_s)
                time.sleep(chance.uniform(0.1, 1.0))
            time.sleep(COOL_S)
            work.drill.settled()
            report.after = resources(cluster)
            report.epochs = int(work.drill.epoch)
            verdict = work.verdict()
            report.events, report.memberships, report.missed = verdict.events, verdict.views, verdict.missed
            report.longest_wait_s = max(one["longest_wait_s"] for one in work.published.values())
    finally:
        report.seconds = (time.monotonic_ns() - started) / 1e9
        report.faults, report.slowest_return_s = dict(counts), slowest
        timeline = Timeline.read(
            work.programs.traces if hasattr(work, "programs") else {}, work.done, work.ended_ns
        )
        report.longest_pause_s = longest_pause(timeline)
    return timeline


def chaos(
    seed: int, minutes: float, nodes: int, directory: Path, image_name: str, rate: float = 200.0
) -> Report:
    """One run, with its report in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    report = Report(seed, nodes, minutes)
    timeline = Timeline()
    clocks = {i: faults.WRONG_CLOCKS[i] for i in range(1, nodes + 1)}
    with (
        tempfile.TemporaryDirectory(prefix="ocf-chaos-") as kept,
        closing(ContainerCluster(nodes, image_name, topics=TOPICS, clocks=clocks)) as cluster,
    ):
        traces = Path(kept)
        for i in cluster.nodes:
            cluster.small_disk(i, faults.DISK_BYTES)
        try:
            cluster.start()
            timeline = run(cluster, traces, report, rate, random.Random(seed))
        except (AssertionError, Violation, ClusterError) as error:
            report.error = " ".join(str(error).split())[:2000] or type(error).__name__
            archive = collect(
                directory / "chaos.tar.gz", cluster.agents(), {"traces": traces, "": cluster.directory}
            )
            report.archive = str(archive)
    (directory / "report.txt").write_text(report.text() + "\n")
    (directory / "report.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    (directory / "report.svg").write_text(draw(timeline, report.text().splitlines()[0]))
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m integration.chaos", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="of which faults when; without it another one each time")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (3)")
    parser.add_argument("--nodes", type=int, default=3, choices=range(3, 10), help="3 to 9 (3)")
    parser.add_argument("--rate", type=float, default=200.0, help="events per second of each publisher (200)")
    parser.add_argument("--directory", type=Path, help="of the report (build/chaos/SEED)")
    parser.add_argument("--image", help="to run; without it, it is built from the source")
    options: Any = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}", flush=True)
    directory = options.directory or image.ROOT / "build" / "chaos" / str(seed)
    name = options.image or image.build()
    report = chaos(seed, options.minutes, options.nodes, directory, name, options.rate)
    print(f"\n{report.text()}\n\nreport: {directory}/report.txt, .json, .svg")
    return 1 if report.error else 0


if __name__ == "__main__":
    sys.exit(main())
