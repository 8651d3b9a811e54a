"""Messages of an epoch change: they come back as they went, and no damage gives anything but MalformedDatagram."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.errors import MalformedDatagram
from ocfcluster.protocol.messages import (
    Accept,
    Accepted,
    Instance,
    Message,
    Prepare,
    Promise,
    Reject,
    Sync,
    Synced,
    decode,
    decode_install,
    encode,
    encode_install,
)
from ocfcluster.protocol.settings import Ballot, Configuration, Limits, Member
from ocfcluster.wire.datagram import BODY, STRUCTURE, MessageType, encode_structure
from tests.property.wire_helpers import U32, U64, damages
from tests.unit.protocol_world import configuration_of

IDS = st.text("0123456789abcdef", max_size=32)
BALLOTS = st.builds(Ballot, U32, U32, U64)
MEMBERS = st.builds(Member, U32, U32, U64, U64, st.integers(0, 255))
TABLES = st.dictionaries(U32, st.integers(0, 255), max_size=4)
CONFIGURATIONS = st.builds(
    Configuration, IDS, st.lists(IDS, max_size=2), U32, U64, TABLES, st.lists(MEMBERS, max_size=4), U32, U32,
    st.text(max_size=6), st.booleans(), U32, U32, st.builds(Limits, U64, U64, U64, U64), U32,
    st.lists(st.tuples(U32, U64), max_size=3), U64, U64,
)  # fmt: skip
ABOUT = (IDS, U32, BALLOTS)
MAYBE = st.none() | CONFIGURATIONS
MESSAGES: dict[MessageType, st.SearchStrategy[Any]] = {
    MessageType.PREPARE: st.builds(Prepare, *ABOUT, MAYBE, st.lists(st.tuples(U32, U64), max_size=3), U64),
    MessageType.PROMISE: st.builds(
        Promise, *ABOUT, U64, st.integers(0, 2), U64, U64, st.none() | BALLOTS, MAYBE, st.none() | TABLES, U32,
        st.booleans(), U64, U64,
    ),
    MessageType.REJECT: st.builds(Reject, *ABOUT, BALLOTS),
    MessageType.SYNC: st.builds(Sync, *ABOUT, CONFIGURATIONS, U32),
    MessageType.SYNCED: st.builds(Synced, *ABOUT),
    MessageType.ACCEPT: st.builds(Accept, *ABOUT, CONFIGURATIONS),
    MessageType.ACCEPTED: st.builds(Accepted, *ABOUT, U64),
}  # fmt: skip
HEADER = bytes(BODY)
THREE = configuration_of({1: 1, 2: 1, 3: 1})
_ABOUT = (THREE.cluster_id, 1, Ballot(3, 2, 1002))
EXAMPLES: dict[MessageType, Message] = {
    MessageType.PREPARE: Prepare(*_ABOUT, THREE, [(1, 2001)], 7),
    MessageType.PROMISE: Promise(*_ABOUT, 2001, 0, 9, 8, Ballot(1, 1, 1), THREE, {1: 1}, 2, True, 4, 5, 7),
    MessageType.REJECT: Reject(*_ABOUT, Ballot(9, 9, 9)),
    MessageType.SYNC: Sync(*_ABOUT, THREE, 1),
    MessageType.SYNCED: Synced(*_ABOUT),
    MessageType.ACCEPT: Accept(*_ABOUT, THREE),
    MessageType.ACCEPTED: Accepted(*_ABOUT, 2001),
}


def test_all_are_here() -> None:
    changes = {kind for kind in MessageType if kind >= MessageType.PREPARE}
    assert set(MESSAGES) == set(EXAMPLES) == changes


@pytest.mark.parametrize("kind", list(MESSAGES))
@given(data=st.data())
def test_they_come_back(kind: MessageType, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    body = encode(message)
    assert body[0] == kind
    assert decode(HEADER + body, kind) == message
    assert message.instance == Instance(message.cluster_id, message.epoch)


@given(configuration=CONFIGURATIONS)
def test_a_configuration_comes_back(configuration: Configuration) -> None:
    assert decode_install(HEADER + encode_install(configuration)) == configuration


def taken(datagram: bytes, kind: MessageType) -> object:
    try:
        return decode_install(datagram) if kind is MessageType.INSTALL else decode(datagram, kind)
    except MalformedDatagram:
        return None


@pytest.mark.parametrize("kind", [MessageType.INSTALL, *MESSAGES])
def test_every_damage_is_malformed_or_another_message(kind: MessageType) -> None:
    body = encode_install(THREE) if kind is MessageType.INSTALL else encode(EXAMPLES[kind])
    assert taken(HEADER + body, kind) is not None
    for length in range(len(body)):
        assert taken(HEADER + body[:length], kind) is None
    assert taken(HEADER + body + b"\0", kind) is None
    for one in damages(body):
        taken(HEADER + one, kind)


@pytest.mark.parametrize("kind", [MessageType.INSTALL, *MESSAGES])
def test_any_bytes_are_malformed(kind: MessageType) -> None:
    chance = random.Random(kind)
    for _ in range(500):
        taken(HEADER + STRUCTURE.pack(kind, 0, 0, 1) + chance.randbytes(chance.randrange(80)), kind)
    deep = STRUCTURE.pack(kind, 0, 0, 1) + b"\x91" * 50_000
    assert taken(HEADER + deep, kind) is None


@pytest.mark.parametrize("kind", list(MESSAGES))
def test_an_epoch_that_is_another_outside_is_malformed(kind: MessageType) -> None:
    body = encode_structure(kind, 2, EXAMPLES[kind])
    with pytest.raises(MalformedDatagram, match="two epochs"):
        decode(HEADER + body, kind)


def test_a_structure_of_another_message_is_malformed() -> None:
    body = STRUCTURE.pack(MessageType.ACCEPT, 0, 0, 1) + msgspec.msgpack.encode(EXAMPLES[MessageType.REJECT])
    with pytest.raises(MalformedDatagram):
        decode(HEADER + body, MessageType.ACCEPT)
