"""Operands of control runs: the ordered commands of the replicated state.

A control run is a run of one publication; its ``producer`` field is 0 and its ``first_number`` is a token by which
its origin knows it again (unique within an incarnation). Its data is one structure below as a MessagePack array, in
the one encoding that ``control_run`` makes: every node must take or refuse the same bytes, so nothing is left to a
decoder's tolerance. A later version's operand is another kind, or comes with the configuration's version.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ocfcluster.errors import InvalidArgument, MalformedRun
from ocfcluster.limits import GROUP_PREFIX, NODE_ID_MOST, RUN_HEADER_BYTES, TOPIC_NAME_BYTES, VOTES_MOST
from ocfcluster.wire.group import LeaveReason
from ocfcluster.wire.run import RunHeader, RunKind, build_run
from ocfcluster.wire.topics import DEFAULT_SETTINGS, TopicSettings, settings_fault


class Operand(msgspec.Struct, array_like=True, frozen=True, repr_omit_defaults=True):
    """Base of the operands below."""


class Open(Operand, frozen=True):
    """A new producer of the origin's node."""


class Close(Operand, frozen=True):
    producer: int


class TopicCreate(Operand, frozen=True):
    """A topic, if there is none of that name; one with the same scope and settings is as good.

    With default settings any settings of a topic that exists are as good.
    """

    name: str
    local: bool
    settings: TopicSettings = DEFAULT_SETTINGS


class TopicAlter(Operand, frozen=True):
    """Other settings for a topic, from this place in the order on."""

    name: str
    settings: TopicSettings


class TopicRemove(Operand, frozen=True):
    name: str


class Barrier(Operand, frozen=True):
    """Orders nothing."""


class NodeAdd(Operand, frozen=True):
    """A node enters the node table; it may join from then on."""

    node_id: int
    votes: int


class NodeRemove(Operand, frozen=True):
    node_id: int


class NodeVotes(Operand, frozen=True):
    node_id: int
    votes: int


class Sequence(Operand, frozen=True):
    """The member ``node_id`` is to be the sequencer, as long as it is a member."""

    node_id: int


class Shutdown(Operand, frozen=True):
    """All members stop."""


class GroupOpen(Operand, frozen=True):
    """The group of this name (``group:NAME``) has a topic id from here on."""

    name: str


class GroupJoin(Operand, frozen=True):
    """A process of the origin's node becomes a member; its id is the ev_id that the JOIN gets."""

    name: str
    pid: int


class GroupLeave(Operand, frozen=True):
    """A member of the origin's node is none any more. ``reason``: LEFT or DIED of ``group.LeaveReason``."""

    name: str
    member: int
    reason: int


_DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Any]]] = {
    RunKind.OPEN: msgspec.msgpack.Decoder(Open),
    RunKind.CLOSE: msgspec.msgpack.Decoder(Close),
    RunKind.TOPIC_CREATE: msgspec.msgpack.Decoder(TopicCreate),
    RunKind.TOPIC_ALTER: msgspec.msgpack.Decoder(TopicAlter),
    RunKind.TOPIC_REMOVE: msgspec.msgpack.Decoder(TopicRemove),
    RunKind.BARRIER: msgspec.msgpack.Decoder(Barrier),
    RunKind.NODE_ADD: msgspec.msgpack.Decoder(NodeAdd),
    RunKind.NODE_REMOVE: msgspec.msgpack.Decoder(NodeRemove),
    RunKind.NODE_VOTES: msgspec.msgpack.Decoder(NodeVotes),
    RunKind.SEQUENCE: msgspec.msgpack.Decoder(Sequence),
    RunKind.SHUTDOWN: msgspec.msgpack.Decoder(Shutdown),
    RunKind.GROUP_OPEN: msgspec.msgpack.Decoder(GroupOpen),
    RunKind.GROUP_JOIN: msgspec.msgpack.Decoder(GroupJoin),
    RunKind.GROUP_LEAVE: msgspec.msgpack.Decoder(GroupLeave),
}
_KIND_OF: Final = {
    Open: RunKind.OPEN,
    Close: RunKind.CLOSE,
    TopicCreate: RunKind.TOPIC_CREATE,
    TopicAlter: RunKind.TOPIC_ALTER,
    TopicRemove: RunKind.TOPIC_REMOVE,
    Barrier: RunKind.BARRIER,
    NodeAdd: RunKind.NODE_ADD,
    NodeRemove: RunKind.NODE_REMOVE,
    NodeVotes: RunKind.NODE_VOTES,
    Sequence: RunKind.SEQUENCE,
    Shutdown: RunKind.SHUTDOWN,
    GroupOpen: RunKind.GROUP_OPEN,
    GroupJoin: RunKind.GROUP_JOIN,
    GroupLeave: RunKind.GROUP_LEAVE,
}
_encode: Final = msgspec.msgpack.Encoder().encode


def kind_of(operand: Operand) -> RunKind:
    return _KIND_OF[type(operand)]


def control_run(operand: Operand, token: int, time_ns: int = 0) -> bytes:
    """The run that carries ``operand`` into the order. Raises InvalidArgument for what no node would take."""
    try:
        encoded = _encode(operand)
    except (UnicodeEncodeError, OverflowError) as error:
        raise InvalidArgument(f"{operand!r:.200}: {error}") from None
    fault = _fault(operand)
    if fault:
        raise InvalidArgument(fault)
    return build_run(kind_of(operand), 0, 0, token, [encoded], time_ns=time_ns)


def read_operand(run: bytes, header: RunHeader) -> Operand:
    """The operand of a checked control run. Raises MalformedRun."""
    decoder = _DECODERS.get(header.kind)
    if decoder is None:
        raise MalformedRun(f"runs of kind {header.kind} carry no operand")
    encoded = run[RUN_HEADER_BYTES:]
    try:
        operand: Operand = decoder.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRun(f"operand of a run of kind {header.kind}: {error}") from None
    fault = _fault(operand)
    if fault or _encode(operand) != encoded:
        raise MalformedRun(f"operand of a run of kind {header.kind}: {fault or 'not its one encoding'}")
    return operand


def _fault(operand: Operand) -> str:
    """What is wrong with the values of ``operand``; empty: nothing."""
    if isinstance(operand, Close) and operand.producer < 0:
        return f"producer {operand.producer}; only numbers from 0 on are allowed"
    if (
        isinstance(operand, NodeAdd | NodeRemove | NodeVotes | Sequence)
        and not 1 <= operand.node_id <= NODE_ID_MOST
    ):
        return f"node {operand.node_id}; 1 to {NODE_ID_MOST} are allowed"
    if isinstance(operand, NodeAdd | NodeVotes) and not 0 <= operand.votes <= VOTES_MOST:
        return f"votes {operand.votes}; 0 to {VOTES_MOST} are allowed"
    if isinstance(operand, TopicCreate | TopicAlter | TopicRemove | GroupOpen | GroupJoin | GroupLeave):
        name = operand.name
        if not 1 <= len(name.encode()) <= TOPIC_NAME_BYTES or "\0" in name:
            return f"topic {name!r:.80}: 1 to {TOPIC_NAME_BYTES} bytes of UTF-8 without NUL are allowed"
    if isinstance(operand, TopicCreate | TopicAlter):
        return settings_fault(operand.settings)
    if isinstance(operand, GroupOpen | GroupJoin | GroupLeave):
        return _group_fault(operand)
    return ""


def _group_fault(operand: GroupOpen | GroupJoin | GroupLeave) -> str:
    if not operand.name.startswith(GROUP_PREFIX) or operand.name == GROUP_PREFIX:
        return f"group {operand.name!r:.80}: a group's topic is {GROUP_PREFIX}NAME"
    if isinstance(operand, GroupJoin) and not 0 <= operand.pid < 2**32:
        return f"process {operand.pid}; 32 bits are allowed, 0 for unknown"
    if isinstance(operand, GroupLeave) and (
        operand.reason not in (LeaveReason.LEFT, LeaveReason.DIED) or not 0 < operand.member < 2**63
    ):
        return f"member {operand.member} leaves for reason {operand.reason}"
    return ""
