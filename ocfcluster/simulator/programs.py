"""Programs of the simulated world: honest publishers, publishers that misbehave, and makers of topics.

A publisher does what the client library does: one producer, numbers without holes, everything kept until its
receipt, and now and then, as after a lost connection, everything unanswered sent again, gathered into other runs.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from ocfcluster import limits
from ocfcluster.protocol.effects import Outcome
from ocfcluster.wire import control
from ocfcluster.wire.run import RunKind, build_run, read_header, void_run

if TYPE_CHECKING:
    from ocfcluster.simulator.host import Host
    from ocfcluster.simulator.world import World

RETRY_NS: Final = 5 * limits.MILLISECOND_NS
EVENTS_PER_RUN: Final = 40
RESENDS: Final = 12  # of one publisher: repeats fill the backlog too, and after a kill nothing empties it


class Kept(NamedTuple):
    """A publication that waits for its receipt."""

    number: int
    topic_id: int
    void: int
    re_id: int
    data: bytes


@dataclass(slots=True)
class PublisherProfile:
    """What one publisher does."""

    name: str
    node_id: int
    events: int
    topics: tuple[str, ...]
    start_ns: int = 0
    pause_ns: int = 5 * limits.MILLISECOND_NS  # mean time between two batches
    batch: int = 8  # events of a batch, at most
    size_bytes: int = 64  # typical
    largest_bytes: int = 2000
    large: float = 0.0  # probability of an event of up to largest_bytes
    resend: float = 0.0  # probability per batch of a lost connection
    void: float = 0.0  # probability that the agent refuses a publication at its door
    reopen: float = 0.0  # probability per batch of closing the producer and opening another
    runs_unanswered: int = limits.PRODUCER_RUNS_UNANSWERED
    re_ids: tuple[int, ...] = (0,)  # publications that differ in it do not share a run
    sizes: tuple[int, ...] = field(default=(0, 1, 2))  # sizes that go wrong more often than others


class Publisher:
    """One honest publishing program on one node."""

    __slots__ = (
        "_host",
        "_opening",
        "_random",
        "_resends",
        "_runs",
        "_unanswered",
        "_world",
        "left",
        "next_number",
        "producer",
        "profile",
        "sent",
    )

    def __init__(self, world: World, profile: PublisherProfile) -> None:
        self.profile = profile
        self._world = world
        self._random: Random = world.random(f"publisher {profile.name}")
        self._host: Host | None = None
        self._unanswered: deque[Kept] = deque()
        self._runs: deque[int] = deque()  # last number of each run that is unanswered
        self._opening = False
        self._resends = 0
        self.left = profile.events
        self.producer = 0
        self.next_number = 1
        self.sent = 0
        world.at(profile.start_ns, self._act)

    @property
    def finished(self) -> bool:
        """Nothing left to publish and nothing unanswered; a dead node's programs are finished too."""
        if self._host is not None and not self._host.alive:
            return True
        return not self.left and not self._unanswered and not self._opening

    def describe(self) -> str:
        return (
            f"publisher {self.profile.name} on node {self.profile.node_id}: {self.left} to publish, "
            f"{len(self._unanswered)} unanswered, producer {self.producer or 'none'}"
        )

    def _act(self) -> None:
        if self._host is None:
            self._host = self._world.hosts.get(self.profile.node_id)
            if self._host is not None:
                self._host.on_receipts(self._receipt)
        host = self._host
        if host is None:
            self._world.after(RETRY_NS, self._act)
            return
        if not host.alive or self.finished:
            return
        self._world.after(1 + int(self._random.expovariate(1.0) * self.profile.pause_ns), self._act)
        if not self.producer:
            if not self._opening:
                self._opening = True
                host.control(control.Open(), self._opened)
            return
        chance = self._random.random()
        if chance < self.profile.resend and self._unanswered and self._resends < RESENDS:
            self._resends += 1
            self._resend(host)
        elif chance > 1 - self.profile.reopen and not self._unanswered:
            host.control(control.Close(self.producer), self._closed)
            self.producer = 0
        elif self.left and len(self._runs) < self.profile.runs_unanswered and host.intake_bytes < (1 << 20):
            self._publish_batch(host)

    def _opened(self, outcome: Outcome) -> None:
        self._opening = False
        if outcome.error == 0:
            self.producer = outcome.value
            self.next_number = 1

    def _closed(self, outcome: Outcome) -> None:
        if outcome.error:
            self._world.checker.complain("producers", f"closing an open producer: {outcome}")

    def _publish_batch(self, host: Host) -> None:
        self._send(self._new_publications(host))

    def _new_publications(self, host: Host) -> list[Kept]:
        random = self._random
        publications = []
        for _ in range(min(self.left, random.randint(1, self.profile.batch))):
            name = random.choice(self.profile.topics)
            known = host.node.topics.get(name)
            refused = 0
            if known is None or known.local:
                refused, topic_id = errno.EINVAL, 0
            else:
                topic_id = known.topic_id
                if random.random() < self.profile.void:
                    refused = errno.EPERM
            kept = Kept(self.next_number, topic_id, refused, random.choice(self.profile.re_ids), self._data())
            publications.append(kept)
            self.next_number += 1
            self.left -= 1
            self.sent += 1
            self._world.checker.published(
                self.profile.node_id, self.producer, kept.number, topic_id, kept.data, refused
            )
        self._unanswered.extend(publications)
        return publications

    def _data(self) -> bytes:
        random = self._random
        profile = self.profile
        chance = random.random()
        if chance < profile.large:
            size = random.randint(0, profile.largest_bytes)
        elif chance < 0.2:
            size = random.choice(profile.sizes)
        else:
            size = random.randint(0, 2 * profile.size_bytes)
        head = f"{profile.name}:{self.next_number}:".encode()
        return (
            (head + b"-" * size)[:size]
            if size < len(head)
            else head + bytes([65 + size % 26]) * (size - len(head))
        )

    def _send(self, kept: list[Kept]) -> None:
        """Publications as runs: consecutive ones to one topic with equal properties, at most RUN_BYTES."""
        host = self._host
        if host is None:
            return
        while kept:
            run_of: list[Kept] = []
            size = limits.RUN_HEADER_BYTES
            most = self._random.randint(1, EVENTS_PER_RUN)
            for one in kept:
                if run_of and (
                    one[1:4] != run_of[0][1:4]
                    or len(run_of) >= most
                    or size + len(one.data) + 4 > limits.RUN_BYTES
                ):
                    break
                run_of.append(one)
                size += len(one.data) + 4
            kept = kept[len(run_of) :]
            first = run_of[0]
            run = build_run(
                RunKind.PUBLICATION, first.topic_id, self.producer, first.number,
                [one.data for one in run_of], re_id=first.re_id, time_ns=self._world.now,
            )  # fmt: skip
            if first.void:
                run = void_run(read_header(run), first.void)
            self._runs.append(run_of[-1].number)
            host.publish(run)

    def _resend(self, host: Host) -> None:
        """As after a lost connection: everything unanswered again, from the first, in other runs.

        What was gathered meanwhile goes with it, so a run may begin with repeats and end with what is new.
        """
        text = f"producer {self.producer} from {self._unanswered[0].number}"
        self._world.trace.add(self._world.now, self.profile.node_id, "resend", text)
        if self._random.random() < 0.7 and len(self._runs) < self.profile.runs_unanswered:
            self._new_publications(host)
        self._runs.clear()
        self._send(list(self._unanswered))

    def _receipt(self, outcome: Outcome) -> None:
        if outcome.producer != self.producer:
            return
        end = outcome.first_number + outcome.count
        unanswered = self._unanswered
        if unanswered and unanswered[0].number < outcome.first_number:
            self._world.checker.complain(
                "fifo", f"{outcome} before number {unanswered[0].number} is answered"
            )
        while unanswered and unanswered[0].number < end:
            unanswered.popleft()
        while self._runs and self._runs[0] < end:
            self._runs.popleft()


class Rogue:
    """A program that breaks the rules: unknown producers, numbers that jump, runs of other kinds of nonsense.

    None of it may ever be delivered, and the order goes on untouched.
    """

    __slots__ = ("_left", "_node_id", "_pause_ns", "_producer", "_random", "_world")

    def __init__(self, world: World, node_id: int, actions: int, start_ns: int, pause_ns: int) -> None:
        self._world = world
        self._node_id = node_id
        self._left = actions
        self._pause_ns = pause_ns
        self._producer = 0
        self._random: Random = world.random(f"rogue {node_id}")
        world.at(start_ns, self._act)

    def _act(self) -> None:
        host = self._world.hosts.get(self._node_id)
        if self._left <= 0 or (host is not None and not host.alive):
            return
        self._world.after(1 + int(self._random.expovariate(1.0) * self._pause_ns), self._act)
        if host is None:
            return
        self._left -= 1
        random = self._random
        action = random.randrange(6)
        if action == 0 or not self._producer:
            host.control(control.Open(), self._opened)
        elif action == 1:
            host.publish(self._run(self._producer, random.randint(2, 1 << 40)))
        elif action == 2:
            host.publish(self._run(random.choice((0, 999_999, 1 << 62)), 1))
        elif action == 3:
            host.control(control.Close(random.choice((0, 999_999))), self._answered)
        elif action == 4:
            name = random.choice(("oc.own", "__OC_EV_OWN", "group:g"))
            host.control(control.TopicCreate(name, False), self._refused)
        else:
            host.control(control.TopicRemove(random.choice(("oc.membership", "never made"))), self._refused)

    def _run(self, producer: int, number: int) -> bytes:
        return build_run(RunKind.PUBLICATION, 1, producer, number, [b"rogue"] * self._random.randint(1, 3))

    def _opened(self, outcome: Outcome) -> None:
        if not outcome.error:
            self._producer = outcome.value

    def _answered(self, outcome: Outcome) -> None:
        pass

    def _refused(self, outcome: Outcome) -> None:
        if not outcome.error:
            self._world.checker.complain("topics", f"a name that is not allowed was taken: {outcome}")


class TopicMaker:
    """Creates topics, and removes and recreates some under load."""

    __slots__ = ("_left", "_names", "_node_id", "_pause_ns", "_random", "_removing", "_world", "waiting")

    def __init__(
        self, world: World, node_id: int, names: tuple[str, ...], changes: int, pause_ns: int, removing: float
    ) -> None:
        self._world = world
        self._node_id = node_id
        self._names = names
        self._left = changes
        self._pause_ns = pause_ns
        self._removing = removing
        self._random: Random = world.random(f"topics {node_id}")
        self.waiting = 0
        world.after(0, self._begin)

    @property
    def finished(self) -> bool:
        host = self._world.hosts.get(self._node_id)
        return host is not None and (not host.alive or (self._left <= 0 and not self.waiting))

    def _begin(self) -> None:
        host = self._world.hosts.get(self._node_id)
        if host is None:
            self._world.after(RETRY_NS, self._begin)
            return
        for name in self._names:
            self._ask(host, control.TopicCreate(name, name.startswith("local")))
        self._world.after(self._pause_ns, self._change)

    def _change(self) -> None:
        host = self._world.hosts[self._node_id]
        if self._left <= 0 or not host.alive:
            return
        self._left -= 1
        self._world.after(1 + int(self._random.expovariate(1.0) * self._pause_ns), self._change)
        name = self._random.choice(self._names)
        if self._random.random() < self._removing:
            self._ask(host, control.TopicRemove(name))
        else:
            self._ask(host, control.TopicCreate(name, name.startswith("local")))

    def _ask(self, host: Host, operand: control.Operand) -> None:
        self.waiting += 1
        host.control(operand, self._answered)

    def _answered(self, outcome: Outcome) -> None:
        self.waiting -= 1
        if outcome.error not in (0, errno.EINVAL):  # EINVAL: another one removed it first
            self._world.checker.complain("topics", f"an honest change of topics: {outcome}")
