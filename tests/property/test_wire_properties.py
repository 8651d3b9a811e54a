"""Properties: one encoding per table, codec ≡ declaration, and no bytes that surprise the decoder."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster.errors import InvalidArgument, Malformed
from ocfcluster.limits import PROPERTIES_BYTES, PROPERTY_COUNT, PROPERTY_KEY_BYTES, PROPERTY_VALUE_BYTES
from ocfcluster.wire.properties import decode_properties, encode_properties
from ocfcluster.wire.schema.events import PROPERTIES
from tests.property.wire_helpers import PROPERTY_TABLES, damaged, damages, taken

ENCODED = PROPERTY_TABLES.map(encode_properties)


def declared(data: bytes, compiled: bool) -> dict[str, str]:
    fields = PROPERTIES.parse(data, compiled=compiled)
    return {entry.key.decode(): entry.value.decode() for entry in fields.entries}


@given(PROPERTY_TABLES)
def test_table_comes_back(table: dict[str, str]) -> None:
    encoded = encode_properties(table)
    assert decode_properties(encoded) == table
    assert decode_properties(memoryview(b"x" + encoded)[1:]) == table
    assert list(decode_properties(encoded)) == sorted(table, key=str.encode)


@given(PROPERTY_TABLES, st.randoms(use_true_random=False))
def test_equal_tables_are_equal_bytes(table: dict[str, str], chance: object) -> None:
    items = list(table.items())
    chance.shuffle(items)  # type: ignore[attr-defined]
    assert encode_properties(dict(items)) == encode_properties(table)


@pytest.mark.parametrize("compiled", [False, True])
@given(table=PROPERTY_TABLES)
def test_codec_equals_declaration(table: dict[str, str], compiled: bool) -> None:
    encoded = encode_properties(table)
    assert declared(encoded, compiled) == table
    assert PROPERTIES.build(PROPERTIES.parse(encoded), compiled=compiled) == encoded


def agree_about(data: bytes) -> None:
    table = taken(decode_properties, data)
    assert (
        table == taken(lambda one: declared(one, False), data) == taken(lambda one: declared(one, True), data)
    )
    if table is not None:
        assert encode_properties(table) == data


@pytest.mark.parametrize("table", [{}, {"a": ""}, {"é": "ü\0", "k": "v"}, {"a": "1", "b": "2", "c": "3"}])
def test_every_damage_is_malformed_or_another_table_of_its_own(table: dict[str, str]) -> None:
    for data in damages(encode_properties(table)):
        agree_about(data)


@settings(max_examples=200)
@given(damaged(ENCODED) | st.binary(max_size=64))
def test_codec_and_declaration_take_the_same_bytes(data: bytes) -> None:
    agree_about(data)


@pytest.mark.parametrize(("table", "allowed"), [
    ({"": "v"}, str(PROPERTY_KEY_BYTES)),
    ({"k" * 65: "v"}, str(PROPERTY_KEY_BYTES)),
    ({"é" * 33: "v"}, str(PROPERTY_KEY_BYTES)),
    ({"a\0b": "v"}, "without NUL"),
    ({"k": "v" * 1025}, str(PROPERTY_VALUE_BYTES)),
    ({"k": "é" * 513}, str(PROPERTY_VALUE_BYTES)),
    ({"\udcff": "v"}, "UTF-8"),
    ({"k": "\udcff"}, "UTF-8"),
    ({str(n): "" for n in range(33)}, str(PROPERTY_COUNT)),
    ({str(n): "v" * 1024 for n in range(4)}, str(PROPERTIES_BYTES)),
    ({1: "v"}, "must be str"),
    ({b"k": "v"}, "must be str"),
    ({"k": 1}, "must be str"),
    ({"k": None}, "must be str"),
])  # fmt: skip
def test_message_says_what_is_allowed(table: dict[str, str], allowed: str) -> None:
    with pytest.raises(InvalidArgument, match=allowed):
        encode_properties(table)


def test_tables_at_every_bound_are_allowed() -> None:
    for table in (
        {"k" * PROPERTY_KEY_BYTES: "v" * PROPERTY_VALUE_BYTES},
        {f"{n:02}": "" for n in range(PROPERTY_COUNT)},
        {**{str(n): "v" * 1024 for n in range(3)}, "3": "v" * (PROPERTIES_BYTES - 1 - 3 * 1028 - 4)},
    ):
        assert decode_properties(encode_properties(table)) == table


@pytest.mark.parametrize("data", [
    b"\0", b"\1", b"\x21" + b"\0" * 100, b"\1\0\0\0", b"\1\1\0\0", b"\1\1\0\0a!", b"\2\1\0\0b\1\0\0a",
    b"\2\1\0\0a\1\0\0a", b"\1\1\0\0\0", b"\1\1\0\0\xff", b"\1\1\1\0a\xff", b"\1\1\xff\xffa",
    bytes(PROPERTIES_BYTES + 1),
])  # fmt: skip
def test_bytes_that_no_encoder_makes(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_properties(data)
    agree_about(data)
