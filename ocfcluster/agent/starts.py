"""Where a subscription starts in each of its topics: at the next event, or earlier, with what is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocfcluster.agent.external_views import RAW
from ocfcluster.agent.names import canonical
from ocfcluster.agent.views import TOPIC_ID as MEMBERSHIP
from ocfcluster.errors import InvalidArgument
from ocfcluster.ipc.replay import RAN_OUT, Cursor
from ocfcluster.protocol.effects import Topic
from ocfcluster.protocol.retention import Retained, TopicSource
from ocfcluster.wire.frames import Begin, Notice, NoticeCode, Start, Subscribe

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

HISTORY_ENDED: Final = "the history they belong to has ended"
MADE_AGAIN: Final = "the topic was removed and made again"
AWAY: Final = "the agent was away"


class Starts:
    """The starts of one subscription. Raises InvalidArgument where it cannot start so."""

    def __init__(self, agent: Agent, topics: list[Topic], body: Subscribe) -> None:
        self._agent = agent
        self._body = body
        self.positions = {canonical(one.topic): one for one in body.positions}
        self._begins = {canonical(one.topic): one for one in body.begins}
        self.starts: list[Start] = []
        self.gaps: list[Notice] = []  # to be told by the agent; a library that comes back tells its own
        self.cursors: dict[int, Cursor] = {}  # of topics that have something kept for it
        self._names = {topic.topic_id: topic.name for topic in topics}
        for topic in {topic.topic_id: topic for topic in topics}.values():
            if topic.topic_id == MEMBERSHIP:
                self._start_membership(topic)
            elif topic == RAW:  # whatever its component has missed, it is told anew
                self.starts.append(Start(topic.name, topic.topic_id, agent.last_seq(topic) + 1, topic.local))
            else:
                self._start(topic)

    @property
    def names(self) -> dict[int, str]:
        return self._names

    @property
    def membership_position(self) -> int | None:
        """The last seq of ``oc.membership`` that the program knows."""
        return self._asked_position(self._names[MEMBERSHIP])

    def _asked_position(self, name: str) -> int | None:
        position, begin = self.positions.get(name), self._begins.get(name)
        if position is not None:
            return position.seq
        if begin is None or not self._is_current(begin, MEMBERSHIP):
            return None
        return begin.seq - 1

    def _is_current(self, begin: Begin, topic_id: int) -> bool:
        return begin.cluster_id in ("", self._agent.cluster_id()) and begin.topic_id in (0, topic_id)

    def _start_membership(self, topic: Topic) -> None:
        """The current view is kept, and nothing else."""
        begin = self._begins.get(topic.name)
        if begin is not None and self._is_current(begin, topic.topic_id):
            _check_begin(topic, begin.seq, self._agent.last_seq(topic))
        elif begin is not None:
            self._miss(topic, begin.seq, 0, HISTORY_ENDED)
        next_seq, gap_from = self._agent.router.views.start(self._asked_position(topic.name))
        reason = RAN_OUT if gap_from else ""
        self.starts.append(Start(topic.name, topic.topic_id, next_seq, topic.local, gap_from, reason))
        if begin is not None and gap_from:
            self._miss(topic, gap_from, next_seq - 1, RAN_OUT)

    def _start(self, topic: Topic) -> None:
        last_seq = self._agent.last_seq(topic)
        kept_from = kept_of(self._agent, topic).first_seq(topic.topic_id) or last_seq + 1
        begin = self._begins.get(topic.name)
        position = self.positions.get(topic.name)
        gap_from, reason = 0, ""
        if position is not None:
            next_seq = min(position.seq, last_seq) + 1
            if next_seq < kept_from:
                gap_from, next_seq = next_seq, kept_from
                reason = RAN_OUT if topic.settings.retention.keeps else AWAY
        elif begin is not None:
            next_seq = self._begin(topic, begin, kept_from, last_seq)
        elif self._body.retained:
            next_seq = kept_from
        else:
            next_seq = max(kept_from, last_seq + 1 - self._body.from_last)
        self.starts.append(Start(topic.name, topic.topic_id, next_seq, topic.local, gap_from, reason))
        if next_seq <= last_seq:
            self.cursors[topic.topic_id] = Cursor(source_of(self._agent, topic), next_seq, topic.local)

    def _begin(self, topic: Topic, begin: Begin, kept_from: int, last_seq: int) -> int:
        """The seq of the first event for one that asked for ``begin``."""
        next_seq = begin.seq
        if not self._is_current(begin, topic.topic_id):
            ended = begin.cluster_id not in ("", self._agent.cluster_id())
            self._miss(topic, begin.seq, 0, HISTORY_ENDED if ended else MADE_AGAIN)
            next_seq = 1
        _check_begin(topic, next_seq, last_seq)
        if next_seq < kept_from:
            self._miss(topic, next_seq, kept_from - 1, RAN_OUT)
        return max(next_seq, kept_from)

    def _miss(self, topic: Topic, first_seq: int, last_seq: int, reason: str) -> None:
        self.gaps.append(Notice(NoticeCode.GAP, topic.name, first_seq, last_seq, reason))


def _check_begin(topic: Topic, seq: int, last_seq: int) -> None:
    """A subscription may begin with the next event, and not behind it. Raises InvalidArgument."""
    if seq > last_seq + 1:
        raise InvalidArgument(f"topic {topic.name!r} has no event {seq} yet: the next one is {last_seq + 1}")


def needs_order(agent: Agent, topics: list[Topic], body: Subscribe) -> bool:
    """Whether the agent has to catch up with the order first: the program may have seen elsewhere what is not delivered
    here yet, or what it asks for may have grown old while nothing was ordered."""
    begins = {canonical(one.topic): one for one in body.begins}
    early = bool(body.begins or body.from_last or body.retained or body.positions)
    for topic in topics:
        begin = begins.get(topic.name)
        if begin is not None and begin.cluster_id in ("", agent.cluster_id()):
            ahead = begin.seq > agent.last_seq(topic) + 1
            if ahead or begin.topic_id not in (0, topic.topic_id):
                return True
        if early and topic.settings.retention.seconds and not topic.local:
            return True
    return False


class KeptNow(NamedTuple):
    """How much is kept of a topic."""

    events: int
    bytes: int
    first_seq: int


def kept_now(agent: Agent, topic: Topic) -> KeptNow:
    retained = kept_of(agent, topic)
    first = retained.first_seq(topic.topic_id)
    if not first:
        return KeptNow(0, 0, 0)
    return KeptNow(agent.last_seq(topic) + 1 - first, retained.topics[topic.topic_id].bytes, first)


def kept_of(agent: Agent, topic: Topic) -> Retained:
    """Where the topic's events are kept."""
    if not topic.local:
        return agent.node.retained
    agent.local.settle(topic)
    return agent.local.retained


def source_of(agent: Agent, topic: Topic) -> TopicSource:
    """What is kept of the topic, from now until its subscriber has caught up."""
    if topic.local:
        return TopicSource(
            lambda: agent.local.retained, lambda one: agent.local.last_seq.get(one, 0), topic.topic_id
        )
    return TopicSource(lambda: agent.node.retained, agent.node.last_seq, topic.topic_id)
