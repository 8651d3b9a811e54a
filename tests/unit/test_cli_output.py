"""Events as JSON and as lines for a terminal."""

from __future__ import annotations

import io
import json
import sys
from contextlib import AbstractContextManager
from typing import Any, Self

import pytest

from ocfcluster.cli import main, output
from ocfcluster.client.events import Event, Notice, NoticeCode, Run, RunMeta
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import RunKind, build_run, read_header

META = RunMeta(skip=0, flags=0, node_id=2, incarnation=77, m_sequence=1, seq=5, ev_id=1000, order_time_ns=0)


def an_event(data: bytes) -> Event:
    run = build_run(
        RunKind.PUBLICATION, 16, 3, 1, [data], re_id=9, time_ns=123, properties=encode_properties({"k": "v"})
    )
    return next(Run("orders", run, 0, read_header(run), META).events())


def a_notice() -> Event:
    return next(Run.of_notice(Notice(NoticeCode.GAP, "orders", 3, 9, "too slow"), META).events())


def test_event_document_has_the_documented_keys() -> None:
    document = output.event_document(an_event(b"hello"))
    assert document == {
        "topic": "orders", "seq": 5, "ev_id": 1000, "re_id": 9, "node_id": 2, "incarnation": 77, "m_sequence": 1,
        "time_ns": 123, "local": False, "properties": {"k": "v"}, "data": "hello",
    }  # fmt: skip


def test_data_that_is_no_text_is_base64() -> None:
    document = output.event_document(an_event(b"\xff\x00"))
    assert document["data_base64"] == "/wA="
    assert "data" not in document


def test_notice_document() -> None:
    assert output.event_document(a_notice()) == {
        "notice": "gap", "topic": "orders", "first_seq": 3, "last_seq": 9, "reason": "too slow", "final": False,
    }  # fmt: skip


def test_lines() -> None:
    assert output.event_line(an_event(b"hello")) == "orders 5 hello"
    assert output.event_line(a_notice()) == "-- gap orders 3-9: too slow"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain \xc3\xbc", "plain ü"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"two\nlines", "two\\nlines"),
        (b"\xff\xfe", "0xfffe"),
        (b"", ""),
    ],
)
def test_nothing_that_a_terminal_would_obey(data: bytes, text: str) -> None:
    assert output.readable(data) == text


def test_readable_cuts_at_the_limit() -> None:
    assert output.readable(b"abcdef", 4) == "abc…"


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": "x\ny", "b": "ü"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0]) == {"a": "x\ny", "b": "ü"}


@pytest.mark.parametrize(
    "text", ["\x9b31mred", "\x7f", "\x1b]0;title\x07", "a\u202eb", "\udcff", "\U000e0001", "\u2028"]
)
def test_json_holds_nothing_that_a_terminal_would_obey(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({text: [text, "ü€"]})
    printed = capsys.readouterr().out
    assert printed.rstrip("\n").isprintable()
    assert printed.count("ü€") == 1, "what is text stays so"
    assert json.loads(printed) == {text: [text, "ü€"]}


class Narrow(io.TextIOWrapper):
    """A standard output whose encoding has few characters."""

    def __init__(self, encoding: str, errors: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors=errors)

    def printed(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


class Subscribed(AbstractContextManager[Any]):
    """A client with a subscription to which one event comes."""

    starts: tuple[()] = ()

    def __exit__(self, *_: object) -> None:
        pass

    def subscribe(self, *_: object, **__: object) -> Self:
        return self

    def get(self, **_: object) -> Event:
        return an_event("5 € für ü\U0001f600".encode())


@pytest.mark.parametrize("encoding", ["iso-8859-1", "ascii", "utf-8"])
@pytest.mark.parametrize("handler", ["strict", "surrogateescape"])
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_character_that_the_encoding_lacks_is_escaped_and_ends_nothing(
    encoding: str, handler: str, json_too: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: Subscribed())
    stream = Narrow(encoding, handler)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            main(["subscribe", "orders", "--count", "2", *json_too])
    assert ended.value.code == 0
    first, second = stream.printed().splitlines()
    assert first == second
    if json_too:
        assert json.loads(first)["data"] == "5 € für ü\U0001f600"
    else:
        shown = {
            "iso-8859-1": "5 \\u20ac für ü\\U0001f600",
            "ascii": "5 \\u20ac f\\xfcr \\xfc\\U0001f600",
            "utf-8": "5 € für ü\U0001f600",
        }
        assert first == f"orders 5 {shown[encoding]}"


def test_what_the_user_chose_for_such_characters_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """``PYTHONIOENCODING=ascii:replace``."""
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: Subscribed())
    stream = Narrow("ascii", "replace")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit):
            main(["subscribe", "orders", "--count", "1"])
    assert stream.printed() == "orders 5 5 ? f?r ??\n"


def test_names_are_no_more_obeyed_than_data() -> None:
    run = build_run(RunKind.PUBLICATION, 16, 3, 1, [b"x"])
    event = next(Run("a\x1b[31m\nb", run, 0, read_header(run), META).events())
    assert output.event_line(event) == "a\\x1b[31m\\nb 5 x"
    notice = next(Run.of_notice(Notice(NoticeCode.TOPIC_REMOVED, "a\x1b"), META).events())
    assert output.event_line(notice) == "-- topic_removed a\\x1b"
