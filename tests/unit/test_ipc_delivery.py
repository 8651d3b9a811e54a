"""Event sockets: who gets what, in which turns, and what happens to those who do not read."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster.client.pieces import Pieces
from ocfcluster.ipc.delivery import Hub, Marks
from ocfcluster.ipc.slow import SlowBudget
from ocfcluster.ipc.subscription import Line, Subscription
from ocfcluster.limits import (
    FRAME_BYTES,
    FRAME_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    RECORDS_PER_FRAME,
    RUN_BYTES,
    SECOND_NS,
    SUBSCRIPTION_QUEUE_BYTES,
    SUBSCRIPTION_QUEUE_HARD_BYTES,
    SUBSCRIPTION_QUEUES_BYTES,
)
from ocfcluster.wire.frames import (
    EVENT_HEADER,
    RECORD_HEADER,
    Notice,
    NoticeCode,
    OnSlow,
    RecordKind,
    read_notice,
)


class Socket:
    """Takes ``room`` messages, then blocks."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.messages: list[bytes] = []
        self.pieces = Pieces()
        self.given_up = 0  # large runs that were begun and did not come to their end
        self.error = 0
        self.closed = False

    def sendmsg(self, buffers: list[bytes | memoryview], ancillary: tuple[()] = (), flags: int = 0, /) -> int:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if not self.room:
            raise BlockingIOError
        self.room -= 1
        message = b"".join(buffers)
        assert len(message) <= FRAME_BYTES
        self.messages.append(message)
        return len(message)

    def close(self) -> None:
        self.closed = True

    def take(self) -> list[tuple[int, int, list[tuple[int, int, object]]]]:
        """(turn, number of records, [(kind, first seq, notice or None)]) of every message so far."""
        found = []
        for message in self.messages:
            _, _, turn, records, _ = EVENT_HEADER.unpack_from(message)
            at = EVENT_HEADER.size
            parsed = []
            for _ in range(records):
                fields = RECORD_HEADER.unpack_from(message, at)
                notice = None
                body = memoryview(message)[at + RECORD_HEADER.size : at + fields[0]]
                if fields[1] == RecordKind.PART:
                    self.given_up += self.pieces.begun and not fields[3]
                    if self.pieces.add(fields[3], body) is None:
                        break
                else:
                    self.given_up += self.pieces.begun
                    self.pieces.give_up()
                if fields[1] == RecordKind.NOTICE:
                    notice = read_notice(message[at + RECORD_HEADER.size : at + fields[0]])
                parsed.append((fields[1], fields[8], notice))
                at += fields[0]
            else:
                assert at == len(message)
                found.append((turn, records, parsed))
        self.messages = []
        return found

    def seqs(self) -> list[object]:
        """Seqs of runs, and notices."""
        return [seq if notice is None else notice for _, _, got in self.take() for _, seq, notice in got]


class Shell:
    def __init__(self) -> None:
        self.watched: list[Subscription] = []
        self.full: list[bool] = []
        self.own: list[tuple[int, list[int]]] = []
        self.broken: list[Subscription] = []
        self.positions: list[tuple[int, dict[int, int]]] = []
        self.ticks: list[int] = []

    def watch_writable(self, subscription: Subscription, watch: bool) -> None:
        if watch:
            assert subscription not in self.watched
            self.watched.append(subscription)
        else:
            self.watched.remove(subscription)

    def full_changed(self, full: bool) -> None:
        self.full.append(full)

    def own_full_changed(self, connection: int, full: list[int]) -> None:
        self.own.append((connection, full))

    def subscription_broken(self, subscription: Subscription) -> None:
        self.broken.append(subscription)
        subscription.socket.close()

    def left_out(self, subscription: Subscription, positions: dict[int, int]) -> None:
        self.positions.append((subscription.number, positions))

    def tick(self, now: int) -> None:
        self.ticks.append(now)


class World:
    def __init__(self, budget: SlowBudget | None = None, marks: Marks | None = None) -> None:
        self.shell = Shell()
        self.hub = Hub(self.shell, budget, marks)
        self.last: dict[int, int] = {}

    def add(
        self, line: Line, number: int, topics: dict[int, str], *, callback: bool = False, room: int = 1 << 30,
        on_slow: OnSlow = OnSlow.BLOCK,
    ) -> tuple[Subscription, Socket]:  # fmt: skip
        made = Socket(room)
        return self.hub.add(line, number, made, topics, callback, on_slow), made

    def event(self, topic_id: int = 16, run: bytes = b"run", count: int = 1) -> int:
        seq = self.last.get(topic_id, 0) + 1
        self.last[topic_id] = seq + count - 1
        if topic_id in self.hub.by_topic:
            header = RECORD_HEADER.pack(
                RECORD_HEADER.size + len(run), RecordKind.RUN, 0, 0, 0, 1, 1, 1, seq, seq, 0
            )
            self.hub.deliver(topic_id, header, run, seq, seq + count - 1)
        return seq

    def drain(self, subscription: Subscription, socket: Socket, now: int = 0) -> list[object]:
        """Read everything, making room until nothing comes any more."""
        got: list[object] = []
        while True:
            got += socket.seqs()
            socket.room = 1 << 30
            if not subscription.blocked:
                return got + socket.seqs()
            self.hub.writable(subscription, now)


T = {16: "t"}


def large(size: int) -> bytes:
    """A run of so many bytes, as far as its first field says."""
    return struct.pack("<I", size) + bytes(size - 4)


def test_a_burst_is_one_message_and_large_bursts_are_cut_at_whole_runs() -> None:
    world = World()
    _, socket = world.add(world.hub.open_line(1), 1, T)
    for _ in range(5):
        world.event()
    assert not socket.messages
    world.hub.flush(0)
    assert [(turn, records) for turn, records, _ in socket.take()] == [(0, 5)]
    for _ in range(40):
        world.event(run=b"x" * 5000)
    world.hub.flush(0)
    whole = (FRAME_BYTES - FRAME_HEADER_BYTES) // (RECORD_HEADER_BYTES + 5000)
    assert [records for _, records, _ in socket.take()] == [whole] * (40 // whole) + [40 % whole]
    for _ in range(RECORDS_PER_FRAME + 1):
        world.event(run=b"")
    world.hub.flush(0)
    assert [records for _, records, _ in socket.take()] == [RECORDS_PER_FRAME, 1]
    assert world.hub.held_bytes == 0


def test_the_largest_run_of_several_fits_one_message() -> None:
    world = World()
    _, socket = world.add(world.hub.open_line(1), 1, T)
    world.event(run=b"x" * RUN_BYTES)
    world.hub.flush(0)
    assert [len(one) for one in socket.messages] == [FRAME_BYTES]
    world.event(run=large(RUN_BYTES + 1))
    world.event()
    world.hub.flush(0)
    assert len(socket.messages) == 4
    assert [got[0][0] for _, _, got in socket.take()] == [RecordKind.RUN, RecordKind.PART, RecordKind.RUN]
    assert world.hub.held_bytes == 0


def test_callbacks_of_a_connection_take_turns_in_the_order_of_the_log() -> None:
    world = World()
    line = world.hub.open_line(1)
    _, first = world.add(line, 1, {16: "t"}, callback=True)
    _, second = world.add(line, 2, {17: "u"}, callback=True)
    for topic_id in (16, 16, 17, 16, 17, 17):
        world.event(topic_id)
    world.hub.flush(0)
    assert [(turn, records) for turn, records, _ in first.take()] == [(1, 2), (3, 1)]
    assert [(turn, records) for turn, records, _ in second.take()] == [(2, 1), (4, 2)]


def test_a_blocked_callback_holds_up_its_line_unless_it_is_out_of_line() -> None:
    world = World()
    line = world.hub.open_line(1)
    one, first = world.add(line, 1, {16: "t"}, callback=True, room=1)
    _, second = world.add(line, 2, {17: "u"}, callback=True)
    _, pull = world.add(line, 3, {17: "u"})
    for topic_id in (16, 17, 16, 17):
        world.event(topic_id)
        world.hub.flush(0)
    assert [turn for turn, _, _ in first.take()] == [1]
    assert [turn for turn, _, _ in second.take()] == [2]  # the next one waits for turn 3
    assert pull.seqs() == [1, 2]  # no callback: in no line
    world.hub.set_out_of_line(one, True)
    world.hub.flush(0)
    assert [turn for turn, _, _ in second.take()] == [3]
    world.event(17)
    world.hub.flush(0)
    assert [turn for turn, _, _ in second.take()] == [4]
    world.hub.set_out_of_line(one, False)
    world.event(17)
    world.hub.flush(0)
    assert not second.messages
    first.room = 10
    world.hub.writable(one, 0)
    assert [turn for turn, _, _ in first.take()] == [5]
    assert [turn for turn, _, _ in second.take()] == [6]


def test_unsubscribing_a_blocked_callback_frees_its_line() -> None:
    world = World()
    line = world.hub.open_line(1)
    one, _ = world.add(line, 1, {16: "t"}, callback=True, room=0)
    _, second = world.add(line, 2, {17: "u"}, callback=True)
    world.event(16)
    world.event(17)
    world.hub.flush(0)
    assert not second.messages
    world.hub.remove(one, 0)
    world.hub.flush(0)
    assert second.seqs() == [1]
    assert not world.shell.watched
    assert world.hub.held_bytes == 0


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.lists(
        st.tuples(st.booleans(), st.sets(st.integers(16, 18), min_size=1)), min_size=1, max_size=4
    ),
    script=st.lists(
        st.one_of(
            st.tuples(st.just("event"), st.integers(16, 18)),
            st.tuples(st.sampled_from(["read", "out", "in", "flush"]), st.integers(0, 3)),
        ),
        max_size=60,
    ),
)
def test_everybody_gets_everything_in_order_and_turns_have_no_hole(  # noqa: C901 - a script and its checks
    kinds: list[tuple[bool, set[int]]], script: list[tuple[str, int]]
) -> None:
    world = World()
    line = world.hub.open_line(1)
    subscriptions = []
    for number, (callback, topics) in enumerate(kinds):
        subscriptions.append(world.add(line, number, {t: str(t) for t in topics}, callback=callback, room=1))
    log: list[tuple[int, int]] = []
    got: list[list[tuple[int, int]]] = [[] for _ in kinds]  # per subscription: (turn, position in the log)

    def read(number: int) -> None:
        for turn, _, records in subscriptions[number][1].take():
            for _, seq, _ in records:
                got[number].append((turn, seq))
        subscriptions[number][1].room = 1
        world.hub.writable(subscriptions[number][0], 0)

    for action, argument in script:
        number = argument % len(kinds)
        if action == "event":
            seq = len(log) + 1
            log.append((argument, seq))
            world.last[argument] = seq - 1  # one counter for all topics: the seq is the position in the log
            world.event(argument)
        elif action == "read":
            read(number)
        elif action == "flush":
            world.hub.flush(0)
        elif kinds[number][0]:
            world.hub.set_out_of_line(subscriptions[number][0], action == "out")
    for subscription, _ in subscriptions:
        world.hub.set_out_of_line(subscription, False)
    for _ in range(200):
        world.hub.flush(0)
        for number in range(len(kinds)):
            read(number)
    turns = []
    for number, (callback, topics) in enumerate(kinds):
        assert [seq for _, seq in got[number]] == [seq for topic, seq in log if topic in topics]
        turns += sorted({turn for turn, _ in got[number]}) if callback else []
        assert callback or not any(turn for turn, _ in got[number])
    assert sorted(turns) == list(range(1, len(turns) + 1))
    if not any(action in ("out", "in") for action, _ in script):  # out of line: its events come later
        merged = sorted(
            (turn, seq) for number, (callback, _) in enumerate(kinds) if callback for turn, seq in got[number]
        )
        assert [seq for _, seq in merged] == sorted(seq for _, seq in merged)
    assert world.hub.held_bytes == 0
    assert all(not subscription.queued_bytes for subscription, _ in subscriptions)


BIG = b"x" * 60_000


def fill(world: World, size: int) -> None:
    for _ in range(size // len(BIG) + 1):
        world.event(run=BIG)
        world.hub.flush(0)


def test_a_subscription_that_does_not_read_is_full_and_then_free_again() -> None:
    world = World()
    subscription, socket = world.add(world.hub.open_line(1), 5, T, room=0)
    fill(world, SUBSCRIPTION_QUEUE_BYTES)
    assert subscription.full
    assert world.shell.full == [True]
    assert world.shell.own == [(1, [5])]
    seqs = world.drain(subscription, socket)
    assert seqs == list(range(1, world.last[16] + 1))
    assert world.shell.full == [True, False]
    assert world.shell.own[-1] == (1, [])


def test_after_its_time_a_full_subscription_drops_and_names_the_gap() -> None:
    world = World(SlowBudget(5 * SECOND_NS, 30 * SECOND_NS))
    subscription, socket = world.add(world.hub.open_line(1), 5, T, room=0)
    fill(world, SUBSCRIPTION_QUEUE_BYTES)
    kept = world.last[16]
    assert world.hub.deadline() == 5 * SECOND_NS
    world.hub.flush(5 * SECOND_NS - 1)
    assert not subscription.dropping
    world.hub.flush(5 * SECOND_NS)
    assert subscription.dropping
    assert world.shell.full == [True, False]  # the cluster goes on
    assert world.hub.deadline() is None
    queued = subscription.queued_bytes
    for _ in range(1000):
        world.event(run=BIG, count=3)
        world.hub.flush(6 * SECOND_NS)
    assert subscription.queued_bytes == queued
    got = world.drain(subscription, socket, 7 * SECOND_NS)
    gap = got[-1]
    assert got[:-1] == list(range(1, kept + 1))
    assert isinstance(gap, Notice)
    assert (gap.code, gap.topic, gap.first_seq, gap.last_seq) == (NoticeCode.GAP, "t", kept + 1, kept + 3000)
    assert not subscription.dropping
    assert world.event() == kept + 3001
    world.hub.flush(8 * SECOND_NS)
    assert socket.seqs() == [kept + 3001]


def test_who_falls_back_waits_for_no_other_flush() -> None:
    world = World(SlowBudget(5 * SECOND_NS, 30 * SECOND_NS))
    subscription, _ = world.add(world.hub.open_line(1), 1, T, room=0)
    fill(world, SUBSCRIPTION_QUEUE_BYTES)
    world.hub.flush(9 * SECOND_NS // 2)  # with the tick of this second
    assert subscription.full
    world.hub.flush(5 * SECOND_NS)
    assert subscription.dropping
    assert not subscription.dirty


def test_the_time_is_counted_for_all_and_comes_back_with_the_interval() -> None:
    world = World(SlowBudget(5 * SECOND_NS, 30 * SECOND_NS))
    line = world.hub.open_line(1)
    one, first = world.add(line, 1, T, room=0)
    fill(world, SUBSCRIPTION_QUEUE_BYTES)
    world.drain(one, first, 4 * SECOND_NS)
    two, second = world.add(line, 2, T, room=0)
    fill(world, SUBSCRIPTION_QUEUE_BYTES)
    assert two.full
    world.hub.flush(10 * SECOND_NS)
    assert two.dropping  # four seconds were spent by the first one
    world.drain(two, second, 11 * SECOND_NS)
    second.room = 0
    fill_at = 31 * SECOND_NS
    for _ in range(SUBSCRIPTION_QUEUE_BYTES // len(BIG) + 1):
        world.event(run=BIG)
        world.hub.flush(fill_at)
    world.hub.flush(35 * SECOND_NS)
    assert two.full
    world.hub.flush(36 * SECOND_NS)
    assert two.dropping


def test_beyond_the_hard_mark_it_drops_at_once() -> None:
    world = World()
    subscription, socket = world.add(world.hub.open_line(1), 5, T, room=0)
    fill(world, SUBSCRIPTION_QUEUE_HARD_BYTES)
    assert subscription.dropping
    assert subscription.queued_bytes <= SUBSCRIPTION_QUEUE_HARD_BYTES
    got = world.drain(subscription, socket)
    assert got[-1].last_seq == world.last[16]
    assert got[-1].first_seq == got[-2] + 1


def test_all_queues_together_are_bounded() -> None:
    world = World()
    line = world.hub.open_line(1)
    subscriptions = [world.add(line, n, {100 + n: f"t{n}"}, room=0) for n in range(24)]
    for _ in range(SUBSCRIPTION_QUEUE_BYTES // len(BIG) - 10):  # none of them is full
        for number in range(24):
            world.event(100 + number, run=BIG)
        world.hub.flush(0)
        assert world.hub.held_bytes <= SUBSCRIPTION_QUEUES_BYTES
    assert world.hub.fallbacks
    for number, (subscription, socket) in enumerate(subscriptions):
        got = world.drain(subscription, socket)
        expected = 1
        for one in got:
            if isinstance(one, Notice):
                assert one.first_seq == expected
                expected = one.last_seq + 1
            else:
                assert one == expected
                expected += 1
        assert expected == world.last[100 + number] + 1
    assert world.hub.held_bytes == 0


def test_a_shared_run_is_queued_once_for_many() -> None:
    world = World()
    for number in range(1, 101):
        world.add(world.hub.open_line(number), 1, T, room=0)
    world.event(run=BIG)
    world.hub.flush(0)
    assert world.hub.held_bytes < 2 * len(BIG)
    for line in list(world.hub.lines.values()):
        world.hub.close_line(line, 0)
    assert world.hub.held_bytes == 0
    assert not world.hub.by_topic
    assert not world.shell.watched


def test_a_notice_comes_behind_the_gap_that_was_before_it() -> None:
    world = World()
    subscription, socket = world.add(world.hub.open_line(1), 5, T, room=0)
    fill(world, SUBSCRIPTION_QUEUE_HARD_BYTES)
    world.hub.topic_removed(16, world.last[16])
    got = world.drain(subscription, socket)
    assert [one.code for one in got[-2:]] == [NoticeCode.GAP, NoticeCode.TOPIC_REMOVED]
    assert got[-1].final


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EMSGSIZE, errno.ECONNRESET])
def test_a_broken_socket_ends_that_subscription_alone(code: int) -> None:
    world = World()
    line = world.hub.open_line(1)
    broken, socket = world.add(line, 1, T)
    _, other = world.add(line, 2, T)
    socket.error = code
    world.event()
    world.hub.flush(0)
    assert world.shell.broken == [broken]
    assert socket.closed
    assert other.seqs() == [1]
    assert list(line.subscriptions) == [2]


def test_a_large_run_goes_on_where_its_socket_was_full() -> None:
    world = World()
    subscription, socket = world.add(world.hub.open_line(1), 1, T, room=2)
    world.event(run=large(5 * RUN_BYTES))
    world.event()
    world.hub.flush(0)
    assert socket.seqs() == []
    socket.room = 2
    world.hub.writable(subscription, 0)
    assert socket.seqs() == []
    socket.room = 9
    world.hub.writable(subscription, 0)
    assert socket.seqs() == [1, 2]
    assert (socket.given_up, world.hub.frames, world.hub.held_bytes) == (0, 6, 0)


def test_a_run_that_was_begun_and_becomes_a_gap_is_given_up() -> None:
    """And one behind it, which is begun anew."""
    world = World()
    subscription, socket = world.add(world.hub.open_line(1), 1, T, room=1)
    world.event(run=large(3 * RUN_BYTES))
    world.hub.flush(0)
    assert world.hub._give_up(subscription)
    world.event()
    socket.room = 99
    world.hub.writable(subscription, 0)
    (gap,) = socket.seqs()
    assert (gap.first_seq, gap.last_seq) == (1, 2)
    world.event(run=large(3 * RUN_BYTES))
    world.hub.flush(0)
    assert socket.seqs() == [3]
    assert (socket.given_up, world.hub.held_bytes) == (1, 0)


def test_who_loses_its_oldest_gets_the_large_run_that_was_begun() -> None:
    world = World(marks=Marks(full=4 * RUN_BYTES, hard=1 << 30, held=1 << 30))
    subscription, socket = world.add(world.hub.open_line(1), 1, T, room=1, on_slow=OnSlow.DROP_OLDEST)
    for _ in range(6):
        world.event(run=large(2 * RUN_BYTES))
        world.hub.flush(0)
    socket.room = 1
    world.hub.writable(subscription, 0)
    first = socket.seqs()
    assert first == [1]
    socket.room = 99
    world.hub.writable(subscription, 0)
    gap, *rest = socket.seqs()
    assert (gap.first_seq, gap.last_seq) == (2, rest[0] - 1)
    assert rest == list(range(rest[0], 7))
    assert (socket.given_up, world.hub.held_bytes) == (0, 0)


@pytest.mark.parametrize("on_slow", list(OnSlow))
def test_one_event_alone_makes_nobody_slow_however_large(on_slow: OnSlow) -> None:
    world = World(marks=Marks(full=4 * RUN_BYTES, hard=1 << 30, held=1 << 30))
    subscription, socket = world.add(world.hub.open_line(1), 1, T, room=2, on_slow=on_slow)
    world.event(run=large(9 * RUN_BYTES))
    world.hub.flush(0)
    for _ in range(3):
        world.event()
        world.hub.flush(0)
    assert world.shell.full == []
    assert world.drain(subscription, socket) == [1, 2, 3, 4]
    assert (socket.given_up, world.hub.held_bytes, world.hub.disconnected) == (0, 0, 0)


def test_what_waits_behind_a_large_event_counts() -> None:
    world = World(marks=Marks(full=4 * RUN_BYTES, hard=1 << 30, held=1 << 30))
    subscription, socket = world.add(world.hub.open_line(1), 1, T, room=2)
    for _ in range(3):
        world.event(run=large(3 * RUN_BYTES))
    world.hub.flush(0)
    assert world.shell.full == [True]
    assert world.drain(subscription, socket) == [1, 2, 3]
    assert world.shell.full == [True, False]


def test_of_what_waits_behind_a_large_event_the_newest_stay() -> None:
    world = World(marks=Marks(full=4 * RUN_BYTES, hard=1 << 30, held=1 << 30))
    subscription, socket = world.add(world.hub.open_line(1), 1, T, room=1, on_slow=OnSlow.DROP_OLDEST)
    world.event(run=large(9 * RUN_BYTES))
    world.hub.flush(0)
    for _ in range(7):
        world.event(run=bytes(RUN_BYTES - 1000))
        world.hub.flush(0)
    first, gap, *rest = world.drain(subscription, socket)
    assert (first, gap.first_seq, gap.last_seq, rest) == (1, 2, 4, [5, 6, 7, 8])


def test_a_begun_run_that_is_given_up_takes_the_gap_behind_it_along() -> None:
    world = World(marks=Marks(full=1 << 20, hard=8 << 20, held=2 << 20))
    subscription, socket = world.add(world.hub.open_line(1), 1, T, room=1, on_slow=OnSlow.DROP_OLDEST)
    world.event(run=large(900_000))
    world.hub.flush(0)
    for size in [*[70_000] * 20, 1_900_000]:
        world.event(run=large(size))
        world.hub.flush(0)
    got = world.drain(subscription, socket)
    missed = [
        seq for one in got if not isinstance(one, int) for seq in range(one.first_seq, one.last_seq + 1)
    ]
    assert sorted([*missed, *(one for one in got if isinstance(one, int))]) == list(range(1, 23))
    assert missed == sorted(missed)
    assert world.hub.held_bytes == 0


def test_a_large_event_of_which_nothing_is_taken_is_the_one_that_is_stuck() -> None:
    world = World()
    subscription, _ = world.add(world.hub.open_line(1), 1, T, room=2)
    world.event(run=large(5 * RUN_BYTES))
    world.hub.flush(0)
    assert subscription.sent == (16, 1)


def test_the_pieces_of_a_callbacks_run_take_one_turn() -> None:
    world = World()
    line = world.hub.open_line(1)
    _, first = world.add(line, 1, {16: "t"}, callback=True)
    _, second = world.add(line, 2, {17: "u"}, callback=True)
    for topic_id in (17, 16, 17):
        world.event(topic_id, run=large(3 * RUN_BYTES))
    world.hub.flush(0)
    assert [(turn, records) for turn, records, _ in second.take()] == [(1, 1), (3, 1)]
    assert [(turn, records) for turn, records, _ in first.take()] == [(2, 1)]


def test_shutdown_is_the_last_that_is_said() -> None:
    world = World()
    _, socket = world.add(world.hub.open_line(1), 1, T)
    world.event()
    world.hub.shut_down("going", 0)
    world.hub.shut_down("again", 0)
    first, notice = socket.seqs()
    assert first == 1
    assert (notice.code, notice.reason, notice.final) == (NoticeCode.SHUTDOWN, "going", True)
