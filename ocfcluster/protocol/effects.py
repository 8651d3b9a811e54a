"""What a node asks of its shell, in order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

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
    """A topic was created or removed at this place in the order."""

    topic: Topic
    removed: bool


class Outcome(NamedTuple):
    """What became of a run that was published here. Given at the run's own place in the order, never earlier.

    ``error`` is 0 or an errno. Publications: ``seq`` and ``ev_id`` of the first number of the answered range.
    Control runs: ``first_number`` is the token; ``value`` is the new producer's id, or the topic's id.
    """

    kind: int
    producer: int
    first_number: int
    count: int  # type: ignore[assignment]  # of publications; hides tuple.count
    error: int
    seq: int
    ev_id: int
    value: int


@dataclass(slots=True, frozen=True)
class Deliver:
    """What this burst delivered, in order: runs, topic changes, and the outcomes of this node's own runs."""

    items: list[Delivery | TopicChange | Outcome]


@dataclass(slots=True, frozen=True)
class Persist:
    """Write ``record`` durably (replace the one before); answer with ``Node.persisted(token, ok, now)``."""

    token: int
    record: bytes


class State(Enum):
    """Where a node stands in its cluster."""

    FORMING = "forming"  # has no configuration yet, or waits for the nodes of its table
    ACTIVE = "active"  # member of the installed view
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


Effect = Multicast | Send | Deliver | Persist | StateChange | Fault | News
