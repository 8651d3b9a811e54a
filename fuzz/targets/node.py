"""A node and what others say to it: it starts, hears two others, is told a configuration, and then anything.

An input is a switch u8 (odd: the node has been a member before, and has its record) and datagrams as ``length u16,
sender u8, body``. Their clear headers are right, and their counters grow: it is
what a member says that is looked at here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Final

import msgspec

from fuzz.mutation import change_packed, damage
from fuzz.target import Target
from fuzz.targets import datagrams, epochs
from ocfcluster.protocol import Node, messages
from ocfcluster.protocol.detector import history_numbers
from ocfcluster.protocol.effects import Persist
from ocfcluster.protocol.settings import Configuration, Record, Settings
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Heartbeat, MessageType, Order, Range

_CLUSTER: Final = "fuzz"
_FRAME: Final = struct.Struct("<HB")
_MOST_STEPS: Final = 8
_STEP_NS: Final = 200_000_000
_WALL_NS: Final = 10**18
_BUFFER_BYTES: Final = 4 << 20


@cache
def record() -> bytes:
    return msgspec.msgpack.encode(Record(epochs.configuration(), [], 16, 9))


@cache
def first() -> Configuration:
    """The first of a history: a node without a record takes it when it is told."""
    return msgspec.structs.replace(
        epochs.configuration(1), base=0, epochs=[(1, 0)], m_sequence=1, supersedes=[]
    )


def check(data: bytes) -> None:
    now = 10**9
    before = record() if data[:1] and data[0] & 1 else b""
    table = {1: 1, 2: 1, 3: 1}
    own = Settings(_CLUSTER, 1, 0x1001, 0x2001, 1, table, receive_buffer_bytes=_BUFFER_BYTES, record=before)
    node = Node(own, now, _WALL_NS)
    tag = wire.history_tag(epochs.HISTORY)
    for counter, (sender, body) in enumerate(bodies(data[1:])[:_MOST_STEPS], 1):
        node_id = 2 + (sender & 1)
        prefix = wire.clear_prefix(wire.cluster_hash(_CLUSTER), node_id, 0x1000 + node_id, tag)
        one = prefix + counter.to_bytes(8, "little") + body
        node.datagram(one, len(one), ("10.0.0.9", node_id), now)
        if sender & 2:  # else it belongs to the same burst
            now += _STEP_NS if sender & 4 else 1
            settle(node, now)
    settle(node, now + _STEP_NS)


def settle(node: Node, now: int) -> None:
    """As the shell does it, with a disk that is quick."""
    node.timer(now, _WALL_NS + now)
    node.end_burst(now)
    for effect in node.take_effects():
        if isinstance(effect, Persist):
            assert len(effect.record) < 1 << 16
            node.persisted(effect.token, True, now)
    node.take_effects()


def bodies(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at + _FRAME.size < len(data):
        length, sender = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        found.append((sender, data[at : at + length]))
        at += length
    return found


def packed(those: list[tuple[int, bytes]]) -> bytes:
    return b"".join(_FRAME.pack(len(body) & 0xFFFF, sender) + body for sender, body in those)


def mutate(data: bytes, random: Random) -> bytes:
    """One datagram left out, doubled, moved, said by the other, or changed inside."""
    those = bodies(data[1:])
    if not those:
        return damage(data, random)
    at = random.randrange(len(those))
    sender, body = those[at]
    match random.randrange(8):
        case 0:
            del those[at]
        case 1:
            those.insert(random.randrange(len(those) + 1), those[at])
        case 2:
            those[at] = (random.randrange(8), body)
        case 3:
            those.insert(at, (random.randrange(8), random.choice(_said())))
        case _ if body[:1] >= bytes([MessageType.INSTALL]):
            those[at] = (
                sender,
                body[: wire.STRUCTURE.size] + change_packed(body[wire.STRUCTURE.size :], random),
            )
        case _:
            those[at] = (sender, damage(body, random))
    return data[:1] + packed(those)


@cache
def _said() -> list[bytes]:
    """All kinds of datagrams."""
    return [*datagrams.bodies(), *epochs.seeds(), *beats(), *traffic(), messages.encode_install(first())]


@cache
def beats() -> list[bytes]:
    """Heartbeats of a member: of the epoch in force, that suspects, of the next epoch, and while forming."""
    history = history_numbers(epochs.HISTORY)
    beat = Heartbeat(
        0, 3, 1 << 20, _BUFFER_BYTES, 1500, *history, 0, 0, 0, 0, 5, 12, 11, 10, 9, 0, 0, 0x2002,
        [(1, 0x1001), (2, 0x1002), (3, 0x1003)],
    )  # fmt: skip
    forming = beat._replace(flags=4, epoch=0, last_index=0, held=0, commit=0, stable=0, last_packet=0)
    early = forming._replace(flags=0, epoch=1, last_index=1, held=1, commit=1, stable=1)
    suspects = early._replace(flags=32)
    made = [
        beat,
        beat._replace(flags=32),
        beat._replace(epoch=4),
        beat._replace(flags=4, epoch=0),
        forming,
        early,
        suspects,
    ]
    return [wire.encode_heartbeat(one) for one in made]


def seeds() -> Iterator[bytes]:
    hear = [(2, beats()[0]), (3, beats()[0])]
    yield b"\1" + packed(hear)
    for said in epochs.seeds():
        yield b"\1" + packed([*hear, (7, said)])
    early = beats()[4:]
    install = messages.encode_install(first())
    member = [(2, early[0]), (3, early[0]), (6, install), (2, early[1]), (7, early[1])]
    yield b"\0" + packed(member)
    for said in traffic():
        yield b"\0" + packed([*member, (6, said)])
    yield b"\0" + packed([*member, *((0, said) for said in traffic()[:2]), (6, early[2])])


@cache
def traffic() -> list[bytes]:
    """What members of ``first`` say: node 2 publishes, and orders (though node 1 is the sequencer)."""
    run = control.control_run(control.TopicCreate("t", False), 1)
    return [
        wire.DATA.pack(MessageType.DATA, 0, 0, 1) + run,
        wire.encode_order(Order(0, 1, 1 << 20, 2, 20, 1, 1, [(2, 1, 1)])),
        wire.RETRANSMIT.pack(MessageType.RETRANSMIT, 0, 0, 3, 0x1003, 1) + run,
        wire.encode_ack(0, 1, 2),
        wire.encode_nack(1, [Range(2, 5, 0x1002, 1), Range(0, 64, 0, 2), Range(1, 1, 0x1001, 1)]),
        wire.encode_config_request(0),
    ]


TARGET: Final = Target(
    check,
    seeds,
    (
        "protocol/node.py", "protocol/recovery.py", "protocol/initiative.py", "protocol/installation.py",
        "protocol/proposer.py", "protocol/judgement.py", "protocol/data_plane.py", "protocol/joining.py",
    ),
    mutate,
    most_bytes=4096,
)  # fmt: skip
