"""Programs of the simulated world: honest publishers, publishers that misbehave, and makers of topics.

A publisher does what the client library does: one producer, numbers without holes, everything kept until its
receipt, and now and then, as after a lost connection, everything unanswered sent again, gathered into other runs.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from ocfcluster import limits
from ocfcluster.protocol.effects import Outcome
from ocfcluster.wire import control
from ocfcluster.wire.run import RunKind, build_run, read_header, void_run
from ocfcluster.wire.topics import DEFAULT_SETTINGS, Access, Retention, TopicSettings

if TYPE_CHECKING:
    from ocfcluster.simulator.history import History, Publication
    from ocfcluster.simulator.shell import Connection
    from ocfcluster.simulator.world import World

FIRST_LOOK_NS: Final = 30 * limits.MILLISECOND_NS  # programs look so often whether somebody serves them
PATIENT: Final = 0.9  # probability that a program without a topic does nothing now
PRODUCER_LOST: Final = (errno.EBADF, errno.EILSEQ)
EVENTS_PER_RUN: Final = 40
RESENDS: Final = 12  # of one publisher: repeats fill the backlog too, and after a kill nothing empties it


class Kept(NamedTuple):
    """A publication that waits for its receipt."""

    number: int
    topic_id: int
    void: int
    re_id: int
    data: bytes
    publication: Publication


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
        "_history",
        "_host",
        "_line",
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
        "unknown",
    )

    def __init__(self, world: World, profile: PublisherProfile) -> None:
        self.profile = profile
        self._world = world
        self._random: Random = world.random(f"publisher {profile.name}")
        self._host = world.hosts[profile.node_id]
        self._line: Connection | None = None
        self._history: History | None = None  # of the producer
        self._unanswered: deque[Kept] = deque()
        self._runs: deque[int] = deque()  # last number of each run that is unanswered
        self._opening = False
        self._resends = 0
        self.left = profile.events
        self.producer = 0
        self.next_number = 1
        self.sent = 0
        self.unknown = 0
        world.at(profile.start_ns, self._act)

    @property
    def finished(self) -> bool:
        """Nothing left to publish and nothing unanswered; programs of a machine that is gone are finished too."""
        return self._host.retired or (not self.left and not self._unanswered and not self._opening)

    def describe(self) -> str:
        return (
            f"publisher {self.profile.name} on node {self.profile.node_id}: {self.left} to publish, "
            f"{len(self._unanswered)} unanswered, producer {self.producer or 'none'}"
        )

    def _act(self) -> None:
        if self.finished:
            return
        calm = self._world.now > self._world.calm_after
        pause_ns = min(self.profile.pause_ns, FIRST_LOOK_NS) if calm else self.profile.pause_ns
        self._world.after(1 + int(self._random.expovariate(1.0) * pause_ns), self._act)
        line = self._connected()
        if line is None or line.busy:
            return
        if not self.producer:
            if not self._opening:
                self._opening = True
                line.control(control.Open(), self._opened)
            return
        chance = self._random.random()
        if chance < self.profile.resend and self._unanswered and self._resends < RESENDS:
            self._resends += 1
            self._resend(line)
        elif chance > 1 - self.profile.reopen and not self._unanswered:
            line.control(control.Close(self.producer), self._closed)
            self.producer = 0
        elif self.left and len(self._runs) < self.profile.runs_unanswered and line.intake_bytes < (1 << 20):
            if not calm and self._random.random() < PATIENT and not self._has_topic(line):
                return  # most programs wait for their topic, some learn that it is not there
            self._send(line, self._new_publications(line))

    def _has_topic(self, line: Connection) -> bool:
        topics = line.topics
        return any(name in topics and not topics[name].local for name in self.profile.topics)

    # --- the connection -----------------------------------------------------------------------------------------

    def _connected(self) -> Connection | None:
        """The connection, a new one where the last is lost: what is unanswered goes out again on it."""
        if self._line is not None and self._line.open:
            return self._line
        self._line = line = self._host.connect(self._receipt)
        self._opening = False
        if line is None:
            return None
        if self.producer and line.history is not self._history:
            self._forget()  # producers mean something in their own history only
        elif self._unanswered:
            self._again(line, "new connection")
        return line

    def _forget(self) -> None:
        """Nobody can say what became of what is unanswered."""
        self.unknown += len(self._unanswered)
        for kept in self._unanswered:
            kept.publication.unknown = True
        self._unanswered.clear()
        self._runs.clear()
        self.producer = 0

    def _opened(self, outcome: Outcome) -> None:
        self._opening = False
        if outcome.error == 0 and self._line is not None and self._line.open:
            self.producer = outcome.value
            self._history = self._line.history
            self.next_number = 1

    def _closed(self, outcome: Outcome) -> None:
        # With agreed delivery the OPEN may have been lost with the node that confirmed it.
        lost = outcome.error == errno.EBADF and self._host.profile.settings.delivery == "agreed"
        if outcome.error and not lost:
            self._world.checker.complain("producers", f"closing an open producer: {outcome}")

    def _new_publications(self, line: Connection) -> list[Kept]:
        random = self._random
        history = line.history
        publications = []
        topics = line.topics
        for _ in range(min(self.left, random.randint(1, self.profile.batch))):
            known = topics.get(random.choice(self.profile.topics))
            refused = 0
            if known is None or known.local:
                refused, topic_id = errno.EINVAL, 0
            else:
                topic_id = known.topic_id
                if random.random() < self.profile.void:
                    refused = errno.EPERM
            data = self._data()
            publication = self._world.checker.published(
                history, self.profile.node_id, self.producer, self.next_number, topic_id, data, refused
            )
            re_id = random.choice(self.profile.re_ids)
            publications.append(Kept(self.next_number, topic_id, refused, re_id, data, publication))
            self.next_number += 1
            self.left -= 1
            self.sent += 1
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

    def _send(self, line: Connection, kept: list[Kept]) -> None:
        """Publications as runs: consecutive ones to one topic with equal properties, at most RUN_BYTES."""
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
            line.publish(run)

    def _resend(self, line: Connection) -> None:
        """As after a lost connection to the same agent, of which nothing but the answers is lost.

        What was gathered meanwhile goes with it, so a run may begin with repeats and end with what is new.
        """
        if self._random.random() < 0.7 and len(self._runs) < self.profile.runs_unanswered:
            self._new_publications(line)
        self._again(line, "answers lost")

    def _again(self, line: Connection, why: str) -> None:
        """Everything unanswered, from the first, in other runs."""
        text = f"{why}: producer {self.producer} from {self._unanswered[0].number}"
        self._world.trace.add(self._world.now, self.profile.node_id, "resend", text)
        self._runs.clear()
        self._send(line, list(self._unanswered))

    def _receipt(self, outcome: Outcome) -> None:
        if outcome.producer != self.producer:
            return
        if outcome.error in PRODUCER_LOST and self._unanswered:
            self._forget()  # agreed delivery: the order that knew the producer does not stand
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


class Program:
    """What the smaller programs share: they act now and then, on whatever connection there is."""

    __slots__ = ("_host", "_left", "_line", "_pause_ns", "_random", "_world")

    def __init__(
        self, world: World, node_id: int, actions: int, start_ns: int, pause_ns: int, name: str
    ) -> None:
        self._world = world
        self._host = world.hosts[node_id]
        self._line: Connection | None = None
        self._left = actions
        self._pause_ns = pause_ns
        self._random: Random = world.random(f"{name} {node_id}")
        world.at(start_ns, self._wake)

    @property
    def finished(self) -> bool:
        return self._host.retired or self._left <= 0

    def _wake(self) -> None:
        if self.finished:
            return
        if self._line is None or not self._line.open:
            self._line = self._host.connect()
            if self._line is None:
                self._world.after(FIRST_LOOK_NS, self._wake)
                return
            self._reconnected(self._line)
        calm = self._world.now > self._world.calm_after
        pause_ns = min(self._pause_ns, FIRST_LOOK_NS) if calm else self._pause_ns
        self._world.after(1 + int(self._random.expovariate(1.0) * pause_ns), self._wake)
        if not self._line.busy:
            self._left -= 1
            self._act(self._line)

    def _reconnected(self, line: Connection) -> None:
        """On a new connection: what was asked on the last one and not answered is open."""

    def _act(self, line: Connection) -> None:
        raise NotImplementedError


class Rogue(Program):
    """A program that breaks the rules: unknown producers, numbers that jump, runs of other kinds of nonsense.

    None of it may ever be delivered, and the order goes on untouched.
    """

    __slots__ = ("_producer",)

    def __init__(self, world: World, node_id: int, actions: int, start_ns: int, pause_ns: int) -> None:
        super().__init__(world, node_id, actions, start_ns, pause_ns, "rogue")
        self._producer = 0

    def _act(self, line: Connection) -> None:
        random = self._random
        action = random.randrange(6)
        if action == 0 or not self._producer:
            line.control(control.Open(), self._opened)
        elif action == 1:
            line.publish(self._run(self._producer, random.randint(2, 1 << 40)))
        elif action == 2:
            line.publish(self._run(random.choice((0, 999_999, 1 << 62)), 1))
        elif action == 3:
            line.control(control.Close(random.choice((0, 999_999))), self._answered)
        elif action == 4:
            name = random.choice(("oc.own", "__OC_EV_OWN", "group:g"))
            line.control(control.TopicCreate(name, False), self._refused)
        else:
            line.control(control.TopicRemove(random.choice(("oc.membership", "never made"))), self._refused)

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


class TopicMaker(Program):
    """Creates topics, and removes and recreates some under load. Asks again where an answer was lost."""

    __slots__ = ("_names", "_removing", "_settings", "_waiting")

    def __init__(
        self,
        world: World,
        node_id: int,
        names: tuple[str, ...],
        changes: int,
        pause_ns: int,
        removing: float,
        settings: Mapping[str, TopicSettings] | None = None,
    ) -> None:
        super().__init__(world, node_id, changes, 0, pause_ns, "topics")
        self._names = names
        self._removing = removing
        self._settings = settings or {}
        self._waiting: deque[control.Operand] = deque(self._creation(name) for name in names)

    def _creation(self, name: str) -> control.TopicCreate:
        return control.TopicCreate(name, name.startswith("local"), self._settings.get(name, DEFAULT_SETTINGS))

    @property
    def finished(self) -> bool:
        return self._host.retired or (self._left <= 0 and not self._waiting)

    def describe(self) -> str:
        return (
            f"topics on node {self._host.node_id}: {self._left} changes left, {len(self._waiting)} unanswered"
        )

    def _reconnected(self, line: Connection) -> None:
        for operand in self._waiting:
            self._ask(line, operand)

    def _act(self, line: Connection) -> None:
        if self._left <= 0:
            return
        name = self._random.choice(self._names)
        removes = self._random.random() < self._removing
        operand = control.TopicRemove(name) if removes else self._creation(name)
        self._waiting.append(operand)
        self._ask(line, operand)

    def _ask(self, line: Connection, operand: control.Operand) -> None:
        if isinstance(operand, control.TopicRemove):
            self._world.checker.removal_asked(operand.name)
        line.control(operand, lambda outcome: self._answered(operand, outcome))

    def _answered(self, operand: control.Operand, outcome: Outcome) -> None:
        if isinstance(operand, control.TopicRemove):
            self._world.checker.removal_answered(operand.name)
        if operand in self._waiting:
            self._waiting.remove(operand)
        # EINVAL: another one removed it first; EEXIST: another one has altered it
        if outcome.error not in (0, errno.EINVAL, errno.EEXIST if self._settings else 0):
            self._world.checker.complain("topics", f"an honest change of topics: {outcome}")


class TopicAlterer(Program):
    """Gives topics other settings under load: keeps more or less of them, and lets others use them."""

    __slots__ = ("_granting", "_names", "_other_access", "_other_retention")

    def __init__(
        self,
        world: World,
        node_id: int,
        names: tuple[str, ...],
        changes: int,
        pause_ns: int,
        retention: Callable[[Random], Retention] | None,
        access: Callable[[Random], Access] | None,
    ) -> None:
        super().__init__(world, node_id, changes, pause_ns, pause_ns, "alterations")
        self._names = names
        self._other_retention = retention  # None: never altered
        self._other_access = access
        self._granting = world.random(f"access {node_id}")

    def _act(self, line: Connection) -> None:
        name = self._random.choice(self._names)
        topic = line.topics.get(name)
        settings = DEFAULT_SETTINGS if topic is None else topic.settings
        if self._other_retention is not None:
            keeps = self._random.random() >= 0.1
            retention = self._other_retention(self._random) if keeps else Retention()
            settings = replace(settings, retention=retention)
        if self._other_access is not None:
            settings = replace(settings, access=self._other_access(self._granting))
        self._world.checker.alteration_asked(name)
        line.control(control.TopicAlter(name, settings), lambda outcome: self._answered(name, outcome))

    def _answered(self, name: str, outcome: Outcome) -> None:
        self._world.checker.alteration_answered(name)
        if outcome.error not in (0, errno.EINVAL):
            self._world.checker.complain("topics", f"an honest alteration: {outcome}")


class Administrator(Program):
    """Hands the sequencer's work about, and changes votes."""

    __slots__ = ("_nodes", "_votes")

    def __init__(self, world: World, node_id: int, actions: int, pause_ns: int, votes: bool) -> None:
        super().__init__(world, node_id, actions, pause_ns, pause_ns, "administrator")
        self._nodes = list(world.hosts)
        self._votes = votes

    def _act(self, line: Connection) -> None:
        node = self._random.choice(self._nodes)
        operand: control.Operand = control.Sequence(node)
        if self._votes and self._random.random() < 0.5:
            operand = control.NodeVotes(node, self._random.randint(1, 3))
        line.control(operand, self._answered)

    def _answered(self, outcome: Outcome) -> None:
        if outcome.error not in (0, errno.EINVAL, errno.EBUSY):
            self._world.checker.complain("commands", f"an honest command: {outcome}")
