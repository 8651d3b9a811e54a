"""Nodes that are to join, as the sequencer knows them: what they still need is kept for them, within bounds."""

from __future__ import annotations

from ocfcluster import limits

Key = tuple[int, int]  # node_id, incarnation


class Learners:
    """How far each learner holds the order. One for which the backlog has been full for too long is given up, and
    nothing is kept for its node for a while, which doubles: who joins must not stop those who work."""

    __slots__ = ("held", "_in_the_way", "_refused", "_now")

    def __init__(self, now: int) -> None:
        self.held: dict[Key, int] = {}
        self._in_the_way: dict[Key, int] = {}  # since when
        self._refused: dict[int, tuple[int, int]] = {}  # node_id → until when, and how often it was given up
        self._now = now

    def holds(self, node_id: int, incarnation: int, held: int) -> bool:
        """It has fetched up to ``held``. False where nothing is kept for it."""
        until, _ = self._refused.get(node_id, (0, 0))
        key = (node_id, incarnation)
        if until > self._now or (key not in self.held and len(self.held) >= limits.NODES):
            return False
        self.held[key] = max(held, self.held.get(key, 0))
        return True

    def gone(self, node_id: int, incarnation: int) -> bool:
        """It is not heard any more. False where it was none."""
        self._in_the_way.pop((node_id, incarnation), None)
        return self.held.pop((node_id, incarnation), None) is not None

    def give_up(self, backlog_full: bool, least: int, now: int) -> list[int]:
        """Those (node_ids) that have kept the backlog full for too long now: members hold ``least`` at least."""
        self._now = now
        behind = [key for key, held in self.held.items() if backlog_full and held < least]
        self._in_the_way = {key: self._in_the_way.get(key, now) for key in behind}
        late = [key for key, since in self._in_the_way.items() if now - since >= limits.LEARNER_GRACE_NS]
        for node_id, incarnation in late:
            self.gone(node_id, incarnation)
            times = self._refused.pop(node_id, (0, 0))[1]
            wait = min(limits.LEARNER_REFUSED_MAX_NS, limits.LEARNER_REFUSED_NS << min(times, 10))
            self._refused[node_id] = now + wait, times + 1
            if len(self._refused) > limits.NODES:
                del self._refused[next(iter(self._refused))]
        return [node_id for node_id, _ in late]
