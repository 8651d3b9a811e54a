"""Buffers of packets: they give back the extent that went in, and no damage gives a wrong one."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from ocfcluster.limits import SEGMENT_BUFFER_BYTES, SEGMENT_COUNT
from ocfcluster.wire.datagram import (
    BODY,
    CLEAR,
    DATA,
    DATA_HEAD,
    Extent,
    clear_prefix,
    decode_data,
    decode_data_buffer,
    decode_retransmit,
    encode_packets,
    packets_per_buffer,
    retransmit_head,
    split,
)
from tests.property.wire_helpers import U32, U64, flipped

PREFIX = clear_prefix(7, 3, 33)
COUNTERS = st.integers(0, 2**64 - 1 - SEGMENT_COUNT)


@st.composite
def extents(draw: st.DrawFn, least: int = 1, most: int = SEGMENT_COUNT, size: int = 60) -> Extent:
    """Extents whose packets tell themselves from each other."""
    count = draw(st.integers(least, most))
    size = draw(st.integers(1, size))
    rest = draw(st.integers(1, size))
    first = draw(COUNTERS)
    data = draw(st.binary(min_size=(count - 1) * size + rest, max_size=(count - 1) * size + rest))
    return Extent(first, count, size, data)


@given(extent=extents(), counter=COUNTERS)
def test_every_datagram_of_a_buffer_is_one_packet(extent: Extent, counter: int) -> None:
    buffer, segment = encode_packets(PREFIX, counter, DATA_HEAD, extent)
    pieces = list(split(buffer, segment))
    assert len(pieces) == extent.count
    assert all(len(piece) == segment for piece in pieces[:-1])
    for number, piece in enumerate(pieces):
        assert CLEAR.unpack_from(piece)[-1] == counter + number
        assert piece[:24] == PREFIX
        one = decode_data(piece)
        assert (one.first, one.count) == (extent.first + number, 1)
        assert one.data == extent.part(number, 1).data


@given(extent=extents(), counter=COUNTERS)
def test_a_buffer_gives_back_the_extent(extent: Extent, counter: int) -> None:
    buffer, segment = encode_packets(PREFIX, counter, DATA_HEAD, extent)
    found = decode_data_buffer(buffer, segment)
    assert found is not None
    size = extent.size if extent.count > 1 else len(extent.data)
    assert found == (counter, Extent(extent.first, extent.count, size, extent.data), len(buffer))


@given(extent=extents(), counter=COUNTERS, body=st.binary(min_size=1, max_size=60))
def test_another_message_behind_the_packets_is_left_for_itself(
    extent: Extent, counter: int, body: bytes
) -> None:
    buffer, segment = encode_packets(PREFIX, counter, DATA_HEAD, extent)
    other = PREFIX + bytes(8) + body
    assume(len(buffer) % segment == 0 and len(other) < segment and body[:4] != DATA_HEAD)
    found = decode_data_buffer(buffer + other, segment)
    assert found is not None
    assert found[1].data == extent.data
    assert found[2] == len(buffer)


@given(extent=extents(), counter=COUNTERS, node_id=U32, incarnation=U64)
def test_retransmitted_packets_name_their_origin(
    extent: Extent, counter: int, node_id: int, incarnation: int
) -> None:
    buffer, segment = encode_packets(PREFIX, counter, retransmit_head(node_id, incarnation), extent)
    found = [decode_retransmit(piece) for piece in split(buffer, segment)]
    assert [one[:2] for one in found] == [(node_id, incarnation)] * extent.count
    assert b"".join(one.data for _, _, one in found) == extent.data
    assert [one.first for _, _, one in found] == list(range(extent.first, extent.last + 1))
    # It is no DATA: the way for whole buffers leaves it alone.
    assert decode_data_buffer(buffer, segment) is None


def believed(buffer: bytes, segment: int) -> list[tuple[int, int, bytes]] | None:
    """Counter, number and bytes of each packet, as the way for whole buffers has it; None where it does not."""
    found = decode_data_buffer(buffer, segment)
    if found is None:
        return None
    counter, extent, end = found
    assert end in (len(buffer), len(buffer) - len(buffer) % segment)
    rest = buffer[end:]  # another message, which the caller takes by itself
    assert len(rest) <= BODY + DATA.size or rest[BODY : BODY + 4] != DATA_HEAD
    return [(counter + skip, extent.first + skip, extent.part(skip, 1).data) for skip in range(extent.count)]


def told(buffer: bytes, segment: int) -> list[tuple[int, int, bytes]]:
    """The same, as every datagram by itself says it; what is no packet at the end is left out."""
    found = []
    for piece in split(buffer, segment):
        if len(piece) < segment and (len(piece) <= BODY + DATA.size or piece[BODY : BODY + 4] != DATA_HEAD):
            continue
        one = decode_data(piece)
        found.append((CLEAR.unpack_from(piece)[-1], one.first, one.data))
    return found


@given(
    extent=extents(least=2),
    counter=COUNTERS,
    chosen=st.lists(st.integers(0, SEGMENT_COUNT - 1), min_size=1, max_size=SEGMENT_COUNT),
)
def test_lost_repeated_and_disordered_packets_never_give_a_wrong_extent(
    extent: Extent, counter: int, chosen: list[int]
) -> None:
    buffer, segment = encode_packets(PREFIX, counter, DATA_HEAD, extent)
    pieces = list(split(buffer, segment))
    order = [at % len(pieces) for at in chosen]
    if len(pieces[-1]) < segment:  # the kernel gives a shorter one at the end only
        order = [at for at in order[:-1] if at != len(pieces) - 1] + order[-1:]
    mixed = b"".join(pieces[at] for at in order)
    found = believed(mixed, segment)
    consecutive = order == list(range(order[0], order[0] + len(order)))
    if consecutive and len(mixed) >= segment:
        assert found == told(mixed, segment)
    else:
        assert found is None or (len(order) == 1 and found == told(mixed, segment))


@given(extent=extents(most=6, size=20), counter=COUNTERS, at=st.integers(0, 2**20), bits=st.integers(1, 3))
def test_a_flipped_bit_is_refused_or_is_what_the_datagrams_say(
    extent: Extent, counter: int, at: int, bits: int
) -> None:
    buffer, segment = encode_packets(PREFIX, counter, DATA_HEAD, extent)
    for turn in range(bits):
        buffer = flipped(buffer, (at * (turn + 1)) % (8 * len(buffer)))
    found = believed(buffer, segment)
    if found is not None:
        assert found == told(buffer, segment)
        whole = [piece for piece in split(buffer, segment) if len(piece) == segment]
        assert {piece[:24] for piece in whole} == {buffer[:24]}
        assert {piece[BODY : BODY + 4] for piece in whole} == {DATA_HEAD}


@given(
    extent=extents(least=2, most=6, size=20),
    counter=COUNTERS,
    segment=st.integers(1, 400),
    cut=st.integers(0, 400),
)
def test_another_segment_size_or_a_cut_gives_no_wrong_extent(
    extent: Extent, counter: int, segment: int, cut: int
) -> None:
    buffer, right = encode_packets(PREFIX, counter, DATA_HEAD, extent)
    buffer = buffer[: max(1, len(buffer) - cut)]
    assume(segment != right)
    for size in (segment, right):
        found = believed(buffer, size)
        if found is not None:
            assert found == told(buffer, size)


@given(extent=extents(), data=st.data())
def test_parts_of_an_extent_are_its_packets(extent: Extent, data: st.DataObject) -> None:
    skip = data.draw(st.integers(0, extent.count - 1))
    count = data.draw(st.integers(1, extent.count - skip))
    part = extent.part(skip, count)
    single = [extent.part(at, 1).data for at in range(skip, skip + count)]
    assert (part.first, part.count, part.data) == (extent.first + skip, count, b"".join(single))
    assert part.last == extent.first + skip + count - 1
    assert b"".join(extent.part(at, 1).data for at in range(extent.count)) == extent.data


@given(size=st.integers(1, 65_000))
def test_a_buffer_of_full_packets_fits_one_send(size: int) -> None:
    count = packets_per_buffer(size)
    assert 1 <= count <= SEGMENT_COUNT
    buffer, _ = encode_packets(PREFIX, 1, retransmit_head(1, 1), Extent(1, count, size, bytes(count * size)))
    assert count == 1 or len(buffer) <= SEGMENT_BUFFER_BYTES
