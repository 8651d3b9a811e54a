"""The order auditor: nodes compare what they have delivered, so that a difference cannot stay hidden.

Each node chains a hash over the headers of the runs that it delivers (with their place, origin and numbers; never over
the data, which the runs' own checksums cover). Heartbeats carry the value at agreed indexes; values at the same index
of the same history must be equal. They can only differ through a mistake in this program or a machine that computes
wrongly, and then it must be said aloud, and a minority must not go on serving.
"""

from __future__ import annotations

from typing import Final

from ocfcluster import limits
from ocfcluster.protocol.quorum import Quorums
from ocfcluster.protocol.settings import Configuration

NO_CHECKPOINT: Final = (0, 0)


class Auditor:
    """The checkpoints of one node: (index, chain value of everything delivered up to there)."""

    __slots__ = ("next_index", "latest", "differences", "_checkpoints", "_others")

    def __init__(self, delivered: int) -> None:
        self.next_index = _boundary(delivered)  # the value is taken when a run behind it comes
        self.latest = NO_CHECKPOINT
        self.differences = 0
        self._checkpoints: dict[int, int] = {}
        self._others: dict[int, tuple[int, int]] = {}  # node_id → its last checkpoint

    def passed(self, index: int, chain: int) -> None:
        """The next run lies at ``index``, behind ``next_index``; ``chain`` is the value before it."""
        self.take(index - 1 - (index - 1) % limits.AUDIT_EVERY, chain)
        self.next_index = _boundary(index - 1)

    def take(self, index: int, chain: int) -> None:
        """A checkpoint: all nodes take one at this index."""
        self.latest = (index, chain)
        self._checkpoints[index] = chain
        while len(self._checkpoints) > limits.AUDIT_CHECKPOINTS:
            del self._checkpoints[next(iter(self._checkpoints))]

    def announced(self, commit: int) -> tuple[int, int]:
        """What a heartbeat says: the latest checkpoint that ``commit`` covers."""
        return self.latest if self.latest[0] <= commit else NO_CHECKPOINT

    def compare(self, node_id: int, index: int, chain: int, commit: int) -> bool:
        """Whether another node's checkpoint is the same as here, as far as this node can tell."""
        if not index or index > commit:
            return True
        self._others[node_id] = (index, chain)
        mine = self._checkpoints.get(index, chain)
        if mine != chain:
            self.differences += 1
        return mine == chain

    def outvoted(self, index: int, configuration: Configuration, own: int) -> bool:
        """Whether more than half of the votes have another value at ``index``, and the same one."""
        mine = self._checkpoints.get(index)
        others: dict[int, list[int]] = {}
        for node_id, (at, chain) in self._others.items():
            if at == index and chain != mine and node_id != own:
                others.setdefault(chain, []).append(node_id)
        quorums = Quorums(configuration)
        return any(quorums.commit(nodes) for nodes in others.values())

    def forget_others(self) -> None:
        """A new epoch: what others said in the one before is compared no more."""
        self._others = {}


def _boundary(index: int) -> int:
    return index - index % limits.AUDIT_EVERY + limits.AUDIT_EVERY
