"""A history as the checker knows it: the one sequence that every node of it must deliver, and what was published.

The sequence comes in *segments*, one per epoch, each begun by its View. A segment ends where the first node goes on to
the next epoch: there every other one must go on, too. A node that joins may be first to deliver in its epoch, while
others have not reached the end of the one before; so items are compared when they are delivered, and judged (numbers,
topics, order of each publisher) in their one order, as soon as all that comes before them is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from ocfcluster.protocol.effects import Delivery, Directed, GroupChange, Topic, TopicChange, View
from ocfcluster.protocol.groups import FIRST_GROUP_ID
from ocfcluster.protocol.settings import Configuration
from ocfcluster.wire.group import said_by

FIRST_OWN_TOPIC: Final = 16
PRE_CREATED: Final = (Topic(1, "oc.membership", False), Topic(2, "oc.connectivity", False))
MEMBERSHIP: Final = 1

Item = Delivery | TopicChange | View | GroupChange | Directed


class Place(NamedTuple):
    """Where an item stands in its history."""

    epoch: int
    offset: int


class Publication:
    """One event as it was published, and what became of it."""

    __slots__ = (
        "claimed",
        "claimed_beyond",
        "data_digest",
        "error",
        "ev_id",
        "judged",
        "origin",
        "place",
        "published_at",
        "receipted",
        "seq",
        "topic_id",
        "unknown",
        "void",
    )

    def __init__(self, origin: int, topic_id: int, data: bytes, void: int, published_at: int) -> None:
        self.origin = origin
        self.topic_id = topic_id
        self.data_digest = content(topic_id, data)
        self.void = void  # errno, where its agent refused it
        self.published_at = published_at
        self.place: Place | None = None  # once delivered anywhere
        self.judged = False  # that place is final
        self.seq = 0
        self.ev_id = 0
        self.error = 0  # what its publisher was told, once refused
        self.receipted = False
        self.unknown = False  # its publisher was told that nobody can say
        self.claimed_beyond: tuple[int, int] | None = None  # by a node that delivers what does not stay
        self.claimed: tuple[int, int] | None = (
            None  # seq, ev_id of a receipt for what nobody was seen to deliver yet
        )


def content(topic_id: int, data: bytes) -> int:
    """What tells one publication from another: in groups whoever says it, for that may be another member in the end."""
    return xxh3_64_intdigest(said_by(data, 0) if topic_id >= FIRST_GROUP_ID else data)


class Segment:
    """What is delivered in one epoch; ``items[0]`` is its View."""

    __slots__ = ("end", "ended_by", "epoch", "items", "makers", "view")

    def __init__(self, epoch: int, view: View) -> None:
        self.epoch = epoch
        self.view = view
        self.items: list[Item] = [view]
        self.makers: list[int] = [0]  # node that was first to deliver each item
        self.end = -1  # items, once somebody went on to the next epoch
        self.ended_by = 0


class Cursor:
    """Where one incarnation is: it has delivered ``offset`` items of ``segment``."""

    __slots__ = ("beyond", "history", "offset", "segment")

    def __init__(self, history: History, segment: Segment) -> None:
        self.history = history
        self.segment = segment
        self.offset = 1
        self.beyond = False  # agreed delivery: it has delivered what the others never will

    @property
    def place(self) -> Place:
        return Place(self.segment.epoch, self.offset)

    @property
    def at_end(self) -> bool:
        """Nothing more is known to come."""
        return self.segment.end < 0 and self.offset == len(self.segment.items)


class History:
    """One cluster_id."""

    __slots__ = (
        "begun_at",
        "by_operator",
        "cluster_id",
        "configurations",
        "ended",
        "first_seen",
        "publications",
        "segments",
        "successors",
        "supersedes",
        "topics",
        "unseen",
    )

    def __init__(self, cluster_id: str, supersedes: list[str], begun_at: int) -> None:
        self.cluster_id = cluster_id
        self.supersedes = supersedes
        self.begun_at = begun_at
        self.by_operator = False
        self.segments: dict[int, Segment] = {}
        self.configurations: dict[int, Configuration] = {}  # by epoch, installed or on somebody's disk
        self.first_seen: dict[int, int] = {}  # epoch → when a node was first in it
        self.publications: dict[tuple[int, int], Publication] = {}  # by producer and number
        self.topics: dict[int, Topic] | None = (
            None  # that it began with; None: nobody has delivered its beginning
        )
        self.successors: list[str] = []
        self.ended = False  # another history has taken over
        self.unseen = 0  # epochs whose end nobody lived to deliver

    @property
    def first_epoch(self) -> int:
        return min(self.segments)

    @property
    def last_segment(self) -> Segment:
        return self.segments[max(self.segments)]

    @property
    def last_configuration(self) -> Configuration:
        """The newest one that any node is known to have had."""
        return self.configurations[max(self.configurations)]

    @property
    def length(self) -> int:
        """Items of all segments."""
        return sum(len(segment.items) for segment in self.segments.values())

    def items(self) -> Iterator[Item]:
        for epoch in sorted(self.segments):
            yield from self.segments[epoch].items

    def is_open_before(self, epoch: int) -> bool:
        """Whether some epoch before has not been delivered to its end: what is in it is not all known."""
        return (
            bool(self.unseen)
            or self.topics is None
            or any(
                epoch_before not in self.segments or self.segments[epoch_before].end < 0
                for epoch_before in range(self.first_epoch, epoch)
            )
        )


class TopicState:
    """A topic as the sequence shows it. ``last_seq`` -1: not known, the next one is taken as it comes."""

    __slots__ = ("last_seq", "topic")

    def __init__(self, topic: Topic, last_seq: int = 0) -> None:
        self.topic = topic
        self.last_seq = last_seq


def what_changed(change: TopicChange) -> str:
    """In one word."""
    if change.removed:
        return "removed"
    return "altered" if change.altered else "created"


def shown(item: Item) -> str:
    """An item in one line, without its data."""
    if isinstance(item, TopicChange):
        return f"topic {what_changed(item)}: {item.topic}"
    if isinstance(item, View):
        return view_text(item)
    if isinstance(item, GroupChange):
        return change_text(item)
    if isinstance(item, Directed):
        return f"{shown(item.delivery)} for member {item.to}"
    return f"{item._replace(run=item.run[:0])} of {len(item.run)} B"


def change_text(change: GroupChange) -> str:
    """A change of a group's members as a reader of a trace wants to see it."""
    moves = [f"+{one.member}" for one in change.joined] + [f"-{one.member}" for one in change.left]
    members = " ".join(f"{one.member}@{one.node_id}" for one in change.members)
    return f"{change.topic.name} {' '.join(moves)}: members {members or 'none'}, seq {change.seq} ev_id {change.ev_id}"


def view_text(view: View) -> str:
    """A view as a reader of a trace wants to see it."""
    configuration = view.configuration
    members = " ".join(str(member.node_id) for member in configuration.members)
    changes = [f"+{member.node_id}" for member in view.joined]
    changes += [f"-{member.node_id}" for member in view.left]
    change = f" ({' '.join(changes)})" if changes else ""
    return (
        f"view of epoch {configuration.epoch}: members {members}{change}, sequencer {configuration.sequencer}, "
        f"m_sequence {configuration.m_sequence}, base {configuration.base}, seq {view.seq}"
    )
