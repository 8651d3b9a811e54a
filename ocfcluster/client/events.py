"""What a program gets: events and runs of them, notices, receipts, topics.

A run is opened on access: nothing is decoded for an event that nobody looks at, and iterating over a run stays in
C for all but the caller's own loop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from ocfcluster.client.arguments import check_timeout
from ocfcluster.client.starting import Position
from ocfcluster.errors import ClientError, MalformedFrame
from ocfcluster.limits import RUN_HEADER_BYTES
from ocfcluster.wire import frames
from ocfcluster.wire.event import encode_event, fold32
from ocfcluster.wire.frames import NoticeCode, RecordFlags
from ocfcluster.wire.properties import decode_properties
from ocfcluster.wire.run import LENGTHS_TABLE
from ocfcluster.wire.topics import DEFAULT_SETTINGS, TopicSettings

if TYPE_CHECKING:
    from ocfcluster.client.producer import Batch

__all__ = [
    "Event",
    "GroupInfo",
    "Notice",
    "NoticeCode",
    "Published",
    "Receipt",
    "Run",
    "RunMeta",
    "TopicInfo",
]

_first: Final = itemgetter(0)
_LOCAL: Final = int(RecordFlags.LOCAL)
_NOTICE: Final = int(RecordFlags.NOTICE)
_RETAINED: Final = int(RecordFlags.RETAINED)


class Notice(msgspec.Struct, frozen=True):
    """What a subscription is told besides its events.

    ``first_seq`` and ``last_seq`` are the ends of a gap in ``topic`` (``last_seq`` 0: to the end of a topic, or of a
    history, that is no more); ``final`` says that the subscription ends.
    """

    code: NoticeCode
    topic: str = ""
    first_seq: int = 0
    last_seq: int = 0
    reason: str = ""
    final: bool = False

    @property
    def name(self) -> str:
        """``"gap"``, ``"agent_lost"``, ``"resumed"``, ``"shutdown"``, ..."""
        return self.code.name.lower()

    def encode(self) -> bytes:
        """The data of the notice's event: the same fields as a MessagePack array."""
        return frames.encode_notice(
            frames.Notice(int(self.code), self.topic, self.first_seq, self.last_seq, self.reason, self.final)
        )

    @classmethod
    def decode(cls, data: bytes) -> Notice:
        """Raises MalformedFrame, also for a code that this version does not know."""
        body = frames.read_notice(data)
        try:
            code = NoticeCode(body.code)
        except ValueError:
            raise MalformedFrame(f"a notice with code {body.code}") from None
        return cls(code, body.topic, body.first_seq, body.last_seq, body.reason, body.final)


class RunMeta(NamedTuple):
    """What the agent says about a run: the fields of a record header. ``seq`` and ``ev_id`` are the first event's."""

    skip: int
    flags: int
    node_id: int
    incarnation: int
    m_sequence: int
    seq: int
    ev_id: int
    order_time_ns: int


class Run:
    """Consecutive events of one publisher in one topic, as they were published together.

    ``len(run)`` events; ``for data in run`` gives their bytes; ``run.events()`` gives Event objects; ``seq`` and
    ``ev_id`` are the first event's, the rest follow by counting. A notice comes as a run of no data with
    ``notice`` set, whose ``events()`` is the one event that carries it.
    """

    __slots__ = (
        "topic", "notice", "seq", "ev_id", "re_id", "time_ns", "node_id", "incarnation", "m_sequence",
        "order_time_ns", "flags", "producer", "first_number", "topic_id", "cluster_id", "_count", "_buffer", "_base",
        "_end", "_event_length", "_lengths_at", "_data_at", "_properties", "_length",
    )  # fmt: skip

    def __init__(
        self,
        topic: str,
        buffer: bytes,
        base: int,
        header: tuple[int, ...],
        meta: RunMeta,
        cluster_id: str = "",
    ) -> None:
        """``header`` are the fields of a run whose checksum agreed, at ``base`` in ``buffer``."""
        (
            length,
            _,
            _,
            _,
            _,
            self.topic_id,
            count,
            producer,
            first,
            re_id,
            time_ns,
            event_length,
            properties,
        ) = header
        skip = meta.skip
        self.topic = topic
        self.cluster_id = cluster_id
        self.notice: Notice | None = None
        _, self.flags, self.node_id, self.incarnation, self.m_sequence, self.seq, self.ev_id, order_time = (
            meta
        )
        self.order_time_ns = order_time
        self.re_id = re_id
        self.time_ns = time_ns
        self.producer = producer
        self.first_number = first + skip
        self._count = count - skip
        self._buffer = buffer
        self._base = base
        self._end = base + length
        self._event_length = event_length
        at = base + RUN_HEADER_BYTES
        if event_length == LENGTHS_TABLE:
            self._lengths_at = at + 4 * skip
            at += 4 * count
        else:
            self._lengths_at = 0
        self._length = properties
        self._data_at = at + properties
        self._properties: dict[str, str] | None = None if properties else {}
        if skip:
            if event_length == LENGTHS_TABLE:
                skipped = struct.unpack_from(f"<{skip}I", buffer, base + RUN_HEADER_BYTES)
                self._data_at += sum(skipped)
            else:
                self._data_at += skip * event_length

    @classmethod
    def of_notice(cls, notice: Notice, meta: RunMeta) -> Run:
        """The run that carries ``notice`` through the same path as events."""
        run = cls.__new__(cls)
        run.topic = notice.topic
        run.notice = notice
        _, flags, run.node_id, run.incarnation, run.m_sequence, run.seq, run.ev_id, order_time = meta
        run.flags = flags | _NOTICE | _LOCAL
        run.order_time_ns = run.time_ns = order_time
        run.re_id = run.producer = run.first_number = run.topic_id = 0
        run.cluster_id = ""
        run._buffer = notice.encode()
        run._count = run._base = run._end = run._event_length = run._lengths_at = run._data_at = 0
        run._length = 0
        run._properties = {}
        return run

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        """The data of each event, in order."""
        count = self._count
        length = self._event_length
        if length == LENGTHS_TABLE:
            return map(self._buffer.__getitem__, map(slice, *self._bounds()))
        if not length:
            return repeat(b"", count)
        if count == 1:
            return iter((self._buffer[self._data_at : self._data_at + length],))
        view = memoryview(self._buffer)[self._data_at : self._data_at + count * length]
        return map(_first, struct.iter_unpack(f"{length}s", view))

    def _bounds(self) -> tuple[Sequence[int], Sequence[int]]:
        """Where each event begins and where each ends; never behind the run, whatever its table says."""
        lengths = struct.unpack_from(f"<{self._count}I", self._buffer, self._lengths_at)
        starts = []
        at = self._data_at
        for length in lengths:
            starts.append(at)
            at += length
        if at != self._end:
            raise MalformedFrame("the lengths of a run's events do not add up to its data")
        return starts, [*starts[1:], at]

    def events(self) -> Iterator[Event]:
        """The events as objects, made as they are asked for."""
        if self.notice is not None:
            return iter((Event(self, 0, bytes(self._buffer)),))
        return map(Event, repeat(self), range(self._count), self)

    @property
    def properties(self) -> dict[str, str]:
        """The user properties that all events of the run share; do not change it."""
        known = self._properties
        if known is None:
            at = self._base + RUN_HEADER_BYTES
            if self._event_length == LENGTHS_TABLE:
                at = self._data_at_first() - self._length
            known = self._properties = decode_properties(self._buffer[at : at + self._length])
        return known

    def _data_at_first(self) -> int:
        """Where the data of the whole run begins, also where its first publications are skipped."""
        (count,) = struct.unpack_from("<I", self._buffer, self._base + 20)
        return int(self._base + RUN_HEADER_BYTES + 4 * count + self._length)

    @property
    def local(self) -> bool:
        """Of a local topic or a local notification: ``seq`` and ``ev_id`` count on this node alone."""
        return bool(self.flags & _LOCAL)

    def rest(self, taken: int) -> Run:
        """This run without its first ``taken`` events."""
        if not taken:
            return self
        run = Run.__new__(Run)
        for name in Run.__slots__:
            setattr(run, name, getattr(self, name))
        length = self._event_length
        if length == LENGTHS_TABLE:
            run._data_at += sum(struct.unpack_from(f"<{taken}I", self._buffer, self._lengths_at))
            run._lengths_at += 4 * taken
        else:
            run._data_at += taken * length
        run._count -= taken
        run.seq += taken
        run.ev_id += taken
        run.first_number += taken
        return run

    def __repr__(self) -> str:
        if self.notice is not None:
            return f"<Run {self.notice!r}>"
        return f"<Run of {self._count} in {self.topic!r} from seq {self.seq}>"


class Event(msgspec.Struct, eq=False):
    """One event. It stays valid as long as you keep it.

    The numbers are 64-bit; ``seq32``, ``ev_id32`` and ``re_id32`` are OCF's positive int32 ones. ``notice`` is set
    on the events by which the library tells about gaps, the agent's end and the like.
    """

    run: Run
    index: int
    data: bytes
    held: Any = None  # who waits for event_done of this event

    @property
    def topic(self) -> str:
        return self.run.topic

    @property
    def seq(self) -> int:
        return self.run.seq + self.index

    @property
    def ev_id(self) -> int:
        return self.run.ev_id + self.index

    @property
    def position(self) -> Position:
        """Its place in the topic, for ``subscribe(from_seq=...)``; ``position.next`` is the place behind it."""
        return Position(self.run.cluster_id, self.run.topic_id, self.seq)

    @property
    def retained(self) -> bool:
        """Whether it was kept: it is older than the subscription, or came while that was without its agent."""
        return bool(self.run.flags & _RETAINED)

    @property
    def re_id(self) -> int:
        return self.run.re_id

    @property
    def node_id(self) -> int:
        """The publisher's node."""
        return self.run.node_id

    @property
    def incarnation(self) -> int:
        """The publisher's node's incarnation."""
        return self.run.incarnation

    @property
    def m_sequence(self) -> int:
        """The membership generation at the event's place in the order."""
        return self.run.m_sequence

    @property
    def time_ns(self) -> int:
        """When it was published, by the publisher's wall clock, in ns since 1970."""
        return self.run.time_ns

    @property
    def order_time_ns(self) -> int:
        """The cluster's time at the event's place in the order, the same on every node; it never goes back."""
        return self.run.order_time_ns

    @property
    def flags(self) -> RecordFlags:
        return RecordFlags(self.run.flags)

    @property
    def local(self) -> bool:
        return self.run.local

    @property
    def properties(self) -> dict[str, str]:
        return dict(self.run.properties)

    @property
    def notice(self) -> Notice | None:
        return self.run.notice

    @property
    def seq32(self) -> int:
        return fold32(self.seq)

    @property
    def ev_id32(self) -> int:
        return fold32(self.ev_id)

    @property
    def re_id32(self) -> int:
        return fold32(self.re_id)

    def to_bytes(self) -> bytes:
        """The OCF event message of this event (docs/formats.md)."""
        run = self.run
        return encode_event(
            run.topic, self.data, seq=self.seq, ev_id=self.ev_id, re_id=run.re_id, node_id=run.node_id,
            incarnation=run.incarnation, m_sequence=run.m_sequence, time_ns=run.time_ns, flags=run.flags,
            properties=run.properties,
        )  # fmt: skip

    def __repr__(self) -> str:
        if self.run.notice is not None:
            return f"<Event {self.run.notice!r}>"
        return f"<Event {self.topic!r} seq {self.seq} ev_id {self.ev_id}, {len(self.data)} bytes>"


class Published(NamedTuple):
    """Where a publication stands in the order; of several (publish_many) the first's numbers and how many.

    Events of one run have consecutive numbers; those of several runs of one call need not.
    """

    topic: str
    seq: int
    ev_id: int
    count: int = 1  # type: ignore[assignment]  # hides tuple.count


class Receipt(msgspec.Struct, eq=False):
    """What became of the publications of one call, as soon as it is known.

    ``done()`` never blocks; ``wait()`` blocks until the cluster has delivered them.
    """

    _batches: Any  # tuple[Batch, ...]; one, or several that belong to this call alone
    _index: int  # of the call's first publication in its only batch; 0 where there are several
    _count: int

    def __len__(self) -> int:
        """How many publications the call made."""
        return self._count

    def done(self) -> bool:
        """Whether the outcome is known."""
        batches: tuple[Batch, ...] = self._batches
        if len(batches) == 1:
            return batches[0].covers(self._index, self._count)
        return all(batch.done for batch in batches)

    def result(self) -> Published:
        """The outcome, which is known. Raises the error of the first publication that was refused."""
        batches: tuple[Batch, ...] = self._batches
        first = batches[0]
        seq, ev_id = first.outcome(self._index, self._count if len(batches) == 1 else first.count)
        for batch in batches[1:]:
            batch.outcome(0, batch.count)
        return Published(first.topic, seq, ev_id, self._count)

    def wait(self, timeout: float | None = None) -> Published:
        """The outcome, after at most ``timeout`` seconds (None: however long it takes).

        Raises WouldBlock where it is not known in time, OutcomeUnknown where it can never be known, and the error
        with which the publication was refused.
        """
        check_timeout(timeout)
        if not self.done():
            self._batches[-1].owner.wait_for_receipt(self, timeout)
        return self.result()

    def error(self) -> ClientError | None:
        """The error that ``result`` raises, or None. The outcome is known."""
        try:
            self.result()
        except ClientError as error:
            return error
        return None


class TopicInfo(msgspec.Struct, frozen=True):
    """A topic as the agent knows it. ``subscribers`` are those on this node."""

    name: str
    topic_id: int
    scope: str  # "global" or "local"
    last_seq: int
    subscribers: int = 0
    aliases: tuple[str, ...] = ()
    settings: TopicSettings = DEFAULT_SETTINGS
    kept_events: int = 0  # the newest, for subscriptions that start earlier than now
    kept_bytes: int = 0  # of memory
    kept_from: int = 0  # seq of the first of them, 0 if there are none

    @classmethod
    def of(cls, body: frames.Topic) -> TopicInfo:
        scope = "local" if body.local else "global"
        aliases = tuple(body.aliases)
        return cls(
            body.topic, body.topic_id, scope, body.last_seq, body.subscribers, aliases, body.settings,
            body.kept_events, body.kept_bytes, body.kept_from,
        )  # fmt: skip


class GroupInfo(NamedTuple):
    """A group as the agent knows it. ``members``: how many."""

    topic: str
    topic_id: int
    last_seq: int
    members: int

    @property
    def name(self) -> str:
        """Without ``group:``."""
        return self.topic.removeprefix("group:")
