"""Sealed datagrams under attack: what is opened is what was sealed, and everything else is counted by its reason."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster.errors import MalformedDatagram
from ocfcluster.limits import CLEAR_HEADER_BYTES, KEYS, OPENERS, SEAL_BYTES, SEGMENT_COUNT
from ocfcluster.wire import sealing
from ocfcluster.wire.datagram import (
    CLEAR,
    DATA_HEAD,
    MAGIC,
    Extent,
    clear_prefix,
    cluster_hash,
    encode_packets,
)
from ocfcluster.wire.keys import ClusterKey, purpose
from ocfcluster.wire.replay import ReplayWindow
from ocfcluster.wire.schema import datagrams as schema
from ocfcluster.wire.sealed_stream import greeting
from ocfcluster.wire.sealing import OUTCOMES, Opener, Sealer
from tests.keyed import new_key

CLUSTER = "sealed"
KEY = ClusterKey(bytes(range(100, 132)))
OTHER = new_key(KEY)
NODE, INCARNATION = 7, 0x1122_3344_5566_7788
PREFIX = clear_prefix(cluster_hash(CLUSTER), NODE, INCARNATION, 9)


def sealer(key: ClusterKey = KEY, node_id: int = NODE, incarnation: int = INCARNATION) -> Sealer:
    return Sealer(CLUSTER, node_id, incarnation, key)


def datagram(counter: int, body: bytes, prefix: bytes = PREFIX) -> bytes:
    return prefix + struct.pack("<Q", counter) + body


def dropped(opener: Opener) -> dict[str, int]:
    return {name: times for name, times in opener.counters.items() if times}


bodies = st.binary(min_size=1, max_size=300)
buffers = st.builds(
    lambda size, count, rest, first: (size, count, min(rest, size), first),
    st.integers(1, 200), st.integers(1, SEGMENT_COUNT), st.integers(1, 200), st.integers(1, 2**60),
)  # fmt: skip


@given(buffers)
def test_a_buffer_opens_to_what_it_was(shape: tuple[int, int, int, int]) -> None:
    size, count, rest, first = shape
    data = bytes(i % 251 for i in range((count - 1) * size + rest))
    buffer, segment = encode_packets(PREFIX, first, DATA_HEAD, Extent(1, count, size, data))
    sealed = sealer().seal(buffer, segment)
    assert len(sealed) == len(buffer) + count * SEAL_BYTES
    opener = Opener(CLUSTER, [OTHER, KEY])
    first_one = sealed[: segment + SEAL_BYTES]
    # Before anything of this sender has opened the way is datagram by datagram, then all at once: to the same end.
    met = opener.open(sealed, segment + SEAL_BYTES)
    assert b"".join(piece for piece, _ in met) == buffer
    assert opener.open(sealed, segment + SEAL_BYTES) == [(buffer, len(buffer) if count == 1 else segment)]
    assert opener.open(first_one, len(first_one))[0][0] == buffer[:segment]
    assert dropped(opener) == {}
    assert data[:40] not in sealed or len(data) < 16


@given(bodies, st.data())
def test_a_changed_bit_anywhere_opens_nothing(body: bytes, data: st.DataObject) -> None:
    sealed = sealer().seal(datagram(1, body), CLEAR_HEADER_BYTES + len(body))
    opener = Opener(CLUSTER, [KEY, OTHER])
    known = data.draw(st.booleans())
    if known:
        assert opener.open(sealed, len(sealed))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    changed = bytearray(sealed)
    changed[bit // 8] ^= 1 << bit % 8
    assert opener.open(bytes(changed), len(changed)) == []
    assert opener.reports == []
    assert sum(dropped(opener).values()) == 1
    assert set(dropped(opener)) <= set(OUTCOMES)


@given(bodies, st.data())
def test_a_truncated_or_lengthened_datagram_opens_nothing(body: bytes, data: st.DataObject) -> None:
    sealed = sealer().seal(datagram(1, body), CLEAR_HEADER_BYTES + len(body))
    opener = Opener(CLUSTER, [KEY])
    end = data.draw(st.integers(0, len(sealed) - 1))
    more = sealed + data.draw(st.binary(min_size=1, max_size=40))
    assert opener.open(sealed[:end], max(1, end)) == []
    assert opener.open(more, len(more)) == []
    assert sum(dropped(opener).values()) == 2


@given(st.binary(max_size=3000), st.integers(1, 1500))
def test_arbitrary_bytes_open_to_nothing(buffer: bytes, segment: int) -> None:
    opener = Opener(CLUSTER, [KEY])
    assert opener.open(buffer, segment) == []
    assert set(dropped(opener)) <= set(OUTCOMES)


@given(
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=17, max_size=99),
)
def test_headers_of_this_cluster_without_the_key_open_to_nothing(
    flags: int, node_id: int, incarnation: int, body: bytes
) -> None:
    header = CLEAR.pack(MAGIC, 1, flags, cluster_hash(CLUSTER), node_id, 0, incarnation, 1)
    opener = Opener(CLUSTER, [KEY, OTHER])
    assert opener.open(header + body, len(header + body)) == []
    assert sum(dropped(opener).values()) == 1
    assert not opener._known, "something is kept of a sender that never opened"


@given(st.integers(2, 40), st.data())
def test_of_a_buffer_with_damage_the_rest_opens(count: int, data: st.DataObject) -> None:
    buffer, segment = encode_packets(PREFIX, 5, DATA_HEAD, Extent(1, count, 50, bytes(50 * count)))
    sealed = bytearray(sealer().seal(buffer, segment))
    segment += SEAL_BYTES
    bad = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count))
    for number in bad:
        sealed[number * segment + CLEAR_HEADER_BYTES + data.draw(st.integers(0, 60))] ^= 1
    opener = Opener(CLUSTER, [KEY])
    if data.draw(st.booleans()):
        good = sealer().seal(datagram(1, b"hello"), CLEAR_HEADER_BYTES + 5)
        opener.open(good, len(good))
    plain = segment - SEAL_BYTES
    expected = [buffer[i * plain : (i + 1) * plain] for i in range(count) if i not in bad]
    assert [piece for piece, _ in opener.open(bytes(sealed), segment)] == expected
    assert dropped(opener) == {sealing.FORGED: len(bad)}


@given(st.integers(2, 12), st.data())
def test_every_header_of_a_buffer_is_looked_at(count: int, data: st.DataObject) -> None:
    buffer, segment = encode_packets(PREFIX, 5, DATA_HEAD, Extent(1, count, 50, bytes(50 * count - 7)))
    seals, opener = sealer(), Opener(CLUSTER, [KEY])
    good = seals.seal(datagram(1, b"hello"), CLEAR_HEADER_BYTES + 5)
    opener.open(good, len(good))  # so that the buffer is opened in one go
    sealed = bytearray(seals.seal(buffer, segment))
    bad = data.draw(st.integers(0, count - 1))
    sealed[bad * (segment + SEAL_BYTES) + data.draw(st.integers(0, CLEAR_HEADER_BYTES - 1))] ^= 1
    opened = b"".join(piece for piece, _ in opener.open(bytes(sealed), segment + SEAL_BYTES))
    assert opened == buffer[: bad * segment] + buffer[(bad + 1) * segment :]
    assert sum(dropped(opener).values()) == 1


@given(st.permutations(range(1, 30)), st.lists(st.integers(0, 28), max_size=60))
def test_replayed_and_reordered_datagrams_are_taken_once(order: list[int], again: list[int]) -> None:
    """The opener and the replay window behind it, as a node has them."""
    seals = sealer()
    sealed = {i: seals.seal(datagram(i, bytes([i])), CLEAR_HEADER_BYTES + 1) for i in range(1, 30)}
    opener, window = Opener(CLUSTER, [KEY]), ReplayWindow()
    taken = []
    for number in [*order, *(order[i] for i in again)]:
        for opened, _ in opener.open(sealed[number], len(sealed[number])):
            counter = CLEAR.unpack_from(opened)[-1]
            if window.accept(counter):
                taken.append(opened[CLEAR_HEADER_BYTES])
    assert taken == list(order)


@given(st.integers(1, 2**62), bodies)
@settings(max_examples=50)
def test_a_forged_counter_does_not_move_the_replay_window(counter: int, body: bytes) -> None:
    sealed = bytearray(sealer().seal(datagram(3, body), CLEAR_HEADER_BYTES + len(body)))
    opener, window = Opener(CLUSTER, [KEY]), ReplayWindow()
    forged = bytes(sealed[:24]) + struct.pack("<Q", counter) + bytes(sealed[32:])
    for opened, _ in opener.open(forged, len(forged)):
        window.accept(CLEAR.unpack_from(opened)[-1])
    assert counter == 3 or not window.taken(3)


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    sealing.FOREIGN: lambda one: b"\x00\x00" + one[2:],
    sealing.WRONG_VERSION: lambda one: one[:2] + b"\x09" + one[3:],
    sealing.UNSEALED: lambda one: one[:3] + b"\x00" + one[4:],
    sealing.MALFORMED: lambda one: one[: CLEAR_HEADER_BYTES + SEAL_BYTES],
}


@pytest.mark.parametrize("outcome", list(FORGERIES))
def test_each_reason_is_counted_as_such(outcome: str) -> None:
    sealed = sealer().seal(datagram(1, b"body"), CLEAR_HEADER_BYTES + 4)
    forged = FORGERIES[outcome](sealed)
    opener = Opener(CLUSTER, [KEY])
    assert opener.open(forged, len(forged)) == []
    assert dropped(opener) == {outcome: 1}
    assert opener.take_refusal() == outcome
    assert opener.take_refusal() == ""


def test_every_version_that_nodes_may_speak_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "VERSION", sealing.VERSION + 1)
    for version in (sealing.OLDEST_VERSION, sealing.VERSION, sealing.VERSION + 1):
        prefix = clear_prefix(cluster_hash(CLUSTER), NODE, INCARNATION, 9, version)
        opener, seals = Opener(CLUSTER, [KEY]), sealer()
        sealed = seals.seal(datagram(1, b"body", prefix), CLEAR_HEADER_BYTES + 4)
        report = seals.report([KEY.id], version)
        found = opener.open(sealed, len(sealed)) + opener.open(report, len(report))
        if version <= sealing.VERSION:
            assert found == [(datagram(1, b"body", prefix), CLEAR_HEADER_BYTES + 4)]
            assert len(opener.reports) == 1
        else:
            assert dropped(opener) == {sealing.WRONG_VERSION: 2}


def test_the_sender_is_part_of_the_key() -> None:
    """Another node id, incarnation, history or cluster in the header, and it does not open."""
    sealed = sealer().seal(datagram(1, b"body"), CLEAR_HEADER_BYTES + 4)
    for at in (8, 12, 16, 23):
        opener = Opener(CLUSTER, [KEY])
        forged = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        assert opener.open(forged, len(forged)) == []
        assert dropped(opener) == {sealing.FORGED: 1}
    other = Opener("another", [KEY])
    assert other.open(sealed, len(sealed)) == []
    assert dropped(other) == {sealing.FOREIGN: 1}


def test_a_key_that_the_receiver_has_not() -> None:
    sealed = sealer(OTHER).seal(datagram(1, b"body"), CLEAR_HEADER_BYTES + 4)
    opener = Opener(CLUSTER, [KEY])
    assert opener.open(sealed, len(sealed)) == []
    assert dropped(opener) == {sealing.UNKNOWN_KEY: 1}


def test_a_key_that_is_used_and_dropped() -> None:
    seals, opener = sealer(), Opener(CLUSTER, [KEY, OTHER])
    one, two, three = (datagram(i, b"body") for i in (1, 2, 3))
    assert opener.open(seals.seal(one, 36), 52) == [(one, 36)]
    seals.use(OTHER)
    assert opener.open(seals.seal(two, 36), 52) == [(two, 36)]
    seals.use(KEY)
    opener.accept([OTHER])
    assert opener.open(seals.seal(three, 36), 52) == []
    assert dropped(opener) == {sealing.UNKNOWN_KEY: 1}


def test_no_nonce_is_used_twice() -> None:
    seals = sealer()
    seals.seal(datagram(5, b"body"), 36)
    for again in (5, 4):
        with pytest.raises(RuntimeError, match="second time"):
            seals.seal(datagram(again, b"other"), 37)
    buffer = datagram(6, b"body") + datagram(8, b"body")
    with pytest.raises(RuntimeError, match="one by one"):
        seals.seal(buffer, 36)
    with pytest.raises(RuntimeError, match="another sender"):
        sealer(node_id=8).seal(datagram(1, b"body"), 36)


def test_incarnations_have_keys_of_their_own() -> None:
    """Equal counters and bodies of two incarnations give different bytes behind the header: no key stream is shared."""
    prefix = clear_prefix(cluster_hash(CLUSTER), NODE, INCARNATION + (1 << 40), 9)
    body = bytes(64)
    one = sealer().seal(datagram(1, body), 96)
    two = sealer(incarnation=INCARNATION + (1 << 40)).seal(datagram(1, body, prefix), 96)
    assert one[24:32] == two[24:32]
    assert one[32:] != two[32:]


def test_key_reports_reach_the_opener_and_no_node() -> None:
    seals, opener = sealer(), Opener(CLUSTER, [KEY])
    first, second = (seals.report([KEY.id, OTHER.id]) for _ in range(2))
    for one in (first, second, second, first):
        assert opener.open(one, len(one)) == []
    assert opener.reports == [(NODE, INCARNATION, (KEY.id, OTHER.id))] * 2
    assert dropped(opener) == {sealing.REPLAYED: 1}, "a copy of the last is no replay, an older one is"
    assert len(seals.report(["0"] * KEYS)) < 100


def test_what_is_known_of_senders_is_bounded() -> None:
    opener = Opener(CLUSTER, [KEY])
    for incarnation in range(1, OPENERS + 50):
        prefix = clear_prefix(cluster_hash(CLUSTER), NODE, incarnation, 9)
        sealed = sealer(incarnation=incarnation).seal(datagram(1, b"body", prefix), 36)
        assert opener.open(sealed, len(sealed))
        report = sealer(incarnation=incarnation).report([KEY.id])
        opener.open(report, len(report))
    assert len(opener._known) <= OPENERS
    assert len(opener._reported) <= OPENERS
    assert len(opener.reports) <= OPENERS


# --- the declared formats
# -----------------------------------------------------------------------------------------------


@given(bodies, st.integers(1, 2**63))
@pytest.mark.parametrize("compiled", [False, True])
def test_sealed_datagrams_are_as_declared(compiled: bool, body: bytes, counter: int) -> None:
    sealed = sealer().seal(datagram(counter, body), CLEAR_HEADER_BYTES + len(body))
    found = schema.SEALED_DATAGRAM.parse(sealed, compiled=compiled)
    assert (found.node_id, found.history, found.incarnation, found.counter) == (NODE, 9, INCARNATION, counter)
    assert found.flags == sealing.SEALED | int(KEY.id, 16) % 64 << 2
    assert len(found.sealed) == len(body) + SEAL_BYTES
    opened = AESGCM(
        KEY.derive(purpose("datagram", CLUSTER.encode(), struct.pack("<IQ", NODE, INCARNATION)))
    ).decrypt(sealed[20:32], found.sealed, sealed[:32])
    assert opened == body


@pytest.mark.parametrize("compiled", [False, True])
def test_key_reports_are_as_declared(compiled: bool) -> None:
    report = sealer().report([OTHER.id, KEY.id])
    found = schema.SEALED_DATAGRAM.parse(report, compiled=compiled)
    assert (found.flags & 3, found.history, found.counter) == (sealing.SEALED | sealing.REPORT, 0, 1)
    key = KEY.derive(purpose("key report", CLUSTER.encode(), struct.pack("<IQ", NODE, INCARNATION)))
    opened = AESGCM(key).decrypt(report[20:32], found.sealed, report[:32])
    said = schema.KEY_REPORT.parse(opened, compiled=compiled)
    assert [f"{number:08x}" for number in said.key_ids] == [OTHER.id, KEY.id]
    assert sealing._read_report(opened) == (OTHER.id, KEY.id)


@given(st.binary(max_size=40))
def test_what_is_no_key_report_is_refused_by_declaration_and_codec_alike(data: bytes) -> None:
    try:
        expected = tuple(f"{number:08x}" for number in schema.KEY_REPORT.parse(data).key_ids)
    except MalformedDatagram:
        with pytest.raises(MalformedDatagram):
            sealing._read_report(data)
    else:
        assert sealing._read_report(data) == expected


@pytest.mark.parametrize("compiled", [False, True])
def test_greetings_are_as_declared(compiled: bool) -> None:
    found = schema.GREETING.parse(greeting(CLUSTER, KEY, bytes(range(24))), compiled=compiled)
    assert (found.hint, found.cluster, bytes(found.nonce)) == (
        KEY.hint,
        cluster_hash(CLUSTER),
        bytes(range(24)),
    )
