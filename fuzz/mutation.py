"""Ways to change inputs that keep what a parser checks first: lengths, and the grammar of MessagePack.

Without atheris, ``damage`` stands for what libFuzzer does to bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec

NUMBERS: Final = (
    0, 1, 2, 3, 4, 7, 8, 16, 64, 255, 256, 1023, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32,
    2**61, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1, -1, -(2**31), -(2**63),
)  # fmt: skip
TEXTS: Final = (
    "",
    "\0",
    "a",
    "group:",
    "group:g",
    "oc.membership",
    "*",
    "0" * 32,
    "n" * 255,
    "n" * 256,
    "é\u2028",
)
STRANGE: Final[tuple[Any, ...]] = (None, True, False, 1.5, b"", b"\0" * 16, [], {}, [[]], {1: 1}, {"": None})
DEEP: Final = 1500  # more than Python's recursion takes

Mutate = Callable[[bytes, Random], bytes]


def damage(data: bytes, random: Random) -> bytes:
    """One to three changes of bytes: flipped, cut out, put in, repeated, a number set to one at an edge."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(changed) + 1)
        size = random.choice((1, 1, 2, 4, 8))
        match random.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 1:
                del changed[at : at + random.choice((1, size, 16))]
            case 2:
                changed[at:at] = random.randbytes(size)
            case 3:
                changed[at:at] = changed[at : at + random.choice((size, 16, 64))]
            case 4:
                del changed[at:]
            case _:
                edge = random.choice(NUMBERS) & (1 << 8 * size) - 1
                changed[at : at + size] = edge.to_bytes(size, "little")
    return bytes(changed)


def change_tree(tree: Any, random: Random) -> Any:
    """A tree of plain values with one of them changed, left out, doubled, or of another kind."""
    if isinstance(tree, list) and tree and random.random() < 0.9:
        changed = list(tree)
        at = random.randrange(len(changed))
        match random.randrange(12):
            case 0:
                del changed[at]
            case 1:
                changed.insert(at, changed[random.randrange(len(changed))])
            case 2:
                changed.append(scalar(random))
            case 3:
                other = random.randrange(len(changed))
                changed[at], changed[other] = changed[other], changed[at]
            case _:
                changed[at] = change_tree(changed[at], random)
        return changed
    if isinstance(tree, dict) and tree and random.random() < 0.9:
        key = random.choice(list(tree))
        changed_map = dict(tree)
        value = changed_map.pop(key)
        match random.randrange(4):
            case 0:
                pass
            case 1:
                changed_map[random.choice(NUMBERS)] = value
            case _:
                changed_map[key] = change_tree(value, random)
        return changed_map
    if isinstance(tree, bool):
        return not tree
    if isinstance(tree, int) and random.random() < 0.9:
        return random.choice((tree + 1, tree - 1, tree ^ 1 << random.randrange(32), random.choice(NUMBERS)))
    if isinstance(tree, str) and random.random() < 0.9:
        return random.choice((tree + "x", tree[:-1], tree[::-1], random.choice(TEXTS)))
    if isinstance(tree, bytes) and random.random() < 0.9:
        return damage(tree, random)
    return scalar(random)


def scalar(random: Random) -> Any:
    return random.choice((random.choice(NUMBERS), random.choice(TEXTS), random.choice(STRANGE)))


def change_packed(encoded: bytes, random: Random) -> bytes:
    """MessagePack with one value of it changed; bytes that are none are damaged."""
    if random.random() < 0.002:
        return b"\x91" * DEEP + b"\x90"
    try:
        return msgspec.msgpack.encode(change_tree(msgspec.msgpack.decode(encoded), random))
    except (msgspec.DecodeError, UnicodeError, OverflowError, TypeError, ValueError, RecursionError):
        return damage(encoded, random)


def packed_behind(head_bytes: int) -> Mutate:
    """For inputs of ``head_bytes`` and MessagePack behind them."""

    def mutate(data: bytes, random: Random) -> bytes:
        if len(data) <= head_bytes or random.random() < 0.1:
            return damage(data, random)
        return data[:head_bytes] + change_packed(data[head_bytes:], random)

    return mutate


def framed(header: struct.Struct, lead_bytes: int, *, whole: bool = False, packed: bool = True) -> Mutate:
    """For inputs of ``lead_bytes`` and frames behind them: a header that begins with the length u32 of what follows
    it (``whole``: of both), then mostly MessagePack. One frame changes and gets its right length again."""

    def mutate(data: bytes, random: Random) -> bytes:
        lead, frames = data[:lead_bytes], split_frames(data[lead_bytes:], header, whole)
        if not frames:
            return damage(data, random)
        at = random.randrange(len(frames))
        head, body = frames[at]
        match random.randrange(8):
            case 0:
                return damage(data, random)
            case 1:
                del frames[at]
            case 2:
                frames.insert(random.randrange(len(frames) + 1), frames[at])
            case 3:
                frames[at] = (head[:4] + damage(head[4:], random), body)
            case _:
                frames[at] = (head, change_packed(body, random) if packed else damage(body, random))
        return lead + b"".join(
            (len(body) + whole * header.size).to_bytes(4, "little")
            + (head[4:] + bytes(header.size))[: header.size - 4]
            + body
            for head, body in frames
        )

    return mutate


def split_frames(data: bytes, header: struct.Struct, whole: bool = False) -> list[tuple[bytes, bytes]]:
    """Frames as (header, body), as far as their lengths lead."""
    frames = []
    at = 0
    while at + header.size <= len(data):
        body = at + header.size
        end = min(len(data), (at if whole else body) + int.from_bytes(data[at : at + 4], "little"))
        end = max(end, body)
        frames.append((data[at:body], data[body:end]))
        at = end
    return frames
