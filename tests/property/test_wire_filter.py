"""Filters: text and bytes come back, anything else gives only the errors that are documented, and the compiled form
says what the plain reading says."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.errors import FilterError, InvalidArgument, Malformed
from ocfcluster.limits import FILTER_TERMS, PROPERTY_COUNT
from ocfcluster.wire.filter import (
    AllOf,
    AnyOf,
    Equals,
    Filter,
    FromNode,
    Not,
    Predicate,
    Present,
    Property,
    StartsWith,
    decode_filter,
    encode_filter,
    filter_fault,
    from_node,
)
from ocfcluster.wire.filter_text import parse_filter
from ocfcluster.wire.properties import encode_properties

keys = st.sampled_from(["a", "b", "zone", "and", "present", "odd key", "é", 'q"\\', "x.y-z", "-"])
values = st.one_of(st.sampled_from(["", "x", "xy", "eu-1", '"', "\\", "\n\t", "é"]), st.text(max_size=4))
leaves: st.SearchStrategy[Filter] = st.one_of(
    st.builds(lambda key, value: Property(key) == value, keys, values),
    st.builds(lambda key, value: Property(key) != value, keys, values),
    st.builds(lambda key, value: Property(key).startswith(value), keys, values),
    st.builds(lambda key: Property(key).present(), keys),
    st.builds(from_node, st.integers(0, 3)),
)
filters: st.SearchStrategy[Filter] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda one: ~one, inner),
        st.builds(lambda one, other: one & other, inner, inner),
        st.builds(lambda one, other: one | other, inner, inner),
    ),
    max_leaves=12,
)
tables = st.dictionaries(keys, values, max_size=PROPERTY_COUNT)


def plainly(term: Filter, properties: dict[str, str], node: int) -> bool:
    if isinstance(term, Equals):
        return properties.get(term.key) == term.value
    if isinstance(term, StartsWith):
        return term.key in properties and properties[term.key].startswith(term.prefix)
    if isinstance(term, Present):
        return term.key in properties
    if isinstance(term, FromNode):
        return node == term.node_id
    if isinstance(term, Not):
        return not plainly(term.term, properties, node)
    if isinstance(term, AllOf):
        return all(plainly(part, properties, node) for part in term.terms)
    assert isinstance(term, AnyOf)
    return any(plainly(part, properties, node) for part in term.terms)


@given(filters)
def test_text_and_bytes_come_back(made: Filter) -> None:
    assert parse_filter(str(made)) == made
    assert decode_filter(encode_filter(made)) == made


@given(filters, st.lists(st.tuples(tables, st.integers(0, 3)), max_size=8))
def test_the_compiled_form_says_what_is_written(made: Filter, runs: list[tuple[dict[str, str], int]]) -> None:
    predicate = Predicate(decode_filter(encode_filter(made)))
    for properties, node in runs:
        assert predicate(encode_properties(properties), node) is plainly(made, properties, node)


WORDS = st.sampled_from(
    ["a", "and", "or", "not", "present", "from_node", "startswith", "==", "!=", "(", ")", '"x"', "'y'", "3", '"', " ",
     "\\", "=", "é", "\n", "\0", "\ud800"]
)  # fmt: skip


@given(
    st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=40).map(" ".join), st.lists(WORDS).map("".join))
)
def test_any_text_gives_a_filter_or_says_where_it_is_wrong(text: str) -> None:
    wrong = None
    try:
        made = parse_filter(text)
    except FilterError as error:
        wrong = error
    if wrong is not None:
        assert 0 <= wrong.position <= len(text)
        assert wrong.pointer().count("\n") == 1
    else:
        assert not filter_fault(made)
        assert parse_filter(str(made)) == made


plain = st.recursive(
    st.one_of(st.integers(-2, 9), st.text(max_size=3), st.none(), st.binary(max_size=2)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=30,
)


@given(st.one_of(st.binary(max_size=80), plain.map(msgspec.msgpack.encode)))
def test_any_bytes_give_a_filter_or_malformed(encoded: bytes) -> None:
    try:
        made = decode_filter(encoded)
    except Malformed:
        return
    assert not filter_fault(made)
    Predicate(made)(b"", 1)


@given(st.integers(1, 3 * FILTER_TERMS), st.integers(0, 60))
def test_what_is_beyond_the_bounds_is_refused_by_all_doors(terms: int, nots: int) -> None:
    made: Filter = AnyOf(tuple(Present("a") for _ in range(terms))) if terms > 1 else Present("a")
    for _ in range(nots):
        made = Not(made)  # type: ignore[arg-type]
    try:
        encode_filter(made)
    except InvalidArgument:
        try:
            decode_filter(msgspec.msgpack.encode(made))
        except Malformed:
            return
        raise AssertionError("the agent takes what the library refuses") from None
    assert decode_filter(msgspec.msgpack.encode(made)) == made
