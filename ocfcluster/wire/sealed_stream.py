"""Sealing a TCP connection between two agents: keys of this connection alone, and pieces that cannot be left out.

Each end sends a greeting, the connecting one first::

     0  magic u16        STREAM_MAGIC
     2  version u8       1
     3  hint u8          of the key; the answer's is the same
     4  cluster u32      as in datagrams
     8  nonce 24 bytes   random

Both directions have a key of their own, derived from the cluster's with both greetings: nothing that was recorded
opens again. What follows are pieces: ``length u32`` of what is sealed, then that and a tag (AES-256-GCM; the nonce
counts the pieces of this direction, the length is authenticated with them). A piece that is changed, missing,
repeated or out of turn does not open, and ends the connection. That nothing is missing at the end is for what is
inside to say: all of it has its length before it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ocfcluster.errors import Malformed
from ocfcluster.limits import SEAL_BYTES, STREAM_PIECE_BYTES
from ocfcluster.wire.datagram import cluster_hash
from ocfcluster.wire.keys import ClusterKey, purpose

STREAM_MAGIC: Final = 0x0CF2
STREAM_VERSION: Final = 1
NONCE_BYTES: Final = 24
GREETING: Final = struct.Struct(f"<HBBI{NONCE_BYTES}s")
LENGTH: Final = struct.Struct("<I")
_PIECE_NONCE: Final = struct.Struct("<4xQ")


def greeting(cluster: str, key: ClusterKey, nonce: bytes) -> bytes:
    """``nonce``: NONCE_BYTES of fresh chance."""
    return GREETING.pack(STREAM_MAGIC, STREAM_VERSION, key.hint, cluster_hash(cluster), nonce)


def greeted_key(cluster: str, keys: Sequence[ClusterKey], received: bytes) -> ClusterKey:
    """The key that a greeting is about. Raises Malformed: it is none, or of another cluster or key."""
    magic, version, hint, hashed, _ = GREETING.unpack(received)
    if magic != STREAM_MAGIC:
        raise Malformed("the other end does not seal")
    if version != STREAM_VERSION:
        raise Malformed(f"the other end seals connections in another way ({version})")
    if hashed != cluster_hash(cluster):
        raise Malformed("the other end is of another cluster")
    for key in keys:
        if key.hint == hint:
            return key
    raise Malformed("the other end seals with a key that is not in this node's key file")


class SealedStream:
    """Both directions of one connection, after both greetings. ``connecting``: this is the end that connected."""

    __slots__ = ("_encrypt", "_decrypt", "_sealed", "_opened")

    def __init__(
        self, cluster: str, key: ClusterKey, first: bytes, second: bytes, *, connecting: bool
    ) -> None:
        to, back = (
            AESGCM(key.derive(purpose(label, cluster.encode(), first, second)))
            for label in ("stream to listener", "stream from listener")
        )
        self._encrypt = (to if connecting else back).encrypt
        self._decrypt = (back if connecting else to).decrypt
        self._sealed = 0
        self._opened = 0

    def seal(self, piece: bytes) -> bytes:
        """One piece of 1 to STREAM_PIECE_BYTES, with its length before it."""
        length = LENGTH.pack(len(piece))
        nonce = _PIECE_NONCE.pack(self._sealed)
        self._sealed += 1
        return length + self._encrypt(nonce, piece, length)

    def open(self, length: bytes, sealed: bytes) -> bytes:
        """The piece that ``length``, as it came, was before. Raises Malformed: it does not open."""
        nonce = _PIECE_NONCE.pack(self._opened)
        self._opened += 1
        try:
            return self._decrypt(nonce, sealed, length)
        except InvalidTag:
            raise Malformed("a piece does not open: another key, or changed on the way") from None


def sealed_bytes(length: bytes) -> int:
    """How many bytes follow ``length``. Raises Malformed: more than any piece has, or none."""
    (piece,) = LENGTH.unpack(length)
    if not 0 < piece <= STREAM_PIECE_BYTES:
        raise Malformed(f"a piece of {piece} bytes")
    return int(piece) + SEAL_BYTES


def pieces(buffers: Sequence[bytes]) -> Iterator[bytes]:
    """``buffers`` one after the other, in pieces of STREAM_PIECE_BYTES and a rest."""
    waiting: list[bytes | memoryview] = []
    room = STREAM_PIECE_BYTES
    for buffer in buffers:
        view = memoryview(buffer)
        while len(view) >= room:
            yield b"".join((*waiting, view[:room]))
            view = view[room:]
            waiting, room = [], STREAM_PIECE_BYTES
        if view:
            waiting.append(view)
            room -= len(view)
    if waiting:
        yield b"".join(waiting)
