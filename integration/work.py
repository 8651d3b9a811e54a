"""A cluster under load: publishers and recording subscribers on every node, faults, and the verdict on the traces."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from integration.cluster import ContainerCluster
from integration.faults import ContainerDrill
from tests.netns.faults import Fault
from tests.netns.oracle import Verdict, check
from tests.netns.programs import Programs

TOPICS = ["red", "blue"]
RATE = 200.0  # events per second of each publisher
CALM_S = 0.3  # between two faults


@dataclass
class Done:
    """A fault that was: ``acted_s`` until it was over, then ``back_s`` until all were members and delivered again."""

    name: str
    victim: int
    sequencer: int  # before
    began_ns: int  # CLOCK_MONOTONIC, as traces have it
    acted_s: float
    back_s: float
    views: tuple[int, int]  # m_sequence before and after


@dataclass
class Work:
    """A context manager around one history of ``cluster``, whose TOPICS exist."""

    cluster: ContainerCluster
    directory: Path
    rate: float = RATE
    done: list[Done] = field(default_factory=list)
    ended_ns: int = 0  # when the load was told to end; 0: it was not

    def __enter__(self) -> Self:
        self.programs = Programs(self.cluster, TOPICS, self.directory).__enter__()
        try:
            self.programs.subscribe()
            self.programs.load(self.rate)
            self.drill = ContainerDrill(self.cluster)
            self.first = self.drill.settled()
        except BaseException:
            self.programs.__exit__()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.programs.__exit__()

    def do(self, fault: Fault, victim: int) -> Done:
        """One fault, until the cluster is whole again: ``Drill.settled`` says within which time."""
        sequencer, before = self.drill.sequencer(), self.drill.views
        began_ns = time.monotonic_ns()
        began = began_ns / 1e9
        print(f"{fault.name} of node {victim}, sequencer {sequencer}", end="", flush=True)
        fault.act(self.drill, victim)
        acted = time.monotonic()
        self.drill.settled()
        back = time.monotonic()
        done = Done(
            fault.name, victim, sequencer, began_ns, acted - began, back - acted, (before, self.drill.views)
        )  # fmt: skip
        self.done.append(done)
        print(
            f": {done.acted_s:.1f} s and {done.back_s:.1f} s, views {before} to {self.drill.views}",
            flush=True,
        )
        assert self.drill.views > before or not fault.changes, f"{fault.name} has changed no membership"
        return done

    def do_all(self, faults: list[Fault], chance: random.Random) -> None:
        """One after the other; every other time the sequencer's node is hit, else any."""
        for number, fault in enumerate(faults):
            time.sleep(CALM_S)
            victim = self.drill.sequencer() if number % 2 == 0 else chance.choice(list(self.cluster.nodes))
            self.do(fault, victim)

    def verdict(self) -> Verdict:
        """End the load, and judge: one order, nothing lost, nothing twice, the same memberships everywhere, in one
        history, and no more of them than the nodes said."""
        last = {i: self.drill.status(i) for i in self.cluster.nodes}
        assert {one["cluster_id"] for one in last.values()} == {self.first[1]["cluster_id"]}
        self.ended_ns = time.monotonic_ns()
        self.published = self.programs.published()
        assert all(document["flushed"] for document in self.published.values()), self.published
        self.programs.mark_the_end(1)
        self.received: dict[int, dict[str, Any]] = self.programs.received()
        verdict = check(self.programs.traces, TOPICS, self.programs.known(), self.programs.answers)
        print(f"published {self.published}, received {self.received}, {verdict}")
        assert verdict.views == self.drill.views
        return verdict
