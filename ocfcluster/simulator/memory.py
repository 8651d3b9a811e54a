"""Who holds what: safe delivery, durable topics, and when a history may end.

Memory is counted by incarnation: what a member held when its process ended still counts for what was delivered with
its help, and nothing that its next incarnation holds does. Disks are counted by store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ocfcluster.protocol.effects import State, Topic, TopicChange
from ocfcluster.protocol.settings import Configuration, Member
from ocfcluster.simulator import observe
from ocfcluster.simulator.history import History
from ocfcluster.simulator.judge import Judge
from ocfcluster.simulator.trace import Violation

if TYPE_CHECKING:
    from ocfcluster.simulator.shell import Shell
    from ocfcluster.simulator.world import World


class Memory:
    """All incarnations there ever were, by (node_id, incarnation)."""

    __slots__ = ("_shells", "_world")

    def __init__(self, world: World) -> None:
        self._world = world
        self._shells: dict[tuple[int, int], Shell] = {}

    def started(self, shell: Shell) -> None:
        self._shells[shell.node_id, shell.settings.incarnation] = shell

    def get(self, member: Member) -> Shell | None:
        return self._shells.get((member.node_id, member.incarnation))

    def is_kept(self, member: Member) -> bool:
        """Whether this incarnation still has its memory: also paused, frozen or cut off."""
        shell = self.get(member)
        return shell is not None and shell.running and shell.state not in (State.EVICTED, State.STOPPED)

    def lost_votes(self, configuration: Configuration) -> tuple[int, int]:
        """(votes of the members whose memory is gone, all votes)."""
        lost = sum(member.votes for member in configuration.members if not self.is_kept(member))
        return lost, sum(member.votes for member in configuration.members)

    def _holds_base(self, member: Member, base: int) -> bool:
        shell = self.get(member)
        return self.is_kept(member) and shell is not None and observe.held_index(shell.node) > base

    # --- safe delivery ------------------------------------------------------------------------------------------

    def check_held(self, shell: Shell) -> None:
        """Nothing is delivered that is not held by more than half of the votes of its epoch's members."""
        index = observe.delivered_index(shell.node)
        configuration = shell.node.configuration
        if index <= shell.checked_index or configuration is None:
            return
        cursor = shell.cursor
        if cursor is None or cursor.segment.epoch != configuration.epoch:
            return  # it only has it
        shell.checked_index = index
        if index <= configuration.base + 1:
            return  # the cut and the view behind it were decided; no vote of this epoch is asked for them
        held = votes = 0
        for member in configuration.members:
            votes += member.votes
            if self._held(member, configuration) >= index:
                held += member.votes
        if 2 * held <= votes:
            raise Violation(
                "safe delivery",
                f"node {shell.node_id} delivered up to index {index} of epoch {configuration.epoch}, "
                f"which {held} of {votes} votes hold",
            )

    def _held(self, member: Member, configuration: Configuration) -> int:
        """How far a member holds the order of this epoch, or held it when it ended."""
        shell = self.get(member)
        if shell is None:
            return -1
        theirs = shell.node.configuration
        if (
            theirs is None
            or theirs.cluster_id != configuration.cluster_id
            or theirs.epoch < configuration.epoch
        ):
            return -1
        return observe.held_index(shell.node)

    def has_held(self, member: Member, index: int) -> bool:
        """Whether this incarnation holds the order up to ``index``, or did when it ended."""
        shell = self.get(member)
        return shell is not None and observe.held_index(shell.node) >= index

    def check_cut(self, configuration: Configuration) -> None:
        """An epoch begins behind all that those who stay in it have counted for, and have promised to its proposer.
        Others of them were absent, or their promise was lost: what they hold behind the base is their end when they
        hear of it."""
        known = self._promised(configuration)
        for member in configuration.members:
            shell = self.get(member)
            if shell is None or not self.is_kept(member) or (known and member.node_id not in known):
                continue
            theirs = shell.node.configuration
            if theirs is None or (theirs.cluster_id, theirs.epoch + 1) != (
                configuration.cluster_id,
                configuration.epoch,
            ):
                continue
            plane = shell.node.plane
            if plane is None or not plane.frozen:
                continue
            counted = observe.counted_index(shell.node)
            if theirs.member(member.node_id, member.incarnation) is not None and counted > configuration.base:
                raise Violation(
                    "cut",
                    f"node {member.node_id} counted for {counted} in epoch {theirs.epoch}: {configuration}",
                )

    def _promised(self, configuration: Configuration) -> set[int]:
        """Whose promises its proposer has got; empty where nobody remembers."""
        for shell in self._shells.values():
            if shell.running and (promised := observe.promised(shell.node, configuration)):
                return promised
        return set()

    def check_freed(self, shell: Shell) -> None:
        """Nothing is freed that a member has not got."""
        freed = observe.freed_index(shell.node)
        configuration = shell.node.configuration
        if freed <= shell.checked_freed or configuration is None:
            return
        if configuration.member(shell.node_id, shell.settings.incarnation) is None:
            return  # nobody asks it
        shell.checked_freed = freed
        for member in configuration.members:
            other = self.get(member)
            if other is None or not self.is_kept(member):
                continue
            theirs = other.node.configuration
            if theirs is None or theirs.cluster_id != configuration.cluster_id:
                continue
            held = observe.held_index(other.node)
            if held and held < freed:
                raise Violation(
                    "stable",
                    f"node {shell.node_id} has freed up to index {freed} in epoch {configuration.epoch}, "
                    f"and node {member.node_id} holds up to {held}",
                )

    # --- disks --------------------------------------------------------------------------------------------------

    def check_durable(self, shell: Shell, change: TopicChange) -> None:
        """A topic change is delivered only once the disks of more than half of the votes have it."""
        configuration = shell.node.configuration
        if configuration is None:
            return
        durable = votes = 0
        for member in configuration.members:
            votes += member.votes
            if observe.is_durable(self._on_disk(member), change, configuration.cluster_id):
                durable += member.votes
        if 2 * durable <= votes:
            raise Violation(
                "durable topics",
                f"node {shell.node_id} delivers {change}, which is on the disks of {durable} of {votes} votes",
            )

    def _on_disk(self, member: Member) -> bytes:
        host = self._world.hosts.get(member.node_id)
        if host is None:
            return b""
        if host.store_id == member.store_id:
            return host.disk.durable
        return host.former_stores.get(member.store_id, b"")

    def disks_left(self, configuration: Configuration) -> list[tuple[int, int]]:
        """The acceptors of a configuration that still have their disk."""
        hosts = self._world.hosts
        return [
            (member.node_id, member.store_id)
            for member in configuration.members
            if member.node_id in hosts and hosts[member.node_id].store_id == member.store_id
        ]

    # --- the end of a history -----------------------------------------------------------------------------------

    def check_may_end(self, history: History, successor: str) -> None:
        """A history ends only when more than half of the votes of its last members have lost their memory, or when
        none of those that have not holds what its last epoch began with."""
        configuration = history.last_configuration
        lost, votes = self.lost_votes(configuration)
        if 2 * lost <= votes and any(
            self._holds_base(member, configuration.base) for member in configuration.members
        ):
            raise Violation(
                "history",
                f"{successor} supersedes {history.cluster_id} although only {lost} of {votes} votes of epoch "
                f"{configuration.epoch} have lost their memory: {configuration.members}",
            )

    def check_topics_survive(
        self, old: Judge, begun: dict[int, Topic], asked: Iterable[str], altering: Iterable[str] = ()
    ) -> None:
        """What was delivered of the topic table is in the history that follows, where no disk was lost.

        ``asked``: names whose removal was asked for; such a removal may have been on its way. ``altering``: likewise
        of other settings.
        """
        going, changing = set(asked), set(altering)
        for topic_id, state in old.topics.items():
            topic = state.topic
            if topic.name.startswith("oc.") or topic.name in going:
                continue
            there = begun.get(topic_id)
            if there is not None and topic.name in changing:
                there = there._replace(settings=topic.settings)
            if there != topic:
                raise Violation(
                    "durable topics",
                    f"{topic} was delivered in {old.cluster_id}, and the next history begins without it: {begun}",
                )
        for topic_id, topic in begun.items():
            if topic_id in old.removed:
                raise Violation("durable topics", f"{topic} was removed, and is back in the next history")
