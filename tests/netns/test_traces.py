"""The oracle of the order test finds what it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from tests.netns.traces import check
from tests.netns.worker import TRACE, payload

TOPICS = ["red"]
SIZE = 64


def record(place: int, publisher: int, number: int) -> list[int]:
    return [place + 1, place + 100, publisher, 0, xxh3_64_intdigest(payload(publisher, number, SIZE))]


def write(directory: Path, name: str, records: list[list[int]]) -> Path:
    path = directory / name
    path.write_bytes(b"".join(TRACE.pack(*fields) for fields in records))
    return path


SOUND = [record(place, 1 + place % 2, place // 2) for place in range(20)]


def test_the_check_accepts_one_order(tmp_path: Path) -> None:
    check({1: write(tmp_path, "1", SOUND), 2: write(tmp_path, "2", SOUND)}, TOPICS, SIZE, 10)


def spoil(what: str) -> list[list[int]]:
    records = [list(fields) for fields in SOUND]
    if what == "lost":
        return records[:-1]
    if what == "hole in seq":
        for fields in records[5:]:
            fields[0] += 1
    elif what == "publisher's order":
        records[0][4], records[2][4] = records[2][4], records[0][4]
    elif what == "twice":
        records[2][4] = records[0][4]
    elif what == "data":
        records[3][4] ^= 1
    elif what == "origin":
        records[3][2] = 1
    elif what == "ev_id":
        records[3][1] = 0
    return records


@pytest.mark.parametrize(
    "what", ["lost", "hole in seq", "publisher's order", "twice", "data", "origin", "ev_id"]
)
def test_the_check_refuses(what: str, tmp_path: Path) -> None:
    spoiled = spoil(what)
    with pytest.raises(AssertionError):
        check({1: write(tmp_path, "1", spoiled), 2: write(tmp_path, "2", spoiled)}, TOPICS, SIZE, 10)


def test_the_check_refuses_nodes_that_differ(tmp_path: Path) -> None:
    swapped = [*SOUND[:-2], [*SOUND[-1][:2], *SOUND[-2][2:]], [*SOUND[-2][:2], *SOUND[-1][2:]]]
    with pytest.raises(AssertionError, match="event 18 is"):
        check({1: write(tmp_path, "1", SOUND), 2: write(tmp_path, "2", swapped)}, TOPICS, SIZE, 10)
