"""The messages of an epoch change, and what is asked of their values before anything is built on them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

import msgspec

from fuzz.mutation import packed_behind
from fuzz.target import Target, well_formed
from ocfcluster.limits import NODES
from ocfcluster.protocol import messages
from ocfcluster.protocol.detector import history_numbers
from ocfcluster.protocol.messages import HELD, Accept, Accepted, Prepare, Promise, Reject, Sync, Synced
from ocfcluster.protocol.settings import Ballot, Configuration, Limits, Member
from ocfcluster.protocol.validity import ballot_fault, configuration_fault, promise_fault
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import MessageType

HISTORY: Final = "0" * 15 + "1" + "0" * 15 + "2"
_HEAD: Final = wire.clear_prefix(wire.cluster_hash("fuzz"), 2, 0x1002) + bytes(8)
# An input is the body of a datagram: kind, 0, 0 u16, epoch u32, MessagePack. Its epoch is made the one inside.


@cache
def configuration(epoch: int = 3, nodes: int = 3) -> Configuration:
    """One that may be in force: of nodes 1, 2, ..."""
    members = [Member(1, one, 0x1000 + one, 0x2000 + one, 1) for one in range(1, nodes + 1)]
    return Configuration(
        cluster_id=HISTORY, supersedes=["0" * 32], epoch=epoch, base=9, table={one.node_id: 1 for one in members},
        members=members, sequencer=1, tie_breaker=1, delivery="safe", last_man_standing=False, version=wire.VERSION,
        mtu=1500, limits=Limits(), m_sequence=2, epochs=[(epoch - 1, 0), (epoch, 9)], order_time=11,
    )  # fmt: skip


def check(data: bytes) -> None:
    if len(data) <= wire.STRUCTURE.size:
        return
    kind = MessageType(MessageType.INSTALL + data[0] % (MessageType.ACCEPTED - MessageType.INSTALL + 1))
    body = bytes([kind]) + data[1:]
    if kind is MessageType.INSTALL:
        install = well_formed(messages.decode_install, _HEAD + body)
        if install is not None:
            assert messages.decode_install(_HEAD + messages.encode_install(install)) == install
            judge(install)
        return
    message = well_formed(messages.decode, _HEAD + body, kind)
    if message is None:
        return
    assert messages.decode(_HEAD + messages.encode(message), kind) == message
    ballot_fault(message.ballot)
    if isinstance(message, Promise):
        promise_fault(message)
    about = getattr(message, "configuration", None)
    if about is not None:
        judge(about)


def judge(configuration: Configuration) -> None:
    """A configuration without a fault is what everything else takes it for."""
    if configuration_fault(configuration):
        return
    assert 0 < len(configuration.members) <= NODES
    history_numbers(configuration.cluster_id)
    wire.clear_prefix(0, 1, 1, wire.history_tag(configuration.cluster_id), configuration.version)
    assert configuration.epochs[-1] == (configuration.epoch, configuration.base)
    assert configuration.member(configuration.members[0].node_id, configuration.members[0].incarnation)
    msgspec.msgpack.encode(configuration)


def seeds() -> Iterator[bytes]:
    about = (HISTORY, 3, Ballot(2, 1, 0x1001))
    small = configuration(nodes=1)
    yield messages.encode_install(configuration())
    yield messages.encode_install(small)
    for message in (
        Prepare(*about, configuration(), [], 0),
        Prepare("", 0, Ballot(1, 1, 0x1001), None, [(1, 0x2001), (2, 0x2002)], 77),
        Promise(*about, 0x2002, HELD, 12, 11, None, None, None, 0, False, 12, 5, 0),
        Promise(
            *about, 0x2002, HELD, 12, 11, Ballot(1, 3, 4), configuration(4), {1: 1, 2: 0}, 2, True, 12, 5, 7
        ),
        Reject(*about, Ballot(3, 2, 0x1002)),
        Sync(*about, configuration(4), 2),
        Synced(*about),
        Accept(*about, small),
        Accepted(*about, 0x2002),
    ):
        yield messages.encode(message)


TARGET: Final = Target(
    check,
    seeds,
    ("protocol/messages.py", "protocol/validity.py", "protocol/settings.py"),
    packed_behind(wire.STRUCTURE.size),
)
