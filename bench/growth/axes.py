"""What is measured: axes, each a table of points of which one field grows while the others stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from bench.worker import PUBLISH_MANY_BYTES, PUBLISH_MANY_EVENTS
from ocfcluster.limits import KIB, MIB


@dataclass(frozen=True)
class Point:
    """Agents in network namespaces, and the programs on them."""

    nodes: int = 3
    subscribers: int = 1  # on one node, in one program; one on each other node
    publishers: int = 1  # spread over the nodes, of which the sequencer's is the last
    topics: int = 1  # used in turn; every subscriber takes all of them
    event_bytes: int = KIB
    loss: float = 0.0  # percent of the frames on every directed link
    batch: int = 0  # events of one ``publish_many``; 0: as many as ``bench.run`` takes

    @property
    def events_per_call(self) -> int:
        """Events of one ``publish_many``."""
        return self.batch or max(1, min(PUBLISH_MANY_EVENTS, PUBLISH_MANY_BYTES // self.event_bytes))


@dataclass(frozen=True)
class Simulated:
    """Nodes of the simulator on links of one mtu."""

    nodes: int
    mtu: int


@dataclass(frozen=True)
class Axis:
    """``points`` differ in ``field`` alone. ``quick`` are the places of those that a first look takes."""

    name: str
    what: str
    field: str
    points: tuple[Point, ...] | tuple[Simulated, ...]
    quick: tuple[int, ...]
    latency: bool = True

    @property
    def simulated(self) -> bool:
        return isinstance(self.points[0], Simulated)

    def chosen(self, quick: bool) -> list[Point | Simulated]:
        """All points, or those of a first look."""
        return [point for place, point in enumerate(self.points) if not quick or place in self.quick]

    def label(self, point: Point | Simulated) -> str:
        """The value of a point on this axis, as tables and pictures show it."""
        value = getattr(point, self.field)
        if self.field == "event_bytes":
            return size_text(value)
        return f"{value:g}"


def _axis(
    name: str, what: str, field: str, values: Sequence[Any], quick: tuple[int, ...], **rest: Any
) -> Axis:
    latency = rest.pop("latency", True)
    base = Point(**rest)
    return Axis(name, what, field, tuple(replace(base, **{field: value}) for value in values), quick, latency)


def _simulated(name: str, mtu: int, nodes: Sequence[int], quick: tuple[int, ...]) -> Axis:
    points = tuple(Simulated(count, mtu) for count in nodes)
    return Axis(name, f"simulated nodes, mtu {mtu}", "nodes", points, quick)


AXES: Final = (
    _axis("nodes", "nodes", "nodes", (3, 5, 8, 12), (0, 1)),
    _axis("subscribers", "subscribers on one node", "subscribers", (1, 10, 50, 100, 200), (0, 1)),
    # Small calls, as fifty publishers with a full window each would first fill memory.
    _axis("publishers", "publishers", "publishers", (1, 5, 20, 50), (0, 2), batch=64, latency=False),
    # Small calls again, so that all topics are used within one measurement.
    _axis("topics", "topics", "topics", (1, 10, 100, 1000, 10_000), (0, 3), batch=8),
    _axis("size", "bytes of an event", "event_bytes", (1, 16, 256, 4 * KIB, 64 * KIB, MIB), (1, 4)),
    # The second differs from the first in that nothing is sent segmented: a filter would lose a whole buffer.
    _axis("loss", "percent lost", "loss", (0, 0.01, 0.1, 1, 2, 5), (0, 3)),
    _simulated("simulated", 9000, (3, 8, 16, 32, 64, 128, 256), (0, 2)),
    _simulated("simulated-1500", 1500, (3, 8, 16, 20, 21), (0, 2, 4)),
)


def chosen(names: str) -> list[Axis]:
    """The axes of a list of names, ``all`` for all. Raises ValueError on one that there is not."""
    by_name = {axis.name: axis for axis in AXES}
    wanted = list(by_name) if names == "all" else [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ValueError(f"there is no axis {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [axis for axis in AXES if axis.name in wanted]


def spread_over(publishers: int, hosts: Sequence[int]) -> dict[int, int]:
    """How many publishers each host has: one after the other, from the first host on; hosts without are not in it."""
    share = {host: len(range(place, publishers, len(hosts))) for place, host in enumerate(hosts)}
    return {host: count for host, count in share.items() if count}


def size_text(value: int) -> str:
    """Bytes in the largest unit that divides them."""
    for unit, text in ((MIB, "MiB"), (KIB, "KiB")):
        if value % unit == 0 and value:
            return f"{value // unit} {text}"
    return f"{value} B"
