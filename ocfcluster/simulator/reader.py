"""What a program's subscription asks for (a filter, a policy for when it is slow), and whether it gets just that:
every event that its filter lets through comes once and in order, or lies in a gap that is told in its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from ocfcluster import limits
from ocfcluster.ipc.delivery import Marks
from ocfcluster.ipc.replay import RAN_OUT, REMOVED
from ocfcluster.ipc.slow import SlowBudget
from ocfcluster.wire.filter import Predicate, from_node
from ocfcluster.wire.frames import Notice, NoticeCode, OnSlow

_PATIENCE_NS: Final = (0, 200 * limits.MILLISECOND_NS, limits.SLOW_SUBSCRIBER_TIMEOUT_NS)


@dataclass(slots=True)
class Asked:
    """What one program asks of its subscription, and how little its agent queues for it."""

    on_slow: OnSlow = OnSlow.BLOCK
    only: int = 0  # events published on this node alone (0: on any)
    but: int = 0  # not those published on this node
    marks: Marks = Marks()  # noqa: RUF009 - it cannot be changed
    budget_ns: int = limits.SLOW_SUBSCRIBER_TIMEOUT_NS  # for which it may be full

    def predicate(self) -> Predicate | None:
        """The filter as the agent asks it."""
        if self.only:
            return Predicate(from_node(self.only))
        return Predicate(~from_node(self.but)) if self.but else None

    def wants(self, node_id: int) -> bool:
        """The same, said plainly."""
        return self.only in (0, node_id) and node_id != self.but

    def budget(self) -> SlowBudget:
        return SlowBudget(self.budget_ns, limits.SLOW_SUBSCRIBER_INTERVAL_NS)


def ask(random: Random, node_ids: list[int]) -> Asked:
    """Something at random. The stream of chance is its own, so that plans stay what they were."""
    # Runs of the simulation have no properties: the publisher's node is what filters can look at.
    kind, node_id = random.choice(("", "", "only", "but")), random.choice(node_ids)
    full = random.choice((1, 4, 16)) * limits.KIB
    small = random.random() < 0.6
    return Asked(
        on_slow=random.choice(list(OnSlow)),
        only=node_id if kind == "only" else 0,
        but=node_id if kind == "but" else 0,
        marks=Marks(full, 8 * full, random.choice((2, 100)) * full) if small else Marks(),
        budget_ns=random.choice(_PATIENCE_NS),
    )


class Delivered(NamedTuple):
    first_seq: int
    last_seq: int
    wanted: bool


class Reader:
    """The events of one subscription on one connection, against what its node delivered."""

    __slots__ = ("_complain", "_expected", "asked", "ended", "missed", "topic_id")

    def __init__(self, asked: Asked, topic_id: int, complain: Callable[[str], None]) -> None:
        self.asked = asked
        self.topic_id = topic_id
        self.ended = False
        self.missed = 0  # events that it was told of
        self._complain = complain
        self._expected: deque[Delivered] = deque()

    def delivered(self, first_seq: int, last_seq: int, node_id: int) -> None:
        """The node has delivered a run of the topic, before the hub is told of it."""
        self._expected.append(Delivered(first_seq, last_seq, self.asked.wants(node_id)))

    def took(self, topic_id: int, first_seq: int, last_seq: int) -> None:
        """A run came."""
        self._pass_by()
        known = self._expected.popleft() if self._expected else None
        if self.ended or topic_id != self.topic_id or known != (first_seq, last_seq, True):
            self._complain(f"topic {topic_id} seq {first_seq} to {last_seq} came, and next was {known}")

    def told(self, notice: Notice) -> None:
        """A notice came."""
        if self.ended:
            self._complain(f"a notice behind the end: {notice}")
        if notice.code == NoticeCode.GAP:
            self._gap(notice)
        elif notice.code in (NoticeCode.TOPIC_REMOVED, NoticeCode.SLOW) and notice.final:
            self._pass_by()
            if self._expected and notice.code == NoticeCode.TOPIC_REMOVED:
                self._complain(f"the topic's removal came before {self._expected[0]}")
            if notice.code == NoticeCode.SLOW and self.asked.on_slow is not OnSlow.DISCONNECT:
                self._complain(f"nobody asked for an end: {notice}")
            self.ended = True
        else:
            self._complain(f"a notice that has no place here: {notice}")

    def _ran_out(self, notice: Notice) -> None:
        """What was to come from what is kept is not kept any more; what it was, its filter had no chance to say."""
        expected = self._expected
        while expected and not expected[0].wanted and expected[0].last_seq < notice.first_seq:
            expected.popleft()
        if not expected or expected[0].first_seq != notice.first_seq:
            self._complain(f"a gap of what was not to come: {notice}; next was {list(expected)[:1]}")
        while expected and expected[0].first_seq <= notice.last_seq:
            one = expected.popleft()
            last = min(one.last_seq, notice.last_seq)
            if one.wanted:
                self.missed += last + 1 - one.first_seq
            if last < one.last_seq:  # the run at the edge
                expected.appendleft(Delivered(last + 1, one.last_seq, one.wanted))

    def _gap(self, notice: Notice) -> None:
        if notice.reason in (RAN_OUT, REMOVED):
            self._ran_out(notice)
            return
        self._pass_by()
        last: Delivered | None = None
        first = self._expected[0] if self._expected else None
        while self._expected and self._expected[0].first_seq <= notice.last_seq:
            last = self._expected.popleft()
            if last.wanted:
                self.missed += last.last_seq + 1 - last.first_seq
        if first is None or last is None or not last.wanted:
            self._complain(f"a gap of what nobody missed: {notice}")
        elif (first.first_seq, last.last_seq) != (notice.first_seq, notice.last_seq):
            self._complain(f"a gap from {first} to {last} is told as {notice}")

    def _pass_by(self) -> None:
        """What the filter leaves out before the next event is no gap."""
        expected = self._expected
        while expected and not expected[0].wanted:
            expected.popleft()

    def read_all(self) -> None:
        """Everything was read that there is: nothing may be missing."""
        self._pass_by()
        if self._expected and not self.ended:
            self._complain(f"{self._expected[0]} neither came nor was told of")
