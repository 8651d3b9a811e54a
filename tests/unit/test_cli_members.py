"""``ocfcluster members --watch``, and events of oc.membership as ``subscribe`` shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Self

import pytest

from ocfcluster.cli import main, output
from ocfcluster.client.events import Event, Notice, NoticeCode, Run, RunMeta
from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.wire.frames import LOCAL_ID, RecordFlags
from ocfcluster.wire.run import RunKind, build_run, read_header

ONE, TWO, THREE = Node(1, 1), Node(2, 2), Node(3, 1)
NEW, NOT_PRIMARY = MembershipCode.NEW_MEMBERSHIP, MembershipCode.NOT_PRIMARY


def an_event(
    data: bytes, flags: RecordFlags = RecordFlags.NONE, ev_id: int = 7, topic: str = "oc.membership"
) -> Event:
    run = build_run(RunKind.PUBLICATION, 1, 0, 1, [data], time_ns=123)
    meta = RunMeta(0, int(flags), 0, 0, 2, 2, ev_id, 0)
    return next(Run(topic, run, 0, read_header(run), meta).events())


EVENTS = [
    an_event(MembershipEvent(NEW, 2, (ONE, TWO), (TWO,), (THREE,)).encode(), RecordFlags.RETAINED),
    an_event(MembershipEvent(NOT_PRIMARY, 2, (ONE, TWO)).encode(), RecordFlags.LOCAL, LOCAL_ID | 3),
    next(Run.of_notice(Notice(NoticeCode.AGENT_LOST, reason="it is gone"), RunMeta(*[0] * 8)).events()),
    an_event(MembershipEvent(MembershipCode.EVICTED, 2).encode(), RecordFlags.LOCAL, LOCAL_ID | 4),
    an_event(b"of a later version"),
]


class Client:
    """A client whose subscription gives EVENTS and ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def subscribe(self, topic: str) -> Self:
        assert topic == "oc.membership"
        return self

    def __iter__(self) -> Iterator[Event]:
        return iter(EVENTS)


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: Client())


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(["members", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_watch_prints_a_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--watch") == [
        "2 members 1 2, in 2, out 3",
        "2 not primary",
        "-- agent_lost: it is gone",
        "2 evicted",
        "of a later version",
    ]


def test_watch_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, notice, *_ = map(json.loads, shown(capsys, "--watch", "--json"))
    assert first == {
        "event": "new_membership", "m_sequence": 2,
        "members": [{"node_id": 1, "born_on": 1}, {"node_id": 2, "born_on": 2}],
        "in": [{"node_id": 2, "born_on": 2}], "out": [{"node_id": 3, "born_on": 1}], "seq": 2, "ev_id": 7,
        "local": False, "retained": True,
    }  # fmt: skip
    assert (second["event"], second["in"], second["local"], second["retained"]) == (
        "not_primary",
        [],
        True,
        False,
    )
    assert notice["notice"] == "agent_lost"


def test_subscribe_shows_what_the_data_says() -> None:
    assert output.event_line(EVENTS[0]) == "oc.membership 2 2 members 1 2, in 2, out 3"
    assert output.event_document(EVENTS[0])["membership"]["in"] == [{"node_id": 2, "born_on": 2}]
    elsewhere = an_event(MembershipEvent(NEW, 2, (ONE,)).encode(), topic="mine")
    assert output.event_line(elsewhere).startswith("mine 2 0x010080")
    assert "membership" not in output.event_document(elsewhere)
