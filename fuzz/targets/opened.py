"""What is inside of sealed datagrams: any bytes, sealed with the key, as a member that lies would send them.

An input is a segment size u16, a switch u8 (odd: key reports), and bodies.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final

from fuzz.target import Target
from fuzz.targets import datagrams
from fuzz.targets.sealed import CLUSTER, INCARNATION, LEAD_BYTES, NODE, OTHER, OWN, numbered
from ocfcluster.limits import KEYS
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.sealing import MALFORMED, REPORT, SEALED, Opener, Sealer

_SEALER: Final = Sealer(CLUSTER, NODE, INCARNATION, OWN)
_OPENER: Final = Opener(CLUSTER, [OTHER, OWN])
_COUNTERS: Final = count(1)


def check(data: bytes) -> None:
    segment, switch, bodies = int.from_bytes(data[:2], "little"), data[2:3], data[LEAD_BYTES:]
    if not bodies:
        return
    if switch and switch[0] & 1:
        read_report(bodies)
        return
    segment = min(max(segment, wire.BODY + 1), len(bodies) + wire.BODY, 1500)
    clear = b"".join(bytes(wire.BODY) + one for one in wire.split(bodies, segment - wire.BODY))
    last = len(clear) % segment
    if 0 < last <= wire.BODY:
        clear = clear[:-last]
    clear, end = numbered(clear, segment, first := next(_COUNTERS) * 65_536)
    if end - first > 64:
        return
    opened = _OPENER.open(_SEALER.seal(clear, segment), segment + 16)
    assert b"".join(one for one, _ in opened) == clear
    for buffer, size in opened:
        datagrams.check(size.to_bytes(datagrams.LEAD_BYTES, "little") + buffer)


def read_report(body: bytes) -> None:
    flags = SEALED | REPORT | OWN.hint << 2
    header = wire.CLEAR.pack(
        wire.MAGIC, wire.VERSION, flags, wire.cluster_hash(CLUSTER), NODE, 0, INCARNATION, next(_COUNTERS)
    )
    malformed = _OPENER.counters[MALFORMED]
    _OPENER.reports.clear()
    sealed = header + _SEALER._encrypt_report(header[20:], body, header)
    assert _OPENER.open(sealed, len(sealed)) == []
    assert len(_OPENER.reports) + _OPENER.counters[MALFORMED] - malformed == 1
    for report in _OPENER.reports:
        assert 0 < len(report.key_ids) <= KEYS
        assert bytes([len(report.key_ids)]) + b"".join(
            int(one, 16).to_bytes(4, "little") for one in report.key_ids
        ) == body  # fmt: skip


def seeds() -> Iterator[bytes]:
    for buffer, segment in datagrams.buffers():
        bodies = b"".join(one[wire.BODY :] for one in wire.split(buffer, segment))
        yield segment.to_bytes(2, "little") + b"\0" + bodies
    for ids in ((OWN.id,), (OWN.id, OTHER.id)):
        yield b"\0\0\1" + bytes([len(ids)]) + b"".join(int(one, 16).to_bytes(4, "little") for one in ids)


TARGET: Final = Target(check, seeds, ("wire/sealing.py", "wire/datagram.py"))
