"""A node's disk: writes take their time, hang, or fail; what is durable is what a write finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ocfcluster.limits import MILLISECOND_NS

if TYPE_CHECKING:
    from ocfcluster.simulator.world import World

Done = Callable[[int, bool], None]


@dataclass(slots=True)
class DiskProfile:
    """How a disk behaves until the faults stop."""

    fastest_ns: int = MILLISECOND_NS // 20
    slowest_ns: int = 2 * MILLISECOND_NS
    failing: float = 0.0  # probability that a write fails (and leaves what was there before)


class Disk:
    """Writes in the order given, one after the other, like an fsync per record."""

    __slots__ = ("_busy", "_done", "_hanging", "_queue", "_random", "_world", "durable", "profile", "written")

    def __init__(self, world: World, random: Random, profile: DiskProfile, done: Done) -> None:
        self._world = world
        self._random = random
        self._done = done
        self._queue: list[tuple[int, bytes]] = []
        self._busy = False
        self._hanging = False
        self.profile = profile
        self.durable = b""  # the record that would be read back after a restart
        self.written: list[bytes] = []  # every record that was durable, oldest first

    def write(self, token: int, record: bytes) -> None:
        """Calls ``done(token, ok)`` later. A hanging disk calls it once it is released."""
        self._queue.append((token, record))
        self._start()

    def hang(self) -> None:
        """Nothing finishes until ``release``, not even the write under way."""
        self._hanging = True

    def release(self) -> None:
        self._hanging = False
        self._start()

    @property
    def waiting(self) -> int:
        """Writes not finished."""
        return len(self._queue)

    def _start(self) -> None:
        if self._busy or self._hanging or not self._queue:
            return
        self._busy = True
        delay_ns = self._random.randint(self.profile.fastest_ns, self.profile.slowest_ns)
        self._world.after(delay_ns, self._finish)

    def _finish(self) -> None:
        self._busy = False
        if self._hanging:
            return
        token, record = self._queue.pop(0)
        ok = self._random.random() >= self.profile.failing
        if ok:
            self.durable = record
            self.written.append(record)
        self._done(token, ok)
        self._start()
