"""User properties: one table has one encoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fuzz.target import Target, well_formed
from ocfcluster.limits import PROPERTIES_BYTES, PROPERTY_COUNT
from ocfcluster.wire.properties import decode_properties, encode_properties, split_properties


def check(data: bytes) -> None:
    found = well_formed(decode_properties, data)
    if found is not None:
        assert len(found) <= PROPERTY_COUNT
        assert len(data) <= PROPERTIES_BYTES
        assert encode_properties(found) == data
    pieces = well_formed(split_properties, memoryview(data))
    assert found is None or pieces is not None


def seeds() -> Iterator[bytes]:
    yield b""
    yield encode_properties({"a": "x"})
    yield encode_properties({"severity": "high", "zone": "eu-1", "é": "\0"})
    yield encode_properties({f"k{number:02}": "v" for number in range(PROPERTY_COUNT)})
    yield encode_properties({"k" * 64: "v" * 1024})


TARGET: Final = Target(check, seeds, ("wire/properties.py",))
