"""What every system does, and which of its figures are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

OURS: Final = "ocfcluster"
HOSTS: Final = 3
KIB: Final = 1024


@dataclass(frozen=True)
class Throughput:
    """``publishers`` programs publish events of ``event_bytes`` at once; a subscriber on every host takes them all."""

    name: str
    event_bytes: int
    publishers: int = 1
    probe: int = 1000  # events of the first attempt, from which it is found how many take as long as wanted
    way: str = (
        ""  # an API of ocfcluster's subscriber, which alone does this then (key of bench.load.SUBSCRIBING)
    )


@dataclass(frozen=True)
class Latency:
    """One event at a time, published and awaited in one process; a subscriber on the other hosts takes it, too."""

    name: str
    event_bytes: int
    samples: int


Work = Throughput | Latency

WORKS: Final[tuple[Work, ...]] = (
    Throughput("64B", 64, probe=20_000),
    Throughput("1KiB", KIB, probe=5_000),
    Throughput("16KiB", 16 * KIB, probe=500),
    Throughput("256KiB", 256 * KIB, probe=50),
    Throughput("3x64B", 64, publishers=HOSTS, probe=21_000),
    Latency("latency", 64, samples=2000),
    Throughput("64B-events", 64, probe=20_000, way="events"),
    Throughput("64B-ocf", 64, probe=20_000, way="ocf"),
)

Figure = Literal["events_per_s", "cpu_s_per_million", "p50_us", "p99_us"]


@dataclass(frozen=True)
class Comparison:
    """``figure`` of ocfcluster at work ``ours`` over that of a peer at work ``theirs``."""

    name: str
    ours: str
    theirs: str
    figure: Figure

    @property
    def more_is_better(self) -> bool:
        return self.figure == "events_per_s"


COMPARISONS: Final = (
    *(Comparison(name, name, name, "events_per_s") for name in ("64B", "1KiB", "16KiB", "256KiB", "3x64B")),
    Comparison("p50", "latency", "latency", "p50_us"),
    Comparison("p99", "latency", "latency", "p99_us"),
    Comparison("cpu", "64B", "64B", "cpu_s_per_million"),
    *(Comparison(f"cpu-{name}", name, name, "cpu_s_per_million") for name in ("1KiB", "16KiB")),
    Comparison("64B-events", "64B-events", "64B", "events_per_s"),
    Comparison("64B-ocf", "64B-ocf", "64B", "events_per_s"),
    Comparison("cpu-events", "64B-events", "64B", "cpu_s_per_million"),
)
