"""Filters as a program's library sends them to its agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fuzz.mutation import packed_behind
from fuzz.target import Target, taken, well_formed
from fuzz.targets import filter_text
from ocfcluster.errors import FilterError
from ocfcluster.limits import FILTER_BYTES
from ocfcluster.wire.filter import decode_filter, encode_filter, filter_fault
from ocfcluster.wire.filter_text import parse_filter


def check(data: bytes) -> None:
    found = well_formed(decode_filter, data)
    if found is None:
        return
    assert not filter_fault(found)
    encoded = encode_filter(found)
    assert len(encoded) <= FILTER_BYTES
    assert decode_filter(encoded) == found
    written = taken(FilterError, parse_filter, str(found))  # too long, or too deep, as text
    filter_text.ask(found, found if written is None else written)


def seeds() -> Iterator[bytes]:
    for text in filter_text.seeds():
        found = taken(FilterError, parse_filter, text.decode())
        if found is not None:
            yield encode_filter(found)
    yield b"\x92\x07" * 1010 + b"\x92\x03\xa1a"  # "not not not ... present(a)"


TARGET: Final = Target(check, seeds, ("wire/filter.py",), packed_behind(0))
