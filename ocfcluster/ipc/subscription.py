"""What the hub keeps of each subscription: its socket, its queue, what it asked for, and what it missed."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ocfcluster.limits import QUEUED_ITEM_OVERHEAD_BYTES, RECORD_HEADER_BYTES
from ocfcluster.wire.filter import Predicate
from ocfcluster.wire.frames import OnSlow

if TYPE_CHECKING:
    from ocfcluster.ipc.replay import Replay


class Held(NamedTuple):
    """An event that a callback has got and that is not done."""

    topic: str
    seq: int
    since: int


class Unread(NamedTuple):
    """Nothing was taken off the socket since ``since``, when this was the newest frame in it."""

    topic_id: int
    seq: int
    since: int
    socket_bytes: int  # unread then, as the kernel counts
    sent_bytes: int  # written until then


class EventSocket(Protocol):
    """What the hub needs of a lent socket (a ``socket.socket``, or the simulator's)."""

    def sendmsg(
        self, buffers: list[bytes | memoryview], ancdata: tuple[()] = ..., flags: int = ..., /
    ) -> int: ...
    def close(self) -> None: ...


class Watcher(Protocol):
    """What the hub asks of its shell."""

    def watch_writable(self, subscription: Subscription, watch: bool) -> None:
        """Call ``Hub.writable`` when the event socket has room, until told otherwise."""

    def full_changed(self, full: bool) -> None:
        """The first subscription of all has become full, or the last is no more."""

    def own_full_changed(self, connection: int, full: list[int]) -> None:
        """Which subscriptions of one connection are full now."""

    def subscription_broken(self, subscription: Subscription) -> None:
        """Its socket is of no use any more; the hub has let go of it."""

    def left_out(self, subscription: Subscription, positions: dict[int, int]) -> None:
        """Up to which seq of each topic it has got, or been spared by its filter, everything."""

    def tick(self, now: int) -> None:
        """Once a second, as long as bursts come."""


class Item:
    """One record on its way to its subscribers: a run or a notice, shared by all their queues."""

    __slots__ = (
        "header", "body", "topic_id", "first_seq", "last_seq", "position", "size", "holders",
    )  # fmt: skip

    def __init__(
        self, header: bytes, body: bytes, topic_id: int, first_seq: int, last_seq: int, position: int
    ) -> None:
        self.header = header
        self.body = body
        self.topic_id = topic_id  # 0: a notice; below 0: a gap of that topic's, whose seqs these are
        self.first_seq = first_seq
        self.last_seq = last_seq
        self.position = position  # in the order of everything this hub delivered
        self.size = RECORD_HEADER_BYTES + len(body)
        self.holders = 0  # queues that hold it


class Line:
    """The subscriptions of one connection, and the one order of those that have callbacks."""

    __slots__ = ("connection", "subscriptions", "turn", "dirty")

    def __init__(self, connection: int) -> None:
        self.connection = connection
        self.subscriptions: dict[int, Subscription] = {}
        self.turn = 0  # the last one given
        self.dirty = False


class Subscription:
    """One event socket and what waits to be written to it."""

    __slots__ = (
        "line", "number", "socket", "callback", "topics", "names", "queue", "queued_bytes",
        "blocked", "out_of_line", "full", "dropping", "gaps", "dirty", "ended",
        "on_slow", "filter", "apart", "passed", "lost", "sent_bytes", "sent", "held", "unread", "replay", "begun",
        "begun_bytes",
    )  # fmt: skip

    def __init__(
        self,
        line: Line,
        number: int,
        event_socket: EventSocket,
        topics: dict[int, str],
        callback: bool,
        on_slow: OnSlow = OnSlow.BLOCK,
        predicate: Predicate | None = None,
    ) -> None:
        self.line = line
        self.number = number
        self.socket = event_socket
        self.callback = callback
        self.topics = dict(topics)  # topic_id → name
        self.names = dict(topics)  # those that were removed, too
        self.queue: deque[Item] = deque()
        self.queued_bytes = 0
        self.blocked = False  # the socket took no more; its shell watches for room
        self.out_of_line = False
        self.full = False
        self.dropping = False
        self.gaps: dict[int, tuple[int, int]] = {}  # topic_id → first and last seq missed
        self.dirty = False
        self.ended = False  # a final notice is queued or written; nothing comes after it
        self.replay: Replay | None = None  # while it catches up with what is kept, and of its stand-in
        self.on_slow = on_slow
        self.filter = predicate
        self.apart = predicate is not None  # it does not simply get everything: it has a filter, or it drops
        self.passed: dict[
            int, int
        ] = {}  # topic_id → last seq that the filter left out, since the last one it got
        self.lost: dict[int, tuple[int, int]] = {}  # topic_id → first and last seq dropped before the queue
        self.begun: Item | None = None  # the first of the queue, if the last frame had a piece of it
        self.begun_bytes = 0  # of it, that are written
        # For whoever looks who is stuck (``stuck.py``):
        self.sent_bytes = 0  # written to the socket, ever
        self.sent = (0, 0)  # topic_id and first seq of the last frame written
        self.held: Held | None = (
            None  # the event that the program has and has not finished, as far as it told
        )
        self.unread: Unread | None = None

    @property
    def waiting_bytes(self) -> int:
        """What is queued behind a run that is on its way in pieces: that one alone makes nobody slow."""
        begun = self.begun
        return self.queued_bytes - (0 if begun is None else begun.size + QUEUED_ITEM_OVERHEAD_BYTES)
