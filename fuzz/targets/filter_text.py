"""Filters as text: what is taken means the same after a way through text and through bytes."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from fuzz.mutation import damage
from fuzz.target import Target
from ocfcluster.errors import FilterError, InvalidArgument
from ocfcluster.limits import FILTER_CACHE_ENTRIES, FILTER_TEXT_BYTES
from ocfcluster.wire.filter import Filter, Predicate, decode_filter, encode_filter, filter_fault
from ocfcluster.wire.filter_text import parse_filter
from ocfcluster.wire.properties import encode_properties

TABLES: Final = [
    encode_properties(one)
    for one in ({}, {"a": "x"}, {"a": "xy", "b": ""}, {"zone": "eu-1", "severity": "high"}, {"é": "\u2028"})
]
_WORDS: Final = (
    b"and", b"or", b"not", b"(", b")", b"present(a)", b"from_node(1)", b"from_node(99999999999999999999)", b"a",
    b"==", b"!=", b"startswith", b'"x"', b"'xy'", b'"\\n\\t\\"\\\\"', b'a == "x"', b"zone startswith 'eu-'", b'"',
    b"((((((((((((((((", b"not not not", b"=", b"\xed\xa0\x80", "\u00e9".encode(),
)  # fmt: skip


def check(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")  # as arguments of a program come
    try:
        found = parse_filter(text)
    except FilterError as error:
        point_at(error, text)
        return
    assert not filter_fault(found)
    again = parse_filter(str(found))
    assert again == found
    try:
        encoded = encode_filter(found)
    except InvalidArgument:
        return  # beyond FILTER_BYTES
    assert decode_filter(encoded) == found
    ask(found, decode_filter(encoded))


def point_at(error: FilterError, text: str) -> None:
    assert 0 <= error.position <= max(len(text), FILTER_TEXT_BYTES)
    assert error.pointer().count("\n") == 1


def ask(one: Filter, other: Filter) -> None:
    """Both let the same runs through."""
    first, second = Predicate(one), Predicate(other)
    for node_id in (0, 1):
        for table in TABLES:
            assert first(table, node_id) is second(table, node_id)
    first(b"\1\1", 0)  # properties that are none
    assert len(first._known) <= FILTER_CACHE_ENTRIES


def mutate(data: bytes, random: Random) -> bytes:
    words = data.split(b" ")
    at = random.randrange(len(words))
    match random.randrange(5):
        case 0:
            del words[at]
        case 1:
            words[at] = damage(words[at], random)
        case 2:
            words[at:at] = words[: random.randrange(12)]
        case 3:
            words[at] = random.choice(_WORDS)
        case _:
            words.insert(at, random.choice(_WORDS))
    return b" ".join(words)


def seeds() -> Iterator[bytes]:
    yield b'a == "x"'
    yield b'severity == "high" and not present(test) and zone startswith "eu-"'
    yield b"from_node(3) or (present('odd key') and a != 'x')"
    yield b'not (a == "1" or not b == "\\n\\\\")'
    yield b"not " * 33 + b"present(a)"
    yield b"(" * 33
    yield b" or ".join(b"present(a%d)" % number for number in range(65))


TARGET: Final = Target(check, seeds, ("wire/filter_text.py", "wire/filter.py"), mutate, most_bytes=1024)
