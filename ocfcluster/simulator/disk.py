"""A node's disk: writes take their time, hang, or fail; what is durable is what a write finished.

A crash cuts writes off: those under way may or may not have become durable, by chance, but never one before another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ocfcluster.limits import MILLISECOND_NS

if TYPE_CHECKING:
    from ocfcluster.simulator.world import World

Done = Callable[[int, bool], None]
Durable = Callable[[bytes], None]


@dataclass(slots=True)
class DiskProfile:
    """How a disk behaves until the faults stop."""

    fastest_ns: int = MILLISECOND_NS // 20
    slowest_ns: int = 2 * MILLISECOND_NS
    failing: float = (
        0.0  # probability that a write fails (and leaves what was there before); 1: the disk is full
    )


class Disk:
    """Writes in the order given, one after the other, like an fsync per record.

    It belongs to a machine and outlives the processes there. ``durable`` is the record that a start reads back;
    ``became_durable`` is told each record that is.
    """

    __slots__ = (
        "_became_durable",
        "_busy",
        "_crashes",
        "_hanging",
        "_queue",
        "_random",
        "_world",
        "durable",
        "profile",
        "writes",
    )

    def __init__(self, world: World, random: Random, profile: DiskProfile, became_durable: Durable) -> None:
        self._world = world
        self._random = random
        self._became_durable = became_durable
        self._queue: list[tuple[int, bytes, Done]] = []
        self._busy = False
        self._hanging = False
        self._crashes = 0
        self.profile = profile
        self.durable = b""
        self.writes = 0  # that became durable

    def write(self, token: int, record: bytes, done: Done) -> None:
        """Calls ``done(token, ok)`` later. A hanging disk calls it once it is released."""
        self._queue.append((token, record, done))
        self._start()

    def hang(self) -> None:
        """Nothing finishes until ``release``, not even the write under way."""
        self._hanging = True

    def release(self) -> None:
        self._hanging = False
        self._start()

    def crash(self) -> None:
        """The process that wrote is gone: nobody is told any more how its writes end."""
        finished = self._random.randint(0, len(self._queue))
        for _, record, _ in self._queue[:finished]:
            if self._random.random() >= self.profile.failing:
                self._keep(record)
        self._queue.clear()
        self._busy = False
        self._crashes += 1

    def wipe(self) -> None:
        """Everything on it is lost. The machine is down."""
        self.durable = b""

    @property
    def waiting(self) -> int:
        """Writes not finished."""
        return len(self._queue)

    def _keep(self, record: bytes) -> None:
        self.durable = record
        self.writes += 1
        self._became_durable(record)

    def _start(self) -> None:
        if self._busy or self._hanging or not self._queue:
            return
        self._busy = True
        delay_ns = self._random.randint(self.profile.fastest_ns, self.profile.slowest_ns)
        self._world.after(delay_ns, self._finish, self._crashes)

    def _finish(self, crashes: int) -> None:
        if crashes != self._crashes:
            return
        self._busy = False
        if self._hanging:
            return
        token, record, done = self._queue.pop(0)
        ok = self._random.random() >= self.profile.failing
        if ok:
            self._keep(record)
        done(token, ok)
        self._start()
