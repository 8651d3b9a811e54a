"""One machine of the simulated world: its clocks, its disk, and the life of the processes that run there.

A process (``shell``) is one incarnation of the machine's node. It crashes, is evicted, or stops; the next one comes up
with what the disk has, or, wiped, as a stranger.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Final

from ocfcluster import limits
from ocfcluster.protocol.effects import (
    Address,
    Delivery,
    Directed,
    Fault,
    GroupChange,
    HistoryLost,
    Notification,
    State,
    StateChange,
    TopicChange,
    View,
)
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.settings import Settings
from ocfcluster.simulator.disk import Disk, DiskProfile
from ocfcluster.simulator.shell import Answer, Connection, Shell, Take
from ocfcluster.simulator.subscriber import Subscriber, SubscriberProfile

if TYPE_CHECKING:
    from ocfcluster.simulator.world import World

WALL_CLOCK_NS: Final = 1_700_000_000 * limits.SECOND_NS
NEVER_NS: Final = -1  # as ``start_ns``: the machine waits for somebody to switch it on
BACK_OFF_NS: Final = 50 * limits.MILLISECOND_NS  # from an eviction to the next incarnation, at least
LOOK_NS: Final = 20 * limits.MILLISECOND_NS


@dataclass(slots=True)
class HostProfile:
    """What one machine is like."""

    settings: Settings
    clock_offset_ns: int = 0  # of the monotonic clock
    drift_ppm: int = 0  # how much faster it goes
    wall_offset_ns: int = 0
    start_ns: int = 0  # NEVER_NS: not by itself
    wake_ns: int = 20_000  # at most so long until a burst is worked off
    burst: int = 8  # inputs of a burst, at most
    late_timer_ns: int = 200_000
    back_off_ns: int = BACK_OFF_NS
    disk: DiskProfile = field(default_factory=DiskProfile)
    subscriber: SubscriberProfile = field(default_factory=SubscriberProfile)


class Host:
    """A machine. ``shell`` is the process that runs there now; None: none does."""

    __slots__ = (
        "_random",
        "_world",
        "boots",
        "clock_offset_ns",
        "cursor",
        "delivered",
        "disk",
        "evictions",
        "faults",
        "former_stores",
        "node_id",
        "notices",
        "overruns",
        "profile",
        "retired",
        "shell",
        "store_id",
        "subscriber",
        "wall_jump_ns",
    )

    def __init__(self, world: World, profile: HostProfile, random: Random) -> None:
        self.node_id = profile.settings.node_id
        self.profile = profile
        self.shell: Shell | None = None
        self.store_id = profile.settings.store_id
        self.former_stores: dict[int, bytes] = {}  # store_id of a wiped disk → what was on it
        self.clock_offset_ns = profile.clock_offset_ns
        self.wall_jump_ns = 0
        self.retired = False  # for good: nobody waits for its programs
        self.overruns = 0  # datagrams its receive buffer had no room for
        self.evictions = 0
        self.cursor = 0  # runs and topic changes delivered here, by all incarnations
        self.faults: list[Fault] = []
        self.notices: list[Notification | HistoryLost | StateChange] = []  # told to programs; ends in order
        self.delivered: list[
            Delivery | TopicChange | View | GroupChange | Directed
        ] = []  # by all its incarnations
        self._world = world
        self._random = random
        self.boots = 0
        self.disk = Disk(world, world.random(f"disk {self.node_id}"), profile.disk, self._became_durable)
        self.subscriber = Subscriber(world, profile.subscriber, self._set_full)

    # --- clocks -------------------------------------------------------------------------------------------------

    def clock(self) -> int:
        """The monotonic clock of this machine, ns."""
        now = self._world.now
        return self.clock_offset_ns + now + now * self.profile.drift_ppm // 1_000_000

    def wall_clock(self) -> int:
        return WALL_CLOCK_NS + self._world.now + self.profile.wall_offset_ns + self.wall_jump_ns

    def world_time(self, clock: int) -> int:
        """When this machine's clock shows at least ``clock``."""
        elapsed = clock - self.clock_offset_ns
        rate = 1_000_000 + self.profile.drift_ppm
        return -(-elapsed * 1_000_000 // rate) + 1

    # --- the process --------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether a process runs."""
        return self.shell is not None

    @property
    def paused(self) -> bool:
        return self.shell is not None and self.shell.paused

    @property
    def state(self) -> State:
        return State.STOPPED if self.shell is None else self.shell.state

    @property
    def running(self) -> Shell:
        """The process. Raises LookupError where none runs."""
        if self.shell is None:
            raise LookupError(f"node {self.node_id} is down")
        return self.shell

    @property
    def node(self) -> Node:
        """The running process' node. Raises LookupError where none runs."""
        return self.running.node

    def boot(self) -> None:
        """Starts a process, if none runs: a new incarnation, with what the disk has."""
        if self.shell is not None:
            return
        settings = self.profile.settings
        if self.boots:
            settings = replace(
                settings, incarnation=self._random.getrandbits(63) | 1, seed=self._random.getrandbits(32)
            )
        self.boots += 1
        settings = replace(settings, store_id=self.store_id, record=self.disk.durable)
        self._world.trace.add(
            self._world.now,
            self.node_id,
            "start",
            f"incarnation {settings.incarnation:#x}, store {self.store_id:#x}, {len(settings.record)} B on disk",
        )
        shell = Shell(self._world, self, settings, self._world.random(f"shell {self.node_id}/{self.boots}"))
        self.shell = shell
        self._world.checker.started(shell)
        self.subscriber.start_anew()
        shell.start()

    def crash(self, how: str = "kill -9") -> None:
        """Dies where it stands. Writes under way may or may not have become durable."""
        if self.shell is None:
            return
        self._world.trace.add(self._world.now, self.node_id, "crash", how)
        self._end(how)
        self.disk.crash()

    def wipe(self, store_id: int) -> None:
        """The disk is lost while the machine is down; the next process is a stranger."""
        if self.shell is not None:
            raise RuntimeError("only the disk of a machine that is down can be wiped")
        self._world.trace.add(self._world.now, self.node_id, "wiped", f"store {self.store_id:#x}")
        self.former_stores[self.store_id] = self.disk.durable
        self.store_id = store_id
        self.disk.wipe()

    def process_ended(self, shell: Shell) -> None:
        """The node has ended by itself: evicted, then the next incarnation follows, or stopped."""
        if shell is not self.shell:
            return
        evicted = shell.state is State.EVICTED
        self._end("evicted" if evicted else "stopped")
        if evicted:
            self.evictions += 1
            delay = self.profile.back_off_ns + self._random.randrange(self.profile.back_off_ns)
            self._world.after(delay, self.boot_after_writes, shell.forgets)

    def boot_after_writes(self, wiped: bool = False) -> None:
        """Starts a process once nothing of the one before is on its way to the disk any more; ``wiped``: as a
        stranger."""
        if self.shell is not None:
            return
        if self.disk.waiting:  # of the incarnation before
            self._world.after(LOOK_NS, self.boot_after_writes, wiped)
            return
        if wiped:
            self.wipe(self._random.getrandbits(63) | 1)
        self.boot()

    def _end(self, why: str) -> None:
        shell, self.shell = self.shell, None
        if shell is not None:
            shell.end(why)
            self._world.checker.ended(shell)

    def pause(self) -> None:
        if self.shell is not None:
            self.shell.pause()

    def resume(self) -> None:
        if self.shell is not None and self.shell.paused:
            self.shell.resume()

    def leave(self) -> None:
        if self.shell is not None:
            self.shell.leave()

    # --- what comes in ------------------------------------------------------------------------------------------

    def connect(self, answer: Answer | None = None, take: Take | None = None) -> Connection | None:
        """A program connects; None where nobody serves it now. ``answer`` gets the outcomes of all publications made
        here, ``take`` every run and topic change."""
        if self.shell is None or not self.shell.serves:
            return None
        return self.shell.connect(answer, take)

    def receive(self, buffer: bytes, segment: int, source: Address) -> None:
        """A buffer arrives at the network card."""
        if self.shell is not None:
            self.shell.receive(buffer, segment, source)

    def _set_full(self, full: bool) -> None:
        if self.shell is not None:
            self.shell.set_full(full)

    def _became_durable(self, record: bytes) -> None:
        self._world.checker.recorded(self, record)
