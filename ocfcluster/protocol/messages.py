"""The messages of an epoch change, and of who has which configuration: one datagram each.

Body: ``type u8, flags u8, 0 u16, epoch u32``, then the structure below as a MessagePack array. They are rare, so they
are typed structures and not fields packed by hand; a wrong one raises MalformedDatagram.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from ocfcluster.errors import MalformedDatagram
from ocfcluster.protocol.settings import Ballot, Configuration
from ocfcluster.wire.datagram import MessageType, decode_structure, encode_structure

HELD: Final = 0  # standing of a promiser: this incarnation is a member of C_e, and held its base
UNSYNCED: Final = 1  # this incarnation is a member, but below the base: it never counted in this epoch
LOST: Final = 2  # another incarnation, or a stranger's store: what this node held is gone


class Instance(NamedTuple):
    """The key of one decision: what follows epoch ``epoch`` of ``cluster_id``; ("", 0) is the bootstrap."""

    cluster_id: str
    epoch: int


BOOTSTRAP: Final = Instance("", 0)


class Message(msgspec.Struct, array_like=True, frozen=True):
    """Base of the messages below: each names its instance and ballot."""

    cluster_id: str
    epoch: int
    ballot: Ballot

    @property
    def instance(self) -> Instance:
        return Instance(self.cluster_id, self.epoch)


class Prepare(Message, frozen=True):
    """Asks for a promise. ``configuration`` is C_e, for who is behind; a bootstrap has ``acceptors`` instead:
    (node_id, store_id) of every node that must promise and accept, and the hash of what they must have alike."""

    configuration: Configuration | None
    acceptors: list[tuple[int, int]]
    table_hash: int


class Promise(Message, frozen=True):
    """The answer to a PREPARE. ``held`` where ``standing`` is HELD or UNSYNCED; the table and the sequencer wanted are
    what commands up to ``held`` have made of them (None, 0: as in C_e)."""

    store_id: int
    standing: int
    held: int
    order_time: int  # of the last entry held
    accepted_ballot: Ballot | None
    accepted: Configuration | None
    table: dict[int, int] | None
    wanted_sequencer: int
    resigned: bool  # it was the sequencer, and had resigned before it froze
    topics_index: int  # how far its topic table on disk reaches
    topics_digest: int
    freed: int = 0  # up to where it serves nobody any more; it frees nothing before the next view


class Reject(Message, frozen=True):
    """``ballot`` was refused: a higher one is promised."""

    promised: Ballot


class Sync(Message, frozen=True):
    """Members of ``configuration`` fetch up to its base, which ``source`` (a node_id) holds, and say SYNCED. Of a new
    history they fetch the topics it begins with."""

    configuration: Configuration
    source: int


class Synced(Message, frozen=True):
    """The sender holds the base, with the topic table at it on disk."""


class Accept(Message, frozen=True):
    configuration: Configuration


class Accepted(Message, frozen=True):
    """The sender has accepted, on disk."""

    store_id: int


_TYPES: Final[dict[type[Message], MessageType]] = {
    Prepare: MessageType.PREPARE,
    Promise: MessageType.PROMISE,
    Reject: MessageType.REJECT,
    Sync: MessageType.SYNC,
    Synced: MessageType.SYNCED,
    Accept: MessageType.ACCEPT,
    Accepted: MessageType.ACCEPTED,
}
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(message) for message, kind in _TYPES.items()}
_CONFIGURATION: Final = msgspec.msgpack.Decoder(Configuration)


def encode(message: Message) -> bytes:
    return encode_structure(_TYPES[type(message)], message.epoch, message)


def encode_install(configuration: Configuration) -> bytes:
    return encode_structure(MessageType.INSTALL, configuration.epoch, configuration)


def decode(datagram: bytes, kind: int) -> Message:
    """Raises MalformedDatagram."""
    epoch, message = _decode(datagram, _DECODERS[MessageType(kind)])
    if message.epoch != epoch:
        raise MalformedDatagram(f"{MessageType(kind).name} of two epochs")
    decoded: Message = message
    return decoded


def decode_install(datagram: bytes) -> Configuration:
    """Raises MalformedDatagram."""
    epoch, decoded = _decode(datagram, _CONFIGURATION)
    configuration: Configuration = decoded
    if configuration.epoch != epoch:
        raise MalformedDatagram("INSTALL of two epochs")
    return configuration


def _decode(datagram: bytes, decoder: msgspec.msgpack.Decoder[Any]) -> tuple[int, Any]:
    epoch, encoded = decode_structure(datagram)
    try:
        return epoch, decoder.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedDatagram(f"structure that cannot be read: {error}") from None
