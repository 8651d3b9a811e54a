"""What acceptors wrote to their disks, judged: one value is decided per instance, and promises are never taken back.

An acceptor is a (node_id, store_id). An instance, (cluster_id, epoch), decides what follows that epoch; ("", 0) is the
bootstrap. A value is decided once a decision quorum of the epoch's members has accepted it under one ballot.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ocfcluster.protocol.settings import Ballot, Configuration
from ocfcluster.simulator.trace import Violation

NO_BALLOT: Final = Ballot(0, 0, 0)


class Vote(NamedTuple):
    """What one record says about one instance."""

    cluster_id: str
    epoch: int
    promised: Ballot
    accepted_ballot: Ballot | None
    accepted: Configuration | None


class Instance:
    """One decision."""

    __slots__ = ("accepted", "acceptors", "decided", "decided_under", "promised", "values")

    def __init__(self) -> None:
        self.promised: dict[tuple[int, int], Ballot] = {}  # acceptor → ballot
        self.accepted: dict[tuple[int, int], Ballot] = {}  # likewise
        self.values: dict[Ballot, Configuration] = {}  # ballot → the one value proposed under it
        self.acceptors: dict[Ballot, list[tuple[int, int]]] = {}  # ballot → who accepted
        self.decided: Configuration | None = None
        self.decided_under = NO_BALLOT


class Votes:
    """Sees each record as it becomes durable."""

    __slots__ = ("_instances", "decisions")

    def __init__(self) -> None:
        self._instances: dict[tuple[str, int], Instance] = {}
        self.decisions = 0

    def durable(
        self, acceptor: tuple[int, int], vote: Vote, previous: Configuration | None
    ) -> Configuration | None:
        """A vote is on its acceptor's disk; ``previous`` is C_e of its instance, where it is known. Gives the value
        that is decided by it, if one is. Raises Violation."""
        instance = self._instances.setdefault((vote.cluster_id, vote.epoch), Instance())
        self._promise(acceptor, vote, instance)
        ballot, value = vote.accepted_ballot, vote.accepted
        if ballot is None or value is None:
            return None
        known = instance.values.setdefault(ballot, value)
        if known != value:
            raise Violation(
                "votes", f"two values under ballot {ballot} of {_named(vote)}: {known} and {value}"
            )
        if instance.decided is not None and ballot > instance.decided_under and value != instance.decided:
            raise Violation(
                "votes",
                f"{instance.decided} was decided for {_named(vote)} under {instance.decided_under}, "
                f"and node {acceptor[0]} accepts {value} under {ballot}",
            )
        acceptors = instance.acceptors.setdefault(ballot, [])
        if acceptor in acceptors:
            return None
        acceptors.append(acceptor)
        if previous is None or not is_decision(previous, acceptors):
            return None
        return self._decide(vote, ballot, value, instance)

    def silent(self, acceptor: tuple[int, int], cluster_id: str, epoch: int) -> None:
        """A record without a vote on what follows this epoch is on the acceptor's disk. Raises Violation."""
        instance = self._instances.get((cluster_id, epoch))
        if instance is not None and acceptor in instance.promised:
            raise Violation(
                "votes",
                f"node {acceptor[0]} promised {instance.promised[acceptor]} for what follows epoch {epoch} of "
                f"{cluster_id or 'nothing'}, and has forgotten it",
            )

    def decided(self, cluster_id: str, epoch: int) -> Configuration | None:
        """What is decided to follow an epoch, as far as the disks show."""
        instance = self._instances.get((cluster_id, epoch))
        return instance.decided if instance is not None else None

    def have_promised(self, cluster_id: str, epoch: int, ballot: Ballot, previous: Configuration) -> bool:
        """Whether a decision quorum has promised to ``ballot``, or above it; ``previous`` is C_e of the instance."""
        instance = self._instances.get((cluster_id, epoch))
        promised = instance.promised.items() if instance is not None else ()
        return is_decision(previous, [acceptor for acceptor, known in promised if known >= ballot])

    def may_be_decided(
        self, cluster_id: str, epoch: int, ballot: Ballot, value: Configuration, previous: Configuration
    ) -> Configuration | None:
        """Another value than ``value`` that was accepted below ``ballot``, and that those who accepted it and those
        who have not promised to ``ballot`` may yet have decided.

        None that was only accepted below a ballot under which ``value`` was: who proposed that one was answered for.
        """
        instance = self._instances.get((cluster_id, epoch))
        if instance is None:
            return None
        open_ = [
            (member.node_id, member.store_id)
            for member in previous.members
            if instance.promised.get((member.node_id, member.store_id), NO_BALLOT) < ballot
        ]
        below = {
            acceptor: under for acceptor, under in instance.accepted.items() if NO_BALLOT < under < ballot
        }
        latest = max(
            (under for under in below.values() if instance.values[under] == value), default=NO_BALLOT
        )
        for other in instance.values.values():
            if other == value:
                continue
            voters = [acceptor for acceptor, under in below.items() if instance.values[under] == other]
            if not voters or max(below[acceptor] for acceptor in voters) < latest:
                continue
            if is_decision(previous, voters + open_):
                return other
        return None

    def is_accepted(self, cluster_id: str, epoch: int, value: Configuration) -> bool:
        """Whether any disk has accepted this value."""
        instance = self._instances.get((cluster_id, epoch))
        return instance is not None and value in instance.values.values()

    def is_decided(self, value: Configuration) -> bool:
        """Whether this is what some instance has decided."""
        return any(instance.decided == value for instance in self._instances.values())

    def _promise(self, acceptor: tuple[int, int], vote: Vote, instance: Instance) -> None:
        before = instance.promised.get(acceptor, NO_BALLOT)
        if vote.promised < before:
            raise Violation(
                "votes", f"node {acceptor[0]} promised {before} for {_named(vote)}, then {vote.promised}"
            )
        instance.promised[acceptor] = vote.promised
        accepted = instance.accepted.get(acceptor, NO_BALLOT)
        if (vote.accepted_ballot or NO_BALLOT) < accepted:
            raise Violation(
                "votes",
                f"node {acceptor[0]} accepted {accepted} for {_named(vote)}, and has {vote.accepted_ballot} on disk",
            )
        instance.accepted[acceptor] = vote.accepted_ballot or NO_BALLOT
        if vote.accepted_ballot is not None and vote.accepted_ballot > vote.promised:
            raise Violation(
                "votes",
                f"node {acceptor[0]} accepted {vote.accepted_ballot} above its promise {vote.promised}",
            )

    def _decide(
        self, vote: Vote, ballot: Ballot, value: Configuration, instance: Instance
    ) -> Configuration | None:
        if instance.decided is None:
            self.decisions += 1
            instance.decided, instance.decided_under = value, ballot
        elif instance.decided != value:
            raise Violation("votes", f"two values decided for {_named(vote)}: {instance.decided} and {value}")
        else:
            instance.decided_under = min(instance.decided_under, ballot)
        return value


def is_decision(configuration: Configuration, acceptors: list[tuple[int, int]]) -> bool:
    """Whether these (node_id, store_id) are a decision quorum of its members."""
    total = sum(member.votes for member in configuration.members)
    votes = 0
    tie = False
    for member in configuration.members:
        if (member.node_id, member.store_id) in acceptors:
            votes += member.votes
            tie = tie or member.node_id == configuration.tie_breaker
    return 2 * votes > total or (2 * votes == total and tie)


def _named(vote: Any) -> str:
    return f"what follows epoch {vote.epoch} of {vote.cluster_id or 'nothing'}"
