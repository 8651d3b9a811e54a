"""The documents: their links lead somewhere, and their examples are Python, TOML and JSON."""

from __future__ import annotations

import json
import re
import tomllib
from enum import IntEnum
from pathlib import Path

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.components.connectivity import (
    Change,
    ConnectivityCode,
    ConnectivityEvent,
    Link,
    LinkState,
)
from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.protocol.messages import Reject, encode
from ocfcluster.protocol.settings import Ballot, Configuration, Limits, Member
from ocfcluster.protocol.snapshot import Header, StreamImage, Topics
from ocfcluster.protocol.state import StateImage
from ocfcluster.wire.datagram import MessageType
from ocfcluster.wire.event import FIXED, encode_event
from ocfcluster.wire.filter import encode_filter
from ocfcluster.wire.filter_text import parse_filter
from ocfcluster.wire.frames import (
    Answer,
    Hello,
    Notice,
    NoticeCode,
    RecordKind,
    Request,
    control_frame,
    encode_notice,
)
from ocfcluster.wire.group import GroupCode, GroupEvent, GroupMember
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import RunKind, build_run

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(document: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(document.read_text()) if name == language]


def prose(document: Path) -> str:
    """The document without its code, where brackets are no links and # begins no heading."""
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", document.read_text()))


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    text = BLOCK.sub("", document.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def test_there_are_documents() -> None:
    assert {"README.md", "api.md", "cli.md", "formats.md"} <= {document.name for document in DOCUMENTS}


@each_document
def test_relative_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target in LINK.findall(prose(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@each_document
def test_code_is_what_it_says(document: Path) -> None:
    for text in blocks(document, "python"):
        compile(text, str(document), "exec")
    for text in blocks(document, "toml"):
        tomllib.loads(text)
    for text in blocks(document, "json"):
        json.loads(text)


def test_the_index_names_every_document() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [one.name for one in ROOT.glob("docs/*.md") if f"({one.name})" not in index] == ["README.md"]


# --- docs/formats.md against the code ---------------------------------------------------------------------------

FORMATS = ROOT / "docs" / "formats.md"
HEX = re.compile(r"\b[0-9a-f]{2}\b")
C_FIELD = re.compile(r"^ +(\w+?)\s+(\w+)(?:\[(\d*)\])?;\s*/\*\s+(\d+)", re.MULTILINE)
C_BYTES = {"int32_t": 4, "uint32_t": 4, "uint64_t": 8, "char": 1, "uint8_t": 1}


def dumps() -> list[bytes]:
    """The bytes of the examples: behind an offset of three places, if any, and before three blanks and a remark."""
    found = []
    for text in blocks(FORMATS, ""):
        lines = (
            re.split(r"   ", re.sub(r"^(  \d| \d\d|\d{3})  ", "", line), maxsplit=1)[0]
            for line in text.splitlines()
        )
        found.append(bytes.fromhex("".join("".join(HEX.findall(line)) for line in lines)))
    return found


def test_the_examples_of_bytes_are_what_the_code_makes() -> None:
    table = encode_properties({"region": "eu", "k": "v"})
    run = build_run(
        RunKind.PUBLICATION, 16, 3, 1, [b"one", b"two"],
        time_ns=1795410105632965099, properties=encode_properties({"k": "v"}),
    )  # fmt: skip
    hello = control_frame(Request.HELLO, 1, Hello(2, "python 0.1.0", "billing"))
    notice = encode_notice(Notice(NoticeCode.GAP, "orders", 3, 9, "the subscriber was too slow"))
    wanted = encode_filter(parse_filter('severity == "high" and not present(test)'))
    assert dumps()[:5] == [table, run, hello, wanted, notice]
    event = encode_event(
        "orders", b"hello", seq=5, ev_id=1000, re_id=9, node_id=2, incarnation=77, m_sequence=1, time_ns=123,
        properties={"k": "v"},
    )  # fmt: skip
    shortened = event[:26] + event[276:]  # without the NULs of the topic
    assert dumps()[5] == shortened
    members = (Node(1, 1), Node(2, 3))
    lists = (members, members[1:], (Node(2, 1), Node(3, 1)))
    assert dumps()[6] == MembershipEvent(MembershipCode.NEW_MEMBERSHIP, 3, *lists).encode()
    links = (Link(1, 2, 0, LinkState.NONE, Change.FAILED), Link(1, 3, 0, LinkState.HEARS | LinkState.HEARD))
    assert dumps()[7] == ConnectivityEvent(ConnectivityCode.CONNECT, 1, links=links).encode()
    nine, ten = GroupMember(9, 2, 200), GroupMember(10, 3, 300)
    assert dumps()[8] == GroupEvent(GroupCode.JOIN, 10, members=(nine, ten), joined=(ten,)).encode()
    reject = Reject("17979cfe3658907ace2053bcb625c4ca", 3, Ballot(4, 2, 1002), Ballot(5, 1, 1001))
    assert dumps()[9] == encode(reject)
    assert len(dumps()) == 10


@pytest.mark.parametrize(
    ("structure", "name"),
    [
        (Configuration, "Configuration"), (Member, "Member"), (Limits, "Limits"), (Topics, "Topics"),
        (Header, "SnapshotHeader"), (StateImage, "State"), (StreamImage, "Stream"),
    ],
)  # fmt: skip
def test_structures_have_the_fields_that_are_described(structure: type[msgspec.Struct], name: str) -> None:
    """Their number: several have other names in the document."""
    [row] = re.findall(rf"^\| {name} \| (.*) \|$", FORMATS.read_text(), re.MULTILINE)
    plain = row
    while re.search(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}", plain):  # a remark, or what a field is made of
        plain = re.sub(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}", "", plain)
    assert len(plain.split(",")) == len(structure.__struct_fields__)


def test_the_codes_of_events_are_those_of_the_code() -> None:
    rows = re.findall(r"\| `(0x[0-9a-f]{8})` \| (\w+) \|", FORMATS.read_text())
    codes = (*list(MembershipCode)[1:], *list(ConnectivityCode)[1:], *list(GroupCode)[1:])
    assert [(int(code, 16), name) for code, name in rows] == [(one.value, one.name) for one in codes]
    bits = re.findall(r"^\| (\d+) ([A-Z]+) \|", FORMATS.read_text().partition("### Changes")[2], re.MULTILINE)
    assert [(int(bit), name) for bit, name in bits[: len(Change)]] == [(int(one), one.name) for one in Change]


def test_the_c_struct_is_the_event_message() -> None:
    (struct,) = blocks(FORMATS, "c")
    fields = C_FIELD.findall(struct)
    assert [name for _, name, _, _ in fields] == [
        "size", "offset", "ev_id", "re_id", "seq", "topic", "flags", "ev_id64", "re_id64", "seq64", "node_id",
        "properties_length", "incarnation", "m_sequence", "time_ns", "properties",
    ]  # fmt: skip
    at = 0
    for kind, name, count, offset in fields:
        size = C_BYTES[kind]
        at += -at % size  # as a C compiler aligns it
        assert at == int(offset), name
        at += size * int(count or 1) if name != "properties" else 0
    assert at == FIXED.size


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (limits.RUN_BYTES, "83 888"),
        (limits.FRAME_BYTES, "83 968"),
        (limits.RUN_COUNT, "32 768"),
        (limits.PROPERTIES_BYTES, "4096 bytes"),
        (limits.CONTROL_FRAME_BYTES, "262 144"),
        (limits.RECORDS_PER_FRAME, "1 to 500"),
    ],
)
def test_the_bounds_are_those_of_the_code(number: int, text: str) -> None:
    assert str(number) in text.replace(" ", "")
    assert text in FORMATS.read_text()


@pytest.mark.parametrize("names", [Request, Answer, RunKind, NoticeCode, RecordKind, MessageType])
def test_every_kind_is_described(names: type[IntEnum]) -> None:
    text = FORMATS.read_text()
    for one in names:
        if isinstance(one, MessageType) and one < MessageType.INSTALL:
            continue  # protocol.md describes those
        assert re.search(rf"\b{one.value}(?: \| | ){one.name}\b", text, re.IGNORECASE), f"{one!r}"
