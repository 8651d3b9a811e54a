"""Asking for what is missing: when, whom, and never twice within a round trip."""

from __future__ import annotations

from typing import Final

from ocfcluster import limits
from ocfcluster.protocol.order_log import OrderLog
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.datagram import Range

Source = tuple[int, int]  # (node_id, incarnation) of an origin; ORDER
ORDER: Final[Source] = (0, 0)


class _Gap:
    """One source of numbers with holes: an origin's packets, or the order."""

    __slots__ = ("source", "due", "tries", "contiguous")

    def __init__(self, source: OriginStream | OrderLog, due: int) -> None:
        self.source = source
        self.due = due
        self.tries = 0
        self.contiguous = 0  # how far it had got at the last round


class GapAsker:
    """Keeps a timer per source that has holes. A hole is first given time to close by itself (reordering)."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open: dict[Source, _Gap] = {}  # sources with holes; to be looked at, not changed

    def note(self, key: Source, source: OriginStream | OrderLog, now: int) -> None:
        """``source`` may have got or closed a hole."""
        if source.has_gap:
            if key not in self.open:
                self.open[key] = _Gap(source, now + limits.NACK_DELAY_NS)
        else:
            self.open.pop(key, None)

    def next_due(self) -> int | None:
        return min([gap.due for gap in self.open.values()]) if self.open else None

    def due(self, now: int, most: int) -> list[tuple[Source, int, list[Range]]]:
        """Rounds to ask now: (the source, how often it was asked without progress, at most ``most``
        ranges). Each sets its next round."""
        rounds: list[tuple[Source, int, list[Range]]] = []
        for key in sorted(self.open):
            gap = self.open[key]
            if gap.due > now:
                continue
            source = gap.source
            if not source.has_gap:
                del self.open[key]
                continue
            if isinstance(source, OriginStream):
                contiguous = source.contiguous
            else:
                contiguous = source.next_index
            gap.tries = 0 if contiguous != gap.contiguous else gap.tries + 1
            gap.contiguous = contiguous
            gap.due = now + min(limits.NACK_RETRY_NS << min(gap.tries, 8), limits.NACK_RETRY_MAX_NS)
            ranges = [
                Range(key[0], min(count, 0xFFFF_FFFF), key[1], first) for first, count in source.missing(most)
            ]
            rounds.append((key, gap.tries, ranges))
        return rounds
