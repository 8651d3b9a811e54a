"""Snapshots on their way between two hosts: a TCP stream that takes time by its bytes, stalls, and breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from ocfcluster.limits import KIB, MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.effects import FetchSnapshot

if TYPE_CHECKING:
    from ocfcluster.simulator.shell import Shell
    from ocfcluster.simulator.world import World

CHUNK_BYTES: Final = 64 * KIB
CHUNKS: Final = 24  # of one snapshot at most: a large one goes in larger pieces
LOOK_NS: Final = 20 * MILLISECOND_NS  # between two looks at a stream that stands still
PATIENCE_NS: Final = 4 * SECOND_NS  # of both ends with a peer that says nothing


class Streams:
    """What connections between machines are like, and what became of them."""

    __slots__ = (
        "breaking",
        "bytes_per_second",
        "faults",
        "given",
        "moved",
        "patience_ns",
        "random",
        "usual_bytes_per_second",
    )

    def __init__(self, random: Random) -> None:
        self.random = random
        self.bytes_per_second = self.usual_bytes_per_second = 100_000_000
        self.breaking = 0.0  # probability that a stream breaks on its way
        self.patience_ns = PATIENCE_NS
        self.given = 0  # snapshots that arrived whole
        self.moved = 0  # pieces of them
        self.faults: Counter[str] = Counter()


class Transfer:
    """One FetchSnapshot on its way: connect, ask, take what comes, or give up."""

    __slots__ = (
        "_asker",
        "_breaks_after",
        "_done",
        "_effect",
        "_giver",
        "_snapshot",
        "_stalled_ns",
        "_steps",
        "_world",
    )

    def __init__(self, world: World, asker: Shell, effect: FetchSnapshot) -> None:
        self._world = world
        self._asker = asker
        self._effect = effect
        self._giver: Shell | None = None
        self._snapshot = b""
        self._steps = 0
        self._stalled_ns = 0
        self._done = False
        streams = world.streams
        breaks = streams.random.random() < streams.breaking
        self._breaks_after = streams.random.randrange(CHUNKS) if breaks else CHUNKS + 1
        world.after(1, self._connect)

    def abandon(self) -> None:
        """Another one takes its place, or its end of the line is gone: nobody waits for the answer any more."""
        self._done = True

    # --- the way there ------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        world = self._world
        if self._done:
            return
        destination = world.network.at_address(self._effect.address)
        if destination is None or destination == self._asker.node_id:
            self._fail("nobody there")
        elif not world.network.joins(self._asker.node_id, destination):
            self._wait(self._connect, "no way there")
        else:
            world.after(world.network.round_trip_ns(self._asker.node_id, destination), self._ask, destination)

    def _ask(self, destination: int) -> None:
        if self._done:
            return
        giver = self._world.hosts[destination].shell
        if giver is None:
            self._fail("connection refused")
            return
        self._giver = giver
        giver.put(self._give)
        self._watch()

    def _give(self) -> None:
        """In the giver's loop."""
        giver = self._giver
        if self._done or giver is None:
            return
        making = giver.node.give_snapshot(self._effect.request, giver.clock())
        if making is None:
            self._fail("refused")
            return
        self._snapshot = b"".join(making())
        self._steps = min(CHUNKS, 1 + len(self._snapshot) // CHUNK_BYTES)
        if self._breaks_after < CHUNKS:
            self._breaks_after %= self._steps
        self._trace(f"node {giver.node_id} gives {len(self._snapshot)} B")
        self._stalled_ns = 0
        self._advance(0)

    def _watch(self) -> None:
        """The giver may die, or be cut off, before it has said anything."""
        if self._done or self._steps:
            return
        if self._ends_gone():
            return
        self._wait(self._watch, "no answer")

    # --- the way back -------------------------------------------------------------------------------------------

    def _advance(self, step: int) -> None:
        world = self._world
        if self._done or self._ends_gone():
            return
        if step >= self._steps:
            self._done = True
            world.streams.given += 1
            self._trace(f"got {len(self._snapshot)} B")
            self._asker.put(self._take, self._snapshot)
            return
        world.streams.moved += 1
        if step >= self._breaks_after and world.now < world.calm_after:
            self._fail("the stream broke")
            return
        giver = self._giver
        if giver is None or giver.paused or self._asker.paused or not self._joined():
            self._wait(self._advance, "stalled", step)
            return
        self._stalled_ns = 0
        size = len(self._snapshot) // self._steps + 1
        world.after(1 + size * SECOND_NS // world.streams.bytes_per_second, self._advance, step + 1)

    def _joined(self) -> bool:
        giver = self._giver
        return giver is not None and self._world.network.joins(self._asker.node_id, giver.node_id)

    def _ends_gone(self) -> bool:
        """One of the two processes has ended: the other is told at once, where a link is left."""
        if not self._asker.running:
            self._done = True
            return True
        if self._giver is not None and not self._giver.running:
            self._fail("the other end is gone")
            return True
        return False

    def _wait(self, again: Callable[..., object], why: str, *arguments: object) -> None:
        self._stalled_ns += LOOK_NS
        if self._stalled_ns > self._world.streams.patience_ns:
            self._fail(why)
        else:
            self._world.after(LOOK_NS, again, *arguments)

    def _fail(self, why: str) -> None:
        self._done = True
        self._world.streams.faults["stream lost"] += 1
        self._trace(f"lost: {why}")
        self._asker.put(self._take, None)

    def _take(self, snapshot: bytes | None) -> None:
        """In the asker's loop."""
        read = None if snapshot is None else self._effect.read(snapshot)
        self._asker.node.snapshot_fetched(self._effect.token, read, self._asker.clock())

    def _trace(self, text: str) -> None:
        self._world.trace.add(
            self._world.now, self._asker.node_id, "snapshot", f"{self._effect.token} {text}"
        )
