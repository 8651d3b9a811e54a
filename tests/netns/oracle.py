"""Judges a cluster by its traces, with the simulator's own judge.

``ev_id`` is the place in the one order: every event and every change of the membership has one, without a hole. So the
traces are laid over each other by it: what two nodes have at one place must be the same, what a node lacks must have
been announced to it, and nothing may lack everywhere. The sequence that results goes to ``simulator.judge``, which
knows the rules of numbers, of publishers' order, and of memberships. What is published and answered is compared last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from xxhash import xxh3_64_intdigest

from ocfcluster.components.membership import TOPIC as MEMBERSHIP
from ocfcluster.limits import SECOND_NS
from ocfcluster.protocol.effects import Delivery, Notification, NotificationCode, Topic, View
from ocfcluster.protocol.settings import Configuration, Limits, Member
from ocfcluster.simulator.checker import Checker
from ocfcluster.simulator.history import FIRST_OWN_TOPIC, History, Publication, Segment
from ocfcluster.simulator.judge import Judge
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire.run import RunKind, build_run
from tests.netns.traces import Answer, Began, Got, Line, Membership, Told, read

CLUSTER: Final = "traced"
NEVER: Final = 2**62

Key = tuple[int, int]  # a publisher, and the number of its event from 0


class Placed(NamedTuple):
    """One event as every node must have it."""

    ev_id: int
    topic: str
    seq: int
    node_id: int
    incarnation: int
    m_sequence: int
    order_time: int
    producer: int
    number: int
    digest: int


class Published(NamedTuple):
    """What was published: by digest of its data, whose it is; and where each publisher is."""

    keys: dict[int, Key]
    nodes: dict[int, int]  # publisher → node_id of its agent


class Verdict(NamedTuple):
    """What a set of traces shows."""

    events: int
    views: int
    missed: dict[int, int]  # node → events that it did not get, all announced
    notifications: dict[int, list[str]]  # node → what it was told about itself


def published(payloads: Iterable[tuple[Key, bytes]], nodes: Mapping[int, int]) -> Published:
    return Published({xxh3_64_intdigest(data): key for key, data in payloads}, dict(nodes))


def check(
    traces: Mapping[int, Path],
    topics: list[str],
    known: Published,
    answers: Mapping[int, Path],
    *,
    suspects_unknown: bool = False,
) -> Verdict:
    """Judge the traces of one history, by node, of subscribers that took all ``topics`` and the membership.

    ``answers`` are by publisher. Where ``suspects_unknown`` a publication may have ended with OutcomeUnknown. Raises
    Violation, whose ``rule`` is a name that the simulator uses, too.
    """
    order: dict[int, Placed | Membership] = {}
    missed, notifications = {}, {}
    for node, path in traces.items():
        reader = _Reader(node, topics, order)
        for line in read(path):
            reader.take(line)
        missed[node] = reader.missed
        notifications[node] = reader.notifications
    sequence = [order[ev_id] for ev_id in sorted(order)]
    for place, item in enumerate(sequence, 1):
        if item.ev_id != place:
            raise Violation("ev_id", f"no node delivered ev_id {place}; {item} is the next one")
    events = [item for item in sequence if isinstance(item, Placed)]
    _check_creation(events, topics, known)
    _judge(sequence, topics, known)
    _check_answers(events, known, answers, suspects_unknown)
    return Verdict(len(events), len(sequence) - len(events), missed, notifications)


# --- one trace --------------------------------------------------------------------------------------------------------


class _Reader:
    """Goes along one subscription: what comes, comes in order, and what does not is announced."""

    def __init__(self, node: int, topics: list[str], order: dict[int, Placed | Membership]) -> None:
        self.node = node
        self.missed = 0
        self.notifications: list[str] = []
        self._topics = [*topics, MEMBERSHIP]
        self._order = order
        self._next: dict[str, int] = {}
        self._ev_id = 0
        self._m_sequence = 0
        self._final = False
        # The simulator's rules for NOT_PRIMARY and PRIMARY_RESTORED, with as much of a node as they look at.
        self._checker = Checker(SimpleNamespace(now=0), "safe")  # type: ignore[arg-type]
        self._shell: Any = SimpleNamespace(node_id=node, not_primary=None, cursor=None)

    def take(self, line: Line) -> None:
        if self._final:
            self._fail("subscription", f"{line} comes behind its end")
        if isinstance(line, Began):
            if self._next or set(line.next_seq) != set(self._topics):
                self._fail("subscription", f"it begins with {line}")
            self._next = dict(line.next_seq)
        elif isinstance(line, Told):
            self._take_notice(line)
        elif isinstance(line, Membership):
            self._take_membership(line)
        elif isinstance(line, Got):
            for at, digest in enumerate(line.digests):
                self._place(
                    Placed(
                        line.ev_id + at, line.topic, line.seq + at, line.node_id, line.incarnation, line.m_sequence,
                        line.order_time, line.producer, line.number + at, digest,
                    ),
                    line.topic,
                )  # fmt: skip

    def _fail(self, rule: str, text: str) -> None:
        raise Violation(rule, f"node {self.node}: {text}")

    def _take_notice(self, notice: Told) -> None:
        self._final = notice.final
        if notice.name == "history_lost":
            self._fail("history", f"the history ended: {notice}")
        if notice.name != "gap":
            return
        expected = self._next.get(notice.topic)
        if notice.first_seq != expected or notice.last_seq < notice.first_seq:
            self._fail("gap", f"{notice}; seq {expected} was next")
        self._next[notice.topic] = notice.last_seq + 1
        self.missed += notice.last_seq - notice.first_seq + 1

    def _take_membership(self, event: Membership) -> None:
        if not event.local:
            behind = self._ev_id
            self._place(_timeless(event), MEMBERSHIP)
            if event.retained:  # the current one comes at once, before kept events that are older
                self._ev_id = behind
            self._m_sequence = event.m_sequence
            before = self._shell.not_primary
            if before is not None and before.m_sequence != event.m_sequence:
                self._shell.not_primary = None
            return
        self.notifications.append(event.code)
        if event.m_sequence != self._m_sequence or event.seq != self._next[MEMBERSHIP] - 1:
            self._fail("notifications", f"{event}; the last membership was {self._m_sequence}")
        if event.code == "EVICTED":
            self._shell.not_primary = None
        elif not event.retained:  # else it may have been told so before, or not
            code = NotificationCode[event.code]
            self._checker.notified(self._shell, Notification(code, event.m_sequence, event.seq))
        elif event.code == "NOT_PRIMARY":
            self._shell.not_primary = Notification(NotificationCode.NOT_PRIMARY, event.m_sequence, event.seq)
        else:
            self._shell.not_primary = None

    def _place(self, item: Placed | Membership, topic: str) -> None:
        if item.seq != self._next.get(topic):
            self._fail("seq", f"{item}; seq {self._next.get(topic)} of {topic} was next")
        if item.ev_id <= self._ev_id:
            self._fail("agreement", f"{item} comes behind ev_id {self._ev_id}")
        known = self._order.setdefault(item.ev_id, item)
        if known != item:
            self._fail("agreement", f"{item}; another node has {known}")
        self._next[topic] += 1
        self._ev_id = item.ev_id


def _timeless(event: Membership) -> Membership:
    """As it is on every node: when it came, and whether it was told as news, differ."""
    return Membership(
        0, event.code, event.seq, event.ev_id, event.m_sequence, event.order_time, event.members, event.joined,
        event.left, local=False, retained=False,
    )  # fmt: skip


# --- all of them ------------------------------------------------------------------------------------------------------


def _check_creation(events: list[Placed], topics: list[str], known: Published) -> None:
    """Every event was published, by its node, and came once and in its publisher's order."""
    last: dict[int, int] = {}
    for event in events:
        if event.digest not in known.keys:
            raise Violation("creation", f"nobody published {event}")
        publisher, number = known.keys[event.digest]
        if known.nodes[publisher] != event.node_id or event.topic not in topics:
            raise Violation("creation", f"{event}: publisher {publisher} is on node {known.nodes[publisher]}")
        expected = last.get(publisher, -1) + 1
        if number < expected:
            raise Violation("exactly once", f"{event}: number {number} of publisher {publisher} came before")
        if number > expected:
            raise Violation(
                "fifo", f"{event}: number {number} of publisher {publisher} instead of {expected}"
            )
        last[publisher] = number
    for publisher, number in known.keys.values():
        if number > last.get(publisher, -1):
            raise Violation("lost", f"number {number} of publisher {publisher} was never delivered")


def _check_answers(
    events: list[Placed], known: Published, answers: Mapping[int, Path], suspects_unknown: bool
) -> None:
    """A receipt says where an event was delivered, and every publication has one."""
    places = {known.keys[event.digest]: event for event in events}
    for publisher, path in answers.items():
        expected = 0
        for line in read(path):
            if not isinstance(line, Answer) or line.index != expected:
                raise Violation("receipts", f"{line} instead of number {expected} of publisher {publisher}")
            expected += line.count
            if line.error:
                if not (suspects_unknown and line.error.startswith("OutcomeUnknown")):
                    raise Violation("receipts", f"publisher {publisher} was told {line}")
                continue
            event = places.get((publisher, line.index))
            told = (line.topic, line.seq, line.ev_id)
            if event is None or (event.topic, event.seq, event.ev_id) != told:
                raise Violation("receipts", f"publisher {publisher} was told {line}; delivered was {event}")
        count = sum(one == publisher for one, _ in known.keys.values())
        if expected != count:
            raise Violation("receipts", f"publisher {publisher} has {expected} answers to {count} events")


def _judge(sequence: list[Placed | Membership], topics: list[str], known: Published) -> None:
    """Give the one sequence to the simulator's judge, a segment for each membership."""
    history = History(CLUSTER, [], 0)
    history.topics = {
        topic_id: Topic(topic_id, name, False) for topic_id, name in enumerate(topics, FIRST_OWN_TOPIC)
    }
    ids = {topic.name: topic_id for topic_id, topic in history.topics.items()}
    incarnations = _incarnations(sequence)
    segment: Segment | None = None
    before: dict[Key, Member] = {}
    for item in _runs(sequence):
        if isinstance(item, Membership):
            view, before = _view(item, incarnations, before)
            if item.m_sequence in history.segments:
                raise Violation("views", f"m_sequence {item.m_sequence} comes twice: {item}")
            if segment is not None:
                segment.end = len(segment.items)
            segment = history.segments[item.m_sequence] = Segment(item.m_sequence, view)
            continue
        first, digests = item
        if segment is None:
            raise Violation("views", f"{first} comes before any membership")
        for at, digest in enumerate(digests):
            publisher, _ = known.keys[digest]
            history.publications[first.producer, first.number + at] = Publication(
                known.nodes[publisher], ids[first.topic], b"", 0, 0
            )
        run = build_run(
            RunKind.PUBLICATION, ids[first.topic], first.producer, first.number, [b""] * len(digests)
        )
        segment.items.append(
            Delivery(
                run, ids[first.topic], len(digests), 0, first.seq, first.ev_id, first.node_id, first.incarnation,
                first.m_sequence, first.order_time,
            )
        )  # fmt: skip
    Judge(SimpleNamespace(now=NEVER * SECOND_NS), history, False).advance()  # type: ignore[arg-type]


def _runs(sequence: list[Placed | Membership]) -> Iterator[Membership | tuple[Placed, list[int]]]:
    """The sequence with what belongs together in one piece: a publisher's consecutive events."""
    first = last = None
    digests: list[int] = []
    for item in sequence:
        if isinstance(item, Placed) and first is not None and last is not None:
            at = len(digests)
            follows = (
                item.topic, item.seq, item.producer, item.number, item.incarnation, item.m_sequence, item.order_time
            ) == (
                first.topic, first.seq + at, first.producer, first.number + at, first.incarnation, first.m_sequence,
                first.order_time,
            )  # fmt: skip
            if follows:
                digests.append(item.digest)
                continue
        if first is not None:
            yield first, digests
        first = None
        if isinstance(item, Membership):
            yield item
        else:
            first = last = item
            digests = [item.digest]
    if first is not None:
        yield first, digests


def _incarnations(sequence: list[Placed | Membership]) -> dict[Key, int]:
    """(node_id, born_on) → incarnation, by the first event of each member: the judge holds the others to it."""
    found: dict[Key, int] = {}
    born: dict[int, int] = {}
    for item in sequence:
        if isinstance(item, Membership):
            born = dict(item.members)
        elif item.node_id in born:
            found.setdefault((item.node_id, born[item.node_id]), item.incarnation)
    return found


def _view(
    event: Membership, incarnations: dict[Key, int], before: dict[Key, Member]
) -> tuple[View, dict[Key, Member]]:
    """A membership as the view that it tells of. What it does not say is made up so that it breaks no rule."""

    def member(key: Key) -> Member:
        node_id, born_on = key
        unheard = -(born_on * 1_000_000 + node_id)  # it never published: nobody knows its incarnation
        return Member(born_on, node_id, incarnations.get(key, unheard), node_id, 1)

    members = [member(key) for key in event.members]
    now = dict(zip(event.members, members, strict=True))
    configuration = Configuration(
        cluster_id=CLUSTER, supersedes=[], epoch=event.m_sequence, base=event.ev_id, table={}, members=members,
        sequencer=members[0].node_id, tie_breaker=members[0].node_id, delivery="safe", last_man_standing=False,
        version=1, mtu=1500, limits=Limits(), m_sequence=event.m_sequence, epochs=[], order_time=event.order_time,
    )  # fmt: skip
    joined = tuple(now.get(key) or member(key) for key in event.joined)
    left = tuple(before.get(key) or member(key) for key in event.left)
    return View(configuration, event.seq, event.ev_id, joined, left), now
