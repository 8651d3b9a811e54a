"""What the tests of formats share: ways to damage bytes, and what a reader may make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from ocfcluster.errors import Malformed
from ocfcluster.limits import PROPERTY_KEY_BYTES, PROPERTY_VALUE_BYTES, TOPIC_NAME_BYTES

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def text(least: int, most: int, *, nul: bool = False) -> st.SearchStrategy[str]:
    """Texts of ``least`` to ``most`` bytes of UTF-8."""
    alphabet = st.characters(codec="utf-8", exclude_characters="" if nul else "\0")
    return st.text(alphabet, min_size=least, max_size=most).filter(lambda one: len(one.encode()) <= most)


TOPIC_NAMES = (
    text(1, 12) | text(TOPIC_NAME_BYTES // 4, TOPIC_NAME_BYTES // 4) | st.just("n" * TOPIC_NAME_BYTES)
)
PROPERTY_TABLES = st.dictionaries(
    text(1, 6) | st.just("k" * PROPERTY_KEY_BYTES),
    text(0, 12, nul=True) | st.just("v" * PROPERTY_VALUE_BYTES),
    max_size=4,
).filter(lambda table: sum(len(v) for v in table.values()) < 3 * PROPERTY_VALUE_BYTES)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damages(data: bytes) -> Iterator[bytes]:
    """Every truncation, every single bit flip, and a byte too many."""
    for length in range(len(data)):
        yield data[:length]
    for bit in range(8 * len(data)):
        yield flipped(data, bit)
    yield data + b"\0"
    yield data + b"\1"


@st.composite
def damaged(draw: st.DrawFn, sources: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of ``sources`` after up to three flips, cuts and repetitions."""
    data = draw(sources)
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        kind = draw(st.sampled_from(["flip", "cut", "insert", "set"]))
        at = draw(st.integers(0, len(data) - 1))
        if kind == "flip":
            data = flipped(data, 8 * at + draw(st.integers(0, 7)))
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
        else:
            data = data[:at] + bytes((draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])),)) + data[at + 1 :]
    return data


def taken(reader: Callable[[bytes], Any], data: bytes, error: type[Malformed] = Malformed) -> Any:
    """What ``reader`` makes of ``data``, None where it raises ``error``; any other exception fails the test."""
    try:
        return reader(data)
    except error:
        return None
