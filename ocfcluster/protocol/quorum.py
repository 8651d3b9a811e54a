"""Who is enough: the two quorums of a configuration, and primacy by the node table (docs/protocol.md).

Any commit quorum meets any decision quorum, and any two decision quorums meet.
"""

from __future__ import annotations

from collections.abc import Iterable

from ocfcluster.protocol.settings import Configuration


class Quorums:
    """The quorums of one configuration, by its members' votes."""

    __slots__ = ("_votes", "_total", "_tie_breaker")

    def __init__(self, configuration: Configuration) -> None:
        self._votes = {member.node_id: member.votes for member in configuration.members}
        self._total = sum(self._votes.values())
        self._tie_breaker = configuration.tie_breaker

    def votes(self, nodes: Iterable[int]) -> int:
        return sum(self._votes.get(node, 0) for node in set(nodes))

    def commit(self, nodes: Iterable[int]) -> bool:
        """Strictly more than half of the votes."""
        return 2 * self.votes(nodes) > self._total

    def decision(self, nodes: Iterable[int]) -> bool:
        """More than half of the votes, or exactly half with the tie-breaker among them."""
        present = set(nodes)
        votes = 2 * self.votes(present)
        return votes > self._total or (votes == self._total and self._tie_breaker in present)


def is_primary(table: dict[int, int], nodes: Iterable[int]) -> bool:
    """Whether a view of these nodes has half of the node table's votes at least: the decision quorum that makes it
    excludes a second half."""
    return 2 * sum(table.get(node, 0) for node in set(nodes)) >= sum(table.values())
