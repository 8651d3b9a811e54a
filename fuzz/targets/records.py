"""The state directory: identity and record, read as at an agent's start; the record goes as far as a node.

An input is a switch u8, then a file: 0: the identity; 1: the record with its header; 2: a record's body, whose
header is put before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

from fuzz.mutation import change_packed, damage
from fuzz.target import Target, taken
from fuzz.targets.epochs import HISTORY, configuration
from ocfcluster.agent.state_dir import MAGIC, RECORD_HEADER, RECORD_VERSION, Identity, StateDirectory
from ocfcluster.errors import ConfigurationError, StateDirectoryError
from ocfcluster.protocol import Node
from ocfcluster.protocol.settings import Ballot, PaxosRecord, Record, Settings
from ocfcluster.protocol.store import Store
from ocfcluster.wire.topics import DEFAULT_SETTINGS, Access, Retention, TopicSettings

_CLUSTER, _NODE = "fuzz", 1
_IDENTITY, _HEADED, _BODY = range(3)


class Files:
    """A directory in memory, as far as a StateDirectory looks at it."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self._content = content

    def __truediv__(self, name: str) -> Files:
        return Files({"": self._content[name]} if name in self._content else {})

    def read_bytes(self) -> bytes:
        if "" not in self._content:
            raise FileNotFoundError
        return self._content[""]

    def exists(self) -> bool:
        return "" in self._content


def check(data: bytes) -> None:
    kind, file = data[:1], data[1:]
    if kind == bytes([_IDENTITY]):
        store_id = taken(StateDirectoryError, directory({"identity.json": file})._identity, _CLUSTER, _NODE)
        assert store_id is None or 0 <= store_id < 2**64
        return
    if kind == bytes([_BODY]):
        file = headed(file)
    body = taken(StateDirectoryError, directory({"record": file})._read_record)
    if body is None:
        return
    assert headed(body) == file
    store = taken(StateDirectoryError, Store, body)
    if store is not None:
        assert (
            not body
            or msgspec.msgpack.decode(msgspec.msgpack.encode(store.record), type=Record) == store.record
        )
        start(body)


def start(body: bytes) -> None:
    """A node that comes back to what its record says, and its first word."""
    settings = Settings(
        _CLUSTER, _NODE, 0x1001, 0x2001, 1, {1: 1, 2: 1, 3: 1}, receive_buffer_bytes=4 << 20, record=body
    )
    node = taken((StateDirectoryError, ConfigurationError), Node, settings, 10**9, 10**18)
    if node is not None:
        node.timer(2 * 10**9, 10**18)
        node.end_burst(2 * 10**9)
        node.take_effects()


def directory(files: dict[str, bytes]) -> StateDirectory:
    found = StateDirectory.__new__(StateDirectory)
    path: Path = Files(files)  # type: ignore[assignment]
    found.path = path
    return found


def headed(body: bytes) -> bytes:
    return RECORD_HEADER.pack(MAGIC, RECORD_VERSION, len(body), xxh3_64_intdigest(body)) + body


def mutate(data: bytes, random: Random) -> bytes:
    if data[:1] != bytes([_BODY]):
        return damage(data, random)
    return data[:1] + change_packed(data[1:], random)


def seeds() -> Iterator[bytes]:
    identity = Identity(1, _CLUSTER, _NODE, f"{0x2001:016x}")
    yield bytes([_IDENTITY]) + msgspec.json.encode(identity)
    yield bytes([_IDENTITY]) + msgspec.json.encode(Identity(2, "other", 7, "f" * 16))
    special = TopicSettings(Retention(10, 0, 60), Access(("user:a", "gid:7"), ("*",), ("uid:0",)))
    topics = [(16, "t", False, DEFAULT_SETTINGS), (17, "group:g", True, special)]
    promised = PaxosRecord(HISTORY, 3, Ballot(1, 1, 0x1001))
    accepted = PaxosRecord(HISTORY, 3, Ballot(2, 2, 0x1002), Ballot(2, 2, 0x1002), configuration(4))
    for record in (
        Record(None, [], 0, 0),
        Record(None, [], 0, 0, PaxosRecord("", 0, Ballot(1, 1, 0x1001))),
        Record(configuration(), topics, 18, 9),
        Record(configuration(), topics, 18, 9, promised),
        Record(configuration(), [], 16, 9, accepted),
    ):
        body = msgspec.msgpack.encode(record)
        yield bytes([_HEADED]) + headed(body)
        yield bytes([_BODY]) + body
    yield bytes([_BODY])


TARGET: Final = Target(
    check,
    seeds,
    ("agent/state_dir.py", "protocol/store.py", "protocol/node.py"),
    mutate,
)
