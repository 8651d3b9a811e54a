"""Operands of control runs: the ordered commands of the replicated state.

A control run is a run of one publication; its ``producer`` field is 0 and its ``first_number`` is a token by which
its origin knows it again (unique within an incarnation). Its data is one structure below as a MessagePack array.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ocfcluster.errors import MalformedRun
from ocfcluster.wire.run import RunHeader, RunKind, build_run, run_events


class Operand(msgspec.Struct, array_like=True, frozen=True):
    """Base of the operands below."""


class Open(Operand, frozen=True):
    """A new producer of the origin's node."""


class Close(Operand, frozen=True):
    producer: int


class TopicCreate(Operand, frozen=True):
    name: str
    local: bool


class TopicRemove(Operand, frozen=True):
    name: str


class Barrier(Operand, frozen=True):
    """Orders nothing."""


_DECODERS: Final[dict[RunKind, msgspec.msgpack.Decoder[Any]]] = {
    RunKind.OPEN: msgspec.msgpack.Decoder(Open),
    RunKind.CLOSE: msgspec.msgpack.Decoder(Close),
    RunKind.TOPIC_CREATE: msgspec.msgpack.Decoder(TopicCreate),
    RunKind.TOPIC_REMOVE: msgspec.msgpack.Decoder(TopicRemove),
    RunKind.BARRIER: msgspec.msgpack.Decoder(Barrier),
}
_KIND_OF: Final = {
    Open: RunKind.OPEN,
    Close: RunKind.CLOSE,
    TopicCreate: RunKind.TOPIC_CREATE,
    TopicRemove: RunKind.TOPIC_REMOVE,
    Barrier: RunKind.BARRIER,
}
_encode: Final = msgspec.msgpack.Encoder().encode


def control_run(operand: Operand, token: int, time_ns: int = 0) -> bytes:
    """The run that carries ``operand`` into the order."""
    return build_run(_KIND_OF[type(operand)], 0, 0, token, [_encode(operand)], time_ns=time_ns)


def read_operand(run: bytes, header: RunHeader) -> Operand:
    """The operand of a checked control run. Raises MalformedRun."""
    decoder = _DECODERS.get(RunKind(header.kind))
    if decoder is None:
        raise MalformedRun(f"runs of kind {header.kind} carry no operand")
    try:
        operand: Operand = decoder.decode(next(run_events(run, header)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRun(f"operand of a run of kind {header.kind}: {error}") from None
    return operand
