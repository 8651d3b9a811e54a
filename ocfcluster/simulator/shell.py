"""The process on a machine: one incarnation of a node, and around it what the agent's loop does, in its order.

Inputs of one burst, ``end_burst``, then the effects. A process ends at once: what it had taken from its sockets and
its programs is gone with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from ocfcluster import limits
from ocfcluster.protocol.effects import (
    Address,
    Deliver,
    Delivery,
    Directed,
    Effect,
    Fault,
    FetchSnapshot,
    Forget,
    GroupChange,
    HistoryLost,
    Item,
    Multicast,
    News,
    Notification,
    Outcome,
    Persist,
    Send,
    State,
    StateChange,
    Stop,
    Topic,
    TopicChange,
    View,
)
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.operator import OperatorCommand
from ocfcluster.protocol.retention import Retained
from ocfcluster.protocol.settings import Settings
from ocfcluster.simulator.streams import Transfer
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire.control import Close, GroupJoin, GroupLeave, Operand, TopicRemove
from ocfcluster.wire.run import RunKind

if TYPE_CHECKING:
    from ocfcluster.simulator.history import Cursor, History, Place
    from ocfcluster.simulator.host import Host
    from ocfcluster.simulator.world import World

INTAKE_RUNS_PER_BURST: Final = 16
_SENDER: Final = 8  # of the clear header, from here on: node_id, incarnation, counter
IDLE_TIMERS: Final = 1000  # timers in a row without the clock moving: the node asks for ever
TIMER_FIRST: Final = 0.2  # probability that a loop which overslept looks at its timers before its sockets

_BEHIND: Final = (Close, TopicRemove, GroupJoin, GroupLeave)

Answer = Callable[[Outcome], None]
Take = Callable[[Delivery | TopicChange], None]
Trap = Callable[[Effect], bool]


class Connection:
    """A program's connection to the agent: ends with the process, an eviction, a leave, or the end of the history."""

    __slots__ = ("_answer", "_shell", "_take", "open")

    def __init__(self, shell: Shell, answer: Answer | None, take: Take | None) -> None:
        self._shell = shell
        self._answer = answer
        self._take = take
        self.open = True

    def publish(self, run: bytes) -> None:
        """A program's run, waiting at the door until the node has room."""
        if self.open:
            self._shell.publish(run)

    def control(self, operand: Operand, answer: Answer) -> None:
        """An ordered command; ``answer`` gets its outcome, if it comes on this connection."""
        if self.open:
            self._shell.control(operand, answer, self)

    def close(self) -> None:
        """The program hangs up. What it has handed in goes its way."""
        self.open = False

    @property
    def topics(self) -> dict[str, Topic]:
        return self._shell.node.topics

    def last_seq(self, topic_id: int) -> int:
        return self._shell.node.last_seq(topic_id)

    @property
    def retained(self) -> Retained:
        """What the agent's node keeps, as it has delivered it."""
        return self._shell.node.retained

    @property
    def place(self) -> Place:
        """How far the agent has delivered its history."""
        cursor = self._shell.cursor
        if cursor is None:
            raise RuntimeError("a connection to an agent that serves nothing")
        return cursor.place

    @property
    def history(self) -> History:
        """The history that the agent serves; there is one while a connection is open."""
        cursor = self._shell.cursor
        if cursor is None:
            raise RuntimeError("a connection to an agent that serves nothing")
        return cursor.history

    @property
    def incarnation(self) -> int:
        return self._shell.settings.incarnation

    @property
    def busy(self) -> bool:
        """Whether the agent would not answer at the moment."""
        return self._shell.paused

    @property
    def intake_bytes(self) -> int:
        return self._shell.intake_bytes

    def tell(self, outcome: Outcome) -> None:
        if self.open and self._answer is not None:
            self._answer(outcome)

    def take(self, item: Delivery | TopicChange) -> None:
        if self.open and self._take is not None:
            self._take(item)


class Shell:
    """Runs one Node. ``running`` false: its process has ended, for good."""

    __slots__ = (
        "_alarm",
        "_answers",
        "_connections",
        "_fetch",
        "_follows",
        "_host",
        "_idle_timers",
        "_inbox",
        "_inbox_bytes",
        "_intake",
        "_last_now",
        "_operands",
        "_random",
        "_wake_planned",
        "_world",
        "checked_freed",
        "checked_index",
        "configuration",
        "cursor",
        "declared",
        "distinct",
        "ended_because",
        "forgets",
        "leaving",
        "node",
        "node_id",
        "not_primary",
        "paused",
        "paused_at",
        "running",
        "settings",
        "started_at",
        "state",
        "trap",
        "woke_at",
    )

    def __init__(self, world: World, host: Host, settings: Settings, random: Random) -> None:
        self.node_id = settings.node_id
        self.settings = settings
        self.running = True
        self.paused = False
        self.paused_at = self.woke_at = world.now
        self.leaving = False
        self.ended_because = ""
        self.forgets = False  # the next process begins with an empty disk
        self.started_at = world.now
        self.state = State.FORMING
        self.cursor: Cursor | None = None  # where in its history this incarnation is; the checker's
        self.configuration: object = None  # the one that the checker saw last
        self.checked_index = 0
        self.checked_freed = 0
        self.declared: tuple[str, str] | None = None  # the last HistoryLost
        self.not_primary: Notification | None = None
        self.distinct: set[bytes] = set()  # clear headers of the datagrams it was handed: sender and counter
        self.trap: Trap | None = None  # ends the process before the effect for which it is true
        self._world = world
        self._host = host
        self._random = random
        self._inbox: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._inbox_bytes = 0
        self._intake: deque[bytes] = deque()
        self._operands: deque[tuple[Operand, Answer, Connection]] = deque()
        self._answers: dict[int, tuple[Answer, Connection]] = {}
        self._connections: list[Connection] = []
        self._fetch: Transfer | None = None
        self._follows = False  # something may follow from this burst
        self._wake_planned = False
        self._alarm = -1
        self._last_now = -1
        self._idle_timers = 0
        self.node = Node(settings, self.clock(), host.wall_clock())

    def start(self) -> None:
        """Carries out what the node asks for at once."""
        self._carry_out()

    def clock(self) -> int:
        return self._host.clock()

    # --- programs -----------------------------------------------------------------------------------------------

    @property
    def serves(self) -> bool:
        """Whether a program that connects now is served."""
        return (
            self.running
            and self.state is State.ACTIVE
            and self.cursor is not None
            and not self.leaving
            and not self.paused
        )

    def connect(self, answer: Answer | None, take: Take | None) -> Connection:
        connection = Connection(self, answer, take)
        self._connections = [one for one in self._connections if one.open]
        self._connections.append(connection)
        return connection

    def disconnect(self) -> None:
        """Every program loses its connection, and what it had handed in and the node had not taken."""
        for connection in self._connections:
            connection.open = False
        self._connections.clear()
        self._intake.clear()
        self._operands.clear()
        self._answers.clear()

    def publish(self, run: bytes) -> None:
        self._intake.append(run)
        self._plan_wake()

    def control(self, operand: Operand, answer: Answer, connection: Connection) -> None:
        self._operands.append((operand, answer, connection))
        self._plan_wake()

    @property
    def intake_bytes(self) -> int:
        return sum(map(len, self._intake))

    # --- the machine --------------------------------------------------------------------------------------------

    def pause(self) -> None:
        self.paused = True
        self.paused_at = self._world.now

    def resume(self) -> None:
        self.paused = False
        self.woke_at = self._world.now
        self._wake_planned = False
        self._alarm = -1
        self._plan_wake()
        self._set_alarm()

    def end(self, why: str) -> None:
        """The process is gone: nothing is sent any more, and nothing said."""
        self.running = False
        self.ended_because = why
        self.disconnect()
        self._inbox.clear()
        if self._fetch is not None:
            self._fetch.abandon()

    def leave(self) -> None:
        """Told to stop: programs are sent away, and the node asks the others to let it go."""
        if not self.leaving:
            self.leaving = True
            self.disconnect()
            self.put(lambda: self.node.leave(self.clock()))

    def operate(self, command: OperatorCommand) -> str:
        """An operator's word; why it was refused."""
        self._follows = True
        refused = self.node.operator(command, self.clock())
        self._plan_wake()
        return refused

    # --- inputs -------------------------------------------------------------------------------------------------

    def receive(self, buffer: bytes, segment: int, source: Address) -> None:
        """A buffer arrives at the socket; without room in the receive buffer it is lost, as the kernel does it."""
        cost = max(len(buffer), limits.DATAGRAM_COST_BYTES)
        if self._inbox_bytes + cost > self.settings.receive_buffer_bytes:
            self._host.overruns += 1
            self._world.trace.add(self._world.now, self.node_id, "overrun", f"{len(buffer)} B lost")
            return
        self._inbox_bytes += cost
        self.put(self._take_datagram, buffer, segment, source)

    def put(self, action: Callable[..., object], *arguments: object) -> None:
        """``action`` in the loop's next burst, if there is one."""
        if self.running:
            self._inbox.append((action, arguments))
            self._plan_wake()

    def _take_datagram(self, buffer: bytes, segment: int, source: Address) -> None:
        self._inbox_bytes -= max(len(buffer), limits.DATAGRAM_COST_BYTES)
        self._world.trace.add(self._world.now, self.node_id, "receive", f"from {source[0]}", buffer, segment)
        for begin in range(0, len(buffer), segment):
            self.distinct.add(buffer[begin + _SENDER : begin + limits.CLEAR_HEADER_BYTES])
        if self.node.datagram(buffer, segment, source, self.clock()):
            self._follows = True

    def _persisted(self, token: int, ok: bool) -> None:
        self.put(self._take_persisted, token, ok)

    def _take_persisted(self, token: int, ok: bool) -> None:
        text = f"token {token} {'ok' if ok else 'failed'}"
        self._world.trace.add(self._world.now, self.node_id, "persisted", text)
        self.node.persisted(token, ok, self.clock())

    def set_full(self, full: bool) -> None:
        self.put(self._take_full, full)

    def _take_full(self, full: bool) -> None:
        self._world.trace.add(self._world.now, self.node_id, "full" if full else "free")
        self.node.set_full(full)

    # --- bursts -------------------------------------------------------------------------------------------------

    def _plan_wake(self) -> None:
        if not self._wake_planned and not self.paused and self.running:
            self._wake_planned = True
            self._world.after(self._random.randrange(self._host.profile.wake_ns), self._wake)

    def _wake(self) -> None:
        if self.paused or not self.running:
            return
        self._wake_planned = False
        self._burst()
        if self._inbox or self._takes_from_programs():
            self._plan_wake()

    def _burst(self) -> None:
        now = self.clock()
        if not self._inbox:
            self._follows = True  # it was woken for something else
        if self._random.random() < TIMER_FIRST and self.node.next_timer() <= now:
            self._tick(now)
        for _ in range(self._random.randint(1, self._host.profile.burst)):
            if not self._inbox:
                break
            action, arguments = self._inbox.popleft()
            if action != self._take_datagram:
                self._follows = True
            action(*arguments)
        if self.state is State.ACTIVE:
            for _ in range(self._random.randint(1, INTAKE_RUNS_PER_BURST)):
                if not self._take_from_programs():
                    break
        if self.node.next_timer() <= now:
            self._tick(now)
        self._end_burst(now)
        if self.running:
            self._world.checker.after_burst(self)

    def _end_burst(self, now: int) -> None:
        """As the agent does it: where nothing can follow the burst has no end. By the clock, in one of two cases it
        has, and then nothing may have followed."""
        follows, self._follows = self._follows, False
        if not follows and now % 2:
            self._set_alarm()
            return
        due = self.node.next_timer()
        self.node.end_burst(now)
        if not follows and (self.node.outbox.effects or self.node.next_timer() != due):
            raise Violation(
                "burst", f"node {self.node_id} said that nothing could follow from what came at {now}"
            )
        self._carry_out()

    def _takes_from_programs(self) -> bool:
        waiting = bool(self._intake or self._operands)
        return waiting and self.running and self.state is State.ACTIVE and self.node.room() > 0

    def _take_from_programs(self) -> bool:
        if self.node.room() <= 0:
            return False
        # As in the agent: a command that takes something away does not pass what its program published before.
        if self._operands and (
            not self._intake
            or (not isinstance(self._operands[0][0], _BEHIND) and self._random.random() < 0.5)
        ):
            operand, answer, connection = self._operands.popleft()
            self._follows = True
            token = self.node.control(operand)
            self._answers[token] = (answer, connection)
            self._world.trace.add(self._world.now, self.node_id, "control", f"{operand} token {token}")
            return True
        if not self._intake:
            return False
        self._follows = True
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
        self._follows = True
        self.node.timer(now, self._host.wall_clock())

    def _set_alarm(self) -> None:
        if not self.running or self.paused:
            return
        due = self._host.world_time(self.node.next_timer())
        if due == self._alarm:
            return
        self._alarm = due
        late = self._random.randrange(self._host.profile.late_timer_ns)
        self._world.at(max(due, self._world.now) + late, self._ring, due)

    def _ring(self, due: int) -> None:
        if due == self._alarm and self.running and not self.paused:
            self._alarm = -1
            self._burst()
            if self._inbox:
                self._plan_wake()

    # --- effects ------------------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        effects = self.node.take_effects()
        for place, effect in enumerate(effects):
            if self.trap is not None and self.trap(effect):
                self._host.crash("in a trap")
                return
            if isinstance(effect, Deliver):
                self._deliver(effect, effects[place + 1 :])
            else:
                self._carry(effect)
        self._set_alarm()
        if self.state in (State.EVICTED, State.STOPPED):
            self._host.process_ended(self)

    def _carry(self, effect: Effect) -> None:
        world = self._world
        if isinstance(effect, Multicast):
            world.trace.add(world.now, self.node_id, "multicast", "", effect.buffer, effect.segment)
            world.checker.said.look(self, effect.buffer, effect.segment)
            world.network.multicast(self.node_id, effect.buffer, effect.segment)
        elif isinstance(effect, Send):
            address = effect.address
            world.trace.add(
                world.now, self.node_id, "send", f"to {address[0]}", effect.buffer, effect.segment
            )
            world.checker.said.look(self, effect.buffer, effect.segment)
            world.network.send_to_address(self.node_id, address, effect.buffer, effect.segment)
        elif isinstance(effect, Persist):
            text = f"token {effect.token} {len(effect.record)} B"
            world.trace.add(world.now, self.node_id, "persist", text)
            self._host.disk.write(effect.token, effect.record, self._persisted)
        else:
            self._carry_rare(effect)

    def _carry_rare(self, effect: Effect) -> None:
        world = self._world
        add, now, node_id = world.trace.add, world.now, self.node_id
        if isinstance(effect, StateChange):
            add(now, node_id, "state", f"{effect.state.value}: {effect.reason}")
            self.state = effect.state
            if effect.state in (State.EVICTED, State.STOPPED):
                self._host.notices.append(effect)
            world.checker.state_changed(self)
        elif isinstance(effect, Forget):
            add(now, node_id, "forget")
            self.forgets = True
        elif isinstance(effect, FetchSnapshot):
            add(now, node_id, "fetch", f"token {effect.token} from {effect.address[0]}")
            if self._fetch is not None:
                self._fetch.abandon()
            self._fetch = Transfer(world, self, effect)
        elif isinstance(effect, HistoryLost):
            add(now, node_id, "history", f"{effect.superseded} has ended, goes on in {effect.cluster_id}")
            self._host.notices.append(effect)
            self.disconnect()
            self.declared = (effect.cluster_id, effect.superseded)
        elif isinstance(effect, Notification):
            add(
                now, node_id, "notify", f"{effect.code.value} m_sequence {effect.m_sequence} seq {effect.seq}"
            )
            self._host.notices.append(effect)
            world.checker.notified(self, effect)
        elif isinstance(effect, Stop):
            add(now, node_id, "stop", effect.reason)
            self.state = State.STOPPED
        elif isinstance(effect, News):
            add(now, node_id, "news", f"{effect.code}: {effect.text}")
        elif isinstance(effect, Fault):
            add(now, node_id, "fault", f"{effect.code}: {effect.text}")
            self._host.faults.append(effect)
            world.checker.fault(self, effect)
        else:
            raise Violation("effects", f"node {node_id} asks for {effect}, which nobody knows")

    def _deliver(self, effect: Deliver, later: list[Effect]) -> None:
        host = self._host
        for place, item in enumerate(effect.items):
            if isinstance(item, View):
                following = [*effect.items[place + 1 :], *_items(later)]
                self._world.checker.viewed(self, item, following)
                host.delivered.append(item)
                continue
            self._world.checker.delivered(self, item)
            if isinstance(item, Outcome):
                self._answer(item)
                continue
            host.delivered.append(item)
            host.cursor += 1
            if isinstance(item, GroupChange):
                continue
            if isinstance(item, Directed):
                item = item.delivery
            if isinstance(item, Delivery):
                host.subscriber.take(item)
            for connection in self._connections:
                connection.take(item)

    def _answer(self, outcome: Outcome) -> None:
        if outcome.kind <= RunKind.VOID:  # of publications; as the agent tells them from commands
            for connection in self._connections:
                connection.tell(outcome)
            return
        asked = self._answers.pop(outcome.first_number, None)
        if asked is not None and asked[1].open:
            asked[0](outcome)


def _items(effects: list[Effect]) -> list[Item]:
    """All that is delivered by these effects."""
    return [item for effect in effects if isinstance(effect, Deliver) for item in effect.items]
