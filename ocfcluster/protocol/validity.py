"""Whether what came from elsewhere can be: what is built on its numbers must not fail."""

from __future__ import annotations

from typing import Final

from ocfcluster import limits
from ocfcluster.protocol.messages import HELD, LOST, UNSYNCED, Promise
from ocfcluster.protocol.settings import Ballot, Configuration, PaxosRecord
from ocfcluster.wire import datagram as wire

_U64: Final = 2**64
COUNTED: Final = 2**62  # counted on from there, and still within the 64 bits that messages have
LATEST_WALL_CLOCK: Final = 4_102_444_800 * limits.SECOND_NS  # the year 2100; COUNTED is in 2116
REACHED: Final = 2**63  # where an honest node may have got from there; it must not find fault with itself
_EPOCHS: Final = 2**32


def configuration_fault(configuration: Configuration) -> str:
    """What is wrong with it; empty: nothing."""
    ids = [member.node_id for member in configuration.members]
    table = configuration.table
    checks = (
        (wire.OLDEST_VERSION <= configuration.version <= wire.VERSION, "version"),
        (_is_history(configuration.cluster_id), "cluster_id"),
        (all(_is_history(one) for one in configuration.supersedes), "supersedes"),
        (len(configuration.supersedes) <= limits.HISTORIES_REMEMBERED, "supersedes"),
        (1 <= configuration.epoch < _EPOCHS, "epoch"),
        (0 <= configuration.base < COUNTED and 0 <= configuration.order_time < COUNTED, "base, order_time"),
        (1 <= configuration.m_sequence < _EPOCHS, "m_sequence"),
        (0 <= configuration.topics_digest < _U64, "topics_digest"),
        (limits.MTU_MINIMUM <= configuration.mtu <= limits.MTU_MAXIMUM, "mtu"),
        (configuration.delivery in ("safe", "agreed"), "delivery"),
        (0 < len(ids) == len(set(ids)) <= limits.NODES and len(table) <= limits.NODES, "members"),
        (configuration.sequencer in ids and configuration.tie_breaker in ids, "sequencer, tie_breaker"),
        (configuration.members == sorted(configuration.members), "order of members"),
        (sum(member.votes for member in configuration.members) > 0, "votes"),
        (
            all(
                0 < member.node_id <= limits.NODE_ID_MOST
                and 0 <= member.incarnation < _U64
                and 0 <= member.store_id < _U64
                and member.votes == table.get(member.node_id)
                and 1 <= member.born_on <= configuration.m_sequence
                for member in configuration.members
            ),
            "members",
        ),
        (is_table(table), "table"),
        (
            len(configuration.epochs) <= limits.EPOCHS_REMEMBERED
            and bool(configuration.epochs)
            and configuration.epochs[-1] == (configuration.epoch, configuration.base)
            and all(0 <= epoch < _EPOCHS and 0 <= base < COUNTED for epoch, base in configuration.epochs),
            "epochs",
        ),
        (
            1 <= configuration.limits.event_bytes <= limits.EVENT_BYTES_CEILING
            and 0 <= configuration.limits.topics <= limits.TOPICS
            and 0 <= configuration.limits.producers_per_node <= limits.PRODUCERS_PER_NODE
            and 1 <= configuration.limits.producer_runs <= limits.PRODUCER_RUNS_UNANSWERED,
            "limits",
        ),
    )
    return next((what for holds, what in checks if not holds), "")


def ballot_fault(ballot: Ballot) -> bool:
    """Whether a ballot's numbers do not fit what carries them."""
    return not (
        0 < ballot.round < _EPOCHS - 1
        and 0 < ballot.node_id <= limits.NODE_ID_MOST
        and 0 <= ballot.incarnation < _U64
    )


def promise_fault(promise: Promise) -> str:
    """What is wrong with it; empty: nothing. What it was built with goes into the next configuration."""
    table = promise.table if promise.table is not None else {}
    accepted, ballot = promise.accepted, promise.accepted_ballot
    checks = (
        (promise.standing in (HELD, UNSYNCED, LOST), "standing"),
        (0 <= promise.held < REACHED and 0 <= promise.order_time < REACHED, "held, order_time"),
        (0 <= promise.freed < REACHED, "freed"),
        (0 <= promise.topics_index < REACHED and 0 <= promise.topics_digest < _U64, "topics"),
        (is_table(table), "table"),
        ((accepted is None) == (ballot is None), "accepted"),
        (ballot is None or not ballot_fault(ballot), "accepted_ballot"),
        (accepted is None or not configuration_fault(accepted), "accepted"),
    )
    return next((what for holds, what in checks if not holds), "")


def vote_fault(vote: PaxosRecord) -> str:
    """What is wrong with a vote that was read from a disk; empty: nothing."""
    accepted, ballot = vote.accepted, vote.accepted_ballot
    good = (
        0 <= vote.epoch < _EPOCHS
        and (_is_history(vote.cluster_id) or (vote.cluster_id, vote.epoch) == ("", 0))
        and not ballot_fault(vote.promised)
        and (accepted is None) == (ballot is None)
        and (ballot is None or not ballot_fault(ballot))
        and (accepted is None or not configuration_fault(accepted))
    )
    return "" if good else "vote"


def is_table(table: dict[int, int]) -> bool:
    """Whether these can be nodes and their votes."""
    return len(table) <= limits.NODES and all(
        0 < node <= limits.NODE_ID_MOST and 0 <= votes <= limits.VOTES_MOST for node, votes in table.items()
    )


def _is_history(cluster_id: str) -> bool:
    return len(cluster_id) == 32 and all(digit in "0123456789abcdef" for digit in cluster_id)
