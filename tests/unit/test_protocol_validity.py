"""What came from elsewhere can be, or is refused with the part that cannot."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.protocol.messages import Promise
from ocfcluster.protocol.settings import Ballot, Limits, Member
from ocfcluster.protocol.validity import ballot_fault, configuration_fault, promise_fault
from tests.unit.protocol_world import configuration_of

GOOD = configuration_of({1: 1, 2: 1, 3: 0})
FIRST, SECOND, THIRD = GOOD.members


def member(**fields: Any) -> list[Member]:
    return [FIRST, msgspec.structs.replace(SECOND, **fields), THIRD]


def bounds(**fields: int) -> dict[str, Limits]:
    return {"limits": msgspec.structs.replace(Limits(), **fields)}


MANY = dict.fromkeys(range(1, limits.NODES + 2), 1)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"version": 2}, "version"),
        ({"cluster_id": ""}, "cluster_id"),
        ({"cluster_id": "g" * 32}, "cluster_id"),
        ({"cluster_id": "0" * 31}, "cluster_id"),
        ({"cluster_id": "F" * 32}, "cluster_id"),
        ({"supersedes": ["x"]}, "supersedes"),
        ({"supersedes": ["0" * 32] * (limits.HISTORIES_REMEMBERED + 1)}, "supersedes"),
        ({"epoch": 0}, "epoch"),
        ({"epoch": 2**32}, "epoch"),
        ({"base": -1}, "base, order_time"),
        ({"base": 2**62}, "base, order_time"),
        ({"order_time": -1}, "base, order_time"),
        ({"order_time": 2**63}, "base, order_time"),
        ({"m_sequence": 0}, "m_sequence"),
        ({"m_sequence": 2**32}, "m_sequence"),
        ({"topics_digest": -1}, "topics_digest"),
        ({"mtu": limits.MTU_MINIMUM - 1}, "mtu"),
        ({"mtu": limits.MTU_MAXIMUM + 1}, "mtu"),
        ({"delivery": "never"}, "delivery"),
        ({"members": []}, "members"),
        ({"members": [FIRST, SECOND, SECOND]}, "members"),
        ({"table": {**MANY, 3: 0}}, "members"),
        ({"sequencer": 9}, "sequencer, tie_breaker"),
        ({"tie_breaker": 9}, "sequencer, tie_breaker"),
        ({"members": [SECOND, FIRST, THIRD]}, "order of members"),
        ({"members": [THIRD], "sequencer": 3, "tie_breaker": 3}, "votes"),
        ({"members": member(votes=2)}, "members"),
        ({"members": member(incarnation=-1)}, "members"),
        ({"members": member(store_id=-1)}, "members"),
        ({"members": [FIRST, msgspec.structs.replace(THIRD, born_on=2)]}, "members"),
        ({"members": [msgspec.structs.replace(FIRST, born_on=0), SECOND]}, "members"),
        ({"table": {1: 1, 2: 1}}, "members"),
        ({"table": {1: 1, 2: 1, 3: 0, 4: -1}}, "table"),
        ({"table": {1: 1, 2: 1, 3: 0, 4: limits.VOTES_MOST + 1}}, "table"),
        ({"table": {1: 1, 2: 1, 3: 0, 0: 1}}, "table"),
        ({"table": {1: 1, 2: 1, 3: 0, 2**32: 1}}, "table"),
        ({"epochs": []}, "epochs"),
        ({"epochs": [(1, 1)]}, "epochs"),
        ({"epochs": [(1, -1), (1, 0)]}, "epochs"),
        ({"epochs": [(2**32, 0), (1, 0)]}, "epochs"),
        ({"epochs": [(1, 0)] * (limits.EPOCHS_REMEMBERED + 1)}, "epochs"),
        (bounds(event_bytes=0), "limits"),
        (bounds(event_bytes=limits.EVENT_BYTES_CEILING + 1), "limits"),
        (bounds(topics=-1), "limits"),
        (bounds(topics=limits.TOPICS + 1), "limits"),
        (bounds(producers_per_node=limits.PRODUCERS_PER_NODE + 1), "limits"),
        (bounds(producer_runs=0), "limits"),
    ],
)
def test_a_configuration_that_cannot_be_is_named_for_what_is_wrong(fields: dict[str, Any], what: str) -> None:
    assert configuration_fault(GOOD) == ""
    assert configuration_fault(msgspec.structs.replace(GOOD, **fields)) == what


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": 2**32 - 1, "epochs": [(2**32 - 1, 0)]},
        {"base": 2**62 - 1, "epochs": [(1, 2**62 - 1)]},
        {"mtu": limits.MTU_MINIMUM},
        {"mtu": limits.MTU_MAXIMUM},
        {"delivery": "agreed"},
        {"supersedes": ["0" * 32] * limits.HISTORIES_REMEMBERED},
        {"table": {1: 1, 2: 1, 3: 0, 2**32 - 1: limits.VOTES_MOST}},
        {"members": [SECOND, msgspec.structs.replace(FIRST, born_on=2)], "m_sequence": 2},
        {"topics_digest": 2**64 - 1},
    ],
)
def test_what_lies_at_a_border_can_be(fields: dict[str, Any]) -> None:
    assert configuration_fault(msgspec.structs.replace(GOOD, **fields)) == ""


@pytest.mark.parametrize(
    ("ballot", "fault"),
    [
        (Ballot(1, 1, 0), False),
        (Ballot(2**32 - 2, 2**32 - 1, 2**64 - 1), False),
        (Ballot(0, 1, 1), True),
        (Ballot(2**32 - 1, 1, 1), True),
        (Ballot(-1, 1, 1), True),
        (Ballot(1, 0, 1), True),
        (Ballot(1, 2**32, 1), True),
        (Ballot(1, 1, -1), True),
        (Ballot(1, 1, 2**64), True),
    ],
)
def test_ballots(ballot: Ballot, fault: bool) -> None:
    assert ballot_fault(ballot) is fault


PROMISE = Promise(
    GOOD.cluster_id, 1, Ballot(1, 1, 1), 7, 0, 5, 5, Ballot(1, 1, 1), GOOD, {1: 1}, 0, False, 3, 4
)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, ""),
        ({"accepted": None, "accepted_ballot": None, "table": None}, ""),
        ({"standing": 3}, "standing"),
        ({"standing": -1}, "standing"),
        ({"held": -1}, "held, order_time"),
        ({"held": 2**63}, "held, order_time"),
        ({"order_time": 2**63}, "held, order_time"),
        ({"topics_index": -1}, "topics"),
        ({"topics_digest": -1}, "topics"),
        ({"table": {0: 1}}, "table"),
        ({"table": {1: -1}}, "table"),
        ({"table": MANY}, "table"),
        ({"accepted": None}, "accepted"),
        ({"accepted_ballot": None}, "accepted"),
        ({"accepted_ballot": Ballot(0, 1, 1)}, "accepted_ballot"),
        ({"accepted": msgspec.structs.replace(GOOD, mtu=0)}, "accepted"),
    ],
)
def test_promises(fields: dict[str, Any], what: str) -> None:
    assert promise_fault(msgspec.structs.replace(PROMISE, **fields)) == what
