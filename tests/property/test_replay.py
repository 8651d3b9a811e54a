"""Subscriptions that begin with what is kept: one start, one order, nothing missed or doubled that is not told."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import SimpleNamespace

import pytest

from ocfcluster.ipc import delivery, replay
from ocfcluster.ipc.delivery import Hub, Marks
from ocfcluster.ipc.replay import Cursor
from ocfcluster.ipc.subscription import Line, Subscription
from ocfcluster.limits import RECORD_HEADER_BYTES
from ocfcluster.protocol.effects import Delivery
from ocfcluster.protocol.retention import Retained, TopicSource
from ocfcluster.wire.filter import Predicate, from_node
from ocfcluster.wire.frames import (
    EVENT_HEADER,
    LOCAL_ID,
    RECORD_HEADER,
    Notice,
    NoticeCode,
    OnSlow,
    RecordFlags,
    RecordKind,
    read_notice,
)
from ocfcluster.wire.run import RunKind, build_run, check_run, run_events
from ocfcluster.wire.topics import Retention

KEPT, ALSO_KEPT, NOT_KEPT, LOCAL_KEPT, LOCAL = 16, 17, 18, 19, 20
ORDERED = [KEPT, ALSO_KEPT, NOT_KEPT]
LOCALS = [LOCAL_KEPT, LOCAL]
NAMES = {KEPT: "kept", ALSO_KEPT: "also kept", NOT_KEPT: "not kept", LOCAL_KEPT: "local kept", LOCAL: "local"}


class Socket:
    """Takes three messages until they are read."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def sendmsg(self, buffers: list[bytes], ancillary: object = (), flags: int = 0, /) -> int:
        if len(self.messages) >= 3:
            raise BlockingIOError
        self.messages.append(b"".join(buffers))
        return len(self.messages[-1])

    def close(self) -> None:
        pass


class World:
    """A hub, what is kept, and the events of three topics in one order."""

    def __init__(self, seed: int, retention: Retention) -> None:
        self.random = Random(seed)
        self.hub = Hub(self)
        self.retained = Retained()
        for topic_id in (KEPT, ALSO_KEPT, LOCAL_KEPT):
            self.retained.alter(topic_id, retention, 0)
        self.last_seq = dict.fromkeys(NAMES, 0)
        self.ev_ids = [0, LOCAL_ID]  # of the one order, and of the node's own
        self.events: list[tuple[int, int, bytes]] = []  # topic, seq, data: in their order
        self.watched: dict[Subscription, bool] = {}
        self.was_full = False
        self.told: dict[Subscription, dict[int, int]] = {}  # how far filters have left things out

    def publish(self, topic_id: int | None = None) -> None:
        topic_id = topic_id or self.random.choice(ORDERED)
        seq, ev_id = self.last_seq[topic_id] + 1, self.ev_ids[topic_id in LOCALS] + 1
        datas = [b"%d" % self.random.getrandbits(64) for _ in range(self.random.randint(1, 5))]
        run = build_run(RunKind.PUBLICATION, topic_id, 7, 1, datas)
        count = len(datas)
        self.last_seq[topic_id] += count
        self.ev_ids[topic_id in LOCALS] += count
        self.events += [(topic_id, seq + place, data) for place, data in enumerate(datas)]
        delivery = Delivery(run, topic_id, count, 0, seq, ev_id, 1, 2, 3, self.ev_ids[0])
        if topic_id in self.retained.topics:
            self.retained.add(delivery)
        if topic_id in self.hub.by_topic:
            header = RECORD_HEADER.pack(
                RECORD_HEADER_BYTES + len(run), RecordKind.RUN, 0, 0, 0, 1, 2, 3, seq, ev_id, ev_id
            )
            self.hub.deliver(topic_id, header, run, seq, seq + count - 1)
            self.hub.flush(0)

    def tell(self, topic_id: int) -> bytes:
        """What this node alone has to say in a topic of the one order; its data."""
        data = b"%d" % self.random.getrandbits(64)
        seq, self.ev_ids[1] = self.last_seq[topic_id], self.ev_ids[1] + 1
        run = build_run(RunKind.PUBLICATION, topic_id, 0, 1, [data])
        header = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(run),
            RecordKind.RUN,
            RecordFlags.LOCAL,
            0,
            0,
            1,
            2,
            3,
            seq,
            self.ev_ids[1],
            0,
        )
        for subscription in list(self.hub.by_topic.get(topic_id, ())):
            self.hub.give(subscription, topic_id, header, run, seq, False)
        self.hub.flush(0)
        return data

    def source(self, topic_id: int) -> TopicSource:
        return TopicSource(lambda: self.retained, lambda one: self.last_seq.get(one, 0), topic_id)

    def remove(self, topic_id: int) -> None:
        last_seq = self.last_seq.pop(topic_id)
        self.retained.forget(topic_id)
        self.hub.topic_removed(topic_id, last_seq)
        self.hub.flush(0)

    # what the hub asks of its shell
    def watch_writable(self, subscription: Subscription, watch: bool) -> None:
        self.watched[subscription] = watch

    def full_changed(self, full: bool) -> None:
        self.was_full = True

    def own_full_changed(self, connection: int, full: list[int]) -> None: ...
    def subscription_broken(self, subscription: Subscription) -> None: ...
    def tick(self, now: int) -> None: ...
    def left_out(self, subscription: Subscription, positions: dict[int, int]) -> None:
        self.told[subscription] = {**self.told.get(subscription, {}), **positions}


class Reader:
    """A subscription, and what it got: (topic, seq, data) or notices."""

    def __init__(
        self,
        world: World,
        line: Line,
        number: int,
        starts: dict[int, int],
        callback: bool,
        predicate: Predicate | None = None,
    ) -> None:
        self.world = world
        self.socket = Socket()
        self.starts = starts  # topic → first seq
        self.begun = dict(world.last_seq)
        self.got: list[tuple[int, int, bytes] | Notice] = []
        self.turns: list[int] = []
        names = {topic_id: NAMES[topic_id] for topic_id in starts}
        self.subscription = world.hub.add(line, number, self.socket, names, callback, OnSlow.BLOCK, predicate)
        cursors = {
            topic_id: Cursor(world.source(topic_id), seq, False)
            for topic_id, seq in starts.items()
            if seq <= world.last_seq[topic_id]
        }
        if cursors:
            world.hub.begin_with(self.subscription, cursors, LOCALS)
        world.hub.flush(0)

    def read(self) -> None:
        messages, self.socket.messages[:] = list(self.socket.messages), []
        for message in messages:
            _, _, turn, records, _ = EVENT_HEADER.unpack_from(message)
            self.turns.append(turn)
            at = EVENT_HEADER.size
            for _ in range(records):
                fields = RECORD_HEADER.unpack_from(message, at)
                body = message[at + RECORD_HEADER.size : at + fields[0]]
                at += fields[0]
                if fields[1] == RecordKind.NOTICE:
                    self.got.append(read_notice(body))
                    continue
                header = check_run(body)
                datas = list(run_events(body, header))[fields[4] :]
                retained = bool(fields[2] & RecordFlags.RETAINED)
                told = header.topic_id in ORDERED and bool(fields[2] & RecordFlags.LOCAL)
                assert told or retained == (fields[8] <= self.begun[header.topic_id])
                self.got += [(header.topic_id, fields[8] + place, data) for place, data in enumerate(datas)]
        if self.world.watched.get(self.subscription):
            self.world.hub.writable(self.subscription, 0)

    def read_all(self) -> None:
        self.read()
        while self.socket.messages or self.world.watched.get(self.subscription):
            self.read()

    def wanted(self) -> list[tuple[int, int, bytes]]:
        return [one for one in self.world.events if one[0] in self.starts and one[1] >= self.starts[one[0]]]


def begin_somewhere(world: World, topics: list[int]) -> dict[int, int]:
    """Where a subscription to these topics begins: kept ones earlier than now."""
    starts = {}
    for topic_id in topics:
        next_seq = world.last_seq[topic_id] + 1
        first = world.retained.first_seq(topic_id) or next_seq
        starts[topic_id] = world.random.randint(first, next_seq)
    return starts


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "REPLAY_PORTION_RUNS", 3)
    monkeypatch.setattr(replay, "REPLAY_PORTION_BYTES", 400)


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("seed", range(60))
def test_all_from_the_start_once_and_in_the_one_order(seed: int) -> None:
    world = World(seed, Retention(events=100_000))
    random = world.random
    for _ in range(random.randint(0, 80)):
        world.publish()
    line = world.hub.open_line(1)
    readers: list[Reader] = []
    for step in range(400):
        act = random.random()
        if act < 0.02 and len(readers) < 6:
            topics = random.sample(ORDERED, random.randint(1, 3))
            readers.append(
                Reader(world, line, len(readers) + 1, begin_somewhere(world, topics), random.random() < 0.5)
            )
        elif act < 0.5 or not readers:
            world.publish()
        else:
            random.choice(readers).read()
        assert step >= 0
    for _ in range(300):
        for reader in readers:
            reader.read()
    for reader in readers:
        reader.read_all()
        assert reader.subscription.replay is None
        assert reader.got == reader.wanted()
        assert reader.turns == sorted(set(reader.turns)) or not reader.subscription.callback
    assert world.hub.held_bytes == 0
    assert not world.hub.replays
    assert not world.hub.dropping
    assert all(not reader.subscription.queued_bytes for reader in readers)
    before = {id(reader): len(reader.got) for reader in readers}
    world.publish(KEPT)
    for reader in readers:  # like any other now
        reader.read_all()
        assert (len(reader.got) > before[id(reader)]) == (KEPT in reader.starts)


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("seed", range(30))
def test_local_events_have_an_order_of_their_own_and_hold_up_no_others(seed: int) -> None:
    """What the node alone tells in a topic of the one order comes between the same events of it as it was told."""
    world = World(seed, Retention(events=100_000))
    random = world.random
    for _ in range(100):
        world.publish(random.choice([KEPT, ALSO_KEPT, LOCAL_KEPT]))
    topics = [KEPT, NOT_KEPT, *random.sample([ALSO_KEPT, *LOCALS], random.randint(1, 3))]
    starts = begin_somewhere(world, topics)
    starts[KEPT] = 1
    reader = Reader(world, world.hub.open_line(1), 1, starts, False)
    told: list[tuple[int, int, bytes]] = []  # NOT_KEPT, with what is told in it
    for _ in range(60):
        act, last_seq = random.random(), world.last_seq[NOT_KEPT]
        if act < 0.2:
            told.append((NOT_KEPT, last_seq, world.tell(NOT_KEPT)))
        elif act < 0.8:
            world.publish(random.choice([KEPT, NOT_KEPT, *LOCALS]))
            told += [one for one in world.events if one[0] == NOT_KEPT and one[1] > last_seq]
        else:
            reader.read()
    if LOCAL in starts:
        world.remove(LOCAL)
    assert reader.subscription.replay is not None
    for _ in range(400):
        reader.read()
    assert reader.subscription.replay is None
    notices = [one for one in reader.got if isinstance(one, Notice)]
    assert [one.topic for one in notices] == ["local"] * (LOCAL in starts)
    if notices:  # behind all that came of it
        assert all(
            isinstance(one, Notice) or one[0] != LOCAL
            for one in reader.got[reader.got.index(notices[0]) + 1 :]
        )
    events = [one for one in reader.got if not isinstance(one, Notice)]
    assert [one for one in events if one[0] == NOT_KEPT] == told
    wanted = reader.wanted()
    assert [one for one in events if one[0] in LOCALS] == [one for one in wanted if one[0] in LOCALS]
    assert [one for one in events if one in wanted and one[0] in ORDERED] == [
        one for one in wanted if one[0] in ORDERED
    ]


@pytest.mark.parametrize("local", [True, False])
def test_what_is_held_back_is_looked_at_once(local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much waits behind what cannot be given yet: each item is taken out once."""
    monkeypatch.setattr(replay, "REPLAY_PORTION_RUNS", 3)
    world = World(1, Retention(events=100_000))
    for _ in range(300):
        world.publish(KEPT)
    reader = Reader(world, world.hub.open_line(1), 1, {KEPT: 1, LOCAL: 1, NOT_KEPT: 1}, False)
    for _ in range(300):
        world.publish(LOCAL if local else NOT_KEPT)
    looks: list[int] = []
    unpack_from = replay._EV_ID.unpack_from
    monkeypatch.setattr(
        replay, "_EV_ID", SimpleNamespace(unpack_from=lambda header: looks.append(1) or unpack_from(header))
    )
    while reader.subscription.replay is not None:
        reader.read()
    assert len(looks) < 3 * 600


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("seed", range(30))
def test_a_filter_holds_for_kept_events_too(seed: int) -> None:
    """What it leaves out is no gap, stalls nothing, and is told when the rest has been given."""
    world = World(seed, Retention(events=100_000))
    for _ in range(80):
        world.publish()
    line = world.hub.open_line(1)
    topics = world.random.sample(ORDERED, 2)
    starts = begin_somewhere(world, topics)
    reader = Reader(world, line, 1, starts, False, Predicate(from_node(1) if seed % 3 else ~from_node(1)))
    for _ in range(200):
        world.publish()
        if world.random.random() < 0.5:
            reader.read()
    for _ in range(300):
        reader.read()
    reader.read_all()
    assert reader.subscription.replay is None
    assert reader.got == (reader.wanted() if seed % 3 else [])
    world.hub.shut_down("over", 0)
    reader.read_all()
    told = world.told.get(reader.subscription, {})
    assert all(told.get(topic_id, 0) <= world.last_seq[topic_id] for topic_id in topics)
    if not seed % 3:
        assert told == {one: world.last_seq[one] for one in topics if world.last_seq[one] >= starts[one]}


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("seed", range(40))
def test_a_reader_that_is_too_slow_is_told_what_it_missed(seed: int) -> None:
    world = World(seed, Retention(events=60))
    random = world.random
    for _ in range(60):
        world.publish()
    line = world.hub.open_line(1)
    starts = {KEPT: world.retained.first_seq(KEPT), NOT_KEPT: world.last_seq[NOT_KEPT] + 1}
    reader = Reader(world, line, 1, starts, False)
    for _ in range(500):
        world.publish()
        if random.random() < 0.05:
            reader.read()
    while reader.subscription.replay is not None:
        reader.read()
    reader.read_all()
    next_seq = dict(reader.starts)
    gaps = 0
    for one in reader.got:
        if isinstance(one, Notice):
            (topic_id,) = [key for key, name in NAMES.items() if name == one.topic]
            assert (one.code, one.first_seq) == (NoticeCode.GAP, next_seq[topic_id])
            assert one.reason == replay.RAN_OUT
            gaps += 1
            next_seq[topic_id] = one.last_seq + 1
        else:
            assert one[1] == next_seq[one[0]]
            assert one in world.events
            next_seq[one[0]] += 1
    assert all(next_seq[topic_id] == world.last_seq[topic_id] + 1 for topic_id in reader.starts)
    assert gaps == world.hub.gaps
    assert gaps
    assert not world.was_full  # it holds up nobody


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("seed", range(5))
def test_what_it_missed_is_told_before_the_next_portion(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "RECORDS_PER_FRAME", 1)
    monkeypatch.setattr(replay, "REPLAY_PORTION_RUNS", 6)
    monkeypatch.setattr(replay, "REPLAY_PORTION_BYTES", 40_000)
    world = World(seed, Retention(events=100_000))
    for _ in range(40):
        world.publish(KEPT)
    reader = Reader(world, world.hub.open_line(1), 1, {KEPT: 1}, False)
    assert reader.subscription.blocked
    world.hub.marks = Marks(held=100)  # so what waits for it is given up
    world.hub.flush(0)
    assert reader.subscription.gaps
    world.hub.marks = Marks()
    for _ in range(200):
        reader.read()
    next_seq = 1
    for one in reader.got:
        assert (one.first_seq if isinstance(one, Notice) else one[1]) == next_seq
        next_seq = 1 + (one.last_seq if isinstance(one, Notice) else next_seq)
    assert next_seq == world.last_seq[KEPT] + 1
    assert sum(isinstance(one, Notice) for one in reader.got) == 1


def _unsubscribe(world: World, reader: Reader) -> None:
    world.hub.remove(reader.subscription, 0)


def _hang_up(world: World, reader: Reader) -> None:
    world.hub.close_line(reader.subscription.line, 0)


def _shut_down(world: World, reader: Reader) -> None:
    world.hub.shut_down("over", 0)
    reader.read_all()
    last = reader.got[-1]
    assert isinstance(last, Notice)
    assert last.final
    assert [one for one in reader.got if isinstance(one, Notice)] == [last]


def _remove_all(world: World, reader: Reader) -> None:
    for topic_id in list(reader.starts):
        world.remove(topic_id)
    reader.read_all()
    notices = [one for one in reader.got if isinstance(one, Notice)]
    told = [one for one in notices if one.code is NoticeCode.TOPIC_REMOVED or one.code == 6]
    assert sorted(one.topic for one in told) == sorted(NAMES[one] for one in reader.starts)
    assert [one.final for one in told] == [False] * (len(told) - 1) + [True]
    # What it did not get of what was kept is told, also what came since it was given something.
    for topic_id in reader.starts:
        seqs = [one[1] for one in reader.got if not isinstance(one, Notice) and one[0] == topic_id]
        reached = seqs[-1] if seqs else reader.starts[topic_id] - 1
        newest = max((one[1] for one in world.events if one[0] == topic_id), default=0)
        gaps = [one for one in notices if one.code == NoticeCode.GAP and one.topic == NAMES[topic_id]]
        assert [(one.first_seq, one.last_seq) for one in gaps] == (
            [(reached + 1, newest)] if reached < newest else []
        )


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("end", [_unsubscribe, _hang_up, _shut_down, _remove_all])
@pytest.mark.parametrize("seed", range(10))
def test_the_end_comes_while_it_catches_up(seed: int, end: Callable[[World, Reader], None]) -> None:
    world = World(seed, Retention(events=100_000))
    world.publish(ALSO_KEPT)
    usual = None if seed % 2 else KEPT  # then it gets all of the other one with the first portion
    for _ in range(60):
        world.publish(usual)
    line = world.hub.open_line(1)
    topics = [KEPT, *world.random.sample([ALSO_KEPT, NOT_KEPT], world.random.randint(0, 2))]
    starts = {topic_id: 1 if topic_id != NOT_KEPT else world.last_seq[topic_id] + 1 for topic_id in topics}
    reader = Reader(world, line, 1, starts, False)
    for _ in range(world.random.randint(0, 20)):
        world.publish(usual)
    reader.read()
    for _ in range(world.random.randint(0, 20)):
        world.publish()
    assert reader.subscription.replay is not None
    end(world, reader)
    assert not world.hub.replays
    assert world.hub.held_bytes == 0
    assert all(reader.subscription not in subscribers for subscribers in world.hub.by_topic.values())
    assert not world.hub.by_topic


def test_a_large_run_goes_in_pieces_and_is_not_held_after() -> None:
    world = World(1, Retention(events=10))
    run = build_run(RunKind.PUBLICATION, KEPT, 7, 1, [b"x" * 300_000])
    world.retained.add(Delivery(run, KEPT, 1, 0, 1, 1, 1, 2, 3, 1))
    world.last_seq[KEPT] = 1
    line = world.hub.open_line(1)
    event_socket = Socket()
    subscription = world.hub.add(line, 1, event_socket, {KEPT: "kept"}, False)
    world.hub.begin_with(subscription, {KEPT: Cursor(world.source(KEPT), 1, False)})
    assert subscription.replay is None
    world.hub.flush(0)
    pieces, event_socket.messages = event_socket.messages, []
    world.hub.writable(subscription, 0)
    pieces += event_socket.messages
    head = EVENT_HEADER.size + RECORD_HEADER.size
    assert b"".join(one[head:] for one in pieces) == run
    assert world.hub.held_bytes == 0
