"""What a node is told at its start, and the configuration that a cluster agrees on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import msgspec

from ocfcluster import limits as bounds
from ocfcluster.wire.datagram import OLDEST_VERSION, VERSION
from ocfcluster.wire.topics import TopicSettings

U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U64 = Annotated[int, msgspec.Meta(ge=0)]  # more than 64 bits are not decoded
Counted = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]  # counted on from there, and still within 64 bits


class Member(msgspec.Struct, array_like=True, frozen=True, order=True):
    """One member of a view. Members are ordered by (born_on, node_id), oldest first."""

    born_on: int
    node_id: int
    incarnation: int
    store_id: int
    votes: int


class Limits(msgspec.Struct, array_like=True, frozen=True):
    """The limits that decide replicated state: the same on every node, changed only with the configuration."""

    event_bytes: int = bounds.EVENT_BYTES_DEFAULT
    topics: int = bounds.TOPICS
    producers_per_node: int = bounds.PRODUCERS_PER_NODE
    producer_runs: int = bounds.PRODUCER_RUNS_UNANSWERED


class Configuration(msgspec.Struct, array_like=True, frozen=True):
    """The configuration C_e of one epoch. Identical on all its members; on disk before anything is sent in e."""

    cluster_id: str  # creation time (ns, 16 hex digits) and 16 random hex digits: smaller is older
    supersedes: list[str]
    epoch: int
    base: int  # the last index of the epochs before; the view itself is entry base + 1
    table: dict[int, int]  # node_id → votes, of the node table in force
    members: list[Member]
    sequencer: int  # node_id
    tie_breaker: int  # node_id
    delivery: str  # "safe" or "agreed"
    last_man_standing: bool
    version: int
    mtu: int
    limits: Limits
    m_sequence: int
    epochs: list[tuple[int, int]]  # (epoch, base) of all known epochs of this history
    order_time: int  # of entry base + 1
    topics_digest: int = 0  # of the topic table that a new history begins with; 0: none

    def member(self, node_id: int, incarnation: int) -> Member | None:
        """The member that this incarnation is."""
        for one in self.members:
            if (one.node_id, one.incarnation) == (node_id, incarnation):
                return one
        return None

    def acceptor(self, node_id: int, store_id: int) -> bool:
        """Whether this node, with this disk, decides what follows this configuration."""
        return any((one.node_id, one.store_id) == (node_id, store_id) for one in self.members)

    def ends_at(self, epoch: int) -> int:
        """The last index of an epoch before this one; -1 where this configuration does not say."""
        for begun, base in self.epochs:
            if begun == epoch + 1:
                return base
        return -1


class Ballot(NamedTuple):
    """A proposer's attempt: higher ones win; no two proposers have an equal one."""

    round: int
    node_id: int
    incarnation: int


class PaxosRecord(msgspec.Struct, array_like=True, frozen=True):
    """What an acceptor has promised and accepted in one instance: (cluster_id, epoch), or ("", 0) for the bootstrap."""

    cluster_id: str
    epoch: int
    promised: Ballot
    accepted_ballot: Ballot | None = None
    accepted: Configuration | None = None


TopicRow = tuple[int, str, bool, TopicSettings]  # topic_id, name, local, settings


class Record(msgspec.Struct, array_like=True, frozen=True):
    """What a node keeps on disk: the configuration in force, its topic table, and its vote on what follows."""

    configuration: Configuration | None
    topics: list[TopicRow]
    next_topic_id: U32
    topics_index: Counted  # the log index that the topic table reflects
    paxos: PaxosRecord | None = None


class Timing(NamedTuple):
    """The times of a node that may change while it runs: how long it waits says nothing about what may follow."""

    heartbeat_ns: int = bounds.HEARTBEAT_NS
    suspicion_ns: int = bounds.SUSPICION_NS
    sync_timeout_ns: int = bounds.SYNC_TIMEOUT_NS
    leave_timeout_ns: int = bounds.LEAVE_TIMEOUT_NS
    quorum_lost_after_ns: int = bounds.QUORUM_LOST_AFTER_NS
    history_wait_ns: int = bounds.HISTORY_WAIT_NS
    new_history_after_ns: int = 0  # 0: never without an operator


@dataclass(slots=True)
class Settings:
    """A node's own settings, which it alone changes (``Node.retime``); ``seed`` feeds its only source of randomness."""

    cluster_name: str
    node_id: int
    incarnation: int
    store_id: int
    seed: int
    table: dict[int, int] = field(default_factory=dict)  # empty: runs alone (development)
    delivery: str = "safe"
    mtu: int = 1500  # of the interface, with IP and UDP headers
    ip_overhead_bytes: int = 28  # 48 for IPv6
    receive_buffer_bytes: int = bounds.RECEIVE_BUFFER_BYTES
    limits: Limits = field(default_factory=Limits)
    heartbeat_ns: int = bounds.HEARTBEAT_NS
    suspicion_ns: int = bounds.SUSPICION_NS
    window_bytes: int = bounds.WINDOW_BYTES
    backlog_bytes: int = bounds.BACKLOG_BYTES
    sync_timeout_ns: int = bounds.SYNC_TIMEOUT_NS
    leave_timeout_ns: int = bounds.LEAVE_TIMEOUT_NS
    quorum_lost_after_ns: int = bounds.QUORUM_LOST_AFTER_NS
    history_wait_ns: int = bounds.HISTORY_WAIT_NS
    new_history_after_ns: int = 0  # 0: never without an operator
    bootstrap: str = "all"  # or "majority": for those who vouch that no node ever loses its state directory
    last_man_standing: bool = False
    versions: tuple[int, int] = (OLDEST_VERSION, VERSION)  # of the protocol, that this build speaks
    record: bytes = b""  # what Persist last wrote, read back at the start

    def retime(self, timing: Timing) -> None:
        for name, value in zip(timing._fields, timing, strict=True):
            setattr(self, name, value)
