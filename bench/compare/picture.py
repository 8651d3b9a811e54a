"""The picture of a comparison: a panel per figure, on it a line per system from min to max, its median as a dot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from bench.compare.ratios import figures
from bench.compare.work import OURS

COLUMNS: Final = 4
NAMES: Final = 144  # pixels: the systems' names, left of each row of panels
PANEL: Final = 150
VALUES: Final = 58  # right of each panel
GAP: Final = 14
ROW: Final = 20
HEAD: Final = 44
FOOT: Final = 30
LEGEND: Final = 40
SVG: Final = "http://www.w3.org/2000/svg"
SMALL: Final[dict[str, object]] = {"font-size": 10, "fill": "#64748b"}
COLOURS: Final = {True: "#c2410c", False: "#475569"}  # ours, others


@dataclass(frozen=True)
class Panel:
    """``figure`` of ``work``, times ``scale``."""

    title: str
    unit: str
    work: str
    figure: str
    scale: float = 1.0


PANELS: Final = (
    Panel("64 B", "k events/s, more is better", "64B", "events_per_s", 1e-3),
    Panel("1 KiB", "k events/s, more is better", "1KiB", "events_per_s", 1e-3),
    Panel("16 KiB", "k events/s, more is better", "16KiB", "events_per_s", 1e-3),
    Panel("256 KiB", "k events/s, more is better", "256KiB", "events_per_s", 1e-3),
    Panel("64 B, three publishers", "k events/s, more is better", "3x64B", "events_per_s", 1e-3),
    Panel("latency, p50", "µs, less is better", "latency", "p50_us"),
    Panel("latency, p99", "µs, less is better", "latency", "p99_us"),
    Panel("CPU time at 64 B", "s per million, less is better", "64B", "cpu_s_per_million"),
)


def draw(document: dict[str, Any]) -> str:
    """An SVG of what is written as JSON."""
    systems = list(document["raw"])
    height = HEAD + ROW * len(systems) + FOOT
    rows = math.ceil(len(PANELS) / COLUMNS)
    size = {"width": NAMES + COLUMNS * (PANEL + VALUES + GAP), "height": rows * height + LEGEND}
    parts = ["<title>ocfcluster and others at the same work</title>", _tag("rect", **size, fill="#ffffff")]
    for row in range(rows):
        for line, name in enumerate(systems):
            weight = {"font-weight": "bold"} if name == OURS else {}
            y = row * height + HEAD + line * ROW + 14
            short = document["systems"][name]["title"].partition(" (")[0]
            parts.append(_text(NAMES - 10, y, short, **weight, **{"text-anchor": "end"}))
    for index, panel in enumerate(PANELS):
        x = NAMES + index % COLUMNS * (PANEL + VALUES + GAP)
        parts += _panel(document, panel, systems, x, index // COLUMNS * height)
    environment = document["environment"]
    legend = (
        (
            f"● one total order for all  ○ no order among publishers · median of {document['rounds']} rounds, "
            "line from min to max, logarithmic scales"
        ),
        (
            "* latency of something else than ocfcluster's: see the text · "
            f"{environment['cores']} cores, {environment['time'][:10]}, commit {environment['commit']}"
        ),
    )
    for line, text in enumerate(legend):
        parts.append(_text(NAMES, rows * height + 14 + 15 * line, text, **SMALL))
    view = f"0 0 {size['width']} {size['height']}"
    font = {"font-family": "sans-serif", "font-size": 12}
    return _tag("svg", *parts, xmlns=SVG, viewBox=view, **size, **font) + "\n"


def _tag(tag: str, /, *content: str, **attributes: object) -> str:
    """An element; ``content`` is lines of markup. Fractions are cut to what is seen."""
    written = "".join(
        f" {key}={quoteattr(f'{value:.1f}' if isinstance(value, float) else str(value))}"
        for key, value in attributes.items()
    )
    if not content:
        return f"<{tag}{written}/>"
    inside = content[0] if len(content) == 1 else "\n".join(["", *content, ""])
    return f"<{tag}{written}>{inside}</{tag}>"


def _text(x: float, y: float, text: str, **attributes: object) -> str:
    return _tag("text", escape(text), x=x, y=y, **attributes)


def _panel(document: dict[str, Any], panel: Panel, systems: Sequence[str], left: int, top: int) -> list[str]:
    taken = {name: _values(document, panel, name) for name in systems}
    parts = [
        _text(left, top + 18, panel.title, **{"font-weight": "bold"}),
        _text(left, top + 33, panel.unit, **SMALL),
    ]
    everything = [value for values in taken.values() for value in values]
    if not everything:
        return parts
    low, high = decades(everything)
    bottom = top + HEAD + ROW * len(systems)

    def at(value: float) -> float:
        return left + PANEL * (math.log10(value) - low) / (high - low)

    for exponent in range(low, high + 1):
        x = at(10.0**exponent)
        parts.append(_tag("line", x1=x, y1=top + HEAD, x2=x, y2=bottom, stroke="#e2e8f0"))
        if (exponent - low) % (1 + (high - low) // 4) == 0:
            parts.append(_text(x, bottom + 13, number(10.0**exponent), **SMALL, **{"text-anchor": "middle"}))
    for line, name in enumerate(systems):
        values = taken[name]
        if not values:
            continue
        y = top + HEAD + line * ROW + 10
        colour = COLOURS[name == OURS]
        pen = {"stroke": colour, "stroke-width": 2}
        middle = statistics.median(values)
        # A sample that is of something else than ours is marked.
        latency = {system: document["systems"][system]["latency"] for system in (OURS, name)}
        mark = "*" if panel.work == "latency" and latency[name] != latency[OURS] else ""
        fill = colour if document["systems"][name]["total_order"] else "#ffffff"
        parts += [
            _tag("line", x1=at(min(values)), y1=y, x2=at(max(values)), y2=y, **pen),
            _tag("circle", cx=at(middle), cy=y, r=4.5, fill=fill, **pen),
            _text(
                left + PANEL + VALUES - 4,
                y + 4,
                number(middle) + mark,
                **{"text-anchor": "end", "fill": colour},
            ),
        ]
    return parts


def _values(document: dict[str, Any], panel: Panel, name: str) -> list[float]:
    return [
        value * panel.scale
        for value in figures(document["raw"][name].get(panel.work, ()), panel.figure)
        if value > 0
    ]


def decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that these positive values are between; at least one decade."""
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def number(value: float) -> str:
    """Three digits that mean something, with blanks between thousands."""
    if value >= 100:
        digits = 2 - math.floor(math.log10(value))
        return f"{round(value, digits):,.0f}".replace(",", "\u2009")
    return f"{value:.3g}"
