"""What a node is told at its start, and the configuration that a cluster agrees on."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ocfcluster import limits as bounds


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


TopicRow = tuple[int, str, bool]  # topic_id, name, local


class Record(msgspec.Struct, array_like=True, frozen=True):
    """What a node keeps on disk. ``paxos`` has its room here for recovery; nothing writes it yet."""

    configuration: Configuration | None
    topics: list[TopicRow]
    next_topic_id: int
    topics_index: int  # the log index that the topic table reflects
    paxos: bytes = b""


@dataclass(slots=True, frozen=True)
class Settings:
    """A node's own settings; ``seed`` feeds its only source of randomness."""

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
    record: bytes = b""  # what Persist last wrote, read back at the start
