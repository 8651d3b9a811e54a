"""A node that is alone and numbers at once, an event loop that is stepped by hand, and a client of raw sockets.

With these the whole agent is tested in one thread: a test writes to a real socket, steps the loop, and reads.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from ocfcluster.agent.config import AgentConfig
from ocfcluster.agent.daemon import Agent
from ocfcluster.agent.listener import Listener
from ocfcluster.agent.state_dir import StateDirectory
from ocfcluster.client.pieces import Pieces
from ocfcluster.net.memory import MemoryHub
from ocfcluster.protocol.effects import (
    Deliver,
    Effect,
    HistoryLost,
    Notification,
    NotificationCode,
    Outcome,
    State,
    StateChange,
    Topic,
    View,
)
from ocfcluster.protocol.groups import GroupTable
from ocfcluster.protocol.operator import OperatorCommand
from ocfcluster.protocol.retention import Retained
from ocfcluster.protocol.settings import Configuration, Limits, Member
from ocfcluster.protocol.state import MEMBERSHIP_TOPIC, ReplicatedState
from ocfcluster.wire import control
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    EVENT_HEADER,
    RECEIPT,
    RECORD_HEADER,
    Answer,
    Body,
    Hello,
    OpenProducer,
    Producer,
    RecordKind,
    Request,
    Subscribe,
    TopicCreate,
    control_frame,
    read_body,
    read_notice,
)
from ocfcluster.wire.run import RunKind, build_run

CONFIGURATION = Configuration(
    cluster_id="0" * 31 + "1", supersedes=[], epoch=1, base=0, table={1: 1}, members=[Member(1, 1, 77, 5, 1)],
    sequencer=1, tie_breaker=1, delivery="safe", last_man_standing=False, version=1, mtu=1500, limits=Limits(),
    m_sequence=1, epochs=[(1, 0)], order_time=0,
)  # fmt: skip


class FakeNode:
    """Orders everything at once; nothing is held back unless ``space`` says so."""

    def __init__(self, now: int = 0, wall_ns: int = 0, *, active: bool = True) -> None:
        self.state = State.FORMING
        self.refused = ""
        self.configuration: Configuration | None = None
        self.replicated = ReplicatedState(CONFIGURATION)
        self.space = 1 << 30
        self.full_told: list[bool] = []
        self.left = False
        self.commands = 0
        self.ordered: list[
            tuple[str, bool]
        ] = []  # the kinds of these commands, and whether behind publications
        self.refusal = 0  # errno of every command
        self.published = 0
        self.cluster_id = CONFIGURATION.cluster_id
        self.leaves_at_once = True  # else when the test lets it: ``change``
        self.told: list[OperatorCommand] = []  # by an operator
        self.operator_refusal = ""
        self.snapshot: list[bytes] | None = None  # given to whoever asks
        self.asked: list[bytes] = []  # requests for it
        self.fetched: list[tuple[int, bytes | None]] = []
        self.persisted_told: list[tuple[int, bool]] = []
        self.linked: list[Any] = []  # what it says of who hears whom
        self._items: list[Any] = []
        self._effects: list[Effect] = []
        self._controls: dict[int, bytes] = {}  # token → what came before it was active
        self._token = 0
        if active:
            self.activate()

    def activate(self) -> None:
        self.state = State.ACTIVE
        self._effects.append(StateChange(State.ACTIVE, "test"))
        self.view(CONFIGURATION.members)
        for run in self._controls.values():
            self._apply(run)
        self._controls.clear()

    def view(self, members: Sequence[Member]) -> None:
        """The members are these from here on; what is the same view again is no event."""
        before = self.configuration
        old = set() if before is None else set(before.members)
        changed = set(members) != old
        self.configuration = configuration = msgspec.structs.replace(
            CONFIGURATION if before is None else before, cluster_id=self.cluster_id,
            members=sorted(members), m_sequence=(0 if before is None else before.m_sequence) + changed,
            epoch=1 if before is None else before.epoch + 1, order_time=1234,
        )  # fmt: skip
        replicated = self.replicated
        replicated.m_sequence = configuration.m_sequence
        seq = ev_id = 0
        if changed:
            seq = replicated.last_seq[MEMBERSHIP_TOPIC.topic_id] = (
                self.last_seq(MEMBERSHIP_TOPIC.topic_id) + 1
            )
            replicated.ev_id += 1
            ev_id = replicated.ev_id
        joined, left = sorted(set(members) - old), sorted(old - set(members))
        self._items.append(View(configuration, seq, ev_id, tuple(joined), tuple(left)))

    def retime(self, timing: Any, _now: int) -> None:
        self.timing = timing

    def heard(self) -> list[tuple[int, int, Any, int]]:
        return []

    def notify(self, code: NotificationCode) -> None:
        self._told()
        assert self.configuration is not None
        seq = self.last_seq(MEMBERSHIP_TOPIC.topic_id)
        self._effects.append(Notification(code, self.configuration.m_sequence, seq))

    def evict(self) -> None:
        self._told()
        self.state = State.EVICTED
        self._effects.append(StateChange(State.EVICTED, "epoch 2 is without this node"))

    def lose_history(self) -> None:
        """Another history takes the place of this one; it begins with ``activate``."""
        assert self.configuration is not None
        before, self.cluster_id = self.cluster_id, "0" * 31 + "2"
        self._told()
        self._effects.append(HistoryLost(self.cluster_id, before))
        self.replicated = ReplicatedState(CONFIGURATION)
        self.configuration = None
        self.state = State.FORMING
        self._controls.clear()

    def _told(self) -> None:
        """What was delivered so far comes before what is told now."""
        self.end_burst(0)

    def _apply(self, run: bytes) -> None:
        self.replicated.apply(run, 1, 77, 1234, True, self._items)

    @property
    def topics(self) -> dict[str, Topic]:
        return self.replicated.topics.by_name

    @property
    def groups(self) -> GroupTable:
        return self.replicated.groups

    @property
    def retained(self) -> Retained:
        return self.replicated.retained

    def datagram(self, buffer: bytes, segment: int, source: object, now: int) -> None:
        raise AssertionError("a node that is alone gets no datagrams")

    def publish(self, run: bytes) -> None:
        assert self.state is State.ACTIVE
        self.published += 1
        self._apply(run)

    def control(self, operand: control.Operand, behind: bool = False) -> int:
        self._token += 1
        self.commands += 1
        self.ordered.append((type(operand).__name__, behind))
        run = control.control_run(operand, self._token)
        if self.refusal:
            self._items.append(Outcome(control.kind_of(operand), 0, self._token, 1, self.refusal, 0, 0, 0))
            return self._token
        if self.state is State.ACTIVE:
            self._apply(run)
        else:
            self._controls[self._token] = run
        return self._token

    def withdraw(self, token: int) -> bool:
        return self._controls.pop(token, None) is not None

    def timer(self, now: int, wall_ns: int) -> None: ...

    def next_timer(self) -> int:
        return 1 << 62

    def persisted(self, token: int, ok: bool, now: int) -> None:
        self.persisted_told.append((token, ok))

    def set_full(self, full: bool) -> None:
        self.full_told.append(full)

    def end_burst(self, now: int) -> None:
        if self._items:
            self._effects.append(Deliver(self._items))
            self._items = []

    def end_burst_in_steps(self, now: int) -> Iterator[None]:
        self.end_burst(now)
        yield
        while self._items:  # what was asked for where that was told
            self.end_burst(now)
            yield

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def room(self) -> int:
        return self.space if self.state is State.ACTIVE else 0

    def topic_by_id(self, topic_id: int) -> Topic | None:
        return self.replicated.topics.by_id.get(topic_id)

    def last_seq(self, topic_id: int) -> int:
        return self.replicated.seq_of(topic_id)

    def own_producers(self) -> list[int]:
        return self.replicated.producers_of(1)

    def status(self, now: int) -> dict[str, Any]:
        return {"state": self.state.value, "cluster": "test", "node_id": 1, "topics": len(self.topics)}

    def links(self, all_pairs: bool) -> list[Any]:
        return self.linked

    def leave(self, now: int) -> None:
        self.left = True
        if self.leaves_at_once:
            self.change(State.STOPPED, "left")

    def change(self, state: State, reason: str) -> None:
        """The test decides that the node's state is another one from here on; ``settle`` the agent behind it."""
        self.state = state
        self._effects.append(StateChange(state, reason))

    def effect(self, effect: Effect) -> None:
        """The test decides what the node asks of its shell next."""
        self._effects.append(effect)

    def operator(self, command: OperatorCommand, now: int) -> str:
        self.told.append(command)
        return self.operator_refusal

    def give_snapshot(self, request: bytes, now: int) -> Callable[[], list[bytes]] | None:
        self.asked.append(request)
        snapshot = self.snapshot
        return None if snapshot is None else lambda: snapshot

    def snapshot_fetched(self, token: int, snapshot: Any, now: int) -> None:
        self.fetched.append((token, snapshot))


class HandLoop:
    """What the agent uses of an event loop; ``step`` runs the callbacks of all descriptors that are ready."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._readers: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}
        self._writers: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}

    def _register(self, descriptor: int, before: bool) -> None:
        events = (select.EPOLLIN if descriptor in self._readers else 0) | (
            select.EPOLLOUT if descriptor in self._writers else 0
        )
        if not events:
            self._epoll.unregister(descriptor)
        elif before:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)

    def _watched(self, descriptor: int) -> bool:
        return descriptor in self._readers or descriptor in self._writers

    def add_reader(self, descriptor: int, callback: Callable[..., None], *arguments: Any) -> None:
        before = self._watched(descriptor)
        self._readers[descriptor] = (callback, arguments)
        self._register(descriptor, before)

    def remove_reader(self, descriptor: int) -> None:
        if self._readers.pop(descriptor, None) is not None:
            self._register(descriptor, True)

    def add_writer(self, descriptor: int, callback: Callable[..., None], *arguments: Any) -> None:
        before = self._watched(descriptor)
        self._writers[descriptor] = (callback, arguments)
        self._register(descriptor, before)

    def remove_writer(self, descriptor: int) -> None:
        if self._writers.pop(descriptor, None) is not None:
            self._register(descriptor, True)

    def call_later(self, delay_s: float, callback: Callable[..., None], *arguments: Any) -> Any:
        class Handle:
            def cancel(self) -> None: ...

        return Handle()

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((callback, arguments))

    def call_soon_threadsafe(self, callback: Callable[..., None], *arguments: Any) -> None: ...

    def step(self, rounds: int = 100) -> None:
        """Until nothing is ready any more."""
        for _ in range(rounds):
            ready = self._epoll.poll(0)
            soon, self._soon = self._soon, []
            if not ready and not soon:
                return
            for callback, arguments in soon:
                callback(*arguments)
            for descriptor, events in ready:
                for table, mask in ((self._readers, ~select.EPOLLOUT), (self._writers, ~select.EPOLLIN)):
                    entry = table.get(descriptor)
                    if entry is not None and events & mask:
                        entry[0](*entry[1])

    def close(self) -> None:
        self._epoll.close()


class Bench:
    """An agent around a FakeNode, stepped by hand."""

    def __init__(self, directory: Path, config: AgentConfig | None = None, *, active: bool = True) -> None:
        self.path = str(directory / "agent.sock")
        self.node = FakeNode(active=active)
        self.agent = Agent(
            config or AgentConfig(), lambda now, wall_ns: self.node, MemoryHub().transport(),
            StateDirectory(directory / "state", "ocfcluster", 1), Listener(self.path), incarnation=77,
        )  # fmt: skip
        self.loop = HandLoop()
        self.agent._loop = self.loop  # type: ignore[assignment]
        self.loop.add_reader(self.agent.listener.socket.fileno(), self.agent.connections.arrived)
        self.agent.settle(time.monotonic_ns())
        self._clients: list[RawClient] = []

    def step(self) -> None:
        self.loop.step()

    def client(self, *, greet: bool = True) -> RawClient:
        client = RawClient(self.path, self.step)
        self._clients.append(client)
        if greet:
            client.greet()
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.agent._close()
        self.loop.close()


@contextmanager
def bench(directory: Path, config: AgentConfig | None = None, *, active: bool = True) -> Iterator[Bench]:
    made = Bench(directory, config, active=active)
    try:
        yield made
    finally:
        made.close()


class RawClient:
    """A client of the local protocol without the library. ``step`` lets the agent work."""

    def __init__(self, path: str, step: Callable[[], None]) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.step = step
        self.receipts: list[tuple[int, int, int, int, int, int]] = []
        self.told: list[Body | None] = []  # what came without a request ...
        self.welcomed_again: list[Body | None] = []  # ... but for the news that the cluster is formed
        self.eof = False
        self._buffer = b""
        self._request_id = 0
        self._ends: list[socket.socket] = []
        self.tokens: dict[int, bytes] = {}  # of the producers opened here

    def close(self) -> None:
        self.socket.close()
        for end in self._ends:
            end.close()

    def send(self, data: bytes) -> None:
        """All of ``data``; the agent works whenever it must take something first."""
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                self.step()

    def ask(self, kind: Request, body: Body | None = None, descriptors: list[int] | None = None) -> int:
        """Send a request; its id."""
        self._request_id += 1
        frame = control_frame(kind, self._request_id, body)
        if descriptors:
            socket.send_fds(self.socket, [frame], descriptors)
        else:
            self.send(frame)
        return self._request_id

    def answers(self) -> list[tuple[int, int, Body | None]]:
        """All answers there are now, as (kind, request id, body); receipts are collected apart."""
        self.step()
        found = []
        while True:
            try:
                data = self.socket.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                self.eof = True
                break
            self._buffer += data
            self.step()
        while len(self._buffer) >= CONTROL_HEADER.size:
            length, kind, _, _, request_id = CONTROL_HEADER.unpack_from(self._buffer)
            end = CONTROL_HEADER.size + length
            if len(self._buffer) < end:
                break
            body, self._buffer = self._buffer[CONTROL_HEADER.size : end], self._buffer[end:]
            if kind == Answer.RECEIPTS:
                self.receipts += RECEIPT.iter_unpack(body)
                continue
            decoded = read_body(kind, body) if body else None
            if request_id:
                found.append((kind, request_id, decoded))
            elif kind == Answer.WELCOME:
                self.welcomed_again.append(decoded)
            else:
                self.told.append(decoded)
        return found

    def call(self, kind: Request, body: Body | None = None, descriptors: list[int] | None = None) -> Any:
        """Send a request and return (kind, body) of its answer."""
        request_id = self.ask(kind, body, descriptors)
        for answer_kind, answered, answer in self.answers():
            if answered == request_id:
                return answer_kind, answer
        return None, None

    def greet(self) -> Any:
        return self.call(Request.HELLO, Hello(name="raw"))[1]

    def open_producer(self, *, local: bool = False) -> int:
        answer = self.call(Request.OPEN_PRODUCER, OpenProducer(local))[1]
        producer: int = answer.producer
        self.tokens[producer] = answer.token
        return producer

    def resume(self, producer: int, token: bytes) -> None:
        """As a program does that comes back."""
        self.send(control_frame(Request.RESUME_PRODUCER, 0, Producer(producer, token)))

    def create_topic(self, name: str, *, local: bool = False) -> int:
        topic_id: int = self.call(Request.TOPIC_CREATE, TopicCreate(name, local))[1].topic_id
        return topic_id

    def subscribe(self, number: int, *topics: str, callback: bool = False) -> socket.socket:
        kind, answer, own = self.lend(Subscribe(number, list(topics), callback))
        assert kind == Answer.SUBSCRIBED, answer
        return own

    def lend(self, body: Subscribe) -> tuple[Any, Any, socket.socket]:
        """Subscribe: kind and body of the answer (None where none came yet), and the end that events come to."""
        own, lent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setblocking(False)
        lent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
        self._ends += (own, lent)
        return (*self.call(Request.SUBSCRIBE, body, [lent.fileno()]), own)

    def publish(self, topic_id: int, producer: int, first_number: int, *events: bytes) -> None:
        run = build_run(RunKind.PUBLICATION, topic_id, producer, first_number, events)
        self.send(publish_frame(run))


def publish_frame(run: bytes) -> bytes:
    return CONTROL_HEADER.pack(len(run), Request.PUBLISH, 0, 0, 0) + run


_PIECES: WeakKeyDictionary[socket.socket, Pieces] = WeakKeyDictionary()


def read_frame(
    event_socket: socket.socket,
) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], Any]]] | None:
    """One message of an event socket: header fields and (record fields, run or notice); None if there is none. Of a
    run in pieces the message is the one with the last of them."""
    pieces = _PIECES.setdefault(event_socket, Pieces())
    try:
        message = event_socket.recv(1 << 17)
    except BlockingIOError:
        return None
    if not message:
        return None
    header = EVENT_HEADER.unpack_from(message)
    at = EVENT_HEADER.size
    records: list[tuple[tuple[int, ...], Any]] = []
    for _ in range(header[3]):
        fields = RECORD_HEADER.unpack_from(message, at)
        body: Any = message[at + RECORD_HEADER.size : at + fields[0]]
        if fields[1] == RecordKind.PART:
            body = pieces.add(fields[3], memoryview(body))
            if body is None:
                return read_frame(event_socket)
        else:
            pieces.give_up()
        if fields[1] == RecordKind.NOTICE:
            body = read_notice(body)
        records.append((fields, body))
        at += fields[0]
    assert at == len(message)
    return header, records


def read_all(
    event_socket: socket.socket, step: Callable[[], None]
) -> list[tuple[tuple[int, ...], list[Any]]]:
    """All messages, with the agent writing what it can in between."""
    frames = []
    while True:
        frame = read_frame(event_socket)
        if frame is None:
            step()
            frame = read_frame(event_socket)
            if frame is None:
                if not _PIECES[event_socket].begun:
                    return frames
                continue
        frames.append(frame)


def in_thread(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread
