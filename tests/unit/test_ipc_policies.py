"""Filters and policies for slow subscribers at the event sockets: who gets what, what is told of the rest, and that
nobody else pays for it."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from ocfcluster import parse_filter
from ocfcluster.ipc.delivery import Marks
from ocfcluster.ipc.slow import SlowBudget
from ocfcluster.ipc.subscription import Subscription
from ocfcluster.limits import QUEUED_ITEM_OVERHEAD_BYTES, RECORD_HEADER_BYTES, SECOND_NS, SUBSCRIPTION_TICK_NS
from ocfcluster.wire.filter import Predicate
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
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import RunKind, build_run, read_header
from tests.unit.test_ipc_delivery import Socket, World

RUN_BYTES = 1000
ITEM_BYTES = RUN_BYTES + RECORD_HEADER_BYTES + QUEUED_ITEM_OVERHEAD_BYTES
MARKS = Marks(full=10 * ITEM_BYTES, hard=100 * ITEM_BYTES, held=500 * ITEM_BYTES)
TOPICS = {16: "t", 17: "u"}


class Filtered(World):
    """Events with properties and nodes."""

    def __init__(self, marks: Marks = MARKS, budget: SlowBudget | None = None) -> None:
        super().__init__(budget)
        self.hub.marks = marks

    def subscribe(
        self, number: int = 1, *, text: str = "", on_slow: OnSlow = OnSlow.BLOCK, room: int = 1 << 30,
        topics: dict[int, str] | None = None, callback: bool = False, connection: int = 1,
    ) -> tuple[Subscription, Socket]:  # fmt: skip
        line = self.hub.lines.get(connection) or self.hub.open_line(connection)
        made = Socket(room)
        predicate = Predicate(parse_filter(text)) if text else None
        added = self.hub.add(line, number, made, topics or TOPICS, callback, on_slow, predicate)
        return added, made

    def publish(self, properties: dict[str, str] | None = None, node: int = 1, topic_id: int = 16) -> int:
        """One run of one event; its seq."""
        encoded = encode_properties(properties or {})
        seq = self.last[topic_id] = self.last.get(topic_id, 0) + 1
        room = RUN_BYTES - len(build_run(RunKind.PUBLICATION, topic_id, 1, seq, [b""], properties=encoded))
        run = build_run(RunKind.PUBLICATION, topic_id, 1, seq, [bytes(room)], properties=encoded)
        header = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(run), RecordKind.RUN, 0, 0, 0, node, 1, 1, seq, seq, 0
        )
        if topic_id in self.hub.by_topic:
            self.hub.deliver(topic_id, header, run, seq, seq)
        return seq

    def give(self, subscription: Subscription, seq: int, kind: RecordKind = RecordKind.RUN) -> None:
        """A record of topic 16 for this one alone."""
        room = RUN_BYTES - len(build_run(RunKind.PUBLICATION, 16, 0, 1, [b""]))
        run = build_run(RunKind.PUBLICATION, 16, 0, 1, [bytes(room)])
        header = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(run), kind, RecordFlags.LOCAL, 0, 0, 1, 1, 1, seq, LOCAL_ID, 0
        )
        self.hub.give(subscription, 16, header, run, seq, kind is RecordKind.LAST)


def gaps(got: list[object]) -> list[tuple[str, int, int]]:
    return [(one.topic, one.first_seq, one.last_seq) for one in got if isinstance(one, Notice)]


# --- filters ------------------------------------------------------------------------------------------------------


def test_what_is_filtered_out_is_not_written() -> None:
    world = Filtered()
    _, plain = world.subscribe(1)
    _, filtered = world.subscribe(2, text='severity == "high"')
    _, local = world.subscribe(3, text="from_node(2)")
    for number in range(6):
        world.publish({"severity": ("low", "high")[number % 2]}, node=1 + number % 3)
    world.hub.flush(0)
    assert plain.seqs() == [1, 2, 3, 4, 5, 6]
    assert filtered.seqs() == [2, 4, 6]
    assert local.seqs() == [2, 5]
    assert world.hub.held_bytes == 0


def test_a_subscription_that_gets_nothing_costs_its_socket_nothing() -> None:
    world = Filtered()
    subscription, filtered = world.subscribe(1, text="present(never)")
    filtered.error = 9  # it would break at once
    for _ in range(100):
        world.publish()
    world.hub.flush(0)
    world.hub.flush(10 * SUBSCRIPTION_TICK_NS)
    assert not world.shell.broken
    assert subscription.queued_bytes == world.hub.held_bytes == 0
    assert world.hub.left_out == 100


def test_where_a_filter_has_got_to_is_told_once_a_second_and_only_when_nothing_waits() -> None:
    world = Filtered()
    _, filtered = world.subscribe(1, text='a == "1"', room=1)
    world.hub.flush(0)
    for _ in range(5):
        world.publish()
        world.publish(topic_id=17)
        world.hub.flush(1)
    assert world.shell.positions == []
    world.hub.flush(SUBSCRIPTION_TICK_NS)
    assert world.shell.positions == [(1, {16: 5, 17: 5})]
    world.publish()
    world.publish({"a": "1"})  # goes into the socket: says itself where the topic has got to
    world.publish(topic_id=17)
    world.hub.flush(2 * SUBSCRIPTION_TICK_NS)
    assert world.shell.positions[1:] == [(1, {17: 6})]
    world.publish({"a": "1"})  # waits in the agent: what comes behind it has not been passed yet
    world.publish()
    world.hub.flush(3 * SUBSCRIPTION_TICK_NS)
    assert len(world.shell.positions) == 2
    (subscription,) = world.shell.watched
    filtered.room = 1
    world.hub.writable(subscription, 4 * SUBSCRIPTION_TICK_NS)
    assert world.shell.positions[2:] == [(1, {16: 9})]
    world.hub.flush(9 * SUBSCRIPTION_TICK_NS)
    assert len(world.shell.positions) == 3


def test_a_position_is_told_before_the_agent_ends() -> None:
    world = Filtered()
    world.subscribe(1, text='a == "1"')
    world.hub.flush(0)
    world.publish()
    world.hub.shut_down("maintenance", 1)
    assert world.shell.positions == [(1, {16: 1})]


def test_a_gap_ends_at_events_that_the_filter_lets_through() -> None:
    world = Filtered(budget=SlowBudget(0, 10 * SECOND_NS))
    subscription, filtered = world.subscribe(1, text='a == "1"', room=0)
    for _ in range(11):  # full, and the budget is used up at once
        world.publish({"a": "1"})
    world.hub.flush(1)
    world.hub.flush(2)
    assert subscription.dropping
    for wanted in (False, False, True, False, True, False):
        world.publish({"a": "1"} if wanted else None)
    got = world.drain(subscription, filtered)
    assert got[:11] == list(range(1, 12))
    assert gaps(got) == [("t", 14, 16)]
    assert "filter" in got[11].reason  # type: ignore[attr-defined]
    assert not subscription.dropping
    assert subscription.apart
    world.publish()
    world.publish({"a": "1"})
    world.hub.flush(3)
    assert filtered.seqs() == [19]


def test_a_retained_event_goes_through_the_filter_and_the_last_one_does_not() -> None:
    world = Filtered()
    subscription, filtered = world.subscribe(1, text='a == "1"')
    run = build_run(RunKind.PUBLICATION, 16, 1, 1, [b"x"])
    header = RECORD_HEADER.pack(RECORD_HEADER_BYTES + len(run), RecordKind.LAST, 0, 0, 0, 1, 1, 1, 7, 7, 0)
    world.hub.give(subscription, 16, header, run, 7, last=False)
    world.hub.flush(0)
    assert filtered.seqs() == []
    world.hub.give(subscription, 16, header, run, 7, last=True)
    world.hub.flush(0)
    assert filtered.seqs() == [7]


def test_turns_have_no_hole_where_a_filter_leaves_out() -> None:
    world = Filtered()
    _, one = world.subscribe(1, text='a == "1"', callback=True)
    _, other = world.subscribe(2, text='b == "1"', callback=True)
    for properties in ({"a": "1"}, {}, {"b": "1"}, {}, {"a": "1", "b": "1"}):
        world.publish(properties)
        world.hub.flush(0)
    turns = sorted((turn, seq) for made in (one, other) for turn, _, got in made.take() for _, seq, _ in got)
    assert turns == [(1, 1), (2, 3), (3, 5), (4, 5)]


# --- policies -----------------------------------------------------------------------------------------------------


def test_the_oldest_are_dropped_and_told_exactly_and_the_window_stays_open() -> None:
    world = Filtered()
    subscription, slow = world.subscribe(1, on_slow=OnSlow.DROP_OLDEST, room=1)
    for number in range(30):
        world.publish(topic_id=16 + number % 2)
        world.hub.flush(number)
        assert subscription.queued_bytes <= MARKS.full
    assert world.shell.full == []
    assert world.hub.deadline() is None
    got = world.drain(subscription, slow)
    kept = [one for one in got if isinstance(one, int)]
    # 1 of t went into the socket, the last ten wait: five of each topic
    assert kept == [1, *(seq for seq in range(11, 16) for _ in range(2))]
    assert gaps(got) == [("u", 1, 10), ("t", 2, 10)]  # in the order in which they were lost
    assert got.index(11) == 3  # the gaps come before what is left
    world.publish()
    world.hub.flush(99)
    assert slow.seqs() == [16]


def test_gaps_that_could_not_be_written_grow_and_are_told_once() -> None:
    world = Filtered()
    subscription, slow = world.subscribe(1, on_slow=OnSlow.DROP_OLDEST, topics={16: "t"}, room=0)
    for number in range(100):
        world.publish()
        world.hub.flush(number)
        if number % 7 == 0 and subscription.blocked:
            world.hub.writable(subscription, number)  # there is no room after all
    assert gaps(world.drain(subscription, slow)) == [("t", 1, 90)]


@pytest.mark.parametrize("policy", [OnSlow.DROP_OLDEST, OnSlow.DISCONNECT])
def test_what_is_lost_is_told_behind_the_gap_that_came_before_it(policy: OnSlow) -> None:
    world = Filtered()
    subscription, slow = world.subscribe(1, on_slow=policy, room=0)
    for name, last_seq in (("t", 4), ("u", 0)):  # 0: of a history that is no more
        world.hub.notify(
            subscription, Notice(NoticeCode.GAP, name, 3, last_seq, "they are not kept any more")
        )
    world.last[16] = 4
    for number in range(30):
        world.publish(topic_id=16 + number % 2)
        world.hub.flush(number)
    world.hub.topic_removed(17, 15)
    got = gaps(world.drain(subscription, slow))
    assert got[:2] == [("t", 3, 4), ("u", 3, 0)]
    assert [(name, first) for name, first, _ in got[2:4]] == [("t", 5), ("u", 1)]


def test_a_gap_that_comes_behind_what_is_lost_stays_behind_it() -> None:
    world = Filtered()
    subscription, slow = world.subscribe(1, on_slow=OnSlow.DROP_OLDEST, topics={16: "t", 17: "u"}, room=0)
    world.publish()
    world.hub.notify(subscription, Notice(NoticeCode.GAP, "t", 2, 3, "they are not kept any more"))
    for number in range(20):
        world.publish(topic_id=17)
        world.hub.flush(number)
    assert [one[0] for one in gaps(world.drain(subscription, slow))] == ["t", "u", "t"]


def test_it_ends_where_that_was_asked_for() -> None:
    world = Filtered()
    subscription, slow = world.subscribe(1, on_slow=OnSlow.DISCONNECT, room=1)
    _, quick = world.subscribe(2, connection=2)
    for number in range(30):
        world.publish(topic_id=16 + number % 2)
        world.hub.flush(number)
    assert subscription.ended
    assert world.shell.full == []
    got = world.drain(subscription, slow)
    assert got[0] == 1
    assert gaps(got[:-1]) == [("u", 1, 6), ("t", 2, 6)]
    last = got[-1]
    assert isinstance(last, Notice)
    assert (last.code, last.final) == (NoticeCode.SLOW, True)
    assert len(quick.seqs()) == 30
    world.publish()
    world.hub.flush(99)
    assert slow.seqs() == []
    assert world.hub.disconnected == 1
    assert world.hub.held_bytes == 0


def test_a_topics_removal_is_told_behind_what_was_dropped_of_it() -> None:
    world = Filtered()
    subscription, slow = world.subscribe(1, on_slow=OnSlow.DROP_OLDEST, room=0)
    world.publish()
    world.publish()
    world.hub.topic_removed(16, 2)
    for number in range(20):
        world.publish(topic_id=17)
        world.hub.flush(number)
    got = world.drain(subscription, slow)
    assert gaps(got)[:2] == [("t", 1, 2), ("u", 1, 11)]  # the notice takes some room, too
    removed = got[2]
    assert isinstance(removed, Notice)
    assert removed.code == NoticeCode.TOPIC_REMOVED
    assert got[3:] == list(range(12, 21))


def test_memory_for_all_is_bounded_with_every_policy() -> None:
    marks = Marks(full=100 * ITEM_BYTES, hard=200 * ITEM_BYTES, held=60 * ITEM_BYTES)
    world = Filtered(marks)
    made = [
        world.subscribe(number, on_slow=policy, topics={16 + number: "x"}, room=0)
        for number, policy in enumerate(OnSlow)
    ]
    for _ in range(50):
        for topic_id in (16, 17, 18):
            world.publish(topic_id=topic_id)
            world.hub.flush(0)
            assert world.hub.held_bytes <= marks.held + ITEM_BYTES
    for subscription, event_socket in made:
        got = world.drain(subscription, event_socket)
        told: set[int] = set()
        for one in got:
            told |= {one} if isinstance(one, int) else set(range(one.first_seq, one.last_seq + 1))  # type: ignore[attr-defined]
        assert told == set(range(1, 51))


def test_what_one_was_given_alone_is_given_up_where_nothing_else_is_left() -> None:
    marks = Marks(full=4 * ITEM_BYTES, hard=50 * ITEM_BYTES, held=20 * ITEM_BYTES)
    world = Filtered(marks)
    made = [world.subscribe(number, topics={16: "t"}, room=0) for number in range(4)]
    for seq in range(1, 13):
        for subscription, _ in made:
            world.give(subscription, seq)
        world.hub.flush(0)
        assert world.hub.held_bytes <= marks.held
    assert [s.queued_bytes > 0 for s, _ in made].count(True) >= 2  # the others keep what they were given
    world.last[16] = 12
    for subscription, event_socket in made:
        got = world.drain(subscription, event_socket)
        told: list[int] = []
        for one in got:
            told += [one] if isinstance(one, int) else range(one.first_seq, one.last_seq + 1)  # type: ignore[attr-defined]
        assert told == list(range(1, 13))
    assert {name for _, event_socket in made for name, _, _ in gaps(event_socket.seqs())} <= {"t"}
    world.publish()
    world.hub.flush(0)
    assert [event_socket.seqs() for _, event_socket in made] == [[13]] * 4
    assert world.hub.held_bytes == 0


def test_runs_are_given_up_before_what_one_was_given_alone() -> None:
    world = Filtered(Marks(full=100 * ITEM_BYTES, hard=200 * ITEM_BYTES, held=10 * ITEM_BYTES))
    subscription, slow = world.subscribe(1, topics={16: "t"}, room=0)
    world.give(subscription, 0)
    for _ in range(11):
        world.publish()
    world.hub.flush(0)
    got = world.drain(subscription, slow)
    assert got[0] == 0
    assert gaps(got) == [("t", 1, 11)]


@pytest.mark.parametrize("held", [1, ITEM_BYTES])
def test_the_last_record_is_never_given_up(held: int) -> None:
    """Neither it nor the gap before it, however little there may be."""
    world = Filtered()
    subscription, slow = world.subscribe(1, topics={16: "t"}, room=0)
    _, other = world.subscribe(2, connection=2, topics={17: "u"}, room=0)
    world.give(subscription, 1)
    world.publish()
    world.give(subscription, 2, RecordKind.LAST)
    world.hub.topic_removed(17, 0)
    world.hub.marks = MARKS._replace(held=held)
    world.hub.flush(0)
    world.hub.flush(0)
    assert subscription.ended
    slow.room = other.room = 1 << 30
    for one in list(world.shell.watched):
        world.hub.writable(one, 0)
    got = slow.seqs()
    assert (gaps(got), got[1:]) == ([("t", 1, 1)], [2])
    (last,) = other.seqs()
    assert isinstance(last, Notice)
    assert last.final


def test_where_the_longest_queue_holds_but_notices_another_is_given_up() -> None:
    world = Filtered(Marks(full=100 * ITEM_BYTES, hard=200 * ITEM_BYTES, held=30 * ITEM_BYTES))
    names = {number: f"{number}" for number in range(100, 200)}
    told, _ = world.subscribe(1, topics={16: "t", **names}, room=0)
    reads_late, late = world.subscribe(2, topics={17: "u"}, room=0)
    for topic_id in names:
        world.hub.topic_removed(topic_id, 0)
    before = told.queued_bytes
    assert before > 20 * ITEM_BYTES
    for _ in range(20):
        world.publish(topic_id=17)
        world.hub.flush(0)
        assert world.hub.held_bytes <= 30 * ITEM_BYTES
    assert told.queued_bytes == before
    assert gaps(world.drain(reads_late, late))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_seq_comes_or_is_told(seed: int) -> None:
    """Policies, filters, removals of room and large queues at random; each seq that the filter lets through comes
    once, in order, or lies in a gap that was told before the next one that comes."""
    chance = random.Random(seed)
    marks = Marks(chance.randint(3, 12) * ITEM_BYTES, 60 * ITEM_BYTES, chance.choice((20, 500)) * ITEM_BYTES)
    world = Filtered(marks, SlowBudget(3, 40))
    made = []
    for number in range(6):
        text = chance.choice(("", "", 'a == "1"', 'not a == "1"', "from_node(2)"))
        made.append(
            (
                text,
                *world.subscribe(
                    number, text=text, on_slow=chance.choice(list(OnSlow)), room=chance.randint(0, 4),
                    callback=chance.random() < 0.5, connection=1 + number % 3,
                ),
            )
        )  # fmt: skip
    published: dict[int, list[tuple[dict[str, str], int]]] = defaultdict(list)
    got: list[list[tuple[str, int, int]]] = [[] for _ in made]

    def read(place: int) -> None:
        got[place] += _records(made[place][2])

    for now in range(300):
        topic_id = chance.choice((16, 17))
        properties, node = chance.choice(({}, {"a": "1"}, {"a": "2"})), chance.randint(1, 3)
        world.publish(properties, node, topic_id)
        published[topic_id].append((properties, node))
        if chance.random() < 0.5:
            world.hub.flush(now)
        if chance.random() < 0.2:
            place = chance.randrange(len(made))
            _, subscription, event_socket = made[place]
            read(place)
            event_socket.room = chance.randint(0, 5)
            world.hub.writable(subscription, now)
    for _ in range(100):
        for place, (_, subscription, event_socket) in enumerate(made):
            read(place)
            event_socket.room = 1 << 30
            world.hub.writable(subscription, 301)
            world.hub.flush(301)
    for place, (text, subscription, _) in enumerate(made):
        read(place)
        _check(text, got[place], published, subscription.ended)


def _check(
    text: str,
    got: list[tuple[str, int, int]],
    published: dict[int, list[tuple[dict[str, str], int]]],
    ended: bool,
) -> None:
    predicate = Predicate(parse_filter(text)) if text else None

    def may_be_missing(topic_id: int, first: int, end: int) -> None:
        for seq in range(first, end):
            properties, node = published[topic_id][seq - 1]
            assert predicate is not None, f"{topic_id} {seq} neither came nor was told"
            assert not predicate(encode_properties(properties), node), f"{topic_id} {seq} was to come"

    reached = {"t": 0, "u": 0}
    ids = {name: topic_id for topic_id, name in TOPICS.items()}
    assert ended == (bool(got) and got[-1][0] == "end")
    for name, first, last in got[:-1] if ended else got:
        assert first > reached[name]
        may_be_missing(ids[name], reached[name] + 1, first)
        reached[name] = last
    for name, topic_id in () if ended else ids.items():
        may_be_missing(topic_id, reached[name] + 1, len(published[topic_id]) + 1)


def _records(event_socket: Socket) -> list[tuple[str, int, int]]:
    """(topic, first, last) of runs and gaps, ("end", 0, 0) of a final notice, in order."""
    found: list[tuple[str, int, int]] = []
    for message in event_socket.messages:
        records = EVENT_HEADER.unpack_from(message)[3]
        at = EVENT_HEADER.size
        for _ in range(records):
            fields = RECORD_HEADER.unpack_from(message, at)
            body = message[at + RECORD_HEADER.size : at + fields[0]]
            at += fields[0]
            if fields[1] == RecordKind.NOTICE:
                notice = read_notice(body)
                found.append(
                    ("end", 0, 0) if notice.final else (notice.topic, notice.first_seq, notice.last_seq)
                )
            else:
                found.append((TOPICS[read_header(body).topic_id], fields[8], fields[8]))
    event_socket.messages = []
    return found
