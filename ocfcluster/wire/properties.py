"""User properties: the small key/value texts that belong to every event of a run, and that filters look at.

One table has exactly one encoding, so equal properties are equal bytes (a library puts publications with equal
bytes into one run). An empty table is no bytes at all. Otherwise, little-endian (the normative declaration is
``schema.PROPERTIES``)::

    0  count u8          entries, 1 to PROPERTY_COUNT
    1  then each entry, by ascending bytes of the key, every key once:
       0  key_length u8      1 to PROPERTY_KEY_BYTES
       1  value_length u16   0 to PROPERTY_VALUE_BYTES
       3  key                UTF-8 without NUL, key_length bytes, not terminated
          value              UTF-8, value_length bytes, not terminated

The whole is at most PROPERTIES_BYTES.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from ocfcluster.errors import InvalidArgument, Malformed
from ocfcluster.limits import PROPERTIES_BYTES, PROPERTY_COUNT, PROPERTY_KEY_BYTES, PROPERTY_VALUE_BYTES

_LENGTHS: Final = struct.Struct("<BH")  # of key and value, before each entry


def encode_properties(properties: Mapping[str, str]) -> bytes:
    """The one encoding of ``properties``; no bytes for none. Raises InvalidArgument, saying what is allowed."""
    if not properties:
        return b""
    if len(properties) > PROPERTY_COUNT:
        raise InvalidArgument(f"{len(properties)} properties; at most {PROPERTY_COUNT} are allowed")
    entries = sorted((_encode_key(key), _encode_value(key, value)) for key, value in properties.items())
    pieces = [bytes((len(entries),))]
    for key, value in entries:
        pieces += (_LENGTHS.pack(len(key), len(value)), key, value)
    encoded = b"".join(pieces)
    if len(encoded) > PROPERTIES_BYTES:
        raise InvalidArgument(
            f"properties of {len(encoded)} bytes in all; at most {PROPERTIES_BYTES} are allowed"
            f" (a byte, and 3 bytes besides key and value for each)"
        )
    return encoded


def _encode_key(key: object) -> bytes:
    if not isinstance(key, str):
        raise InvalidArgument(f"property key {key!r:.80}: keys must be str")
    encoded = _utf8(key, "key")
    if not 1 <= len(encoded) <= PROPERTY_KEY_BYTES or 0 in encoded:
        raise InvalidArgument(
            f"property key {key!r:.80}: 1 to {PROPERTY_KEY_BYTES} bytes of UTF-8 without NUL are allowed"
        )
    return encoded


def _encode_value(key: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise InvalidArgument(f"property {key!r}: values must be str, not {type(value).__name__}")
    encoded = _utf8(value, "value")
    if len(encoded) > PROPERTY_VALUE_BYTES:
        raise InvalidArgument(
            f"property {key!r}: a value of {len(encoded)} bytes; at most {PROPERTY_VALUE_BYTES} are allowed"
        )
    return encoded


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, as os.fsdecode makes them
        raise InvalidArgument(f"property {what} {text!r:.80}: only text that UTF-8 has is allowed") from None


def decode_properties(buffer: bytes | memoryview) -> dict[str, str]:
    """The properties that ``buffer`` encodes, in the order of their keys' bytes.

    Only what ``encode_properties`` makes is accepted: anything else raises Malformed.
    """
    try:
        return {key.decode(): value.decode() for key, value in split_properties(buffer).items()}
    except UnicodeDecodeError:
        raise Malformed("properties that are not UTF-8") from None


def split_properties(buffer: bytes | memoryview) -> dict[bytes, bytes]:
    """As ``decode_properties``, with keys and values as bytes, not looked at whether they are UTF-8."""
    size = len(buffer)
    if size == 0:
        return {}
    if size > PROPERTIES_BYTES:
        raise Malformed(f"{size} bytes of properties; at most {PROPERTIES_BYTES} are allowed")
    data = bytes(buffer)
    count = data[0]
    if not 1 <= count <= PROPERTY_COUNT:
        raise Malformed(f"{count} properties; 1 to {PROPERTY_COUNT} are allowed in bytes")
    properties: dict[bytes, bytes] = {}
    before = b""
    at = 1
    try:
        for _ in range(count):
            key_length, value_length = _LENGTHS.unpack_from(data, at)
            if not 1 <= key_length <= PROPERTY_KEY_BYTES or value_length > PROPERTY_VALUE_BYTES:
                raise Malformed(f"a property with a key of {key_length} and a value of {value_length} bytes")
            middle = at + _LENGTHS.size + key_length
            key = data[at + _LENGTHS.size : middle]
            at = middle + value_length
            if at > size:
                raise Malformed("properties end inside an entry")
            if key <= before or 0 in key:
                raise Malformed(
                    "keys of properties that are not in ascending order, not unique, or have a NUL"
                )
            before = key
            properties[key] = data[middle:at]
    except struct.error:
        raise Malformed("properties end inside an entry") from None
    if at != size:
        raise Malformed(f"{size - at} bytes behind the last property")
    return properties
