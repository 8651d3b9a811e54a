"""What a node asks of its shell, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ocfcluster.protocol.settings import Configuration, Member
from ocfcluster.wire.group import GroupMember
from ocfcluster.wire.topics import DEFAULT_SETTINGS, TopicSettings

Address = tuple[str, int] | tuple[str, int, int, int]  # of a peer's socket, opaque to the protocol


@dataclass(slots=True, frozen=True)
class Multicast:
    """To every node. ``buffer`` is one datagram, or several of ``segment`` bytes each (the last may be shorter)."""

    buffer: bytes
    segment: int


@dataclass(slots=True, frozen=True)
class Send:
    """To one node; ``buffer`` and ``segment`` as in Multicast."""

    address: Address
    buffer: bytes
    segment: int


class Topic(NamedTuple):
    """A topic of the replicated state."""

    topic_id: int
    name: str
    local: bool
    settings: TopicSettings = DEFAULT_SETTINGS


class Delivery(NamedTuple):
    """One run, delivered: identical on every node but for ``run``'s storage."""

    run: bytes
    topic_id: int
    count: int  # type: ignore[assignment]  # of publications; hides tuple.count
    skip: int  # the first ``skip`` publications were delivered before and are not delivered again
    seq: int  # of the first publication of the run that is delivered now
    ev_id: int  # likewise
    node_id: int
    incarnation: int
    m_sequence: int
    order_time: int  # ns


class TopicChange(NamedTuple):
    """A topic was created, altered or removed at this place in the order. ``topic``: as it is from here on, or was.
    Or a group came into use, or was forgotten."""

    topic: Topic
    removed: bool
    altered: bool = False
    before: TopicSettings | None = None  # of one that was altered
    last_seq: int = 0  # of one that was removed, in the cluster's order: a local topic has none there


class Outcome(NamedTuple):
    """What became of a run that was published here. Given at the run's own place in the order, never earlier.

    ``error`` is 0 or an errno. Publications: ``seq`` and ``ev_id`` of the first number of the answered range.
    Control runs: ``first_number`` is the token; ``value`` is the new producer's id, the topic's id, or the member's.
    """

    kind: int
    producer: int
    first_number: int
    count: int  # type: ignore[assignment]  # of publications; hides tuple.count
    error: int
    seq: int
    ev_id: int
    value: int


class View(NamedTuple):
    """A configuration came into force at this place in the order: log entry base + 1 of its epoch.

    ``seq`` and ``ev_id`` number its event on ``oc.membership``; both are 0 where the members stayed the same, which is
    no event. ``joined`` and ``left`` are in member order; a node that restarted is in both.
    """

    configuration: Configuration
    seq: int
    ev_id: int
    joined: tuple[Member, ...]
    left: tuple[Member, ...]


class GroupChange(NamedTuple):
    """Who is a member of a group changed at this place in the order: the event JOIN or LEAVE of the group's topic.

    ``members`` are those behind it, oldest first. One who joins is alone in ``joined``; ``left`` holds those whose
    node left the view together, else one. ``reason`` is that of a LEAVE (``wire.group.LeaveReason``), 0 of a JOIN.
    """

    topic: Topic
    seq: int
    ev_id: int
    reason: int
    members: tuple[GroupMember, ...]
    joined: tuple[GroupMember, ...]
    left: tuple[GroupMember, ...]
    m_sequence: int
    order_time: int


class Directed(NamedTuple):
    """A run in a group that is for one member: others get no more of it than that it was sent."""

    delivery: Delivery
    to: int


Item = Delivery | TopicChange | Outcome | View | GroupChange | Directed


@dataclass(slots=True, frozen=True)
class Deliver:
    """What this burst delivered, in order: runs, changes of topics and groups, views, and the outcomes of this node's
    own runs."""

    items: list[Item]


@dataclass(slots=True, frozen=True)
class Persist:
    """Write ``record`` durably (replace the one before); answer with ``Node.persisted(token, ok, now)``."""

    token: int
    record: bytes


@dataclass(slots=True, frozen=True)
class Forget:
    """Empty the state directory once this incarnation has ended, before the next one begins: that one is a stranger,
    with a store_id that has promised nothing to anybody."""


@dataclass(slots=True, frozen=True)
class FetchSnapshot:
    """Fetch the state of a running cluster from ``address`` by TCP: send ``request``, have ``read`` read what comes
    back, and give what it returns to ``Node.snapshot_fetched(token, snapshot, now)``; None where nothing whole came. A
    newer one replaces it. ``read`` may take seconds and belongs into a thread of its own: who is not heard meanwhile
    is given up, and never joins."""

    token: int
    address: Address
    request: bytes
    read: Callable[[bytes], object]


class NotificationCode(Enum):
    """What a node tells its own programs about itself, outside the order (the drafts' OC_EV_MS_ events)."""

    NOT_PRIMARY = "not_primary"
    PRIMARY_RESTORED = "primary_restored"


@dataclass(slots=True, frozen=True)
class Notification:
    """A local notification: it has no place in the order. ``seq`` is the last one of ``oc.membership``."""

    code: NotificationCode
    m_sequence: int
    seq: int


@dataclass(slots=True, frozen=True)
class HistoryLost:
    """This node goes on in the history ``cluster_id``; what it delivered before belongs to ``superseded``, which has
    ended. Comes before the first view of the new one."""

    cluster_id: str
    superseded: str


@dataclass(slots=True, frozen=True)
class Stop:
    """The whole cluster was told to stop, by an ordered command: end in order, without asking the others."""

    reason: str


class State(Enum):
    """Where a node stands in its cluster."""

    FORMING = "forming"  # waits for other nodes: there is no configuration yet, or not enough of one
    LEARNING = "learning"  # fetches the state of a running cluster, to join it
    ACTIVE = "active"  # member of the installed view
    EVICTED = "evicted"  # the cluster goes on without this incarnation; the next one may join
    STOPPED = "stopped"


@dataclass(slots=True, frozen=True)
class StateChange:
    state: State
    reason: str


@dataclass(slots=True, frozen=True)
class Fault:
    """Something that must not happen did, or an operator must know; logged by the shell, counted by the node."""

    code: str
    text: str


@dataclass(slots=True, frozen=True)
class News:
    """Something about other nodes that an operator wants to know; logged by the shell."""

    code: str
    text: str


Effect = (
    Multicast
    | Send
    | Deliver
    | Persist
    | Forget
    | FetchSnapshot
    | Notification
    | HistoryLost
    | Stop
    | StateChange
    | Fault
    | News
)
