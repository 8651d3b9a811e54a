"""The oracle: what was promised, checked from outside while it happens.

There is one global sequence per history. The first node to deliver an item extends it; every other node must deliver
the same item at the same place, and go from one epoch to the next at the same place. What is in the sequence is judged
in ``judge``, receipts in ``receipts``, what nodes hold and have on disk in ``memory``, their votes in ``votes``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ocfcluster.limits import SECOND_NS, SLOW_SUBSCRIBER_TIMEOUT_NS
from ocfcluster.protocol.effects import (
    Delivery,
    Directed,
    Fault,
    GroupChange,
    Notification,
    NotificationCode,
    Outcome,
    State,
    TopicChange,
    View,
)
from ocfcluster.protocol.groups import FIRST_GROUP_ID
from ocfcluster.protocol.quorum import Quorums
from ocfcluster.protocol.settings import Configuration
from ocfcluster.simulator import observe
from ocfcluster.simulator.history import (
    Cursor,
    History,
    Place,
    Publication,
    Segment,
    change_text,
    shown,
    view_text,
    what_changed,
)
from ocfcluster.simulator.judge import Judge, check_members
from ocfcluster.simulator.memory import Memory
from ocfcluster.simulator.receipts import Receipts
from ocfcluster.simulator.replicated import StateChecker
from ocfcluster.simulator.said import Said
from ocfcluster.simulator.trace import Violation
from ocfcluster.simulator.votes import Votes

if TYPE_CHECKING:
    from ocfcluster.simulator.host import Host
    from ocfcluster.simulator.shell import Shell
    from ocfcluster.simulator.world import World

STATUS_EVERY: Final = 64  # bursts of a node between two looks at its status
SUBSCRIBERS_ARE_WAITED_FOR_NS: Final = SLOW_SUBSCRIBER_TIMEOUT_NS  # then the subscriber pays, not the cluster

Item = Delivery | TopicChange | Outcome | View | GroupChange | Directed


class Checker:
    """Sees every item that every node delivers, every answer, and every record that becomes durable."""

    __slots__ = (
        "_agreed",
        "_alterations_asked",
        "_alone",
        "_bursts",
        "_judges",
        "_removals_asked",
        "_world",
        "evictions",
        "faults",
        "histories",
        "replicated",
        "memory",
        "operators",
        "receipts",
        "said",
        "votes",
        "wipes",
    )

    def __init__(self, world: World, delivery: str) -> None:
        self._world = world
        self._agreed = delivery == "agreed"
        self._alone: set[int] = (
            set()
        )  # nodes that could commit by themselves: no window holds back what waits there
        self._bursts: Counter[int] = Counter()
        self._judges: dict[str, Judge] = {}
        self._removals_asked: Counter[str] = Counter()
        self._alterations_asked: Counter[str] = Counter()
        self.replicated = StateChecker()
        self.votes = Votes()
        self.histories: dict[str, History] = {}  # by cluster_id, in the order in which they began
        self.memory = Memory(world)
        self.receipts = Receipts(world, self._agreed)
        self.said = Said(world)
        self.faults: Counter[str] = Counter()
        self.evictions = 0
        self.operators = 0  # commands of operators: a new history needs no other reason
        self.wipes = 0

    # --- what programs tell -------------------------------------------------------------------------------------

    def published(
        self,
        history: History,
        origin: int,
        producer: int,
        number: int,
        topic_id: int,
        data: bytes,
        void: int = 0,
    ) -> Publication:
        """An honest program hands in a publication for the first time."""
        publication = Publication(origin, topic_id, data, void, self._world.now)
        history.publications[producer, number] = publication
        return publication

    def given_up(self, publications: list[Publication]) -> None:
        """Their publisher waits for their answers no more: whatever becomes of them is right."""
        for publication in publications:
            publication.unknown = True

    def removal_asked(self, name: str) -> None:
        """From now on the topic may be gone at any time."""
        self._removals_asked[name] += 1

    def removal_answered(self, name: str) -> None:
        """That is over: either it is gone, or it stays."""
        self._removals_asked[name] -= 1

    def alteration_asked(self, name: str) -> None:
        """From now on the topic's settings may be others at any time."""
        self._alterations_asked[name] += 1

    def alteration_answered(self, name: str) -> None:
        self._alterations_asked[name] -= 1

    def complain(self, rule: str, text: str) -> None:
        """A program got an answer it must not get."""
        raise Violation(rule, text)

    def operator_acts(self) -> None:
        """An operator says that a history may end."""
        self.operators += 1

    # --- processes ----------------------------------------------------------------------------------------------

    def started(self, shell: Shell) -> None:
        self.memory.started(shell)

    def ended(self, shell: Shell) -> None:
        self.evictions += shell.state is State.EVICTED
        self.check_replays(shell)

    def state_changed(self, shell: Shell) -> None:
        """An active node has a configuration."""
        if shell.state is State.ACTIVE and shell.node.configuration is None:
            raise Violation("configuration", f"node {shell.node_id} is active without a configuration")
        self._look_at_configuration(shell)

    def fault(self, shell: Shell, fault: Fault) -> None:
        """A node says itself that something went wrong: an operator's problem, or a bug."""
        self.faults[fault.code] += 1
        if fault.code in observe.IMPOSSIBLE_FAULTS:
            raise Violation("fault", f"node {shell.node_id} reports {fault.code}: {fault.text}")

    def notified(self, shell: Shell, notification: Notification) -> None:
        """NOT_PRIMARY, then PRIMARY_RESTORED with the same members, or no word of it."""
        before = shell.not_primary
        self.faults[notification.code.value] += 1
        if notification.code is NotificationCode.NOT_PRIMARY:
            if before is not None:
                raise Violation("notifications", f"node {shell.node_id} is told twice that it is not primary")
            shell.not_primary = notification
            return
        if before is None:
            raise Violation("notifications", f"node {shell.node_id} is restored and never was without quorum")
        if notification.m_sequence != before.m_sequence:
            raise Violation(
                "notifications",
                f"node {shell.node_id} is restored with other members: {before}, {notification}",
            )
        shell.not_primary = None
        self._look_for_later_epochs(shell)

    def _look_for_later_epochs(self, shell: Shell) -> None:
        """Who is told that it is back is not left out by an epoch that others have been in for long."""
        cursor = shell.cursor
        if cursor is None:
            return
        history, own = cursor.history, (shell.node_id, shell.settings.incarnation)
        for epoch, configuration in history.configurations.items():
            age_ns = self._world.now - history.first_seen[epoch]
            if epoch > cursor.segment.epoch and age_ns > SECOND_NS and configuration.member(*own) is None:
                raise Violation(
                    "notifications",
                    f"node {shell.node_id} is restored in epoch {cursor.segment.epoch}, and epoch {epoch} lacks it",
                )

    def recorded(self, host: Host, record: bytes) -> None:
        """A record became durable."""
        found = observe.read_record(record)
        if found.configuration is not None:
            self._configured(found.configuration, f"the disk of node {host.node_id}")
        place = ("", 0)
        if found.configuration is not None:
            place = (found.configuration.cluster_id, found.configuration.epoch)
        if found.vote is None:
            self.votes.silent((host.node_id, host.store_id), *place)
        elif not self.operators:  # whose word counts for votes that are lost
            vote = found.vote
            history = self.histories.get(vote.cluster_id)
            previous = history.configurations.get(vote.epoch) if history is not None else None
            self.votes.durable((host.node_id, host.store_id), vote, previous)

    # --- configurations -----------------------------------------------------------------------------------------

    def _look_at_configuration(self, shell: Shell) -> None:
        configuration = shell.node.configuration
        if configuration is not shell.configuration and configuration is not None:
            shell.configuration = configuration
            self._configured(configuration, f"node {shell.node_id}")

    def _configured(self, configuration: Configuration, who: str) -> History:
        """One configuration per (cluster_id, epoch), whoever has it. Raises Violation."""
        history = self.histories.get(configuration.cluster_id)
        if history is None:
            history = self._begin_history(configuration)
        known = history.configurations.get(configuration.epoch)
        if known is None:
            check_members(configuration)
            if (
                history.ended
                and not self._excused(history)
                and configuration.epoch > max(history.configurations)
            ):
                raise Violation(
                    "one primary",
                    f"{who} has epoch {configuration.epoch} of {history.cluster_id}, which ended: {configuration}",
                )
            decided = self.votes.decided(configuration.cluster_id, configuration.epoch - 1)
            if decided is not None and decided != configuration:
                raise Violation("votes", f"{who} has {configuration}; decided was {decided}")
            first = configuration.epoch == 1 and not configuration.supersedes
            if not first and not self.operators and not self.votes.is_decided(configuration):
                raise Violation("votes", f"{who} has {configuration}, which no quorum of disks has accepted")
            self.memory.check_cut(configuration)
            history.configurations[configuration.epoch] = configuration
            history.first_seen[configuration.epoch] = self._world.now
        elif known != configuration:
            raise Violation(
                "configuration",
                f"{who} has another epoch {configuration.epoch} than others: {configuration} and {known}",
            )
        return history

    def _excused(self, history: History) -> bool:
        """An operator took it upon themselves."""
        return any(self.histories[successor].by_operator for successor in history.successors)

    def _begin_history(self, configuration: Configuration) -> History:
        """The first sign of a new cluster_id: it may be only where the one before may end, or there is none."""
        history = History(configuration.cluster_id, list(configuration.supersedes), self._world.now)
        history.by_operator = bool(self.operators)
        for known in self.histories.values():
            if known.ended:
                continue
            if known.cluster_id in configuration.supersedes:
                if not history.by_operator:
                    self.memory.check_may_end(known, configuration.cluster_id)
                known.ended = True
                known.successors.append(configuration.cluster_id)
            elif not history.by_operator and self._is_remembered(known):
                raise Violation(
                    "one primary",
                    f"{configuration.cluster_id} begins beside {known.cluster_id}, which a disk of its nodes "
                    f"knows: {configuration}",
                )
            else:
                known.ended = True
                known.successors.append(configuration.cluster_id)
        self.histories[configuration.cluster_id] = history
        self._judges[configuration.cluster_id] = Judge(self._world, history, self._agreed)
        return history

    def _is_remembered(self, history: History) -> bool:
        """Whether a node that is up knows of this history from its disk, or is in it."""
        for host in self._world.hosts.values():
            if host.shell is None:
                continue
            if host.shell.cursor is not None and host.shell.cursor.history is history:
                return True
            if history.cluster_id in observe.histories_known(host.shell.settings.record):
                return True
        return False

    # --- the sequence -------------------------------------------------------------------------------------------

    def viewed(self, shell: Shell, view: View, following: Sequence[Item]) -> None:
        """A node goes on to the epoch of ``view``, or begins there. ``following`` is what it delivers behind it in
        the same burst. Raises Violation."""
        configuration = view.configuration
        world = self._world
        history = self._configured(configuration, f"node {shell.node_id}")
        self._check_serving(shell, view)
        own = (shell.node_id, shell.settings.incarnation)
        if own not in [(member.node_id, member.incarnation) for member in configuration.members]:
            raise Violation(
                "views", f"node {shell.node_id} delivers a view without itself: {view_text(view)}"
            )
        cursor = shell.cursor
        if cursor is not None and cursor.history is history:
            self._go_on(shell, cursor, view)
        else:
            self._check_admission(shell, view, cursor)
            if cursor is None or cursor.history is not history:
                self._learn_topics(shell, history, view, following)
        segment = history.segments.get(configuration.epoch)
        first = segment is None
        if segment is None:
            segment = history.segments[configuration.epoch] = Segment(configuration.epoch, view)
            segment.makers[0] = shell.node_id
        elif segment.view != view:
            raise Violation("agreement", f"node {shell.node_id} delivers {view}; others had {segment.view}")
        shell.cursor = Cursor(history, segment)
        if view.seq and shell.not_primary is not None:
            shell.not_primary = None  # the new membership says it all
        text = view_text(view) + (", first" if first else "")
        world.trace.add(world.now, shell.node_id, "deliver", f"[{configuration.epoch}/0] {text}")
        self._judges[history.cluster_id].advance()

    def _check_serving(self, shell: Shell, item: object) -> None:
        if shell.state in (State.EVICTED, State.STOPPED):
            raise Violation("agreement", f"node {shell.node_id} is {shell.state.value} and delivers {item}")

    def _go_on(self, shell: Shell, cursor: Cursor, view: View) -> None:
        """A member of one epoch is a member of the next: it has delivered the same there as all such."""
        segment = cursor.segment
        epoch = view.configuration.epoch
        if epoch != segment.epoch + 1:
            raise Violation(
                "virtual synchrony", f"node {shell.node_id} goes from epoch {segment.epoch} to epoch {epoch}"
            )
        if cursor.beyond:
            raise Violation(
                "virtual synchrony",
                f"node {shell.node_id} delivered beyond the end of epoch {segment.epoch} and goes on to {epoch}",
            )
        if segment.end < 0:
            self._end_segment(shell, cursor)
        elif segment.end != cursor.offset:
            raise Violation(
                "virtual synchrony",
                f"node {shell.node_id} goes on to epoch {epoch} after {cursor.offset} items of epoch "
                f"{segment.epoch}; node {segment.ended_by} did after {segment.end}",
            )

    def _end_segment(self, shell: Shell, cursor: Cursor) -> None:
        segment, history = cursor.segment, cursor.history
        segment.end = cursor.offset
        segment.ended_by = shell.node_id
        more = segment.items[segment.end :]
        if not more:
            return
        makers = sorted(set(segment.makers[segment.end :]))
        if not self._agreed:
            raise Violation(
                "safe delivery",
                f"node {shell.node_id} goes on to epoch {segment.epoch + 1} after {segment.end} items of epoch "
                f"{segment.epoch}; nodes {makers} delivered {len(more)} more, the first of them {shown(more[0])}",
            )
        # Agreed delivery: those who were cut off or died may have delivered what does not stand.
        for offset, item in enumerate(more, segment.end):
            run = item.delivery if isinstance(item, Directed) else item
            if isinstance(run, Delivery):
                self.receipts.withdraw(history, run, Place(segment.epoch, offset))
        del segment.items[segment.end :]
        del segment.makers[segment.end :]
        for other in self._running():
            theirs = other.cursor
            if theirs is not None and theirs.segment is segment and theirs.offset > segment.end:
                theirs.beyond = True
        self._judges[history.cluster_id].begin_again()

    def _check_admission(self, shell: Shell, view: View, cursor: Cursor | None) -> None:
        own = (shell.node_id, shell.settings.incarnation)
        if own not in [(member.node_id, member.incarnation) for member in view.joined]:
            raise Violation(
                "views", f"node {shell.node_id} begins with a view that does not admit it: {view_text(view)}"
            )
        cluster_id = view.configuration.cluster_id
        if cursor is not None and shell.declared != (cluster_id, cursor.history.cluster_id):
            raise Violation(
                "history",
                f"node {shell.node_id} goes on in {cluster_id}, and its programs were not told that "
                f"{cursor.history.cluster_id} has ended (told: {shell.declared})",
            )

    def _learn_topics(self, shell: Shell, history: History, view: View, following: Sequence[Item]) -> None:
        """The topics that a history begins with: those of a node at its first view, without what came after it."""
        if history.topics is not None or view.configuration.m_sequence != 1:
            return
        if len(view.joined) != len(view.configuration.members):
            return
        topics = {topic.topic_id: topic for topic in shell.node.topics.values()}
        for item in reversed(following):
            if isinstance(item, TopicChange) and item.topic.topic_id >= FIRST_GROUP_ID:
                continue
            if isinstance(item, TopicChange) and item.removed:
                topics[item.topic.topic_id] = item.topic
            elif isinstance(item, TopicChange) and item.before is not None:
                topics[item.topic.topic_id] = item.topic._replace(settings=item.before)
            elif isinstance(item, TopicChange):
                topics.pop(item.topic.topic_id, None)
        history.topics = dict(sorted(topics.items()))
        for cluster_id, judge in self._judges.items():
            old = self.histories[cluster_id]
            follows = history.cluster_id in old.successors and cluster_id in history.supersedes
            if follows and not self._agreed and not self.wipes and not history.by_operator:
                asked = [name for name, count in self._removals_asked.items() if count > 0]
                altering = [name for name, count in self._alterations_asked.items() if count > 0]
                changes = [item for item in judge.unjudged() if isinstance(item, TopicChange)]
                asked += [change.topic.name for change in changes if change.removed]
                altering += [change.topic.name for change in changes if change.altered]
                self.memory.check_topics_survive(judge, history.topics, asked, altering)

    def delivered(
        self, shell: Shell, item: Delivery | TopicChange | Outcome | GroupChange | Directed
    ) -> None:
        """Judge one item. Raises Violation."""
        self._check_serving(shell, item)
        if isinstance(item, Outcome):
            self.receipts.check(shell, item)
            return
        cursor = shell.cursor
        if cursor is None:
            raise Violation("views", f"node {shell.node_id} delivers before any view: {shown(item)}")
        if cursor.beyond:
            return
        world = self._world
        segment = cursor.segment
        place = cursor.place
        if segment.end == cursor.offset:
            if not self._agreed:
                raise Violation(
                    "safe delivery",
                    f"node {shell.node_id} delivers {shown(item)} in epoch {segment.epoch}, which had ended "
                    f"after {segment.end} items for node {segment.ended_by}",
                )
            cursor.beyond = True
            return
        where = f"[{place.epoch}/{place.offset}]"
        if cursor.offset == len(segment.items):
            run = item.delivery if isinstance(item, Directed) else item
            if isinstance(run, Delivery):
                self.receipts.identify(shell, cursor.history, run, place)
            segment.items.append(item)
            segment.makers.append(shell.node_id)
            world.trace.add(world.now, shell.node_id, "deliver", f"{where} {self._text(item)}, first")
            cursor.offset += 1
            self._judges[cursor.history.cluster_id].advance()
        else:
            known = segment.items[cursor.offset]
            if known != item:
                raise Violation(
                    "agreement",
                    f"node {shell.node_id} delivers at place {where} {shown(item)}; others had {shown(known)}",
                )
            world.trace.add(world.now, shell.node_id, "deliver", where)
            cursor.offset += 1
        of_table = isinstance(item, TopicChange) and item.topic.topic_id < FIRST_GROUP_ID
        if isinstance(item, TopicChange) and of_table and not self._agreed:
            self.memory.check_durable(shell, item)

    def _text(self, item: Delivery | TopicChange | GroupChange | Directed) -> str:
        if isinstance(item, GroupChange):
            return change_text(item)
        if isinstance(item, Directed):
            return f"for member {item.to}: {self._text(item.delivery)}"
        if isinstance(item, TopicChange):
            return f"topic {item.topic.topic_id} {what_changed(item)}"
        return f"seq {item.seq} ev_id {item.ev_id}: {self._world.describe_run(item.run)}"

    # --- after each burst ---------------------------------------------------------------------------------------

    def after_burst(self, shell: Shell) -> None:
        """What must hold whenever a node has finished a burst."""
        self._look_at_configuration(shell)
        configuration = shell.node.configuration
        if configuration is not None and Quorums(configuration).commit([shell.node_id]):
            self._alone.add(shell.node_id)
        if not self._agreed:
            self.memory.check_held(shell)
        self.memory.check_freed(shell)
        self.replicated.look(shell)
        self._bursts[shell.node_id] += 1
        if self._bursts[shell.node_id] % STATUS_EVERY == 0:
            self.check_bounds(shell)

    def check_bounds(self, shell: Shell) -> None:
        """The buffers of a node, and what its slowest subscriber was given above its mark."""
        nodes = len(self._world.hosts)
        for text in observe.excesses(shell.node, shell.settings, shell.clock(), nodes):
            raise Violation("bounds", f"node {shell.node_id}: {text}")
        subscriber = self._world.hosts[shell.node_id].subscriber
        most = subscriber.profile.mark_bytes + observe.on_the_way_bytes(shell.settings, nodes)
        if shell.node_id in self._alone:
            most += observe.pending_bytes(shell.settings)
        if subscriber.most_bytes > most and self._world.now < SUBSCRIBERS_ARE_WAITED_FOR_NS:
            raise Violation(
                "bounds",
                f"node {shell.node_id}'s subscriber was full at {subscriber.profile.mark_bytes} B "
                f"and got up to {subscriber.most_bytes} B; {most} B were promised",
            )

    def check_replays(self, shell: Shell) -> None:
        """No datagram is taken twice."""
        taken = observe.taken_datagrams(shell.node, shell.clock())
        if taken > len(shell.distinct):
            raise Violation(
                "replay",
                f"node {shell.node_id} took {taken} datagrams of the {len(shell.distinct)} it was sent",
            )

    # --- at the end ---------------------------------------------------------------------------------------------

    def _running(self) -> Iterator[Shell]:
        for host in self._world.hosts.values():
            if host.shell is not None:
                yield host.shell

    @property
    def current(self) -> History | None:
        """The history that no other one has superseded."""
        last = None
        for history in self.histories.values():
            if not history.ended:
                last = history
        return last

    @property
    def events(self) -> int:
        """Publications delivered, each counted once."""
        return sum(judge.events for judge in self._judges.values())

    @property
    def epochs(self) -> int:
        """Configurations that came into force, in all histories."""
        return sum(len(history.configurations) for history in self.histories.values())

    @property
    def views(self) -> int:
        """Changes of the members among them."""
        return sum(
            bool(segment.view.seq)
            for history in self.histories.values()
            for segment in history.segments.values()
        )

    @property
    def length(self) -> int:
        """Items of all histories."""
        return sum(history.length for history in self.histories.values())

    @property
    def unseen(self) -> int:
        return sum(history.unseen for history in self.histories.values())

    def finish_judging(self) -> None:
        """At the end: also what lies behind epochs whose end nobody lived to deliver. Raises Violation."""
        for judge in self._judges.values():
            while judge.skip_unseen():
                pass

    def unplaced(self) -> Iterator[str]:
        """Receipts for what nobody delivered, though all was delivered to its end."""
        for history in self.histories.values():
            if history.unseen or self._agreed:
                continue
            for (producer, number), publication in history.publications.items():
                if publication.receipted and publication.place is None:
                    yield f"producer {producer}'s number {number} was confirmed and delivered by nobody"

    def behind(self) -> Iterator[str]:
        """Processes that have not delivered what the others have."""
        current = self.current
        for shell in self._running():
            cursor = shell.cursor
            if current is None or cursor is None or cursor.history is not current:
                yield f"node {shell.node_id} is not in the history"
            elif cursor.segment is not current.last_segment or not cursor.at_end:
                yield (
                    f"node {shell.node_id} is at {cursor.place} of {current.last_segment.epoch}/"
                    f"{len(current.last_segment.items)}"
                )
