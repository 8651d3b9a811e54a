"""``ocfcluster connectivity``, and events of oc.connectivity as ``subscribe`` shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Self

import pytest

from ocfcluster.cli import main, output
from ocfcluster.client.events import Event, Notice, NoticeCode, Run, RunMeta
from ocfcluster.components.connectivity import (
    Address,
    Change,
    ConnectivityCode,
    ConnectivityEvent,
    Eligible,
    Interface,
    InterfaceState,
    Link,
    LinkState,
)
from ocfcluster.wire.frames import LOCAL_ID, RecordFlags
from ocfcluster.wire.run import RunKind, build_run, read_header

UP = InterfaceState.UP | InterfaceState.CARRIER
BOTH = LinkState.HEARS | LinkState.HEARD
LO = Interface(1, "lo", 65536, UP | InterfaceState.CLUSTER, (Address.of("127.0.0.1", 8),), Change.ADDED)
ETH = Interface(2, "eth\x1b0", 1500, InterfaceState.UP, (), Change.FAILED | Change.ADDRESSES)


def an_event(event: ConnectivityEvent | bytes, seq: int, flags: RecordFlags = RecordFlags.RETAINED) -> Event:
    data = event if isinstance(event, bytes) else event.encode()
    run = build_run(RunKind.PUBLICATION, 2, 0, 1, [data], time_ns=123)
    local = LOCAL_ID if RecordFlags.LOCAL in flags else 0
    meta = RunMeta(0, int(flags), 0, 0, 2, seq, local | seq, 0)
    return next(Run("oc.connectivity", run, 0, read_header(run), meta).events())


INTERFACES = ConnectivityEvent(ConnectivityCode.INTERFACE, 1, 3, interfaces=(LO, ETH))
ELIGIBLE = ConnectivityEvent(
    ConnectivityCode.ELIGIBLE, 1, eligible=(Eligible(1, 1), Eligible(2, 1), Eligible(3, 0, Change.REMOVED))
)
LINKS = ConnectivityEvent(
    ConnectivityCode.CONNECT, 1,
    links=(Link(1, 2, 0, BOTH, Change.UP), Link(1, 4, 0, LinkState.NONE, Change.FAILED)),
)  # fmt: skip
AGAIN = ConnectivityEvent(
    ConnectivityCode.CONNECT, 2, links=(Link(2, 1, 0, BOTH), Link(2, 4, 0, LinkState.HEARD))
)
ALONE = ConnectivityEvent(ConnectivityCode.CONNECT, 1, links=(Link(1, 2, 1, LinkState.HEARS, Change.FAILED),))
EVENTS = [
    an_event(INTERFACES, 1), an_event(ELIGIBLE, 2), an_event(LINKS, 3), an_event(AGAIN, 4), an_event(b"later", 5),
    an_event(ALONE, 5, RecordFlags.LOCAL),
    next(Run.of_notice(Notice(NoticeCode.AGENT_LOST, reason="it is gone"), RunMeta(*[0] * 8)).events()),
]  # fmt: skip


class Client:
    """A client whose subscription gives EVENTS and ends."""

    events = EVENTS

    def __enter__(self) -> Self:
        self.left = iter(self.events)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def subscribe(self, topic: str) -> Self:
        assert topic == "oc.connectivity"
        return self

    def __iter__(self) -> Iterator[Event]:
        return self.left

    def get(self, timeout: float) -> Event | None:
        return next(self.left, None)


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: Client())


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(["connectivity", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in shown(capsys) if line.strip() and "──" not in line]
    assert lines == [
        ["hears", "1", "2", "4", "votes"],
        ["1", "-", "yes", "no", "1"],
        ["2", "yes", "-", "no", "1"],
        ["4", "?", "?", "-", "not", "eligible"],
        ["node", "interface", "state", "mtu", "cluster", "addresses"],
        ["1", "lo", "up", "65536", "yes", "127.0.0.1/8"],
        ["1", "eth\\x1b0", "no", "carrier", "1500"],
    ]


def test_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = shown(capsys, "--json")
    document = json.loads(line)
    assert document["eligible"] == [{"node_id": 1, "votes": 1}, {"node_id": 2, "votes": 1}]
    assert document["links"][1] == {
        "hearer": 1, "heard": 4, "network": 0, "hears": False, "established": False, "change": "failed",
    }  # fmt: skip
    assert document["interfaces"][0] == {
        "node_id": 1, "name": "lo", "index": 1, "mtu": 65536, "healthy": True, "state": "up carrier cluster",
        "addresses": ["127.0.0.1/8"], "change": "added",
    }  # fmt: skip


def test_nothing_yet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "events", [])
    with pytest.raises(SystemExit) as ended:
        main(["connectivity"])
    told = capsys.readouterr()
    assert (ended.value.code, told.out, told.err) == (0, "", "ocfcluster: no node has reported yet\n")


def test_watch_prints_a_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--watch") == [
        "node 1 interface lo added, eth\\x1b0 failed addresses (none), 3 more changes",
        "node 1 eligible node 3 removed",
        "node 1 connect 1-2 established, 1-4 lost",
        "node 2 connect as before",
        "later",
        "node 1 connect 1-2 lost on network 1 (here alone)",
        "-- agent_lost: it is gone",
    ]


def test_watch_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(map(json.loads, shown(capsys, "--watch", "--json")))
    assert lines[1] == {
        "event": "eligible", "node_id": 1, "coalesced": 0, "seq": 2, "ev_id": 2, "local": False, "retained": True,
        "eligible": [
            {"node_id": 1, "votes": 1, "change": ""}, {"node_id": 2, "votes": 1, "change": ""},
            {"node_id": 3, "votes": 0, "change": "removed"},
        ],
    }  # fmt: skip
    assert (lines[0]["event"], len(lines[0]["interfaces"]), lines[0]["coalesced"]) == ("interface", 2, 3)
    assert (lines[5]["local"], lines[5]["retained"], lines[5]["links"][0]["network"]) == (True, False, 1)
    assert lines[6]["notice"] == "agent_lost"


def test_subscribe_shows_what_the_data_says() -> None:
    assert output.event_line(EVENTS[2]) == "oc.connectivity 3 node 1 connect 1-2 established, 1-4 lost"
    assert output.event_document(EVENTS[2])["connectivity"]["links"][0]["established"] is True
    half = ConnectivityEvent(
        ConnectivityCode.CONNECT, 1, links=(Link(1, 2, 0, LinkState.HEARS, Change.OTHER),)
    )
    assert output.connectivity_text(half.encode()) == "node 1 connect 1-2 not established (hears)"
