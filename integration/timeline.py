"""What happened when in a chaos run, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

from integration.work import Done
from tests.netns.traces import Got, read

BIN_S: Final = 0.5
PAUSE_S: Final = 0.5  # shown as one, where nobody gets anything for so long
WIDTH: Final = 1400
LEFT: Final = 70
LANE: Final = 70
TOP: Final = 130
COLOURS: Final = (
    "#1f77b4",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#17becf",
    "#bcbd22",
    "#7f7f7f",
    "#e377c2",
    "#ff7f0e",
)
LEGEND: Final = (
    "orange: a fault lasts; yellow: until all are members and deliver again; "
    f"red: nobody gets anything for {PAUSE_S:g} s or more. Lanes: events per second"
)
TEXT: Final = 'font-family="sans-serif" font-size="11"'


@dataclass
class Timeline:
    """Times are seconds since the first delivery."""

    deliveries: dict[int, dict[int, int]] = field(default_factory=dict)  # node → bin → events
    pauses: list[tuple[float, float]] = field(default_factory=list)  # nobody got anything: from, to
    faults: list[tuple[str, float, float, float]] = field(
        default_factory=list
    )  # what, begins, is over, all are back
    seconds: float = 0.0

    @classmethod
    def read(cls, traces: Mapping[int, Path], done: Sequence[Done], ended_ns: int = 0) -> Self:
        """From the traces of the nodes' subscribers, as far as they go, until the load ended (0: to their ends)."""
        times: dict[int, list[tuple[int, int]]] = {
            node: [
                (line.time_ns, len(line.digests))
                for line in read(path)
                if isinstance(line, Got) and (not ended_ns or line.time_ns <= ended_ns)
            ]
            for node, path in traces.items()
            if path.exists()
        }
        merged = sorted({at for one in times.values() for at, _ in one})
        timeline = cls()
        if not merged:
            return timeline
        first = merged[0]
        timeline.seconds = (merged[-1] - first) / 1e9
        for node, lines in times.items():
            bins = timeline.deliveries[node] = {}
            for at, count in lines:
                place = int((at - first) / 1e9 / BIN_S)
                bins[place] = bins.get(place, 0) + count
        for one, other in pairwise(merged):
            if (other - one) / 1e9 >= PAUSE_S:
                timeline.pauses.append(((one - first) / 1e9, (other - first) / 1e9))
        for fault in done:
            begins = (fault.began_ns - first) / 1e9
            over = begins + fault.acted_s
            timeline.faults.append((f"{fault.name} {fault.victim}", begins, over, over + fault.back_s))
        return timeline


def longest_pause(timeline: Timeline) -> float:
    return max((end - begin for begin, end in timeline.pauses), default=0.0)


def draw(timeline: Timeline, title: str) -> str:
    """An SVG: a lane of throughput for each node, faults above them, pauses across them."""
    nodes = sorted(timeline.deliveries)
    seconds = max(timeline.seconds, 1.0)
    height = TOP + LANE * len(nodes) + 40
    bottom = TOP + LANE * len(nodes)
    most = max((count for bins in timeline.deliveries.values() for count in bins.values()), default=1)

    def x(at: float) -> float:
        return round(LEFT + max(0.0, at) / seconds * (WIDTH - LEFT - 20), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" {TEXT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="18" font-size="13">{escape(title)}</text>',
        f'<text x="10" y="34" fill="#555">{LEGEND}</text>',
    ]
    for number, (name, begins, over, back) in enumerate(timeline.faults):
        for begin, end, colour in ((begins, over, "#fdae6b"), (over, back, "#ffeda0")):
            parts.append(
                f'<rect x="{x(begin)}" y="{TOP}" width="{max(1.0, x(end) - x(begin)):.1f}" height="{bottom - TOP}" '
                f'fill="{colour}" fill-opacity="0.5"/>'
            )
        label_y = TOP - 6 - 11 * (number % 3)
        parts.append(
            f'<text transform="translate({x(begins)},{label_y}) rotate(-35)" font-size="8">{escape(name)}</text>'
        )
    for begin, end in timeline.pauses:
        parts.append(
            f'<rect x="{x(begin)}" y="{TOP}" width="{max(1.0, x(end) - x(begin)):.1f}" height="{bottom - TOP}" '
            'fill="#d62728" fill-opacity="0.35"/>'
        )
    for lane, node in enumerate(nodes):
        base = TOP + LANE * (lane + 1) - 4
        points = [f"{x(0)},{base}"]
        for place in range(int(seconds / BIN_S) + 1):
            count = timeline.deliveries[node].get(place, 0)
            y = round(base - count / most * (LANE - 14), 1)
            points += [f"{x(place * BIN_S)},{y}", f"{x(min(seconds, (place + 1) * BIN_S))},{y}"]
        points.append(f"{x(seconds)},{base}")
        colour = COLOURS[lane % len(COLOURS)]
        parts.append(f'<polygon points="{" ".join(points)}" fill="{colour}" fill-opacity="0.75"/>')
        parts.append(f'<text x="6" y="{base - LANE // 2 + 10}">node {node}</text>')
        parts.append(f'<text x="6" y="{base - LANE // 2 + 22}" fill="#555">≤ {most / BIN_S:.0f}/s</text>')
    step = next(size for size in (5, 10, 30, 60, 300, 600, 3600) if seconds / size <= 20 or size == 3600)
    for at in range(0, int(seconds) + 1, step):
        parts.append(f'<line x1="{x(at)}" x2="{x(at)}" y1="{bottom}" y2="{bottom + 5}" stroke="black"/>')
        parts.append(f'<text x="{x(at)}" y="{bottom + 18}" text-anchor="middle">{at} s</text>')
    return "\n".join([*parts, "</svg>", ""])
