"""Sealing datagrams: AES-256-GCM over each one, with the clear header as what is authenticated and not encrypted.

A sealed datagram is the clear header with ``flags`` set, the body encrypted, and a tag of SEAL_BYTES. Its room has been
left free by whoever made the datagram, so sealing changes no size that anything else depends on.

flags: bit 0 sealed; bit 1 a key report, which is for the other sealers and never reaches a node; bits 2 to 7 the hint
of the key.

The key is a subkey of the cluster's, bound to the cluster's name, the sender and its incarnation, and different for
reports. The nonce is the end of the clear header: 4 bytes of the incarnation and the counter. An incarnation is
random and new at each start and never counts to the same number twice, so no nonce is used twice under a subkey.

What does not open is counted by its reason and dropped. Nothing is kept of a sender before something of it has
opened. Whether a counter was taken before is for who gets the opened datagram: its replay window moves by authentic
datagrams alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ocfcluster.errors import MalformedDatagram
from ocfcluster.limits import CLEAR_HEADER_BYTES, KEYS, OPENERS, SEAL_BYTES, SEGMENT_COUNT
from ocfcluster.wire.datagram import CLEAR, MAGIC, OLDEST_VERSION, PREFIX_BYTES, VERSION, cluster_hash, split
from ocfcluster.wire.keys import ClusterKey, purpose

SEALED: Final = 1
REPORT: Final = 2
_HINT_SHIFT: Final = 2
FLAGS_AT: Final = 3
_NONCE_AT: Final = 20  # in the clear header, to its end
_OVERHEAD: Final = CLEAR_HEADER_BYTES + SEAL_BYTES
_COUNTER: Final = struct.Struct("<Q")
_KEY_ID: Final = struct.Struct("<I")

# Why a datagram was dropped: counters of ``Opener``.
MALFORMED: Final = "seal_malformed"  # too short to be sealed, or no key report
FOREIGN: Final = "seal_foreign"  # other magic, or another cluster's name
WRONG_VERSION: Final = "seal_wrong_version"
UNSEALED: Final = "seal_missing"  # of this cluster, and in the clear: its sender has no key
UNKNOWN_KEY: Final = "seal_unknown_key"  # sealed with a key that this node has not
FORGED: Final = "seal_forged"  # it does not open: changed on the way, or made without the key
REPLAYED: Final = "seal_replayed"  # a key report that was taken before
OUTCOMES: Final = (MALFORMED, FOREIGN, WRONG_VERSION, UNSEALED, UNKNOWN_KEY, FORGED, REPLAYED)


class KeyReport(NamedTuple):
    """What a node says of its keys. The first id is of the key that it seals with, the others it accepts as well."""

    node_id: int
    incarnation: int
    key_ids: tuple[str, ...]


@lru_cache(maxsize=512)
def _layout(body_bytes: int, count: int) -> struct.Struct:
    """Prefix, counter and body of each of ``count`` datagrams."""
    return struct.Struct(f"{PREFIX_BYTES}s8s{body_bytes}s" * count)


def _subkey(key: ClusterKey, cluster: str, node_id: int, incarnation: int, report: bool) -> AESGCM:
    sender = struct.pack("<IQ", node_id, incarnation)
    label = "key report" if report else "datagram"
    return AESGCM(key.derive(purpose(label, cluster.encode(), sender)))


class Sealer:
    """Seals what one incarnation of a node sends, with one key at a time."""

    __slots__ = (
        "key", "_cluster", "_node_id", "_incarnation", "_encrypt", "_encrypt_report", "_prefixes", "_sent", "_reports",
    )  # fmt: skip

    def __init__(self, cluster: str, node_id: int, incarnation: int, key: ClusterKey) -> None:
        self._cluster = cluster
        self._node_id = node_id
        self._incarnation = incarnation
        self._sent = 0  # the last counter that was sealed
        self._reports = 0
        self.use(key)

    def use(self, key: ClusterKey) -> None:
        """Seal with ``key`` from here on."""
        sender = (self._cluster, self._node_id, self._incarnation)
        self.key = key
        self._encrypt = _subkey(key, *sender, report=False).encrypt
        self._encrypt_report = _subkey(key, *sender, report=True).encrypt
        self._prefixes: dict[bytes, bytes] = {}  # in the clear → sealed; one per history, and few of them

    def seal(self, buffer: bytes, segment: int) -> bytes:
        """The buffer with each of its datagrams, which are of ``segment`` bytes, sealed: they have SEAL_BYTES more.

        Counters must grow from call to call; RuntimeError where they do not: a nonce would be used twice.
        """
        prefix = buffer[:PREFIX_BYTES]
        sealed = self._prefixes.get(prefix)
        if sealed is None:
            sealed = self._sealed_prefix(prefix)
        encrypt = self._encrypt
        length = len(buffer)
        if length <= segment:
            header = sealed + buffer[PREFIX_BYTES:CLEAR_HEADER_BYTES]
            self._count(_COUNTER.unpack_from(buffer, PREFIX_BYTES)[0], 1)
            return header + encrypt(header[_NONCE_AT:], buffer[CLEAR_HEADER_BYTES:], header)
        full, rest = divmod(length, segment)
        fields = _layout(segment - CLEAR_HEADER_BYTES, full).unpack_from(buffer)
        counters, bodies = fields[1::3], fields[2::3]
        if rest:
            at = full * segment
            counters += (buffer[at + PREFIX_BYTES : at + CLEAR_HEADER_BYTES],)
            bodies += (buffer[at + CLEAR_HEADER_BYTES :],)
        first, last = _COUNTER.unpack(counters[0])[0], _COUNTER.unpack(counters[-1])[0]
        if last - first + 1 != len(counters):
            raise RuntimeError("a buffer's datagrams are not counted one by one")
        self._count(first, len(counters))
        parts: list[bytes] = []
        append = parts.append
        for counter, body in zip(counters, bodies, strict=True):
            header = sealed + counter
            append(header)
            append(encrypt(header[_NONCE_AT:], body, header))
        return b"".join(parts)

    def report(self, key_ids: Sequence[str], version: int = VERSION) -> bytes:
        """A sealed datagram, of the protocol version that the cluster speaks, which says what keys this node has, the
        one that it seals with first."""
        self._reports += 1
        flags = SEALED | REPORT | self.key.hint << _HINT_SHIFT
        header = CLEAR.pack(
            MAGIC, version, flags, cluster_hash(self._cluster), self._node_id, 0, self._incarnation, self._reports,
        )  # fmt: skip
        body = bytes([len(key_ids)]) + b"".join([_KEY_ID.pack(int(one, 16)) for one in key_ids])
        return header + self._encrypt_report(header[_NONCE_AT:], body, header)

    def _count(self, first: int, count: int) -> None:
        if first <= self._sent:
            raise RuntimeError("a datagram's counter comes a second time")
        self._sent = first + count - 1

    def _sealed_prefix(self, prefix: bytes) -> bytes:
        fields = CLEAR.unpack(prefix + bytes(8))
        if fields[4] != self._node_id or fields[6] != self._incarnation:
            raise RuntimeError("a datagram of another sender than this one seals for")
        sealed = _with_flags(prefix, SEALED | self.key.hint << _HINT_SHIFT)
        if len(self._prefixes) >= KEYS:
            self._prefixes.clear()  # histories that are over
        self._prefixes[prefix] = sealed
        return sealed


def _with_flags(prefix: bytes, flags: int) -> bytes:
    return prefix[:FLAGS_AT] + bytes([flags]) + prefix[FLAGS_AT + 1 :]


_Decrypt = Callable[[bytes, bytes, bytes], bytes]
Opened = tuple[bytes, int]  # a buffer of datagrams as they were before they were sealed, and its segment size


class Opener:
    """Opens what the other nodes of a cluster have sealed with any of ``keys``.

    ``counters``: datagrams dropped, by reason (OUTCOMES). ``reports``: key reports that have come, for the owner to
    take.
    """

    __slots__ = ("counters", "reports", "_cluster", "_hash", "_keys", "_known", "_reported", "_refusal")

    def __init__(self, cluster: str, keys: Sequence[ClusterKey]) -> None:
        self._cluster = cluster
        self._hash = cluster_hash(cluster)
        self.counters = dict.fromkeys(OUTCOMES, 0)
        self.reports: list[KeyReport] = []
        self._reported: dict[bytes, int] = {}  # sender → counter of its last report
        self._refusal = ""
        self.accept(keys)

    def accept(self, keys: Sequence[ClusterKey]) -> None:
        """Open with these keys from here on, and no others."""
        self._keys = {key.hint: key for key in keys}
        # Sealed prefix → how to open what has it, and the prefix in the clear. Only of what has opened once.
        self._known: dict[bytes, tuple[_Decrypt, bytes]] = {}

    def open(self, buffer: bytes, segment: int) -> list[Opened]:
        """What of a received buffer opens, in its order: all of it in one piece, or what is left in several."""
        known = self._known.get(buffer[:PREFIX_BYTES])
        length = len(buffer)
        if length <= segment:
            opened = self._open_one(buffer)
            return [] if opened is None else [(opened, len(opened))]
        if known is None or segment <= _OVERHEAD:
            return self._one_by_one(buffer, segment)
        decrypt, clear = known
        full, rest = divmod(length, segment)
        if full > SEGMENT_COUNT:
            return self._one_by_one(buffer, segment)
        prefix = buffer[:PREFIX_BYTES]
        fields = _layout(segment - CLEAR_HEADER_BYTES, full).unpack_from(buffer)
        if fields[0::3].count(prefix) != full:
            return self._one_by_one(buffer, segment)
        counters, bodies = fields[1::3], fields[2::3]
        if rest:
            at = full * segment
            if rest <= _OVERHEAD or buffer[at : at + PREFIX_BYTES] != prefix:
                return self._one_by_one(buffer, segment)
            counters += (buffer[at + PREFIX_BYTES : at + CLEAR_HEADER_BYTES],)
            bodies += (buffer[at + CLEAR_HEADER_BYTES :],)
        parts: list[bytes] = []
        append = parts.append
        try:
            for counter, body in zip(counters, bodies, strict=True):
                header = prefix + counter
                append(clear)
                append(counter)
                append(decrypt(header[_NONCE_AT:], body, header))
        except InvalidTag:
            return self._one_by_one(buffer, segment)
        return [(b"".join(parts), segment - SEAL_BYTES)]

    def take_refusal(self) -> str:
        """Why something was dropped since this was asked last; empty: nothing was."""
        refusal, self._refusal = self._refusal, ""
        return refusal

    def _one_by_one(self, buffer: bytes, segment: int) -> list[Opened]:
        found = [self._open_one(one) for one in split(buffer, segment)]
        return [(one, len(one)) for one in found if one is not None]

    def _open_one(self, datagram: bytes) -> bytes | None:
        """One datagram as it was before it was sealed; None where it is dropped (and counted) or a report."""
        if len(datagram) <= _OVERHEAD:
            return self._refuse(MALFORMED)
        prefix, header = datagram[:PREFIX_BYTES], datagram[:CLEAR_HEADER_BYTES]
        body = datagram[CLEAR_HEADER_BYTES:]
        known = self._known.get(prefix)
        try:
            if known is not None:
                opened = known[0](header[_NONCE_AT:], body, header)
                return b"".join((known[1], header[PREFIX_BYTES:], opened))
            return self._meet(prefix, header, body)
        except InvalidTag:
            return self._refuse(FORGED)

    def _meet(self, prefix: bytes, header: bytes, body: bytes) -> bytes | None:
        """A datagram with a prefix that nothing has opened with yet. Raises InvalidTag."""
        magic, version, flags, cluster, node_id, _, incarnation, counter = CLEAR.unpack(header)
        if magic != MAGIC or cluster != self._hash:
            return self._refuse(FOREIGN)
        if not OLDEST_VERSION <= version <= VERSION:
            return self._refuse(WRONG_VERSION)
        if not flags & SEALED:
            return self._refuse(UNSEALED)
        key = self._keys.get(flags >> _HINT_SHIFT)
        if key is None:
            return self._refuse(UNKNOWN_KEY)
        report = bool(flags & REPORT)
        decrypt = _subkey(key, self._cluster, node_id, incarnation, report).decrypt
        opened = decrypt(header[_NONCE_AT:], body, header)
        if report:
            self._take_report(node_id, incarnation, counter, opened)
            return None
        if len(self._known) >= OPENERS:
            self._known.clear()  # incarnations that are gone; the others are met again by their next datagram
        clear = _with_flags(prefix, 0)
        self._known[prefix] = (decrypt, clear)
        return b"".join((clear, header[PREFIX_BYTES:], opened))

    def _take_report(self, node_id: int, incarnation: int, counter: int, body: bytes) -> None:
        sender = struct.pack("<IQ", node_id, incarnation)
        last = self._reported.get(sender, 0)
        if counter <= last:
            if counter < last:  # the last one again is a copy that came by another network
                self._refuse(REPLAYED)
            return
        try:
            key_ids = _read_report(body)
        except MalformedDatagram:
            self._refuse(MALFORMED)
            return
        if len(self._reported) >= OPENERS:
            self._reported.clear()
        self._reported[sender] = counter
        if len(self.reports) < OPENERS:
            self.reports.append(KeyReport(node_id, incarnation, key_ids))

    def _refuse(self, why: str) -> bytes | None:
        self.counters[why] += 1
        self._refusal = why
        return None


def _read_report(body: bytes) -> tuple[str, ...]:
    count = body[0] if body else 0
    if not 0 < count <= KEYS or len(body) != 1 + count * _KEY_ID.size:
        raise MalformedDatagram(f"a key report of {len(body)} bytes and {count} keys")
    return tuple(f"{number:08x}" for (number,) in _KEY_ID.iter_unpack(body[1:]))
