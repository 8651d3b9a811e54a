"""Filters: which runs a subscription wants, by the properties that their events share and by the publisher's node.

>>> from ocfcluster import Property, from_node
>>> urgent = (Property("severity") == "high") & ~Property("test").present()
>>> print(urgent & Property("zone").startswith("eu-"))
severity == "high" and not present(test) and zone startswith "eu-"

A filter is a small tree of the structures below. Programs build it from ``Property`` and ``from_node`` with ``&``,
``|`` and ``~``, or write it as text (``filter_text.parse_filter``). It goes to the agent as MessagePack
(``encode_filter``, ``decode_filter``), which asks ``Predicate`` about each run: once for each distinct table of
properties, as publishers mostly repeat theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Final, TypeVar

import msgspec

from ocfcluster.errors import InvalidArgument, Malformed
from ocfcluster.limits import (
    FILTER_BYTES,
    FILTER_CACHE_ENTRIES,
    FILTER_CACHED_BYTES,
    FILTER_DEPTH,
    FILTER_TERMS,
    NODE_ID_MOST,
    PROPERTY_KEY_BYTES,
    PROPERTY_VALUE_BYTES,
)
from ocfcluster.wire.properties import split_properties

Table = dict[bytes, bytes]
Test = Callable[[Table, int], bool]
U32 = Annotated[int, msgspec.Meta(ge=0, le=NODE_ID_MOST)]


class Filter(msgspec.Struct, array_like=True, frozen=True):
    """Base of all filters. Combine them with ``&``, ``|`` and ``~``; ``str`` gives the text of the command line."""

    def __and__(self, other: Filter) -> AllOf:
        return AllOf((*_terms(AllOf, self), *_terms(AllOf, other)))

    def __or__(self, other: Filter) -> AnyOf:
        return AnyOf((*_terms(AnyOf, self), *_terms(AnyOf, other)))

    def __invert__(self) -> Filter:
        return self.term if isinstance(self, Not) else Not(_checked(self))

    def __bool__(self) -> bool:
        raise InvalidArgument(
            "filters are combined with & | ~ (and parentheses around each ==), not with and, or, not"
        )

    def __str__(self) -> str:
        from ocfcluster.wire.filter_text import filter_text  # which needs the structures

        return filter_text(self)


class Equals(Filter, frozen=True, tag=1):
    """Runs with the property ``key`` and just this value."""

    key: str
    value: str


class StartsWith(Filter, frozen=True, tag=2):
    """Runs with the property ``key`` and a value that begins with ``prefix``."""

    key: str
    prefix: str


class Present(Filter, frozen=True, tag=3):
    """Runs with the property ``key``, whatever its value."""

    key: str


class FromNode(Filter, frozen=True, tag=4):
    """Runs that were published on the node ``node_id``; 0: by the cluster itself (membership)."""

    node_id: U32


class AllOf(Filter, frozen=True, tag=5):
    """Runs that all of ``terms``, two or more, let through."""

    terms: tuple[AnyFilter, ...]


class AnyOf(Filter, frozen=True, tag=6):
    """Runs that at least one of ``terms``, two or more, lets through."""

    terms: tuple[AnyFilter, ...]


class Not(Filter, frozen=True, tag=7):
    """Runs that ``term`` does not let through; also those without the properties that it names."""

    term: AnyFilter


AnyFilter = Equals | StartsWith | Present | FromNode | AllOf | AnyOf | Not
Sound = TypeVar("Sound", bound=Filter)


class Property:
    """A user property, to compare: ``Property("zone") == "eu-1"``, ``.startswith("eu-")``, ``.present()``."""

    __slots__ = ("key",)
    __hash__ = None  # type: ignore[assignment]  # == makes a filter, so it cannot be a key

    def __init__(self, key: str) -> None:
        """Raises InvalidArgument for what cannot be a property's key."""
        self.key = _sound(Present(key)).key

    def __eq__(self, value: object) -> Equals:  # type: ignore[override]
        return _sound(Equals(self.key, _text(value)))

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        """Also true of events that do not have the property."""
        return ~(self == value)

    def startswith(self, prefix: str) -> StartsWith:
        return _sound(StartsWith(self.key, _text(prefix)))

    def present(self) -> Present:
        return Present(self.key)

    def __repr__(self) -> str:
        return f"Property({self.key!r})"


def from_node(node_id: object) -> FromNode:
    """Events published on this node, an int. Raises InvalidArgument for what is no node id."""
    if not isinstance(node_id, int) or isinstance(node_id, bool) or not 0 <= node_id <= NODE_ID_MOST:
        raise InvalidArgument(f"from_node({node_id!r:.80}): a node id is a number from 0 to {NODE_ID_MOST}")
    return FromNode(node_id)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"a property is compared with a str, not {type(value).__name__}")
    return value


def _checked(term: object) -> AnyFilter:
    if not isinstance(term, AnyFilter):
        raise InvalidArgument(f"a filter is combined with a filter, not {type(term).__name__}")
    return term


def _terms(kind: type[AllOf | AnyOf], term: object) -> tuple[AnyFilter, ...]:
    checked = _checked(term)
    return checked.terms if isinstance(checked, kind) else (checked,)


def _sound(term: Sound) -> Sound:
    fault = _leaf_fault(term)
    if fault:
        raise InvalidArgument(fault)
    return term


# --- bounds -------------------------------------------------------------------------------------------------------


def _leaf_fault(leaf: Filter) -> str:
    """What is wrong with a comparison; empty: nothing."""
    if isinstance(leaf, FromNode):
        return ""
    key = getattr(leaf, "key", None)
    value = getattr(leaf, "value", getattr(leaf, "prefix", ""))
    if not isinstance(key, str):
        return f"a property's key is a str, not {type(key).__name__}"
    try:
        encoded, size = key.encode(), len(value.encode())
    except UnicodeEncodeError:
        return f"property {key!r:.80}: only text that UTF-8 has is allowed"
    if not 1 <= len(encoded) <= PROPERTY_KEY_BYTES or 0 in encoded:
        return f"property key {key!r:.80}: 1 to {PROPERTY_KEY_BYTES} bytes of UTF-8 without NUL are allowed"
    if size > PROPERTY_VALUE_BYTES:
        return f"property {key!r:.80} is compared with {size} bytes; no value has more than {PROPERTY_VALUE_BYTES}"
    return ""


def filter_fault(whole: Filter) -> str:
    """Why a filter is beyond what is allowed (depth, number of comparisons, keys, values); empty: it is not."""
    comparisons = 0
    level: list[Filter] = [whole]
    for _ in range(FILTER_DEPTH + 1):
        below: list[Filter] = []
        for term in level:
            if isinstance(term, AllOf | AnyOf):
                if len(term.terms) < 2:
                    return "'and' and 'or' join at least two filters"
                below += term.terms
            elif isinstance(term, Not):
                below.append(term.term)
            else:
                comparisons += 1
                fault = _leaf_fault(term)
                if fault:
                    return fault
        if comparisons + len(below) > FILTER_TERMS:
            return f"a filter has at most {FILTER_TERMS} comparisons"
        if not below:
            return ""
        level = below
    return f"a filter is nested at most {FILTER_DEPTH} deep"


# --- over the wire ------------------------------------------------------------------------------------------------

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(AnyFilter)


def encode_filter(whole: Filter) -> bytes:
    """The filter as MessagePack. Raises InvalidArgument for one that is beyond the bounds."""
    fault = filter_fault(_checked(whole))
    if not fault:
        encoded = _encoder.encode(whole)
        if len(encoded) <= FILTER_BYTES:
            return encoded
        fault = f"a filter of {len(encoded)} bytes; at most {FILTER_BYTES} are allowed"
    raise InvalidArgument(f"filter: {fault}")


def decode_filter(encoded: bytes) -> AnyFilter:
    """The filter that ``encoded`` holds. Raises Malformed."""
    if len(encoded) > FILTER_BYTES:
        raise Malformed(f"a filter of {len(encoded)} bytes; at most {FILTER_BYTES} are allowed")
    try:
        whole: AnyFilter = _decoder.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"that is no filter: {error}") from None
    fault = filter_fault(whole)
    if fault:
        raise Malformed(fault)
    return whole


# --- asking -------------------------------------------------------------------------------------------------------


class Predicate:
    """Whether a filter lets a run through; each distinct table of properties is opened once while it is remembered.

    Properties that are not well formed (no library makes such) count as none.
    """

    __slots__ = ("filter", "by_node", "_test", "_known")

    def __init__(self, whole: Filter) -> None:
        """``whole`` is within the bounds (``filter_fault``)."""
        self.filter = whole
        self.by_node = any(isinstance(leaf, FromNode) for leaf in _leaves(whole))
        self._test = _compiled(whole)
        self._known: dict[bytes | tuple[bytes, int], bool] = {}

    def __call__(self, properties: bytes, node_id: int) -> bool:
        """``properties`` are a run's, encoded; ``node_id`` is its publisher's (of no matter unless ``by_node``)."""
        key = (properties, node_id) if self.by_node else properties
        known = self._known.get(key)
        return self._judge(key, properties, node_id) if known is None else known

    def _judge(self, key: bytes | tuple[bytes, int], properties: bytes, node_id: int) -> bool:
        try:
            table = split_properties(properties)
        except Malformed:
            table = {}
        passes = self._test(table, node_id)
        if len(properties) <= FILTER_CACHED_BYTES:
            if len(self._known) >= FILTER_CACHE_ENTRIES:
                self._known.clear()  # a publisher whose properties differ each time makes it useless anyway
            self._known[key] = passes
        return passes


def _leaves(term: Filter) -> Iterator[Filter]:
    if isinstance(term, AllOf | AnyOf):
        for part in term.terms:
            yield from _leaves(part)
    elif isinstance(term, Not):
        yield from _leaves(term.term)
    else:
        yield term


def _compiled(term: Filter) -> Test:
    """The filter as a function of a run's properties (as bytes) and node. UTF-8 keeps prefixes prefixes."""
    if isinstance(term, Equals):
        key, value = term.key.encode(), term.value.encode()
        return lambda table, _: table.get(key) == value
    if isinstance(term, StartsWith):
        key, prefix = term.key.encode(), term.prefix.encode()
        return lambda table, _: key in table and table[key].startswith(prefix)
    if isinstance(term, Present):
        key = term.key.encode()
        return lambda table, _: key in table
    if isinstance(term, FromNode):
        wanted = term.node_id
        return lambda _, node_id: node_id == wanted
    if isinstance(term, Not):
        test = _compiled(term.term)
        return lambda table, node_id: not test(table, node_id)
    if isinstance(term, AllOf | AnyOf):
        return _joined([_compiled(part) for part in term.terms], isinstance(term, AllOf))
    raise InvalidArgument(f"{type(term).__name__} is no filter of this version")


def _joined(tests: list[Test], every: bool) -> Test:
    def joined(table: Table, node_id: int) -> bool:
        for test in tests:
            if test(table, node_id) is not every:
                return not every
        return every

    return joined
