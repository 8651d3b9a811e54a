"""Operands of control runs: every node must take or refuse the same bytes."""

from __future__ import annotations

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.errors import InvalidArgument, MalformedRun
from ocfcluster.wire.control import (
    Barrier,
    Close,
    Open,
    Operand,
    TopicAlter,
    TopicCreate,
    TopicRemove,
    control_run,
    read_operand,
)
from ocfcluster.wire.run import RunKind, build_run, check_run
from ocfcluster.wire.topics import Access, Retention, TopicSettings

SETTINGS = TopicSettings(Retention(10, 2**20, 60), Access(("uid:0", "group:staff"), (), ("user:é", "gid:7")))
OPERANDS = [Open(), Close(7), Close(2**64 - 1), TopicCreate("t", False), TopicCreate("é" * 127, True),
            TopicRemove("t"), Barrier(), TopicCreate("t", False, SETTINGS), TopicAlter("t", SETTINGS)]  # fmt: skip


def read(kind: RunKind, data: bytes) -> Operand:
    run = build_run(kind, 0, 0, 1, [data])
    return read_operand(run, check_run(run))


@pytest.mark.parametrize("operand", OPERANDS)
def test_operand_comes_back(operand: Operand) -> None:
    run = control_run(operand, 5, 9)
    header = check_run(run)
    assert (header.first_number, header.time_ns, header.count, header.producer) == (5, 9, 1, 0)
    assert read_operand(run, header) == operand


def test_publications_carry_no_operand() -> None:
    run = build_run(RunKind.PUBLICATION, 16, 7, 1, [b"\x90"])
    with pytest.raises(MalformedRun):
        read_operand(run, check_run(run))
    with pytest.raises(MalformedRun):
        read_operand(run, check_run(run)._replace(kind=200))


@pytest.mark.parametrize("name", ["", "a" * 256, "é" * 128, "a\0b"])
@pytest.mark.parametrize("kind", [TopicCreate, TopicRemove])
def test_topic_names_outside_their_bounds_enter_no_order(kind: type[Operand], name: str) -> None:
    rest = (False,) if kind is TopicCreate else ()
    with pytest.raises(InvalidArgument, match="topic"):
        control_run(kind(name, *rest), 1)  # type: ignore[call-arg]
    number = RunKind.TOPIC_CREATE if kind is TopicCreate else RunKind.TOPIC_REMOVE
    with pytest.raises(MalformedRun, match="topic"):
        read(number, msgspec.msgpack.encode([name, *rest]))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (TopicSettings(Retention(bytes=limits.RETAINED_BYTES_PER_TOPIC + 1)), "retention"),
        (TopicSettings(access=Access(publish=("*",) * (limits.PRINCIPALS_PER_RIGHT + 1))), "principals"),
        *[
            (TopicSettings(access=Access(administer=(principal,))), "who may administer")
            for principal in (
                "",
                "root",
                "uid:",
                "uid:x",
                "uid:²",
                "user:",
                "user:" + "a" * 65,
                "group:a\nb",
                "x:1",
            )
        ],
    ],
)
def test_settings_outside_their_bounds_enter_no_order(settings: TopicSettings, fault: str) -> None:
    with pytest.raises(InvalidArgument, match=fault):
        control_run(TopicAlter("t", settings), 1)
    with pytest.raises(MalformedRun, match=fault):
        read(RunKind.TOPIC_ALTER, msgspec.msgpack.encode(TopicAlter("t", settings)))


@pytest.mark.parametrize("operand", [Close(2**64), TopicCreate("\udcff", False)])
def test_what_cannot_be_encoded_is_an_invalid_argument(operand: Operand) -> None:
    with pytest.raises(InvalidArgument):
        control_run(operand, 1)


@pytest.mark.parametrize(("kind", "data"), [
    (RunKind.CLOSE, msgspec.msgpack.encode([-1])),
    (RunKind.CLOSE, b"\x91\xd3" + (5).to_bytes(8, "big")),  # 5, not in its shortest form
    (RunKind.BARRIER, b"\x91\xc0"),  # one field too many
    (RunKind.BARRIER, b"\x91" + b"\x91" * 300 + b"\xc0"),
    (RunKind.BARRIER, b"\x91" * 50_000),  # how deep a decoder goes depends on its caller: not on every node alike
    (RunKind.BARRIER, b""),
    (RunKind.BARRIER, b"\x90\x90"),
    (RunKind.TOPIC_CREATE, msgspec.msgpack.encode(["t"])),
    (RunKind.TOPIC_CREATE, msgspec.msgpack.encode(["t", 1])),
    (RunKind.TOPIC_CREATE, b"\x92\xa1\xff\xc2"),
])  # fmt: skip
def test_only_the_one_encoding_of_an_operand_is_taken(kind: RunKind, data: bytes) -> None:
    with pytest.raises(MalformedRun):
        read(kind, data)
