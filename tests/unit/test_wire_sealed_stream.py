"""Sealed connections: pieces open in their order and no other way, and a recording opens nowhere else."""

from __future__ import annotations

import os

import pytest

from ocfcluster.errors import Malformed
from ocfcluster.limits import SEAL_BYTES, STREAM_PIECE_BYTES
from ocfcluster.wire.sealed_stream import (
    GREETING,
    LENGTH,
    SealedStream,
    greeted_key,
    greeting,
    pieces,
    sealed_bytes,
)
from tests.keyed import new_key

KEY = new_key()
OTHER = new_key(KEY)


def ends(cluster: str = "c", nonce: bytes = b"") -> tuple[SealedStream, SealedStream]:
    first = greeting(cluster, KEY, nonce or os.urandom(24))
    second = greeting(cluster, KEY, os.urandom(24))
    return (
        SealedStream(cluster, KEY, first, second, connecting=True),
        SealedStream(cluster, KEY, first, second, connecting=False),
    )


def opened(stream: SealedStream, piece: bytes) -> bytes:
    assert sealed_bytes(piece[: LENGTH.size]) == len(piece) - LENGTH.size
    return stream.open(piece[: LENGTH.size], piece[LENGTH.size :])


def test_both_ways() -> None:
    here, there = ends()
    for text in (b"x", b"y" * 1000, bytes(STREAM_PIECE_BYTES)):
        sealed = here.seal(text)
        assert text[:16] * 2 not in sealed
        assert opened(there, sealed) == text
        assert opened(here, there.seal(text)) == text


def test_a_piece_is_not_left_out_repeated_reflected_or_changed() -> None:
    here, there = ends()
    one, two = here.seal(b"one"), here.seal(b"two")
    with pytest.raises(Malformed):
        opened(there, two)
    here, there = ends()
    one = here.seal(b"one")
    assert opened(there, one) == b"one"
    with pytest.raises(Malformed):
        opened(there, one)
    here, there = ends()
    with pytest.raises(Malformed):
        opened(here, here.seal(b"back to its sender"))
    for at in range(len(one)):
        here, there = ends()
        sealed = bytearray(here.seal(b"one"))
        sealed[at] ^= 1
        with pytest.raises(Malformed):
            there.open(bytes(sealed[: LENGTH.size]), bytes(sealed[LENGTH.size :]))


def test_a_recording_opens_on_no_other_connection() -> None:
    nonce = os.urandom(24)
    here, there = ends(nonce=nonce)
    sealed = here.seal(b"request")
    assert opened(there, sealed) == b"request"
    _, later = ends(nonce=nonce)  # the same greeting sent again: the answer's chance is new
    with pytest.raises(Malformed):
        opened(later, sealed)


def test_greetings() -> None:
    assert greeted_key("c", [OTHER, KEY], greeting("c", KEY, bytes(24))) is KEY
    good = greeting("c", KEY, bytes(24))
    for bad, says in [
        (bytes(GREETING.size), "does not seal"),
        (good[:2] + b"\x07" + good[3:], "another way"),
        (greeting("d", KEY, bytes(24)), "another cluster"),
        (greeting("c", OTHER, bytes(24)), "not in this node's key file"),
    ]:
        with pytest.raises(Malformed, match=says):
            greeted_key("c", [KEY], bad)


@pytest.mark.parametrize("length", [0, STREAM_PIECE_BYTES + 1, 0xFFFF_FFFF])
def test_lengths_are_bounded(length: int) -> None:
    with pytest.raises(Malformed):
        sealed_bytes(LENGTH.pack(length))
    assert sealed_bytes(LENGTH.pack(5)) == 5 + SEAL_BYTES


def test_pieces_are_the_buffers_in_order() -> None:
    buffers = [b"a", bytes(3 * STREAM_PIECE_BYTES + 7), b"", b"b" * 10]
    cut = list(pieces(buffers))
    assert b"".join(cut) == b"".join(buffers)
    assert {len(piece) for piece in cut[:-1]} == {STREAM_PIECE_BYTES}
    assert list(pieces([])) == []
