"""From figures of rounds to ratios: ocfcluster's over a peer's in the same round, then the median over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.compare.work import COMPARISONS, Comparison

Rounds = Sequence[Mapping[str, Any]]  # a result has its "round", and figures unless it failed
Raw = Mapping[str, Mapping[str, Rounds]]  # by system and work


def spread(values: Sequence[float]) -> dict[str, float]:
    """min, median and max of at least one value, and how many there were."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "rounds": len(values),
    }


def figures(rounds: Rounds, figure: str) -> list[float]:
    """That figure of each round that has it."""
    return [one[figure] for one in rounds if figure in one]


def paired(ours: Rounds, theirs: Rounds, figure: str) -> list[float]:
    """Ours over theirs, of the rounds where both have the figure (a noisy minute then touches both)."""
    mine = {one["round"]: one[figure] for one in ours if figure in one}
    return [mine[one["round"]] / one[figure] for one in theirs if one.get(figure) and one["round"] in mine]


def ratio(raw: Raw, ours: str, peer: str, comparison: Comparison) -> dict[str, float] | None:
    """The spread of one comparison; None where no round has both sides."""
    mine, other = raw[ours].get(comparison.ours), raw[peer].get(comparison.theirs)
    if mine is None or other is None:
        return None
    values = paired(mine, other, comparison.figure)
    return spread(values) if values else None


def spreads(raw: Raw, ours: str) -> dict[str, dict[str, dict[str, float]]]:
    """By peer and comparison: min, median and max of ``ours`` over the peer."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for peer in raw:
        if peer != ours:
            each = {one.name: ratio(raw, ours, peer, one) for one in COMPARISONS}
            found[peer] = {name: value for name, value in each.items() if value is not None}
    return found


def medians(spread_of: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """What ``spreads`` gives, by its medians alone, rounded to what they mean."""
    return {
        peer: {name: float(f"{one['median']:.4g}") for name, one in each.items()}
        for peer, each in spread_of.items()
    }
