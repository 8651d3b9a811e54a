"""Programs that use the client library: its session, over a connection that breaks, against the agent's session.

The library's and the agent's own code runs at both ends (``client.session``, ``ipc.session``, ``ipc.delivery``);
between them is a byte stream that is cut anywhere, and what the agent's loop does beside (``Door``), in short.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from ocfcluster import limits
from ocfcluster.client.producer import Batch, Producer, run_size
from ocfcluster.client.session import Resumed, Session, Stage
from ocfcluster.errors import ClientError, UnknownTopic
from ocfcluster.ipc import session as agent_side
from ocfcluster.ipc.delivery import Hub, Line, Subscription
from ocfcluster.protocol.effects import Delivery, Outcome, State, TopicChange
from ocfcluster.wire import control, frames
from ocfcluster.wire.frames import EVENT_HEADER, RECORD_HEADER, Answer, NoticeCode, RecordKind, Request
from ocfcluster.wire.run import check_run

if TYPE_CHECKING:
    from ocfcluster.simulator.checker import Publication
    from ocfcluster.simulator.host import Host
    from ocfcluster.simulator.world import World

RETRY_NS: Final = 5 * limits.MILLISECOND_NS
PIPE_NS: Final = limits.MILLISECOND_NS // 5
SOCKET_FRAMES: Final = 3  # an event socket takes so many messages until it is read
_DESCRIPTOR: Final = struct.Struct("=i")


@dataclass(slots=True)
class ClientProfile:
    """What one client program does."""

    name: str
    node_id: int
    events: int
    topics: tuple[str, ...]
    subscribes: str  # a topic, or empty
    pause_ns: int
    lost: float  # probability per action that the connection breaks


class SimulatedSocket:
    """The agent's end of an event socket, and the messages in it."""

    __slots__ = ("frames",)

    def __init__(self) -> None:
        self.frames: deque[tuple[bytes, bytes]] = deque()  # message, run of a SHARED record

    def sendmsg(
        self, buffers: list[bytes], ancdata: list[tuple[int, int, bytes]] | None = None, flags: int = 0, /
    ) -> int:
        """One message, as a socket takes it. Raises BlockingIOError where there is no room."""
        del flags
        if len(self.frames) >= SOCKET_FRAMES:
            raise BlockingIOError
        shared = b""
        for _, _, data in ancdata or []:
            (descriptor,) = _DESCRIPTOR.unpack(data)
            shared = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        message = b"".join(buffers)
        self.frames.append((message, shared))
        return len(message)

    def close(self) -> None:
        """The messages in it can still be read."""


class Door:
    """The agent's end of one connection: what its loop does between the session and the node."""

    __slots__ = ("_client", "_host", "connection", "hub", "line", "open", "session", "socket", "subscription")

    def __init__(self, client: ClientProgram, host: Host, connection: int) -> None:
        self._client = client
        self._host = host
        self.connection = connection
        self.session = agent_side.Session(host.profile.settings.limits.event_bytes)
        self.hub = Hub(self)
        self.line: Line = self.hub.open_line(connection)
        self.socket = SimulatedSocket()
        self.subscription: Subscription | None = None
        self.open = True

    def receive(self, data: bytes) -> None:
        """Bytes of the client, and what they ask for."""
        if not self.open or not self._host.alive:
            return
        self.session.receive(data, [])
        while self.session.requests:
            self._handle(self.session.requests.popleft())
        self._client.pump_from_agent(self)

    def _handle(self, request: agent_side.Incoming | bytes) -> None:
        session = self.session
        host = self._host
        if isinstance(request, bytes):  # a publication
            check_run(request)
            host.publish(request)
        elif request.kind == Request.HELLO:
            configuration = host.node.configuration
            settings = host.profile.settings
            welcome = frames.Welcome(
                frames.LOCAL_PROTOCOL_VERSION, "simulator", settings.cluster_name,
                configuration.cluster_id if configuration else "", host.node_id, settings.incarnation,
                self.connection, settings.limits.event_bytes, settings.delivery,
            )  # fmt: skip
            session.answer(request.request_id, Answer.WELCOME, welcome)
        elif request.kind == Request.OPEN_PRODUCER:
            host.control(control.Open(), lambda outcome: self._opened(request.request_id, outcome))
        else:
            session.answer(request.request_id, Answer.DONE)

    def _opened(self, request_id: int, outcome: Outcome) -> None:
        if self.open and not outcome.error:
            self.session.answer(request_id, Answer.PRODUCER, frames.Producer(outcome.value))
            self._client.pump_from_agent(self)

    def subscribe(self, topic_id: int, name: str) -> int:
        """A pull subscription from here on; the seq of the first event that it gets."""
        self.subscription = self.hub.add(self.line, 1, self.socket, {topic_id: name}, callback=False)
        return self._host.node.last_seq(topic_id) + 1

    def delivered(self, item: Delivery | TopicChange) -> None:
        """What the node delivered, on to the subscription."""
        now = self._client.now
        if isinstance(item, TopicChange):
            if item.removed:
                self.hub.topic_removed(item.topic.topic_id)
        elif item.topic_id in self.hub.by_topic:
            header = RECORD_HEADER.pack(
                limits.RECORD_HEADER_BYTES + len(item.run), RecordKind.RUN, 0, 0, item.skip, item.node_id,
                item.incarnation, item.m_sequence, item.seq, item.ev_id, item.order_time,
            )  # fmt: skip
            self.hub.deliver(item.topic_id, header, item.run, item.seq, item.seq + item.count - item.skip - 1)
        self.hub.flush(now)

    def close(self) -> None:
        self.open = False
        self.hub.close_line(self.line, self._client.now)

    # --- what the hub asks of its shell -------------------------------------------------------------------------

    def watch_writable(self, subscription: Subscription, watch: bool) -> None:
        """The client tells when it has read."""

    def full_changed(self, full: bool) -> None:
        """These subscribers are small: the host has its own slow one."""

    def own_full_changed(self, connection: int, full: list[int]) -> None:
        """Nobody asks here."""

    def subscription_broken(self, subscription: Subscription) -> None:
        self._client.complain(f"its event socket was given up: {subscription.number}")


class ClientProgram:
    """One program with the client library: publishes, reads one subscription, loses its connection."""

    __slots__ = (
        "_batches",
        "_connections",
        "_door",
        "_host",
        "_left",
        "_next_seq",
        "_producer",
        "_random",
        "_subscription_topic",
        "_to_agent",
        "_world",
        "profile",
        "session",
    )

    def __init__(self, world: World, profile: ClientProfile) -> None:
        self.profile = profile
        self._world = world
        self._random: Random = world.random(f"client {profile.name}")
        self._host: Host | None = None
        self._door: Door | None = None
        self._connections = 0
        self._left = profile.events
        self._batches: list[
            tuple[Batch, list[bytes], bool]
        ] = []  # batch, its events, whether the checker knows
        self._next_seq = 0  # of the subscription; 0: none
        self._subscription_topic = 0
        self.session = Session(
            library="simulator", name=profile.name, resume=True, clock_ns=lambda: world.now
        )
        self._producer: Producer = self.session.add_producer(local=False)
        world.after(0, self._act)

    @property
    def now(self) -> int:
        return self._world.now

    @property
    def finished(self) -> bool:
        if self._host is not None and not self._host.alive:
            return True
        return not self._left and not self._batches

    def describe(self) -> str:
        return f"client {self.profile.name}: {self._left} to publish, {len(self._batches)} batches unanswered"

    def complain(self, text: str) -> None:
        self._world.checker.complain("client", f"{self.profile.name} on node {self.profile.node_id}: {text}")

    # --- what it does -------------------------------------------------------------------------------------------

    def _act(self) -> None:
        world = self._world
        if self._host is None:
            self._host = world.hosts.get(self.profile.node_id)
            if self._host is not None:
                self._host.on_receipts(self._outcome)
                self._host.on_items(self._delivered)
        host = self._host
        if host is not None and not host.alive:
            return
        world.after(1 + int(self._random.expovariate(1.0) * self.profile.pause_ns), self._act)
        if host is None or host.state is not State.ACTIVE or host.paused:
            return
        if self.session.stage is Stage.OFFLINE:
            self._connect(host)
        elif self._random.random() < self.profile.lost and world.calm_after > world.now:
            self._lose()
            return
        self._read()
        self._publish(host)
        self._check_batches()

    def _connect(self, host: Host) -> None:
        self._connections += 1
        self._door = Door(self, host, self._connections)
        self.session.connected()
        self._world.trace.add(
            self.now, host.node_id, "connect", f"{self.profile.name}, connection {self._connections}"
        )
        topic = host.node.topics.get(self.profile.subscribes)
        if topic is not None and not topic.local:
            start = self._door.subscribe(topic.topic_id, topic.name)
            if topic.topic_id == self._subscription_topic and start < self._next_seq:
                self.complain(f"its subscription goes on at seq {start} after {self._next_seq - 1}")
            self._subscription_topic = topic.topic_id
            self._next_seq = start  # what came between is the gap that a resumption names
        else:
            self._next_seq = 0
        self._pump()

    def _lose(self) -> None:
        """The connection breaks; what is in the event socket can still be read."""
        self._world.trace.add(self.now, self.profile.node_id, "lost", self.profile.name)
        door, self._door = self._door, None
        if door is not None:
            door.close()
            self._take_frames(door)
        self.session.lost("the simulation cut it")
        for effect in self.session.take_effects():
            if isinstance(effect, Resumed):
                self.complain("resumed without a connection")

    def _publish(self, host: Host) -> None:
        name = self._random.choice(self.profile.topics)
        topic = host.node.topics.get(name)
        if not self._left or topic is None or topic.local:
            if self._left and self.now > self._world.calm_after:
                self._left -= 1  # the topic may never come
            return
        count = min(self._left, self._random.randint(1, 5))
        datas = [f"{self.profile.name}/{self._left - place}".encode() for place in range(count)]
        size = run_size(count, sum(map(len, datas)), b"")
        if not self._producer.has_room(size):
            return
        self._left -= count
        batch = Batch(self, name, topic.topic_id, 0, b"", list(datas), size)
        self._batches.append((batch, datas, False))
        self._producer.queue(batch, self.now)
        self.session.publish(self._producer, batch)
        self._pump()

    def wait_for_receipt(self, receipt: object, timeout: float | None) -> None:
        """Nobody waits in the simulation."""

    def close(self) -> None:
        """The program ends with its world."""
        if self._door is not None:
            self._door.close()
            self._door = None

    # --- the connection -----------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """What the library wants written, on its way in pieces; the checker learns what was numbered."""
        for place, (batch, datas, known) in enumerate(self._batches):
            if not known and batch.number:
                for offset, data in enumerate(datas):
                    self._world.checker.published(
                        self.profile.node_id, self._producer.id, batch.number + offset, batch.topic_id, data
                    )
                self._batches[place] = (batch, datas, True)
        outgoing = self.session.outgoing
        data = b"".join([outgoing.popleft().buffer for _ in range(len(outgoing))])
        door = self._door
        if data and door is not None:
            cut = self._random.randrange(len(data))
            self._world.after(PIPE_NS, door.receive, data[:cut])
            self._world.after(PIPE_NS, door.receive, data[cut:])

    def pump_from_agent(self, door: Door) -> None:
        """What the agent wants written to the client."""
        buffers = door.session.output(1 << 20)
        data = b"".join(buffers)
        door.session.sent(len(data))
        if data:
            cut = self._random.randrange(len(data))
            self._world.after(PIPE_NS, self._from_agent, door, data[:cut])
            self._world.after(PIPE_NS, self._from_agent, door, data[cut:])

    def _from_agent(self, door: Door, data: bytes) -> None:
        if door is not self._door:
            return  # of a connection that is lost
        self.session.receive(data)
        self._pump()
        self._check_batches()

    def _outcome(self, outcome: Outcome) -> None:
        door = self._door
        if door is not None and outcome.producer == self._producer.id:
            door.session.receipt(
                outcome.producer,
                outcome.first_number,
                outcome.count,
                outcome.error,
                outcome.seq,
                outcome.ev_id,
            )
            self.pump_from_agent(door)

    def _delivered(self, item: Delivery | TopicChange) -> None:
        if self._door is not None:
            self._door.delivered(item)

    # --- what it learns -----------------------------------------------------------------------------------------

    def _check_batches(self) -> None:
        """The library's outcomes are those of the one order."""
        while self._batches and self._batches[0][0].done:
            batch, datas, _ = self._batches.pop(0)
            for offset in range(len(datas)):
                key = (self._producer.id, batch.number + offset)
                self._check_outcome(batch, offset, self._world.checker.publications[key])

    def _check_outcome(self, batch: Batch, offset: int, publication: Publication) -> None:
        number = batch.number + offset
        try:
            told = batch.outcome(offset, 1)
        except UnknownTopic:
            if publication.position >= 0:
                self.complain(f"number {number} was delivered, and the library says that it was refused")
            return
        except ClientError as error:
            self.complain(f"number {number}: {error}")
            return
        if told != (publication.seq, publication.ev_id) or publication.position < 0:
            self.complain(f"the library says {told} of number {number}, delivered as seq {publication.seq}")

    def _read(self) -> None:
        door = self._door
        if door is None or self._random.random() < 0.3:
            return
        self._take_frames(door)
        if door.subscription is not None:
            door.hub.writable(door.subscription, self.now)

    def _take_frames(self, door: Door) -> None:
        messages, door.socket.frames = door.socket.frames, deque()
        for message, shared in messages:
            connection, _, _, records, _ = EVENT_HEADER.unpack_from(message)
            if connection != door.connection:
                self.complain(f"a frame of connection {connection} on connection {door.connection}")
            at = EVENT_HEADER.size
            for _ in range(records):
                fields = RECORD_HEADER.unpack_from(message, at)
                body = message[at + RECORD_HEADER.size : at + fields[0]]
                at += fields[0]
                self._take_record(fields, shared if fields[1] == RecordKind.SHARED else body)

    def _take_record(self, fields: tuple[int, ...], body: bytes) -> None:
        if fields[1] == RecordKind.NOTICE:
            notice = frames.read_notice(body)
            if notice.code == NoticeCode.TOPIC_REMOVED:
                self._next_seq = 0
            elif notice.code == NoticeCode.GAP and notice.first_seq == self._next_seq:
                self._next_seq = notice.last_seq + 1
            else:
                self.complain(f"a notice that does not fit seq {self._next_seq}: {notice}")
            return
        skip, seq = fields[4], fields[8]
        header = check_run(body)
        if seq != self._next_seq or header.topic_id != self._subscription_topic:
            self.complain(
                f"its subscription to topic {self._subscription_topic} got seq {seq}, not {self._next_seq}"
            )
        self._next_seq = seq + header.count - skip
