"""Programs that use the client library: its session, over a connection that breaks, against the agent's session.

The library's and the agent's own code runs at both ends (``client.session``, ``ipc.session``, ``ipc.delivery``);
between them is a byte stream that is cut anywhere, and what the agent's loop does beside (``Door``), in short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from ocfcluster import limits
from ocfcluster.client.pieces import Pieces
from ocfcluster.client.producer import Batch, Producer, run_size
from ocfcluster.client.session import Resumed, Session, Stage
from ocfcluster.errors import ClientError, OutcomeUnknown, UnknownTopic
from ocfcluster.ipc import session as agent_side
from ocfcluster.ipc.delivery import Hub
from ocfcluster.ipc.replay import Cursor
from ocfcluster.ipc.subscription import Line, Subscription
from ocfcluster.protocol.effects import Delivery, Outcome, TopicChange
from ocfcluster.protocol.retention import TopicSource
from ocfcluster.simulator.kept import check_rule
from ocfcluster.simulator.reader import Reader, ask
from ocfcluster.wire import control, frames
from ocfcluster.wire.frames import EVENT_HEADER, RECORD_HEADER, Answer, RecordFlags, RecordKind, Request
from ocfcluster.wire.run import check_run

if TYPE_CHECKING:
    from ocfcluster.simulator.history import History, Publication
    from ocfcluster.simulator.shell import Connection
    from ocfcluster.simulator.world import World

PIPE_NS: Final = limits.MILLISECOND_NS // 5
CALM_NS: Final = 30 * limits.MILLISECOND_NS  # between two acts once the faults have stopped
GROUPS: Final = (Request.GROUP_JOIN, Request.GROUP_LEAVE, Request.GOODBYE)
SOCKET_FRAMES: Final = 3  # an event socket takes so many messages until it is read


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
    begins: str = ""  # where its subscription starts: now, or "retained", "from_last", "from_seq"


class SimulatedSocket:
    """The agent's end of an event socket, and the messages in it."""

    __slots__ = ("frames",)

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()

    def sendmsg(
        self, buffers: Sequence[bytes | memoryview], ancdata: tuple[()] = (), flags: int = 0, /
    ) -> int:
        """One message, as a socket takes it. Raises BlockingIOError where there is no room."""
        del ancdata, flags
        if len(self.frames) >= SOCKET_FRAMES:
            raise BlockingIOError
        message = b"".join(buffers)
        self.frames.append(message)
        return len(message)

    def close(self) -> None:
        """The messages in it can still be read."""


def _token(producer: int) -> bytes:
    """By which the agents know a producer's program again."""
    return b"%d" % producer


class Door:
    """The agent's end of one connection: what its loop does between the session and the node."""

    __slots__ = (
        "_client",
        "_line",
        "_producers",
        "_welcome",
        "connection",
        "hub",
        "line",
        "pieces",
        "reader",
        "session",
        "socket",
        "subscription",
    )

    def __init__(
        self, client: ClientProgram, line: Connection, connection: int, welcome: frames.Welcome
    ) -> None:
        self._client = client
        self._line = line
        self._welcome = welcome
        self._producers: set[int] = set()  # that were opened or resumed here
        self.connection = connection
        self.session = agent_side.Session(welcome.event_bytes)
        self.hub = Hub(self, client.asked.budget(), client.asked.marks)
        self.line: Line = self.hub.open_line(connection)
        self.socket = SimulatedSocket()
        self.subscription: Subscription | None = None
        self.reader: Reader | None = None
        self.pieces = Pieces()

    @property
    def open(self) -> bool:
        return self._line.open

    def receive(self, data: bytes) -> None:
        """Bytes of the client, and what they ask for."""
        if not self.open:
            return
        self.session.receive(data, [])
        while self.session.requests:
            self._handle(self.session.requests.popleft())
        self._client.pump_from_agent(self)

    def _handle(self, request: agent_side.Incoming | bytes) -> None:
        session = self.session
        if isinstance(request, bytes):  # a publication
            if check_run(request).producer not in self._producers:
                self._client.complain("it publishes on a producer that it has not resumed")
            self._line.publish(request)
        elif request.kind == Request.HELLO:
            session.answer(request.request_id, Answer.WELCOME, self._welcome)
        elif request.kind == Request.OPEN_PRODUCER:
            self._line.control(control.Open(), lambda outcome: self._opened(request.request_id, outcome))
        elif request.kind == Request.RESUME_PRODUCER:
            body = frames.read_body(request.kind, request.body)
            if isinstance(body, frames.Producer) and body.token == _token(body.producer):
                self._producers.add(body.producer)
        elif request.kind in GROUPS:
            self.request(request)
        else:
            session.answer(request.request_id, Answer.DONE)

    def request(self, request: agent_side.Incoming) -> None:
        """What only some programs ask for."""
        self.session.answer(request.request_id, Answer.DONE)

    def pump(self) -> None:
        """What was answered goes on its way."""
        self._client.pump_from_agent(self)

    def _opened(self, request_id: int, outcome: Outcome) -> None:
        if self.open and not outcome.error:
            self._producers.add(outcome.value)
            answer = frames.Producer(outcome.value, _token(outcome.value))
            self.session.answer(request_id, Answer.PRODUCER, answer)
            self._client.pump_from_agent(self)

    def subscribe(self, topic_id: int, name: str, start: int) -> None:
        """A pull subscription that begins with seq ``start``, which is kept, or the next one."""
        asked = self._client.asked
        self.reader = reader = Reader(asked, topic_id, self._client.complain)
        self.subscription = self.hub.add(
            self.line, 1, self.socket, {topic_id: name}, False, asked.on_slow, asked.predicate()
        )
        if start <= self._line.last_seq(topic_id):
            for one in self._line.retained.portion(topic_id, start, 1 << 30, 1 << 60):
                reader.delivered(one.seq, one.seq + one.count - one.skip - 1, one.node_id)
            source = TopicSource(lambda: self._line.retained, self._line.last_seq, topic_id)
            self.hub.begin_with(self.subscription, {topic_id: Cursor(source, start, False)})

    def delivered(self, item: Delivery | TopicChange) -> None:
        """What the node delivered, on to the subscription."""
        now = self._client.now
        if isinstance(item, TopicChange):
            if item.removed:
                self.hub.topic_removed(item.topic.topic_id, item.last_seq)
        elif self.reader is not None and item.topic_id == self.reader.topic_id and not self.reader.ended:
            self.reader.delivered(item.seq, item.seq + item.count - item.skip - 1, item.node_id)
        if isinstance(item, Delivery) and item.topic_id in self.hub.by_topic:
            header = RECORD_HEADER.pack(
                limits.RECORD_HEADER_BYTES + len(item.run), RecordKind.RUN, 0, 0, item.skip, item.node_id,
                item.incarnation, item.m_sequence, item.seq, item.ev_id, item.order_time,
            )  # fmt: skip
            self.hub.deliver(item.topic_id, header, item.run, item.seq, item.seq + item.count - item.skip - 1)
        self.hub.flush(now)

    def close(self) -> None:
        self._line.close()
        self.hub.close_line(self.line, self._client.now)

    # --- what the hub asks of its shell -------------------------------------------------------------------------

    def watch_writable(self, subscription: Subscription, watch: bool) -> None:
        """The client tells when it has read."""

    def full_changed(self, full: bool) -> None:
        """These subscribers are small: the host has its own slow one."""

    def own_full_changed(self, connection: int, full: list[int]) -> None:
        """Nobody asks here."""

    def left_out(self, subscription: Subscription, positions: dict[int, int]) -> None:
        """Its library is told in what it is shown; the simulation knows better."""

    def tick(self, now: int) -> None:
        """Nobody looks who is stuck."""

    def subscription_broken(self, subscription: Subscription) -> None:
        self._client.complain(f"its event socket was given up: {subscription.number}")


class Sent(NamedTuple):
    """A batch, its events, and the producer and number under which the checker knows it (0: not yet)."""

    batch: Batch
    datas: list[bytes]
    producer: int
    number: int
    publications: list[Publication]


class ClientProgram:
    """One program with the client library: publishes, reads one subscription, loses its connection and its agent."""

    __slots__ = (
        "_begun_seq",
        "_connections",
        "_door",
        "_history",
        "_host",
        "_incarnation",
        "_left",
        "_next_seq",
        "_producer",
        "_random",
        "_sent",
        "_subscription_topic",
        "_world",
        "asked",
        "gaps",
        "profile",
        "session",
        "unknown",
    )

    def __init__(self, world: World, profile: ClientProfile) -> None:
        self.profile = profile
        self._world = world
        self._random: Random = world.random(f"client {profile.name}")
        self.asked = ask(world.random(f"policy {profile.name}"), list(world.hosts))
        self._host = world.hosts[profile.node_id]
        self._door: Door | None = None
        self._connections = 0
        self._left = profile.events
        self._sent: list[Sent] = []
        self._history: History | None = None  # of the last connection
        self._incarnation = 0  # of its agent
        self._next_seq = 0  # of the subscription; 0: none
        self._begun_seq = 0  # the topic's last one when it was made
        self._subscription_topic = 0
        self.gaps = 0  # events that it was told it missed
        self.unknown = 0
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
        return self._host.retired or (not self._left and not self._sent)

    def describe(self) -> str:
        return f"client {self.profile.name}: {self._left} to publish, {len(self._sent)} batches unanswered"

    def complain(self, text: str) -> None:
        self._world.checker.complain("client", f"{self.profile.name} on node {self.profile.node_id}: {text}")

    # --- what it does -------------------------------------------------------------------------------------------

    def _act(self) -> None:
        world = self._world
        if self._host.retired:
            return
        pause_ns = (
            self.profile.pause_ns if world.now < world.calm_after else min(self.profile.pause_ns, CALM_NS)
        )
        world.after(1 + int(self._random.expovariate(1.0) * pause_ns), self._act)
        if self._host.paused:
            return
        if self._door is not None and not self._door.open:
            self._lose("its agent is gone")
        if self.session.stage is Stage.OFFLINE:
            self._connect()
        elif self._random.random() < self.profile.lost and world.calm_after > world.now:
            self._lose("the simulation cut it")
            return
        if self._door is not None:
            self._read()
            self._publish()
            self._check_sent()

    def _connect(self) -> None:
        line = self._host.connect(self._outcome, self._delivered)
        if line is None:
            return
        history = line.history
        settings = self._host.running.settings
        self._connections += 1
        welcome = frames.Welcome(
            frames.LOCAL_PROTOCOL_VERSION, "simulator", settings.cluster_name, history.cluster_id,
            settings.node_id, settings.incarnation, self._connections, settings.limits.event_bytes,
            settings.delivery,
        )  # fmt: skip
        door = self._door = self._new_door(line, welcome)
        self.session.connected()
        text = f"{self.profile.name}, connection {self._connections}"
        self._world.trace.add(self.now, self.profile.node_id, "connect", text)
        self._subscribe(door, line)
        self._history = history
        self._incarnation = settings.incarnation
        self._pump()

    def _new_door(self, line: Connection, welcome: frames.Welcome) -> Door:
        return Door(self, line, self._connections, welcome)

    def _subscribe(self, door: Door, line: Connection) -> None:
        """Its subscription goes on where it ended; what came between and is not kept is the gap that a resumption
        names."""
        topic = line.topics.get(self.profile.subscribes)
        if topic is None or topic.local:
            self._next_seq = 0
            return
        last_seq = line.last_seq(topic.topic_id)
        kept_from = line.retained.first_seq(topic.topic_id) or last_seq + 1
        self._begun_seq = last_seq
        if self._host.profile.settings.delivery == "safe":
            check_rule(line.history, line.place, line.retained, topic.topic_id)
        goes_on = (
            self._next_seq and topic.topic_id == self._subscription_topic and line.history is self._history
        )
        # With agreed delivery another incarnation may be behind what the one before had delivered.
        stands = line.incarnation == self._incarnation or self._host.profile.settings.delivery == "safe"
        wanted = self._next_seq if goes_on else self._beginning(kept_from, last_seq)
        start = max(kept_from, min(wanted, last_seq + 1))
        door.subscribe(topic.topic_id, topic.name, start)
        if goes_on and stands and start < self._next_seq:
            self.complain(f"its subscription goes on at seq {start} after {self._next_seq - 1}")
        if goes_on:
            self.gaps += max(0, start - self._next_seq)
        self._subscription_topic = topic.topic_id
        self._next_seq = start

    def _beginning(self, kept_from: int, last_seq: int) -> int:
        """The first seq that it asks for, when it does not go on."""
        begins = self.profile.begins
        if begins == "retained":
            return kept_from
        if begins == "from_last":
            return last_seq - 4
        return last_seq // 2 + 1 if begins == "from_seq" else last_seq + 1

    def _lose(self, why: str) -> None:
        """The connection breaks; what is in the event socket can still be read."""
        self._world.trace.add(self.now, self.profile.node_id, "lost", f"{self.profile.name}: {why}")
        door, self._door = self._door, None
        if door is not None:
            door.close()
            self._take_frames(door)
        self.session.lost(why)
        for effect in self.session.take_effects():
            if isinstance(effect, Resumed):
                self.complain("resumed without a connection")

    def _publish(self) -> None:
        name = self._random.choice(self.profile.topics)
        topic = self._host.running.node.topics.get(name)
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
        self._sent.append(Sent(batch, datas, 0, 0, []))
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
        history = self._history
        # Until the library has read WELCOME, it numbers under a producer that this history may not know.
        if history is not None and self.session.cluster_id == history.cluster_id:
            self._tell_numbers(history)
        outgoing = self.session.outgoing
        data = b"".join([outgoing.popleft().buffer for _ in range(len(outgoing))])
        door = self._door
        if data and door is not None:
            cut = self._random.randrange(len(data))
            self._world.after(PIPE_NS, door.receive, data[:cut])
            self._world.after(PIPE_NS, door.receive, data[cut:])

    def _tell_numbers(self, history: History) -> None:
        producer = self._producer.id
        for place, sent in enumerate(self._sent):
            batch = sent.batch
            if batch.done or not batch.number or not producer:
                continue
            if (producer, batch.number) == (sent.producer, sent.number):
                continue
            # Under a new producer where the last is forgotten: what became of it there nobody is told.
            self._world.checker.given_up(sent.publications)
            publications = [
                self._world.checker.published(
                    history, self.profile.node_id, producer, batch.number + offset, batch.topic_id, data
                )
                for offset, data in enumerate(sent.datas)
            ]
            self._sent[place] = Sent(batch, sent.datas, producer, batch.number, publications)

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
        if door is not self._door or not door.open:
            return  # of a connection that is lost
        self.session.receive(data)
        self._pump()
        self._check_sent()

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

    def _check_sent(self) -> None:
        """The library's outcomes are those of the one order."""
        while self._sent and self._sent[0].batch.done:
            sent = self._sent.pop(0)
            for offset in range(len(sent.datas)):
                known = sent.publications[offset] if sent.publications else None
                self._check_outcome(sent.batch, offset, known)

    def _check_outcome(self, batch: Batch, offset: int, publication: Publication | None) -> None:
        number = batch.number + offset
        try:
            told = batch.outcome(offset, 1)
        except OutcomeUnknown as error:
            self._check_unknown(number, publication, str(error))
            return
        except UnknownTopic:
            if publication is not None and publication.place is not None:
                self.complain(f"number {number} was delivered, and the library says that it was refused")
            return
        except ClientError as error:
            self.complain(f"number {number}: {error}")
            return
        if self._host.boots > 1 and self._host.profile.settings.delivery == "agreed":
            return  # the node that confirmed it may have been cut off
        if publication is None or told not in (
            (publication.seq, publication.ev_id), publication.claimed, publication.claimed_beyond,
        ):  # fmt: skip
            seen = None if publication is None else (publication.seq, publication.ev_id)
            self.complain(f"the library says {told} of number {number}, delivered as {seen}")

    def _check_unknown(self, number: int, publication: Publication | None, why: str) -> None:
        """Only the end of its history is a reason; with agreed delivery an eviction is one, too."""
        self.unknown += 1
        if publication is not None:
            publication.unknown = True
        agreed = self._host.profile.settings.delivery == "agreed"
        if not agreed and "history" not in why:
            self.complain(f"the outcome of number {number} is unknown: {why}")

    def _read(self) -> None:
        door = self._door
        if door is None or self._random.random() < 0.3:
            return
        self._take_frames(door)
        if door.subscription is not None:
            door.hub.writable(door.subscription, self.now)
            door.hub.flush(self.now)

    def finish(self) -> None:
        """Everything has happened: it reads until nothing comes any more, and must then have missed nothing."""
        door = self._door
        if door is None or not door.open or door.subscription is None or self._host.paused:
            return
        door.hub.flush(self.now)
        self._take_frames(door)
        while door.subscription.blocked or door.subscription.replay is not None:
            door.hub.writable(door.subscription, self.now)
            self._take_frames(door)
        if door.reader is not None:
            door.reader.read_all()

    def _take_frames(self, door: Door) -> None:
        messages, door.socket.frames = door.socket.frames, deque()
        for message in messages:
            connection, _, _, records, _ = EVENT_HEADER.unpack_from(message)
            if connection != door.connection:
                self.complain(f"a frame of connection {connection} on connection {door.connection}")
            at = EVENT_HEADER.size
            for _ in range(records):
                fields = RECORD_HEADER.unpack_from(message, at)
                body = message[at + RECORD_HEADER.size : at + fields[0]]
                at += fields[0]
                if fields[1] != RecordKind.PART:
                    door.pieces.give_up()
                    self._take_record(door.reader, fields, body)
                elif (whole := door.pieces.add(fields[3], memoryview(body))) is not None:
                    self._take_record(door.reader, fields, whole)

    def _take_record(self, reader: Reader | None, fields: tuple[int, ...], body: bytes) -> None:
        if reader is None:
            self.complain("something came without a subscription")
        elif fields[1] == RecordKind.NOTICE:
            notice = frames.read_notice(body)
            before = reader.missed
            reader.told(notice)
            self.gaps += reader.missed - before
            self._next_seq = 0 if reader.ended else notice.last_seq + 1
        else:
            header = check_run(body)
            self._next_seq = fields[8] + header.count - fields[4]
            if bool(fields[2] & RecordFlags.RETAINED) != (fields[8] <= self._begun_seq):
                self.complain(f"seq {fields[8]} has flags {fields[2]}, and it began behind {self._begun_seq}")
            self._compare(fields, body)
            reader.took(header.topic_id, fields[8], self._next_seq - 1)

    def _compare(self, fields: tuple[int, ...], body: bytes) -> None:
        """An event that was kept is what it was when it was delivered."""
        history = self._history
        header = check_run(body)
        skip, node_id, incarnation, m_sequence, seq, ev_id, order_time = fields[4:]
        if history is None or self._host.profile.settings.delivery != "safe":
            return
        publication = history.publications.get((header.producer, header.first_number + skip))
        if publication is None or publication.place is None:
            return
        epoch, offset = publication.place
        first = history.segments[epoch].items[offset]
        if not isinstance(first, Delivery):
            return
        ahead = skip - first.skip
        was = (
            first.run, first.node_id, first.incarnation, first.m_sequence, first.seq + ahead, first.ev_id + ahead,
            first.order_time,
        )  # fmt: skip
        if was != (body, node_id, incarnation, m_sequence, seq, ev_id, order_time):
            self.complain(
                f"seq {seq} is not the event that was delivered: {fields}, {first._replace(run=b'')}"
            )
