"""Who was left out for a bad link stays out until the link has been good for a while: one bad link never makes the
cluster form again and again."""

from __future__ import annotations

from ocfcluster import limits


class Readmission:
    """Counts, per node, how often it left a view without having asked to, lately."""

    __slots__ = ("_suspicion_ns", "_left")

    def __init__(self, suspicion_ns: int) -> None:
        self._suspicion_ns = suspicion_ns
        self._left: dict[int, tuple[int, int]] = {}  # node_id → (how often, when last)

    def retime(self, suspicion_ns: int) -> None:
        self._suspicion_ns = suspicion_ns

    def left(self, node_id: int, now: int) -> None:
        """The node was left out for its link."""
        times, when = self._left.get(node_id, (0, now))
        if now - when > 2 * limits.READMISSION_MAX_NS:
            times = 0
        self._left[node_id] = (times + 1, now)
        while len(self._left) > limits.NODES:
            del self._left[next(iter(self._left))]

    def may_enter(self, node_id: int, heard_since: int, now: int) -> bool:
        """Whether a node that has been heard since then has shown its link for long enough."""
        times, when = self._left.get(node_id, (0, 0))
        if times <= 1 or now - when > 2 * limits.READMISSION_MAX_NS:
            return True  # once is no habit
        wait = min(limits.READMISSION_MAX_NS, self._suspicion_ns << min(times - 1, 10))
        return now - max(heard_since, when) >= wait
