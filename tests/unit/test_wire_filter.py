"""Filters: what they let through, how they are written, and what is said of one that is wrong."""

from __future__ import annotations

import functools
import operator

import pytest

from ocfcluster import Property, from_node, parse_filter
from ocfcluster.errors import FilterError, InvalidArgument, Malformed
from ocfcluster.limits import FILTER_CACHE_ENTRIES, FILTER_DEPTH, FILTER_TERMS, FILTER_TEXT_BYTES
from ocfcluster.wire import filter as module
from ocfcluster.wire.filter import AllOf, Filter, Not, Predicate, decode_filter, encode_filter
from ocfcluster.wire.properties import encode_properties

ALARM = {"severity": "high", "zone": "eu-1"}


def passes(text: str, properties: dict[str, str], node: int = 1) -> bool:
    return Predicate(parse_filter(text))(encode_properties(properties), node)


@pytest.mark.parametrize(
    ("text", "properties", "expected"),
    [
        ('severity == "high"', ALARM, True),
        ('severity == "hig"', ALARM, False),
        ('severity == "high"', {}, False),
        ('severity != "low"', ALARM, True),
        ('severity != "low"', {}, True),
        ('severity != "high"', ALARM, False),
        ('zone startswith "eu-"', ALARM, True),
        ('zone startswith ""', ALARM, True),
        ('zone startswith ""', {"severity": "high"}, False),
        ('zone startswith "us"', ALARM, False),
        ('name startswith "é"', {"name": "été"}, True),
        ('name startswith "e"', {"name": "été"}, False),
        ("present(zone)", ALARM, True),
        ("present(zone)", {"zone": ""}, True),
        ("present(zone)", {}, False),
        ("not present(test)", ALARM, True),
        ('severity == "high" and not present(test) and zone startswith "eu-"', ALARM, True),
        ('severity == "high" and not present(test)', ALARM | {"test": "1"}, False),
        ('a == "1" or b == "1" and c == "1"', {"a": "1"}, True),
        ('(a == "1" or b == "1") and c == "1"', {"a": "1"}, False),
        ('not a == "1" and b == "1"', {"b": "1"}, True),
        ('not (a == "1" or b == "1")', {"b": "1"}, False),
        ("'odd key' == 'it\\'s'", {"odd key": "it's"}, True),
        ('"and" == "x"', {"and": "x"}, True),
        ('present == "x"', {"present": "x"}, True),
    ],
)
def test_what_a_filter_lets_through(text: str, properties: dict[str, str], expected: bool) -> None:
    assert passes(text, properties) is expected


def test_the_publishers_node_may_decide() -> None:
    predicate = Predicate(parse_filter('from_node(2) or severity == "high"'))
    assert predicate.by_node
    high, low = encode_properties({"severity": "high"}), encode_properties({"severity": "low"})
    assert [predicate(low, 1), predicate(low, 2), predicate(high, 1), predicate(low, 1)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert not Predicate(parse_filter("present(a)")).by_node


def test_filters_are_built_as_they_are_written() -> None:
    built = (
        (Property("severity") == "high")
        & ~Property("test").present()
        & (Property("zone").startswith("eu-") | from_node(3))
    )
    text = 'severity == "high" and not present(test) and (zone startswith "eu-" or from_node(3))'
    assert str(built) == text
    assert parse_filter(text) == built
    assert (Property("a") != "x") == ~(Property("a") == "x")
    assert ~~(Property("a") == "x") == (Property("a") == "x")


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("", 0, "empty"),
        ("   ", 0, "empty"),
        ("severity == high", 12, 'write it as "high"'),
        ("n == 3", 5, 'write it as "3"'),
        ('severity = "high"', 9, "written =="),
        ('severity == "high', 12, "not closed"),
        ('(a == "x"', 9, "')' is expected"),
        ('a == "x" b', 9, "'and', 'or' or the end"),
        ('a == "x")', 8, "'and', 'or' or the end"),
        ("a", 1, "startswith"),
        ('a "x"', 2, "startswith"),
        ('a == "x" and', 12, "not the end"),
        ('and == "x"', 0, "not 'and'"),
        ("exists(x)", 0, "present and from_node"),
        ("present(3)", 8, "key of a property"),
        ("from_node(x)", 10, "number of a node"),
        ("from_node(99999999999)", 10, "a node id is a number"),
        (r'a == "\q"', 6, "no escape"),
        ('"" == "x"', 0, "property key"),
        ('a == "' + "x" * 1025 + '"', 5, "1025 bytes"),
        ("a == 'x' && b == 'y'", 9, "'&' means nothing here"),
        ("(" * 40 + "present(a)", 32, f"{FILTER_DEPTH} deep"),
    ],
)
def test_what_is_wrong_with_a_text_is_said_at_its_place(text: str, position: int, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    assert caught.value.position == position
    assert says in str(caught.value)
    assert f"character {position + 1}:" in str(caught.value)
    shown, mark = caught.value.pointer().split("\n")
    assert mark.strip() == "^"
    assert len(shown) <= 72
    if position < len(text):
        assert shown[len(mark) - 1] == text[position]


def test_filters_are_bounded() -> None:
    leaf: Filter = Property("a") == "x"
    most = functools.reduce(operator.or_, [leaf] * FILTER_TERMS)
    assert decode_filter(encode_filter(most)) == most
    with pytest.raises(InvalidArgument, match="comparisons"):
        encode_filter(most | leaf)
    deep = leaf
    for _ in range(FILTER_DEPTH):
        deep = Not(deep)  # type: ignore[arg-type]
    assert decode_filter(encode_filter(deep)) == deep
    with pytest.raises(InvalidArgument, match="deep"):
        encode_filter(Not(deep))  # type: ignore[arg-type]
    with pytest.raises(FilterError, match="bytes"):
        parse_filter("present(a) or " * FILTER_TEXT_BYTES)
    large = functools.reduce(operator.or_, [Property("a") == "x" * 1000] * 20)
    with pytest.raises(InvalidArgument, match="at most"):
        encode_filter(large)
    with pytest.raises(Malformed):
        decode_filter(b"\x93\x05" * 4000)
    with pytest.raises(Malformed, match="at least two"):
        decode_filter(module._encoder.encode(AllOf(())))


@pytest.mark.parametrize("key", ["", "x" * 65, "a\0b", "\udc80"])
def test_what_cannot_be_a_key(key: str) -> None:
    with pytest.raises(InvalidArgument):
        Property(key)


def test_the_mistakes_that_python_would_swallow() -> None:
    one, other = Property("a") == "x", Property("b") == "y"
    with pytest.raises(InvalidArgument, match=r"& \| ~"):
        one and other  # noqa: B018
    with pytest.raises(InvalidArgument):
        one & "b"  # type: ignore[operator]
    with pytest.raises(InvalidArgument, match="compared with a str"):
        Property("a") == 3  # noqa: B015
    with pytest.raises(InvalidArgument, match="compared with a str"):
        Property("a") == Property("b")  # noqa: B015
    for bad in (True, -1, 1 << 32, "3"):
        with pytest.raises(InvalidArgument, match="node id"):
            from_node(bad)
    with pytest.raises(TypeError):
        {Property("a"): 1}


def test_each_table_of_properties_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    split = module.split_properties

    def counted(encoded: bytes) -> dict[bytes, bytes]:
        opened.append(encoded)
        return split(encoded)

    monkeypatch.setattr(module, "split_properties", counted)
    predicate = Predicate(parse_filter('severity == "high"'))
    high, low = encode_properties(ALARM), encode_properties({"severity": "low"})
    assert [predicate(one, 1) for one in (high, low, b"") * 100] == [True, False, False] * 100
    assert opened == [high, low, b""]
    for number in range(10 * FILTER_CACHE_ENTRIES):
        assert predicate(encode_properties({"severity": "high", "n": str(number)}), 1)
        assert len(predicate._known) <= FILTER_CACHE_ENTRIES
    large = encode_properties({"severity": "high", "text": "x" * 1000})
    before = len(opened)
    assert predicate(large, 1)
    assert predicate(large, 1)
    assert len(opened) == before + 2  # too large to be remembered


def test_properties_that_no_library_makes_count_as_none() -> None:
    assert not Predicate(parse_filter("present(a)"))(b"\xff\xff", 1)
    assert Predicate(parse_filter("not present(a)"))(b"\xff\xff", 1)
