"""Judges the items of one history in their order: numbers, topics, publishers' order, and the rules of views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ocfcluster.limits import SECOND_NS
from ocfcluster.protocol.effects import Delivery, Directed, GroupChange, Topic, TopicChange, View
from ocfcluster.protocol.groups import FIRST_GROUP_ID
from ocfcluster.protocol.settings import Configuration
from ocfcluster.simulator.groups import GroupJudge
from ocfcluster.simulator.history import (
    FIRST_OWN_TOPIC,
    MEMBERSHIP,
    PRE_CREATED,
    History,
    Item,
    Publication,
    TopicState,
    shown,
)
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire.run import read_header

if TYPE_CHECKING:
    from ocfcluster.simulator.world import World

CLOCK_SLACK_NS: Final = 5 * SECOND_NS
UNKNOWN: Final = -1


class Judge:
    """Walks along one history behind those who deliver it."""

    __slots__ = (
        "_agreed",
        "_epoch",
        "_first_order_time",
        "_history",
        "_last_ev_id",
        "_last_number",
        "_members",
        "_names",
        "_next_topic_id",
        "_offset",
        "_order_time",
        "_world",
        "epochs",
        "events",
        "groups",
        "removed",
        "topics",
        "view",
    )

    def __init__(self, world: World, history: History, agreed: bool) -> None:
        self._world = world
        self._history = history
        self._agreed = agreed
        self._begin()

    @property
    def cluster_id(self) -> str:
        return self._history.cluster_id

    def _begin(self) -> None:
        self._epoch = UNKNOWN
        self._offset = 0
        self.topics: dict[int, TopicState] = {}
        self.groups = GroupJudge()
        self._names: dict[str, int] = {}
        self._next_topic_id = FIRST_OWN_TOPIC
        self._last_ev_id = 0
        self._order_time = 0
        self._first_order_time = 0  # of the first view seen
        self._last_number: dict[int, int] = {}
        self._members: dict[int, int] = {}  # node_id → incarnation
        self.view: View | None = None  # the last one
        self.removed: dict[int, str] = {}  # topics that were, by id
        self.events = 0  # publications delivered, each counted once
        self.epochs = 0

    def begin_again(self) -> None:
        """What was judged is not what stays (agreed delivery): judge it all anew."""
        for publication in self._history.publications.values():
            publication.judged = False
        self._begin()
        self.advance()

    def advance(self) -> None:
        """Judge what can be judged. Raises Violation."""
        history = self._history
        if self._epoch == UNKNOWN:
            if history.topics is None:
                return
            self._epoch = history.first_epoch
            for topic in (*PRE_CREATED, *history.topics.values()):
                self._add_topic(topic)
        while (segment := history.segments.get(self._epoch)) is not None:
            items = segment.items
            while self._offset < len(items):
                self._judge(items[self._offset])
                self._offset += 1
            if segment.end < 0:
                return
            self._epoch += 1
            self._offset = 0

    def unjudged(self) -> Iterator[Item]:
        """What was delivered behind the place that it has come to."""
        for epoch, segment in sorted(self._history.segments.items()):
            if epoch >= self._epoch:
                yield from segment.items[self._offset if epoch == self._epoch else 0 :]

    def skip_unseen(self) -> bool:
        """Nobody lives who could deliver the rest of the epoch where this one waits: go on behind it.

        What it was is then not known: numbers may jump ahead there, but not go back.
        """
        history = self._history
        if self._epoch == UNKNOWN and history.segments:  # nobody lives who delivered its beginning
            history.topics = {}
            self._epoch = history.first_epoch - 1
            self.topics = {topic.topic_id: TopicState(topic) for topic in PRE_CREATED}
        later = [epoch for epoch in history.segments if epoch > self._epoch]
        if self._epoch == UNKNOWN or not later:
            return False
        history.unseen += 1
        if self._agreed:  # where the epoch was cut nobody can say: what was delivered beyond it neither
            return False
        self._epoch = min(later)
        self._offset = 0
        view = self._history.segments[self._epoch].view
        if view.ev_id and view.ev_id <= self._last_ev_id:
            raise Violation("ev_id", f"{shown(view)} follows ev_id {self._last_ev_id}")
        self._last_ev_id = UNKNOWN
        self._last_number.clear()
        self._next_topic_id = UNKNOWN
        self.groups.lose_track()
        for state in self.topics.values():
            if state.last_seq >= 0:
                state.last_seq = -2 - state.last_seq  # at least that much
        self.view = None
        self.advance()
        return True

    # --- one item -----------------------------------------------------------------------------------------------

    def _judge(self, item: Item) -> None:
        self.groups.pass_by(item)
        if isinstance(item, View):
            self._judge_view(item)
            self.groups.view(set(self._members.items()))
        elif isinstance(item, GroupChange):
            self._next_seq(self.groups.changed(item, self._members), item.seq, shown(item))
            self._next_ev_id(item.ev_id, shown(item))
            self._judge_order_time(item.order_time, shown(item))
        elif isinstance(item, TopicChange):
            if item.topic.topic_id >= FIRST_GROUP_ID:
                self.groups.topic(item)
            else:
                self._judge_change(item)
        elif isinstance(item, Directed):
            self._judge_run(item.delivery, item.to)
        else:
            self._judge_run(item)

    def _judge_run(self, item: Delivery, to: int = 0) -> None:
        fresh = item.count - item.skip
        if item.topic_id >= FIRST_GROUP_ID:
            state: TopicState | None = self.groups.said(item, to)
        else:
            state = self.topics.get(item.topic_id)
        if state is not None and not state.topic.local:
            self._next_seq(state, item.seq, shown(item))
            state.last_seq += fresh - 1
        elif state is not None or not self._history.unseen:  # it may have been created where nobody saw it
            raise Violation("topics", f"{shown(item)} belongs to a topic that is not there at its place")
        self._next_ev_id(item.ev_id, shown(item))
        self._last_ev_id += fresh - 1
        self._judge_order_time(item.order_time, shown(item))
        self._judge_leap(item.order_time, shown(item))
        if self._members.get(item.node_id) != item.incarnation:
            raise Violation("membership", f"{shown(item)}: its origin is no member at its place")
        if self.view is not None and item.m_sequence != self.view.configuration.m_sequence:
            raise Violation("membership", f"{shown(item)} is in view {self.view.configuration.m_sequence}")
        self._judge_numbers(item)
        self.events += fresh

    def _judge_numbers(self, item: Delivery) -> None:
        header = read_header(item.run)
        producer = header.producer
        last = self._last_number.get(producer, 0)
        for number in range(header.first_number + item.skip, header.first_number + item.count):
            publication: Publication = self._history.publications[producer, number]
            if publication.judged:
                raise Violation("exactly once", f"{shown(item)}: number {number} was delivered before")
            if publication.error:
                raise Violation("exactly once", f"{shown(item)}: number {number} had been refused")
            if number <= last:
                raise Violation("fifo", f"{shown(item)}: number {number} comes after {last}")
            last = number
            publication.judged = True
        self._last_number[producer] = last

    def _next_seq(self, state: TopicState, seq: int, what: str) -> None:
        last = state.last_seq
        if last <= -2:  # behind epochs that nobody saw to their end
            if seq <= -2 - last:
                raise Violation("seq", f"{what} follows seq {-2 - last} at least")
        elif seq != last + 1:
            raise Violation("seq", f"{what} follows seq {last}")
        state.last_seq = seq

    def _next_ev_id(self, ev_id: int, what: str) -> None:
        if self._last_ev_id not in (UNKNOWN, ev_id - 1):
            raise Violation("ev_id", f"{what} follows ev_id {self._last_ev_id}")
        self._last_ev_id = ev_id

    def _judge_order_time(self, order_time: int, what: str) -> None:
        if order_time < self._order_time:
            raise Violation("order time", f"{what}: {order_time} goes back behind {self._order_time}")
        self._order_time = order_time

    def _judge_leap(self, order_time: int, what: str) -> None:
        """From a history's first view on order_time runs like a clock, whoever is its sequencer and whatever that node
        takes for the time of day."""
        if not self._first_order_time:
            self._first_order_time = order_time
        passed = self._world.now - min(self._history.first_seen.values(), default=0)
        if order_time - self._first_order_time > 2 * passed + CLOCK_SLACK_NS:
            raise Violation("order time", f"{what}: {order_time} leaps ahead of the clock")

    # --- topics -------------------------------------------------------------------------------------------------

    def _add_topic(self, topic: Topic) -> None:
        self.topics[topic.topic_id] = TopicState(topic)
        self._names[topic.name] = topic.topic_id
        if self._next_topic_id != UNKNOWN:
            self._next_topic_id = max(self._next_topic_id, topic.topic_id + 1)

    def _judge_change(self, change: TopicChange) -> None:
        topic = change.topic
        if change.removed:
            state = self.topics.pop(topic.topic_id, None)
            if state is None and self._history.unseen:
                return
            if state is not None and self._history.unseen:  # nor perhaps what altered it
                state.topic = state.topic._replace(settings=topic.settings)
            if state is None or state.topic != topic:
                raise Violation("topics", f"{topic} is removed and was not there")
            if state.last_seq != change.last_seq and not self._history.unseen:
                raise Violation(
                    "topics", f"{topic} is removed at seq {change.last_seq}, not {state.last_seq}"
                )
            del self._names[topic.name]
            self.removed[topic.topic_id] = topic.name
            return
        if change.altered:
            state = self.topics.get(topic.topic_id)
            if state is None and self._history.unseen:
                return
            if state is None or state.topic._replace(settings=topic.settings) != topic:
                raise Violation("topics", f"{topic} is altered and was not there")
            if state.topic == topic:
                raise Violation("topics", f"{topic} is altered to what it was")
            state.topic = topic
            return
        if topic.name in self._names and not self._history.unseen:
            raise Violation("topics", f"{topic} is created, and is there already: {self._names}")
        # A history that took over from another may have seen ids there that were removed again.
        first_of_later = bool(self._history.supersedes) and topic.topic_id >= self._next_topic_id
        if self._next_topic_id not in (UNKNOWN, topic.topic_id) and not first_of_later:
            raise Violation("topics", f"{topic} is created; next id {self._next_topic_id}")
        self._add_topic(topic)
        self._next_topic_id = topic.topic_id + 1

    # --- views --------------------------------------------------------------------------------------------------

    def _judge_view(self, view: View) -> None:
        configuration = view.configuration
        if self.view is None and not self._history.unseen:
            first_view(view)
            changed = True
        elif self.view is not None:
            next_view(self.view, view)
            changed = configuration.m_sequence != self.view.configuration.m_sequence
        else:
            check_members(configuration)
            changed = bool(view.seq)
        if changed:
            state = self.topics[MEMBERSHIP]
            self._next_seq(state, view.seq, shown(view))
            self._next_ev_id(view.ev_id, shown(view))
        elif view.seq or view.ev_id:
            raise Violation(
                "views", f"{shown(view)} has seq {view.seq}, ev_id {view.ev_id} and changes nothing"
            )
        self._judge_order_time(configuration.order_time, shown(view))
        self._judge_leap(configuration.order_time, shown(view))
        self._members = {member.node_id: member.incarnation for member in configuration.members}
        self.view = view
        self.epochs += 1


def first_view(view: View) -> None:
    """The rules for the first view of a history. Raises Violation."""
    configuration = view.configuration
    check_members(configuration)
    if configuration.m_sequence != 1 or view.seq != 1 or view.ev_id != 1:
        raise Violation("views", f"the first of its history: {shown(view)}, ev_id {view.ev_id}")
    if any(member.born_on != 1 for member in configuration.members):
        raise Violation("views", f"members of a first view were born before: {configuration.members}")
    if view.joined != tuple(configuration.members) or view.left:
        raise Violation("views", f"in a first view all have joined and nobody left: {shown(view)}")


def next_view(before: View, view: View) -> None:
    """The rules for a view that follows another. Raises Violation."""
    old, new = before.configuration, view.configuration
    check_members(new)
    if new.epoch != old.epoch + 1:
        raise Violation("views", f"epoch {new.epoch} follows epoch {old.epoch}")
    if new.base < old.base + 1:
        raise Violation("views", f"{shown(view)} cuts off {shown(before)}")
    was = {(member.node_id, member.incarnation): member for member in old.members}
    now = {(member.node_id, member.incarnation): member for member in new.members}
    joined = tuple(member for key, member in now.items() if key not in was)
    left = tuple(member for key, member in was.items() if key not in now)
    if view.joined != joined or view.left != left:
        raise Violation("views", f"{shown(view)}: joined {joined} and left {left} would be right")
    changed = bool(joined or left)
    if new.m_sequence != old.m_sequence + changed:
        raise Violation("views", f"{shown(view)} follows m_sequence {old.m_sequence}")
    for key, member in now.items():
        if key in was and member.born_on != was[key].born_on:
            raise Violation("views", f"{member} was born on {was[key].born_on}")
        if key not in was and member.born_on != new.m_sequence:
            raise Violation("views", f"{member} joins at m_sequence {new.m_sequence}")
        if key in was and member.store_id != was[key].store_id:
            raise Violation("views", f"{member} had store {was[key].store_id:#x}")


def check_members(configuration: Configuration) -> None:
    """The rules for any configuration. Raises Violation."""
    members = configuration.members
    ids = [member.node_id for member in members]
    if not ids or len(set(ids)) != len(ids):
        raise Violation("views", f"members twice, or none: {members}")
    if members != sorted(members, key=lambda member: (member.born_on, member.node_id)):
        raise Violation("views", f"members are not oldest first: {members}")
    if configuration.sequencer not in ids or configuration.tie_breaker not in ids:
        raise Violation("views", f"sequencer or tie-breaker is no member: {configuration}")
    table = configuration.table
    for member in members:
        if table and table.get(member.node_id) != member.votes:
            raise Violation("views", f"{member} has {table.get(member.node_id)} votes in the table: {table}")
    total = sum(table.values())
    present = sum(member.votes for member in members)
    if 2 * present < total and not configuration.last_man_standing:
        raise Violation("one primary", f"a view with {present} of the table's {total} votes: {configuration}")
