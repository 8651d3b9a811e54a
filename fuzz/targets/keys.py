"""Key files, read as an agent reads them; a refusal never repeats what may be a secret."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Final

from fuzz.mutation import damage
from fuzz.target import Target
from ocfcluster.agent.keys import read_key_file
from ocfcluster.errors import ConfigurationError
from ocfcluster.limits import KEYS
from ocfcluster.wire.keys import ClusterKey, key_text, parse_keys

_SECRETS: Final = [bytes(range(first, first + 32)) for first in (0, 40, 80, 120, 160)]


@cache
def memory_file(name: str) -> int:
    """A file that is in memory alone, of this user alone."""
    descriptor = os.memfd_create(name)
    os.fchmod(descriptor, 0o600)
    return descriptor


def written(name: str, content: bytes) -> str:
    """The path of a file in memory that holds ``content``."""
    descriptor = memory_file(name)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    return f"/proc/self/fd/{descriptor}"


def check(data: bytes) -> None:
    path = written("keys", data)
    try:
        keys = read_key_file(path)
    except ConfigurationError as error:
        said = str(error)
        lines = data.decode(errors="replace").splitlines()
        assert not any(len(line) > 20 and line in said for line in lines), "a refusal quotes the file"
        return
    assert 0 < len(keys) <= KEYS
    assert parse_keys(key_text(keys)) == keys
    assert all(key.encoded() not in repr(key) for key in keys)


def mutate(data: bytes, random: Random) -> bytes:
    """By lines: left out, doubled, exchanged for one that a key file may have."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    match random.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, random.choice(lines))
        case 2:
            lines[at] = damage(lines[at], random)
        case 3:
            lines[at] = ClusterKey(random.choice(_SECRETS)).encoded().encode()
        case _:
            lines.insert(
                at, random.choice((b"ocfcluster-keys 1", b"ocfcluster-keys 2", b"# x", b"", b"AA==", b"\r"))
            )
    return b"\n".join(lines)


def seeds() -> Iterator[bytes]:
    made = [ClusterKey(one) for one in _SECRETS]
    for count in (1, 2, 4, 5):
        yield key_text(made[:count]).encode()
    yield f"ocfcluster-keys 1\n{made[0].encoded()}\n{made[0].encoded()}\n".encode()
    yield b"ocfcluster-keys 1\n"
    yield b"ocfcluster-keys 1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"


TARGET: Final = Target(check, seeds, ("wire/keys.py", "agent/keys.py"), mutate)
