"""Data of events on the topics of the cluster's own components: membership, connectivity, groups."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Final

from construct import (
    Array,
    Check,
    GreedyBytes,
    GreedyRange,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Struct,
    len_,
    this,
)

from ocfcluster.errors import Malformed
from ocfcluster.limits import (
    EVENT_BYTES_CEILING,
    INTERFACE_NAME_BYTES,
)
from ocfcluster.wire.schema.format import Format, Rule, between, is_text, octets


def _is_interface_name(field: bytes) -> bool:
    name = field.rstrip(b"\0")
    return 0 < len(name) <= INTERFACE_NAME_BYTES and b"\0" not in name and is_text(name)


def _is_address(one: Any) -> bool:
    size = {4: 4, 6: 16}.get(one.family, 0)
    return bool(size and not one.reserved and one.prefix_length <= 8 * size and not any(one.address[size:]))


def _lists(one: Any) -> tuple[Any, ...]:
    """The members, those who left and those who joined: three ranges of one array."""
    return (
        "members" / Int32ul,
        "members_at" / Int32ul,  # index into the array
        "left" / Int32ul,
        "left_at" / Int32ul,
        "joined" / Int32ul,
        "joined_at" / Int32ul,
        "array" / GreedyRange(one),
        Check(this.members + this.members_at <= len_(this.array)),
        Check(this.left + this.left_at <= len_(this.array)),
        Check(this.joined + this.joined_at <= len_(this.array)),
    )


MEMBERSHIP_CODES: Final = (2 << 22 | 1, 2 << 22 | 4)  # class 2; NEW_MEMBERSHIP to EVICTED

MEMBERSHIP: Final = Format(
    "membership event",
    Malformed,
    "code" / Int32ul,
    between("code", *MEMBERSHIP_CODES),
    "m_sequence" / Int32ul,
    *_lists(Struct("node_id" / Int32ul, "born_on" / Int32ul)),
)

CONNECTIVITY_CODES: Final = (1 << 22 | 1, 1 << 22 | 2, 1 << 22 | 3)  # class 1; INTERFACE, ELIGIBLE, CONNECT
CHANGES: Final = 0x3F  # bits of connectivity.Change

INTERFACES: Final = Format(
    "connectivity event INTERFACE",
    Malformed,
    "code" / Int32ul,
    Check(this.code == CONNECTIVITY_CODES[0]),
    "node_id" / Int32ul,
    Check(this.node_id > 0),
    "count" / Int32ul,
    "coalesced" / Int32ul,
    Check(this.count <= EVENT_BYTES_CEILING // 36),
    "interfaces"
    / Array(
        this.count,
        Struct(
            "index" / Int32ul,
            "mtu" / Int32ul,
            "state" / Int16ul,  # connectivity.InterfaceState
            Check(this.state <= 0x1F),
            "change" / Int16ul,
            Check(this.change <= CHANGES),
            "addresses_at"
            / Int32ul,  # index into the addresses: each interface's are behind the one's before
            "addresses" / Int32ul,
            *octets("name", 16),
            Rule(lambda one: _is_interface_name(one.name)),
        ),
    ),
    "array"
    / GreedyRange(
        Struct(
            "family" / Int8ul,  # 4 or 6
            "prefix_length" / Int8ul,
            "reserved" / Int16ul,
            *octets("address", 16),
            Rule(_is_address),
        )
    ),
    Rule(
        lambda event: (
            [one.addresses_at for one in event.interfaces]
            == list(accumulate((one.addresses for one in event.interfaces), initial=0))[:-1]
            and sum(one.addresses for one in event.interfaces) == len(event.array)
        )
    ),
)

ELIGIBLE: Final = Format(
    "connectivity event ELIGIBLE",
    Malformed,
    "code" / Int32ul,
    Check(this.code == CONNECTIVITY_CODES[1]),
    "node_id" / Int32ul,
    Check(this.node_id > 0),
    "count" / Int32ul,
    "coalesced" / Int32ul,
    "array"
    / GreedyRange(
        Struct("node_id" / Int32ul, "votes" / Int16ul, "change" / Int16ul, Check(this.change <= CHANGES))
    ),
    Check(len_(this.array) == this.count),
)

CONNECT: Final = Format(
    "connectivity event CONNECT",
    Malformed,
    "code" / Int32ul,
    Check(this.code == CONNECTIVITY_CODES[2]),
    "node_id" / Int32ul,
    Check(this.node_id > 0),
    "count" / Int32ul,
    "coalesced" / Int32ul,
    "array"
    / GreedyRange(
        Struct(
            "hearer" / Int32ul,
            "heard" / Int32ul,
            "network" / Int16ul,
            "state" / Int8ul,  # connectivity.LinkState
            Check(this.state <= 3),
            "change" / Int8ul,
            Check(this.change <= CHANGES),
        )
    ),
    Check(len_(this.array) == this.count),
)

_GROUP: Final = 3 << 22  # class 3
_GROUP_MESSAGES: Final = (_GROUP | 3, _GROUP | 4, _GROUP | 5)  # CAST, REPLY, SEND

GROUP_MESSAGE: Final = Format(
    "message in a group",
    Malformed,
    "code" / Int32ul,
    Rule(lambda event: event.code in _GROUP_MESSAGES),
    "reason" / Int32ul,  # 1: what was said is for another member
    between("reason", 0, 1),
    "member" / Int64ul,
    "to" / Int64ul,
    "data" / GreedyBytes,
    Check((this.reason == 0) | (len_(this.data) == 0)),
)

GROUP_CHANGE: Final = Format(
    "change of a group's members",
    Malformed,
    "code" / Int32ul,
    Rule(lambda event: event.code in (_GROUP | 1, _GROUP | 2, _GROUP | 6)),  # JOIN, LEAVE, MEMBERS
    "reason" / Int32ul,
    "member" / Int64ul,
    "to" / Int64ul,
    *_lists(Struct("member" / Int64ul, "node_id" / Int32ul, "pid" / Int32ul)),
)
