"""One machine of the simulated world: a node, its clock, its intake, its disk, and the shell around them.

The shell does what the agent's loop does, in its order: inputs of one burst, ``end_burst``, then the effects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from ocfcluster import limits
from ocfcluster.protocol.effects import (
    Address,
    Deliver,
    Delivery,
    Fault,
    Multicast,
    News,
    Outcome,
    Persist,
    Send,
    State,
    StateChange,
    TopicChange,
)
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.settings import Settings
from ocfcluster.simulator.disk import Disk, DiskProfile
from ocfcluster.simulator.subscriber import Subscriber, SubscriberProfile
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire.control import Close, Operand, TopicRemove

if TYPE_CHECKING:
    from ocfcluster.simulator.world import World

WALL_CLOCK_NS: Final = 1_700_000_000 * limits.SECOND_NS
INTAKE_RUNS_PER_BURST: Final = 16
_SENDER: Final = 8  # of the clear header, from here on: node_id, incarnation, counter
IDLE_TIMERS: Final = 1000  # timers in a row without the clock moving: the node asks for ever

Answer = Callable[[Outcome], None]
Take = Callable[[Delivery | TopicChange], None]


@dataclass(slots=True)
class HostProfile:
    """What one machine is like."""

    settings: Settings
    clock_offset_ns: int = 0  # of the monotonic clock
    drift_ppm: int = 0  # how much faster it goes
    wall_offset_ns: int = 0
    start_ns: int = 0
    wake_ns: int = 20_000  # at most so long until a burst is worked off
    burst: int = 8  # inputs of a burst, at most
    late_timer_ns: int = 200_000
    disk: DiskProfile = field(default_factory=DiskProfile)
    subscriber: SubscriberProfile = field(default_factory=SubscriberProfile)


class Host:
    """Runs a Node. ``alive`` false: dead for good; ``paused``: stopped, but its kernel still takes datagrams."""

    __slots__ = (
        "_alarm",
        "_answers",
        "_idle_timers",
        "_inbox",
        "_inbox_bytes",
        "_intake",
        "_items",
        "_last_now",
        "_operands",
        "_random",
        "_receipts",
        "_wake_planned",
        "_world",
        "alive",
        "cursor",
        "disk",
        "distinct",
        "faults",
        "node",
        "node_id",
        "overruns",
        "paused",
        "profile",
        "state",
        "subscriber",
        "wall_jump_ns",
    )

    def __init__(self, world: World, profile: HostProfile, random: Random) -> None:
        self.node_id = profile.settings.node_id
        self.profile = profile
        self.alive = True
        self.paused = False
        self.state = State.FORMING
        self.cursor = 0  # items of the one global sequence this node has delivered
        self.distinct: set[bytes] = set()  # clear headers of the datagrams it was handed: sender and counter
        self.overruns = 0  # datagrams its receive buffer had no room for
        self.wall_jump_ns = 0
        self.faults: list[Fault] = []
        self._world = world
        self._random = random
        self._inbox: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._inbox_bytes = 0
        self._intake: deque[bytes] = deque()
        self._operands: deque[tuple[Operand, Answer]] = deque()
        self._answers: dict[int, Answer] = {}
        self._receipts: list[Answer] = []
        self._items: list[Take] = []
        self._wake_planned = False
        self._alarm = -1
        self._last_now = -1
        self._idle_timers = 0
        self.disk = Disk(world, world.random(f"disk {self.node_id}"), profile.disk, self._persisted)
        self.subscriber = Subscriber(world, profile.subscriber, self._set_full)
        self.node = Node(profile.settings, self.clock(), self.wall_clock())

    def start(self) -> None:
        """Carries out what the node asks for at once."""
        self._carry_out()

    # --- clocks -------------------------------------------------------------------------------------------------

    def clock(self) -> int:
        """The monotonic clock of this machine, ns."""
        now = self._world.now
        return self.profile.clock_offset_ns + now + now * self.profile.drift_ppm // 1_000_000

    def wall_clock(self) -> int:
        return WALL_CLOCK_NS + self._world.now + self.profile.wall_offset_ns + self.wall_jump_ns

    def _world_time(self, clock: int) -> int:
        """When this machine's clock shows at least ``clock``."""
        elapsed = clock - self.profile.clock_offset_ns
        rate = 1_000_000 + self.profile.drift_ppm
        return -(-elapsed * 1_000_000 // rate) + 1

    # --- inputs -------------------------------------------------------------------------------------------------

    def receive(self, buffer: bytes, segment: int, source: Address) -> None:
        """A buffer arrives at the socket; without room in the receive buffer it is lost, as the kernel does it."""
        if not self.alive:
            return
        cost = max(len(buffer), limits.DATAGRAM_COST_BYTES)
        if self._inbox_bytes + cost > self.profile.settings.receive_buffer_bytes:
            self.overruns += 1
            self._world.trace.add(self._world.now, self.node_id, "overrun", f"{len(buffer)} B lost")
            return
        self._inbox_bytes += cost
        self._put(self._take_datagram, buffer, segment, source)

    def publish(self, run: bytes) -> None:
        """A program's run, waiting at the door until the node has room."""
        if self.alive:
            self._intake.append(run)
            self._plan_wake()

    def control(self, operand: Operand, answer: Answer) -> None:
        """An ordered command of a program; ``answer`` gets its outcome."""
        if self.alive:
            self._operands.append((operand, answer))
            self._plan_wake()

    def on_receipts(self, answer: Answer) -> None:
        """``answer`` gets the outcomes of all publications made here."""
        self._receipts.append(answer)

    def on_items(self, take: Take) -> None:
        """``take`` gets every run and topic change that is delivered here."""
        self._items.append(take)

    @property
    def intake_bytes(self) -> int:
        return sum(len(run) for run in self._intake)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._wake_planned = False
        self._plan_wake()
        self._set_alarm()

    def kill(self) -> None:
        """Dies where it stands: nothing is sent any more, and nothing said."""
        self.alive = False
        self._inbox.clear()
        self._intake.clear()
        self._operands.clear()

    def _put(self, action: Callable[..., object], *arguments: object) -> None:
        self._inbox.append((action, arguments))
        self._plan_wake()

    def _take_datagram(self, buffer: bytes, segment: int, source: Address) -> None:
        self._inbox_bytes -= max(len(buffer), limits.DATAGRAM_COST_BYTES)
        self._world.trace.add(self._world.now, self.node_id, "receive", f"from {source[0]}", buffer, segment)
        for begin in range(0, len(buffer), segment):
            self.distinct.add(buffer[begin + _SENDER : begin + limits.CLEAR_HEADER_BYTES])
        self.node.datagram(buffer, segment, source, self.clock())

    def _persisted(self, token: int, ok: bool) -> None:
        if self.alive:
            self._put(self._take_persisted, token, ok)

    def _take_persisted(self, token: int, ok: bool) -> None:
        self._world.trace.add(
            self._world.now, self.node_id, "persisted", f"token {token} {'ok' if ok else 'failed'}"
        )
        self.node.persisted(token, ok, self.clock())

    def _set_full(self, full: bool) -> None:
        if self.alive:
            self._put(self._take_full, full)

    def _take_full(self, full: bool) -> None:
        self._world.trace.add(self._world.now, self.node_id, "full" if full else "free")
        self.node.set_full(full)

    # --- bursts -------------------------------------------------------------------------------------------------

    def _plan_wake(self) -> None:
        if not self._wake_planned and not self.paused and self.alive:
            self._wake_planned = True
            self._world.after(self._random.randrange(self.profile.wake_ns), self._wake)

    def _wake(self) -> None:
        if self.paused or not self.alive:
            return
        self._wake_planned = False
        self._burst()
        if self._inbox or self._takes_from_programs():
            self._plan_wake()

    def _burst(self) -> None:
        for _ in range(self._random.randint(1, self.profile.burst)):
            if not self._inbox:
                break
            action, arguments = self._inbox.popleft()
            action(*arguments)
        if self.state is State.ACTIVE:
            for _ in range(self._random.randint(1, INTAKE_RUNS_PER_BURST)):
                if not self._take_from_programs():
                    break
        now = self.clock()
        if self.node.next_timer() <= now:
            self._tick(now)
        self.node.end_burst(now)
        self._carry_out()
        self._world.checker.after_burst(self)

    def _takes_from_programs(self) -> bool:
        waiting = bool(self._intake or self._operands)
        return waiting and self.state is State.ACTIVE and self.node.room() > 0

    def _take_from_programs(self) -> bool:
        if self.node.room() <= 0:
            return False
        # As in the agent: a command that takes something away does not pass what its program published before.
        if self._operands and (
            not self._intake
            or (not isinstance(self._operands[0][0], Close | TopicRemove) and self._random.random() < 0.5)
        ):
            operand, answer = self._operands.popleft()
            token = self.node.control(operand)
            self._answers[token] = answer
            self._world.trace.add(self._world.now, self.node_id, "control", f"{operand} token {token}")
            return True
        if not self._intake:
            return False
        run = self._intake.popleft()
        self._world.trace.add(self._world.now, self.node_id, "publish", self._world.describe_run(run))
        self.node.publish(run)
        return True

    def _tick(self, now: int) -> None:
        if now == self._last_now:
            self._idle_timers += 1
            if self._idle_timers > IDLE_TIMERS:
                raise Violation("timer", f"node {self.node_id} asks for a timer again and again at {now}")
        else:
            self._idle_timers = 0
        self._last_now = now
        self.node.timer(now, self.wall_clock())

    def _set_alarm(self) -> None:
        if not self.alive or self.paused:
            return
        due = self._world_time(self.node.next_timer())
        if due == self._alarm:
            return
        self._alarm = due
        late = self._random.randrange(self.profile.late_timer_ns)
        self._world.at(max(due, self._world.now) + late, self._ring, due)

    def _ring(self, due: int) -> None:
        if due == self._alarm and self.alive and not self.paused:
            self._alarm = -1
            self._burst()

    # --- effects ------------------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        world = self._world
        trace = world.trace
        for effect in self.node.take_effects():
            if isinstance(effect, Multicast):
                trace.add(world.now, self.node_id, "multicast", "", effect.buffer, effect.segment)
                world.network.multicast(self.node_id, effect.buffer, effect.segment)
            elif isinstance(effect, Send):
                trace.add(
                    world.now, self.node_id, "send", f"to {effect.address[0]}", effect.buffer, effect.segment
                )
                world.network.send_to_address(self.node_id, effect.address, effect.buffer, effect.segment)
            elif isinstance(effect, Deliver):
                self._deliver(effect)
            elif isinstance(effect, Persist):
                trace.add(world.now, self.node_id, "persist", f"token {effect.token} {len(effect.record)} B")
                self.disk.write(effect.token, effect.record)
            elif isinstance(effect, StateChange):
                trace.add(world.now, self.node_id, "state", f"{effect.state.value}: {effect.reason}")
                self.state = effect.state
                world.checker.state_changed(self)
            elif isinstance(effect, News):
                trace.add(world.now, self.node_id, "news", f"{effect.code}: {effect.text}")
            else:
                trace.add(world.now, self.node_id, "fault", f"{effect.code}: {effect.text}")
                self.faults.append(effect)
                world.checker.fault(self, effect)
        self._set_alarm()

    def _deliver(self, effect: Deliver) -> None:
        for item in effect.items:
            self._world.checker.delivered(self, item)
            if isinstance(item, Outcome):
                answer = self._answers.pop(item.first_number, None) if item.producer == 0 else None
                if answer is not None:
                    answer(item)
                elif item.producer:
                    for receipt in self._receipts:
                        receipt(item)
            else:
                self.subscriber.take(item)
                for take in self._items:
                    take(item)
