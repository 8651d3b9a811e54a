"""The picture of a run: a column for each axis, in it a small panel for rates, CPU time and latency."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

from bench.compare.picture import decades, number
from bench.growth.report import values

PANEL: Final = (168, 104)  # pixels, width and height of what is drawn in
LEFT: Final = 48  # room for the scale
GAP: Final = 22
TITLE: Final = 40
FOOT: Final = 22
COLUMNS: Final = 4
SVG: Final = "http://www.w3.org/2000/svg"
COLOURS: Final = ("#c2410c", "#475569")
SMALL: Final = {"font-size": "10", "fill": "#64748b"}


@dataclass(frozen=True)
class Line:
    """One figure of all points: the median of its rounds, between the least and the most."""

    name: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    title: str
    lines: tuple[Line, ...]


AGENTS: Final = (
    Panel(
        "MB/s at the slowest subscriber",
        (Line("MB/s", ("mb_per_s",)),),
    ),
    Panel("CPU s per million deliveries", (Line("CPU s", ("cpu_s_per_million",)),)),
    Panel("latency, µs", (Line("p99", ("p99_us",)), Line("p50", ("p50_us",)))),
)
SIMULATED: Final = (
    Panel(
        "datagrams received per lone event",
        (
            Line("sequencer", ("lone", "received_by_sequencer")),
            Line("a node", ("lone", "received_per_node")),
        ),
    ),
    Panel(
        "datagrams received per event of many",
        (
            Line("sequencer", ("bulk", "received_by_sequencer")),
            Line("a node", ("bulk", "received_per_node")),
        ),
    ),
    Panel("kill and join, ms of virtual time", (Line("join", ("join_ms",)), Line("kill", ("kill_ms",)))),
)


def draw(document: dict[str, Any]) -> str:
    """An SVG of what is written as JSON."""
    width, height = LEFT + PANEL[0] + GAP, TITLE + PANEL[1] + FOOT
    axes = list(document["axes"].values())
    columns = min(COLUMNS, max(1, len(axes)))
    blocks = math.ceil(len(axes) / columns)
    block = 20 + len(AGENTS) * height
    size = {"width": str(columns * width + GAP), "height": str(blocks * block + 24)}
    svg = ET.Element(
        "svg",
        xmlns=SVG,
        viewBox=f"0 0 {size['width']} {size['height']}",
        **size,
        **{"font-family": "sans-serif", "font-size": "11"},
    )
    ET.SubElement(svg, "title").text = "How the cost of ocfcluster grows"
    ET.SubElement(svg, "rect", **size, fill="#ffffff")
    for place, axis in enumerate(axes):
        left = LEFT + place % columns * width
        top = place // columns * block
        text(svg, left, top + 18, axis["what"], **{"font-weight": "bold", "font-size": "13"})
        # A point that was refused, or failed in all rounds, is left out.
        points = [
            point
            for point in axis["points"]
            if any(not {"error", "refused"} & set(one) for one in point["rounds"])
        ]
        simulated = bool(points) and "mtu" in points[0]["point"]
        for row, panel in enumerate(SIMULATED if simulated else AGENTS):
            _panel(svg, panel, points, left, top + 20 + row * height)
    about = document["environment"]
    legend = (
        f"median of {document['rounds']} rounds, line from min to max; logarithmic scales · {about['cores']} cores, "
        f"{about['time'][:10]}, commit {about['commit']}"
    )
    text(svg, LEFT, blocks * block + 12, legend, **SMALL)
    ET.indent(svg, " ")
    return ET.tostring(svg, "unicode") + "\n"


def text(parent: ET.Element, x: float, y: float, content: str, **attributes: str) -> None:
    ET.SubElement(parent, "text", x=f"{x:.1f}", y=f"{y:.1f}", **attributes).text = content


def _panel(svg: ET.Element, panel: Panel, points: Sequence[dict[str, Any]], left: float, top: float) -> None:
    """Points are at equal distances, as an axis may begin with nothing and end with ten thousand."""
    taken = [[values(point["rounds"], *line.path) for point in points] for line in panel.lines]
    everything = [value for line in taken for found in line for value in found if value > 0]
    if not everything:
        return
    text(svg, left, top + 16, panel.title, **SMALL)
    low, high = decades(everything)
    upper, (width, height) = top + TITLE - 12, PANEL

    def down(value: float) -> float:
        return upper + height * (high - math.log10(value)) / (high - low)

    def across(place: int) -> float:
        return left + width * (place + 0.5) / len(points)

    for exponent in range(low, high + 1):
        y = f"{down(10.0**exponent):.1f}"
        ET.SubElement(svg, "line", x1=str(left), x2=str(left + width), y1=y, y2=y, stroke="#e2e8f0")
        text(svg, left - 4, float(y) + 3, number(10.0**exponent), **SMALL, **{"text-anchor": "end"})
    for place, point in enumerate(points):
        text(
            svg,
            across(place),
            upper + height + 13,
            point["label"],
            **{**SMALL, "font-size": "9", "text-anchor": "middle"},
        )
    for index, (line, found) in enumerate(zip(panel.lines, taken, strict=True)):
        # The first line is the upper one: its name stands above it, the other's below.
        beside = 0 if len(panel.lines) == 1 else -6 if index == 0 else 13
        _line(svg, line, found, COLOURS[index], (across, down), beside)


def _line(
    svg: ET.Element,
    line: Line,
    taken: list[list[float]],
    colour: str,
    at: tuple[Callable[[int], float], Callable[[float], float]],
    beside: int,
) -> None:
    across, down = at
    pen = {"stroke": colour, "stroke-width": "1.5", "fill": "none"}
    places = [place for place, found in enumerate(taken) if found and min(found) > 0]
    middles = [(across(place), down(statistics.median(taken[place]))) for place in places]
    ET.SubElement(svg, "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in middles), **pen)
    for place, (x, y) in zip(places, middles, strict=True):
        ends = {"y1": f"{down(max(taken[place])):.1f}", "y2": f"{down(min(taken[place])):.1f}"}
        ET.SubElement(svg, "line", x1=f"{x:.1f}", x2=f"{x:.1f}", **ends, **pen)
        ET.SubElement(svg, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.5", fill=colour)
    if beside and middles:
        x, y = middles[-1]  # lines are rather apart at their end than where they begin
        text(svg, x + 8, y + beside, line.name, **{"font-size": "9", "fill": colour, "text-anchor": "end"})
