"""What the order does to the replicated state: commands and publications of two nodes, whatever is in them.

An input is runs back to back, each with its own length; node and kind are chosen by the bytes that a run does not use
(``flags``, made 0). All of it goes into a state, and the state through a snapshot's image.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from fuzz.mutation import framed
from fuzz.target import Target, well_formed
from fuzz.targets.epochs import configuration
from fuzz.targets.runs import mended, publications
from ocfcluster import limits
from ocfcluster.protocol.effects import Item
from ocfcluster.protocol.state import FIRST_TOPIC_ID, ReplicatedState, StateImage, restored_state, state_image
from ocfcluster.wire import control
from ocfcluster.wire.group import LeaveReason
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import HEADER, RunKind, build_run, check_run
from ocfcluster.wire.topics import Access, Retention, TopicSettings

MOST_RUNS: Final = 32
_START_NS: Final = 1000


def check(data: bytes) -> None:
    state = ReplicatedState(configuration())
    items: list[Item] = []
    state.view(configuration(), items)
    at = 0
    for number in range(MOST_RUNS):
        if len(data) - at < HEADER.size:
            break
        (length,) = struct.unpack_from("<I", data, at)
        end = min(len(data), at + max(length, HEADER.size))
        run = data[at:end]
        node_id = 1 + (run[6] & 1)
        run = mended(run[:6] + b"\0\0" + run[8:])
        at = end
        if well_formed(check_run, run) is None:
            continue
        before = state.ev_id, state.position
        state.apply(run, node_id, 0x1000 + node_id, _START_NS + number, node_id == 1, items)
        assert state.position == before[1] + 1
        assert state.ev_id >= before[0]
    if state.position:
        bounded(state)


def bounded(state: ReplicatedState) -> None:
    assert len(state.topics.by_id) == len(state.topics.by_name) <= limits.TOPICS
    assert len(state.groups.by_id) <= limits.GROUPS
    assert len(state.producers) <= 2 * limits.PRODUCERS_PER_NODE
    assert state.retained.bytes <= limits.RETAINED_BYTES
    assert len(state.node_table.votes) <= limits.NODES
    encoded = msgspec.msgpack.encode(state_image(state))
    image = msgspec.msgpack.decode(encoded, type=StateImage)
    again = restored_state(image)
    blobs = iter(state.retained.taken().blobs())
    again.retained.restore(image.retained, lambda _: next(blobs), again.last_seq)
    assert msgspec.msgpack.encode(state_image(again)) == encoded


def seeds() -> Iterator[bytes]:
    keeping = TopicSettings(Retention(10, 0, 0), Access(("user:a",), ("*",), ()))
    topic = [
        control.control_run(control.TopicCreate("t", False, keeping), 1),
        control.control_run(control.Open(), 2),
        build_run(RunKind.PUBLICATION, FIRST_TOPIC_ID, _producer(2), 1, [b"a", b"bb"]),
        build_run(RunKind.PUBLICATION, FIRST_TOPIC_ID, _producer(2), 3, [b"c"] * 3),
    ]
    yield b"".join(topic)
    yield b"".join((
        *topic,
        build_run(RunKind.PUBLICATION, FIRST_TOPIC_ID, _producer(2), 2, [b"again"] * 3),
        control.control_run(control.TopicAlter("t", TopicSettings(Retention(0, 600, 1))), 3),
        control.control_run(control.TopicRemove("t"), 4),
        control.control_run(control.Close(_producer(2)), 5),
    ))  # fmt: skip
    to = encode_properties({"oc.to": "2"})
    yield b"".join((
        control.control_run(control.GroupOpen("group:g"), 1),
        control.control_run(control.GroupJoin("group:g", 77), 2),
        control.control_run(control.Open(), 3),
        build_run(RunKind.PUBLICATION, 2**31, _producer(3), 1, [b"x" * 24], properties=to),
        control.control_run(control.GroupLeave("group:g", 2, LeaveReason.LEFT), 4),
    ))  # fmt: skip
    yield b"".join((
        control.control_run(control.NodeAdd(4, 1), 1),
        control.control_run(control.NodeVotes(4, 0), 2),
        control.control_run(control.NodeRemove(4), 3),
        control.control_run(control.Sequence(2), 4),
        control.control_run(control.Barrier(), 5),
        control.control_run(control.Shutdown(), 6),
    ))  # fmt: skip
    yield b"".join(publications())


def _producer(position: int) -> int:
    """The id that an Open at this position gets, in ``configuration()``."""
    state = ReplicatedState(configuration())
    items: list[Item] = []
    state.view(configuration(), items)
    for _ in range(position - 1):
        state.apply(control.control_run(control.Barrier(), 1), 1, 0x1001, 1, True, items)
    state.apply(control.control_run(control.Open(), 1), 1, 0x1001, 1, True, items)
    return next(iter(state.producers))


TARGET: Final = Target(
    check,
    seeds,
    (
        "protocol/state.py",
        "protocol/groups.py",
        "protocol/retention.py",
        "protocol/group_commands.py",
        "wire/control.py",
    ),
    framed(HEADER, 0, whole=True),
    most_bytes=4096,
)
