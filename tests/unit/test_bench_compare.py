"""The comparison with other systems: ratios, what is skipped, tables and the picture; nothing is measured here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench.compare import __main__ as command
from bench.compare import measure
from bench.compare.peers import PEERS
from bench.compare.peers.peer import Peer, PeerError, Program
from bench.compare.picture import PANELS, decades, draw, number
from bench.compare.ratios import medians, paired, spread, spreads
from bench.compare.work import COMPARISONS, OURS, WORKS, Latency, Throughput
from tests.netns.hosts import Hosts


def rates(*values: float | None) -> list[dict[str, Any]]:
    """A result for each round; None is a round that failed."""
    return [
        {"round": index, "error": "it hung"} if value is None else {"round": index, "events_per_s": value}
        for index, value in enumerate(values, 1)
    ]


RAW: dict[str, dict[str, list[dict[str, Any]]]] = {
    OURS: {
        "64B": [one | {"cpu_s_per_million": 0.5} for one in rates(300, 100, 200)],
        "64B-events": rates(30, 30, 30),
        "latency": [{"round": 1, "p50_us": 400.0, "p99_us": 900.0}],
    },
    "corosync": {
        "64B": [one | {"cpu_s_per_million": 10.0} for one in rates(10, 10, 5)],
        "latency": [{"round": 1, "p50_us": 100.0, "p99_us": 300.0}],
    },
}
DOCUMENT: dict[str, Any] = {
    "environment": {"cores": 2, "time": "2026-01-02T03:04:05Z", "commit": "abc"},
    "rounds": 3,
    "ratios": medians(spreads(RAW, OURS)),
    "spreads": spreads(RAW, OURS),
    "systems": {
        name: {
            "title": f"{name} <&>",
            "version": "1",
            "guarantee": "g",
            "total_order": True,
            "api": "a",
            "latency": f"of {name}",
        }
        for name in RAW
    },
    "skipped": {"nats": "there is no nats-server"},
    "raw": RAW,
}

# --- ratios -----------------------------------------------------------------------------------------------------


def test_a_ratio_is_of_one_round_and_then_the_median() -> None:
    """Not the ratio of medians, which would be 20."""
    found = spreads(RAW, OURS)["corosync"]["64B"]
    assert found == {"min": 10, "median": 30, "max": 40, "rounds": 3}


def test_a_round_that_failed_on_one_side_has_no_ratio() -> None:
    assert paired(rates(10, None, 30, 40), rates(5, 5, None, 10), "events_per_s") == [2, 4]
    assert paired(rates(10), rates(0), "events_per_s") == []


def test_rounds_are_matched_by_their_number() -> None:
    """A system that is out from some round on has fewer results."""
    assert paired(rates(10, 20, 30), rates(5, 5, 5)[2:], "events_per_s") == [6]


def test_one_event_at_a_time_is_compared_with_the_peers_only_way() -> None:
    ratios = medians(spreads(RAW, OURS))["corosync"]
    assert ratios == {"64B": 30, "64B-events": 3, "p50": 4, "p99": 3, "cpu": 0.05}


def test_what_neither_has_measured_is_left_out() -> None:
    assert "16KiB" not in spreads(RAW, OURS)["corosync"]
    assert OURS not in spreads(RAW, OURS)


def test_the_spread_of_an_even_number() -> None:
    assert spread([4, 1, 2, 3]) == {"min": 1, "median": 2.5, "max": 4, "rounds": 4}


def test_every_comparison_is_of_works_that_there_are() -> None:
    works = {one.name: one for one in WORKS}
    for one in COMPARISONS:
        assert {one.ours, one.theirs} <= works.keys()
        assert isinstance(works[one.theirs], Latency) == one.figure.startswith("p")
        theirs = works[one.theirs]
        assert isinstance(theirs, Latency) or not theirs.way, "peers do not have ocfcluster's APIs"
    names = {"64B", "1KiB", "16KiB", "256KiB", "3x64B", "p50", "p99", "cpu"}
    assert names <= {one.name for one in COMPARISONS}


# --- measurements -------------------------------------------------------------------------------------------------


class FakeProgram(Program):
    """Reports at once."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.said = report
        self.calls: list[str] = []

    def wait_ready(self) -> None:
        self.calls.append("ready")

    def go(self) -> None:
        self.calls.append("go")

    def report(self, timeout_s: float) -> dict[str, Any]:
        if not self.said:
            raise PeerError("it hung")
        return self.said

    def end(self) -> None:
        self.calls.append("end")


class FakePeer(Peer):
    """Takes a million events per second, on host 2 half of that; ``hangs`` is a role without a report."""

    name, title, guarantee, total_order, api = "fake", "Fake", "none", False, "none"

    def __init__(self, member: bool = False, hangs: str = "") -> None:
        super().__init__()
        self.member = member  # type: ignore[misc]
        self.hangs = hangs
        self.started: list[tuple[int, str, tuple[int, ...], FakeProgram]] = []
        self._hosts = Hosts(3)  # not opened

    def build(self) -> None: ...

    def version(self) -> str:
        return "1"

    def start(self, hosts: Hosts, directory: Path) -> None: ...

    def command(self, i: int, role: str) -> list[str]:
        return [role]

    def cpu_s(self) -> dict[int, float]:
        """A second for each call."""
        self.seconds = getattr(self, "seconds", 0.0) + 1.0
        return {1: self.seconds}

    def program(self, i: int, role: str, *numbers: int, way: str = "") -> Program:
        seconds = numbers[0] / 1e6 * (2 if i == 2 else 1)
        report = {"events": numbers[0], "first": 10.0, "last": 10.0 + seconds, "cpu_s": 0.5}
        if role == "latency":
            report = {"p50_us": 5.0, "p99_us": 6.0, "cpu_s": 0.5}
        program = FakeProgram({} if role == self.hangs else report)
        self.started.append((i, role, numbers, program))
        return program


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SETTLE_S", 0)


def test_the_slowest_subscriber_counts_and_all_cpu_time() -> None:
    result = measure.throughput(FakePeer(), Throughput("64B", 64), 1_000_000)
    assert result["events_per_s"] == pytest.approx(500_000)
    assert result["mb_per_s"] == pytest.approx(32)
    # A daemon used one second, three subscribers and a publisher half a second each, for three million deliveries.
    assert result["cpu_s_per_million"] == pytest.approx(1.0)
    assert result["lost_share"] == 0


@pytest.mark.parametrize(("publishers", "hosts"), [(1, [1]), (3, [1, 2, 3])])
def test_every_host_subscribes_to_what_all_publishers_share(publishers: int, hosts: list[int]) -> None:
    peer = FakePeer()
    measure.throughput(peer, Throughput("x", 64, publishers=publishers), 3000)
    assert [(i, numbers) for i, role, numbers, _ in peer.started if role == "subscribe"] == [
        (i, (3000, 64)) for i in (1, 2, 3)
    ]
    told = [(i, numbers, it.calls) for i, role, numbers, it in peer.started if role == "publish"]
    assert told == [(i, (3000 // publishers, 64), ["ready", "go", "end"]) for i in hosts]


def test_a_member_publishes_and_subscribes_in_one_program() -> None:
    peer = FakePeer(member=True)
    measure.throughput(peer, Throughput("x", 64), 3000)
    assert [(i, numbers) for i, _, numbers, _ in peer.started] == [
        (1, (3000, 3000, 64)),
        (2, (3000, 0, 64)),
        (3, (3000, 0, 64)),
    ]
    assert [it.calls for *_, it in peer.started] == [
        ["ready", "go", "end"],
        ["ready", "end"],
        ["ready", "end"],
    ]


def test_the_others_take_what_the_latency_is_measured_with() -> None:
    peer = FakePeer()
    result = measure.latency(peer, Latency("latency", 64, samples=100))
    assert (result["p50_us"], result["lost_share"]) == (5.0, 0)
    warm_up = measure.WARM_UP_SAMPLES
    assert [one[:3] for one in peer.started] == [
        (2, "subscribe", (warm_up + 100, 64)),
        (3, "subscribe", (warm_up + 100, 64)),
        (1, "latency", (warm_up, 100, 64)),
    ]


def test_all_programs_end_when_one_fails() -> None:
    peer = FakePeer(hangs="publish")
    with pytest.raises(PeerError, match="it hung"):
        measure.throughput(peer, Throughput("x", 64), 3000)
    assert [it.calls[-1] for *_, it in peer.started] == ["end"] * 4


def test_as_many_events_as_take_the_time_wanted() -> None:
    """The slowest takes half a million per second, so that an attempt must grow before it says enough."""
    work = Throughput("x", 64, probe=1000)
    assert measure.how_many(FakePeer(), work, seconds=3) == pytest.approx(1_500_000, rel=0.001)
    assert measure.how_many(FakePeer(), work, seconds=1e9) == measure.MOST_BYTES // 64


def program(code: str, order: str = "") -> Program:
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    return Program(process, order)


def test_a_program_is_ready_goes_and_reports() -> None:
    one = program("print('ready', flush=True); print('{\"said\": \"%s\"}' % input())")
    try:
        one.wait_ready()
        one.go()
        assert one.report(10) == {"said": "go"}
    finally:
        one.end()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('oh')", "said 'oh' instead"),
        ("pass", "ended without a report"),
        ("import time; time.sleep(60)", "said nothing for 0.3 s"),
    ],
)
def test_a_program_that_does_not_report(code: str, words: str) -> None:
    one = program(code)
    try:
        with pytest.raises(PeerError, match=words):
            one.report(0.3 if "sleep" in code else 10)
    finally:
        one.end()


# --- peers that are not there -------------------------------------------------------------------------------------


class Absent(FakePeer):
    name = "absent"
    debian = ("absentd",)
    needs = (("usr/sbin/no-such-absentd", "absentd"), ("usr/bin/env", "coreutils"))
    tools = (("no-such-compiler", "no-such-package"), ("sh", "dash"))


def test_what_is_missing_is_said_with_what_to_do() -> None:
    assert Absent().missing() == [
        "absentd (python -m bench.compare --install absent)",
        "no-such-compiler (apt-get install no-such-package)",
    ]


def test_with_all_peers_missing_there_is_nothing_to_compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "PEERS", {"absent": Absent})
    monkeypatch.setattr(command.os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["bench.compare", "--peers", "absent"])
    assert command.main() == 1
    said = capsys.readouterr().err
    assert "absent is skipped, missing: absentd" in said
    assert "nothing to compare with" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--peers", "corosink"], "no peer corosink; there are corosync"), (["--only", "7B"], "there are 64B")],
)
def test_an_unknown_name_is_answered_with_those_there_are(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.compare", *arguments])
    assert command.main() == 2
    assert words in capsys.readouterr().err


def test_peers_are_listed_by_their_names() -> None:
    assert set(PEERS) == {"corosync", "jgroups", "nats", "zenoh", "cyclonedds", "floor"}
    for name, peer in PEERS.items():
        assert peer().name == name
        assert peer.title
        assert peer.guarantee
        assert peer.api


# --- tables and the picture ---------------------------------------------------------------------------------------


def test_an_earlier_run_is_shown_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, again, picture = tmp_path / "earlier.json", tmp_path / "again.json", tmp_path / "picture.svg"
    earlier.write_text(json.dumps(DOCUMENT))
    monkeypatch.setattr(
        sys,
        "argv",
        ["bench.compare", "--from", str(earlier), "--json", str(again), "--picture", str(picture)],
    )
    assert command.main() == 0
    said = capsys.readouterr().out
    assert "30 (10-40)" in said
    assert "nats was skipped: there is no nats-server" in said
    assert json.loads(again.read_text())["ratios"]["corosync"]["64B"] == 30
    assert picture.read_text() == draw(DOCUMENT)


def test_the_picture_has_a_dot_for_every_figure() -> None:
    root = ET.fromstring(draw(DOCUMENT))
    space = "{http://www.w3.org/2000/svg}"
    dots = root.findall(f"{space}circle")
    # 64 B, CPU, and two of latency, of two systems each
    assert len(dots) == 8
    texts = [one.text for one in root.findall(f"{space}text")]
    assert "corosync <&>" in texts
    assert {panel.title for panel in PANELS} <= set(texts)
    assert "400" in texts
    assert "100*" in texts, "a sample of another kind than ours"
    assert "0.2" in texts, "200 events/s, in thousands"
    by_ours, by_other = (float(dot.attrib["cx"]) for dot in dots[:2])
    assert by_ours - by_other == pytest.approx(
        150 * 1.301 / 3, abs=0.2
    )  # 0.2 and 0.01, on three decades of 150


@pytest.mark.parametrize(
    ("values", "expected"), [([0.2, 30], (-1, 2)), ([1, 10], (0, 1)), ([7], (0, 1)), ([10], (1, 2))]
)
def test_scales_end_at_powers_of_ten(values: list[float], expected: tuple[int, int]) -> None:
    assert decades(values) == expected


def test_numbers_have_three_digits_that_count() -> None:
    assert [number(one) for one in (51234.6, 3268, 100, 66.04, 0.2345, 0.01)] == [
        "51\u2009200",
        "3\u2009270",
        "100",
        "66",
        "0.234",
        "0.01",
    ]
