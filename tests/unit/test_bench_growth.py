"""How cost grows: what is computed, drawn and refused; nothing is timed here."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench.growth import __main__ as command
from bench.growth import agents, simulated
from bench.growth.axes import AXES, Axis, Point, Simulated, chosen, size_text, spread_over
from bench.growth.picture import draw
from bench.growth.report import short, spread, values
from bench.growth.worker import Taken, Tally, batched_topics, topic_names
from ocfcluster.limits import TOPICS_PER_SUBSCRIPTION
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire.datagram import MessageType

# --- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_points_of_an_axis_differ_in_one_field_that_grows(axis: Axis) -> None:
    values = [getattr(point, axis.field) for point in axis.points]
    assert values == sorted(set(values))
    rest = [{**vars(point), axis.field: None} for point in axis.points]
    assert all(one == rest[0] for one in rest)
    assert len(axis.chosen(quick=True)) == len(axis.quick) >= 2
    assert axis.chosen(quick=False) == list(axis.points)


def test_axes_are_chosen_by_name_in_the_order_of_the_table() -> None:
    assert chosen("all") == list(AXES)
    assert [axis.name for axis in chosen("loss, nodes")] == ["nodes", "loss"]
    with pytest.raises(ValueError, match="there is no axis colour; there are nodes, subscribers"):
        chosen("nodes,colour")


def test_publishers_are_spread_over_hosts_in_turn() -> None:
    assert spread_over(1, [2, 3, 1]) == {2: 1}
    assert spread_over(5, [2, 3, 1]) == {2: 2, 3: 2, 1: 1}
    assert sum(spread_over(50, [2, 3, 1]).values()) == 50


def test_a_call_publishes_what_bench_run_does_unless_said() -> None:
    assert [Point(event_bytes=size).events_per_call for size in (1, 1024, 1 << 20)] == [8192, 512, 1]
    assert Point(batch=8).events_per_call == 8


def test_sizes_are_said_in_the_largest_unit_that_divides_them() -> None:
    assert [size_text(size) for size in (1, 1000, 1024, 1536, 65_536, 1 << 20)] == [
        "1 B",
        "1000 B",
        "1 KiB",
        "1536 B",
        "64 KiB",
        "1 MiB",
    ]


# --- programs ---------------------------------------------------------------------------------------------------------


def test_topics_are_subscribed_to_in_parts_that_one_subscription_may_have() -> None:
    names = topic_names(2 * TOPICS_PER_SUBSCRIPTION + 1)
    parts = batched_topics(names)
    assert [len(part) for part in parts] == [TOPICS_PER_SUBSCRIPTION, TOPICS_PER_SUBSCRIPTION, 1]
    assert [name for part in parts for name in part] == names


def test_a_rate_is_from_behind_the_first_run_to_the_last() -> None:
    taken = Taken(Tally())
    taken.take(100)
    taken.take(30)
    taken.take(20)
    taken.first, taken.last = 10.0, 10.5
    assert taken.rate == pytest.approx(100)
    taken.restart()
    assert (taken.count, taken.rate) == (0, 0)


def test_what_is_left_out_counts_as_arrived_but_not_for_the_rate() -> None:
    async def run() -> None:
        tally = Tally()
        one, other = Taken(tally), Taken(tally)
        one.take(5)
        waiting = asyncio.create_task(tally.wait_for(20))
        await asyncio.sleep(0)
        one.take(5)
        other.take(7)
        await asyncio.sleep(0)
        assert not waiting.done()
        other.lose(3)
        await asyncio.wait_for(waiting, 5)
        assert (other.count, other.lost) == (7, 3)
        assert tally.total == 0, "the next round counts anew"

    asyncio.run(run())


def test_all_may_have_arrived_before_anybody_waits() -> None:
    async def run() -> None:
        tally = Tally()
        Taken(tally).take(20)
        await asyncio.wait_for(tally.wait_for(20), 5)

    asyncio.run(run())


def test_the_figures_of_a_round() -> None:
    published = [
        {"events": 600, "first": 10.0, "cpu_s": 0.25, "first_use_s": 0.1},
        {"events": 400, "first": 10.1, "cpu_s": 0.25, "first_use_s": 0.2},
    ]
    taken = [
        {"rates": [500.0], "lost": 0, "last": 12.0, "cpu_s": 0.5},
        {"rates": [400.0, 800.0, 450.0], "lost": 200, "last": 12.5, "cpu_s": 1.0},
    ]
    result = agents.summary(published, taken, agents_s=2.0, event_bytes=1000)
    assert result["events"] == 1000
    assert result["deliveries"] == 4 * 1000 - 200
    assert result["events_per_s"] == 400, "the slowest subscriber"
    assert result["mb_per_s"] == pytest.approx(0.4)
    assert result["deliveries_per_s"] == 2150
    assert result["seconds"] == pytest.approx(2.5)
    assert result["first_use_s"] == 0.2
    assert result["cpu_s_per_million"] == pytest.approx(4.0 / 3800 * 1e6)
    assert result["left_out_percent"] == pytest.approx(5)
    assert "5 % left out" in agents.line(result)


def test_memory_is_read_from_the_kernels_summary() -> None:
    text = (
        "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:     2048 kB\nPss:     1536 kB\nPss_Anon:   1 kB\n"
    )
    assert agents.rollup(text) == {"rss_mib": 2.0, "pss_mib": 1.5}
    assert agents.most([{"rss_mib": 2.0, "pss_mib": 1.5}, {"rss_mib": 1.0, "pss_mib": 3.0}]) == {
        "rss_mib": 2.0,
        "pss_mib": 3.0,
    }


# --- the simulator ----------------------------------------------------------------------------------------------------


def test_three_simulated_nodes_give_the_same_figures_each_time() -> None:
    said: list[str] = []
    results = [simulated.measure(Simulated(3, mtu=1500), said.append) for _ in range(2)]
    assert results[0] == results[1]
    lone = results[0]["lone"]
    # DATA to two nodes, ORDER to two, an ACK of each of the two that are not the sequencer
    assert lone["sent"] == pytest.approx(3, abs=0.1)
    assert lone["received_per_node"] == pytest.approx(5 / 3, abs=0.1)
    assert lone["received_by_sequencer"] == pytest.approx(2, abs=0.1)
    assert lone["bytes_sent"] > lone["kinds"]["DATA"] * simulated.LONE_BYTES
    bulk = results[0]["bulk"]
    assert bulk["sent"] < 1 < bulk["bytes_over_payload"] < 1.1
    assert 0 < results[0]["kill_ms"] < 100
    assert 0 < results[0]["join_pause_ms"] <= results[0]["join_ms"] < 2000
    assert len(said) == 2 * 3


def test_a_multicast_is_sent_once_and_received_by_all_others() -> None:
    world = Scenario(nodes=3).world
    world.network = network = simulated.CountingNetwork(world, world.network)
    network.multicast(1, bytes(2500), 1000)
    assert network.sent == {None: 3}
    assert network.bytes_sent == {None: 2500 + 3 * simulated.IP_OVERHEAD_BYTES}
    assert network.received_by == {2: 3, 3: 3}
    network.sent[MessageType.HEARTBEAT] += 7
    assert network.work(network.sent) == 3, "heartbeats come with time, not with events"
    network.restart()
    assert not network.sent
    assert not network.received_by


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (Simulated(21, mtu=1500), "room for"),
        (Simulated(65, mtu=9000), "at most 64 are supported"),
    ],
)
def test_sizes_that_are_refused_say_why(point: Simulated, words: str) -> None:
    result = simulated.measure(point, lambda _: None)
    assert words in result["refused"]
    assert result["nodes_most"] == 64


def test_most_nodes_is_where_the_agent_begins_to_refuse() -> None:
    most = simulated.most_nodes(1500)
    assert simulated.measure(Simulated(most + 1, mtu=1500), lambda _: None).get("refused")
    Scenario(nodes=most, mtu=1500).form()


# --- the command ------------------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str, root: bool = False) -> int:
    monkeypatch.setattr(sys, "argv", ["bench.growth", *arguments])
    monkeypatch.setattr(command.os, "geteuid", lambda: 0 if root else 1000)
    return command.main()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "colour"], "there is no axis colour"),
        (["--seconds", "-1"], "--rounds and --seconds are more than nothing"),
        (["--from", "/nowhere/growth.json"], "No such file"),
    ],
)
def test_arguments_that_cannot_be_meant(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err


def test_another_file_is_no_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.json"
    for text in ("[]", "{", '{"axes": 1, "environment": {}}'):
        file.write_text(text)
        assert call(monkeypatch, "--from", str(file)) == 2
        assert "is not what --json has written" in " ".join(capsys.readouterr().err.split())


def test_namespaces_need_root_and_tools(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--only", "nodes,simulated") == 3
    assert "need root" in capsys.readouterr().err
    monkeypatch.setattr(command.shutil, "which", lambda tool: None if tool == "nft" else tool)
    assert call(monkeypatch, "--only", "loss", root=True) == 3
    assert "there is no nft" in capsys.readouterr().err


def test_a_point_that_fails_is_named_and_the_next_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The simulated axes need no root."""

    def measure(point: Simulated, say: Any) -> dict[str, Any]:
        if point.nodes == 16:
            raise TimeoutError("nobody came\nand more")
        return {"refused": "too many"}

    monkeypatch.setattr(simulated, "measure", measure)
    file = tmp_path / "growth.json"
    assert call(monkeypatch, "--only", "simulated", "--quick", "--json", str(file)) == 1
    document = json.loads(file.read_text())
    rounds = [point["rounds"] for point in document["axes"]["simulated"]["points"]]
    assert [[one.get("refused") or one.get("error") for one in each] for each in rounds] == [
        ["too many"],
        ["nobody came"],
    ]
    out = capsys.readouterr().out
    assert "3: too many" in out
    assert "16: nobody came" in out


# --- tables and the picture -------------------------------------------------------------------------------------------


def round_of(rate: float) -> dict[str, Any]:
    return {
        "events_per_s": rate,
        "mb_per_s": rate / 1000,
        "deliveries_per_s": 3 * rate,
        "cpu_s_per_million": 3.0,
        "left_out_percent": 0.0,
        "p50_us": 700.0,
        "p99_us": 2900.0,
        "idle": {"rss_mib": 47.0, "pss_mib": 35.0},
        "loaded": {"rss_mib": 66.0, "pss_mib": 53.0},
    }


def simulated_result(nodes: int) -> dict[str, Any]:
    counts = {
        "sent": nodes,
        "bytes_sent": 400,
        "received_per_node": 2,
        "received_by_sequencer": nodes - 1,
        "bytes_over_payload": 1.05,
    }
    return {
        "idle": {"received": 20},
        "lone": counts,
        "bulk": counts,
        "kill_ms": 2.6,
        "kill_received_per_node": 5,
        "join_ms": 5.6,
        "join_pause_ms": 3.5,
        "fit_one_datagram": 20,
        "nodes_most": 64,
    }


def point(label: str, *rounds: dict[str, Any]) -> dict[str, Any]:
    simulated_one = any("lone" in one for one in rounds)
    return {"label": label, "point": {"mtu": 1500} if simulated_one else {"nodes": 3}, "rounds": list(rounds)}


DOCUMENT: dict[str, Any] = {
    "environment": {"cores": 2, "time": "2026-01-02T03:04:05Z", "commit": "abc"},
    "rounds": 3,
    "axes": {
        "nodes": {
            "what": "nodes <&>",
            "points": [
                point("three", round_of(150_000), round_of(160_000), round_of(140_000)),
                point("five", round_of(80_000), {"error": "it hung"}, round_of(90_000)),
                point("eight", {"error": "it hung, too"}),
            ],
        },
        "simulated": {
            "what": "simulated",
            "points": [point("3", simulated_result(3)), point("16", simulated_result(16))],
        },
    },
}


def test_an_earlier_run_is_shown_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, again, picture = tmp_path / "earlier.json", tmp_path / "again.json", tmp_path / "picture.svg"
    earlier.write_text(json.dumps(DOCUMENT))
    arguments = ["--from", str(earlier), "--json", str(again), "--picture", str(picture)]
    assert call(monkeypatch, *arguments) == 1, "a round has failed"
    out = capsys.readouterr().out
    assert "150 (140-160)" in out
    assert "85 (80-90)" in out, "of the rounds that did not fail"
    assert "five: it hung\n" in out
    assert "eight: it hung, too" in out
    assert "a configuration of 20 nodes fits one datagram" in out
    assert json.loads(again.read_text()) == DOCUMENT
    assert picture.read_text() == draw(DOCUMENT)


def test_the_picture_has_a_dot_for_every_median() -> None:
    root = ET.fromstring(draw(DOCUMENT))
    space = "{http://www.w3.org/2000/svg}"
    # Two points of agents with a rate, CPU time and two latencies, two simulated with two figures in three panels
    assert len(root.findall(f"{space}circle")) == 2 * 4 + 2 * 6
    texts = [one.text for one in root.findall(f"{space}text")]
    assert "nodes <&>" in texts
    assert "eight" not in texts
    tops = [float(dot.attrib["cy"]) for dot in root.findall(f"{space}circle")]
    assert tops[0] < tops[1], "150 stands above 85"


def test_numbers_have_three_digits_that_count_and_no_exponent() -> None:
    assert [short(value) for value in (51234.6, 100, 66.04, 0.2345, 0)] == [
        "51235",
        "100",
        "66",
        "0.234",
        "0",
    ]
    assert spread([3.0, 1.0, 2.0], 10) == "20 (10-30)"
    assert spread([2.0]) == "2"
    assert spread([]) == ""


def test_a_figure_is_of_the_rounds_that_have_it() -> None:
    rounds = [{"idle": {"pss_mib": 35.0}}, {"error": "it hung"}, {"idle": {"pss_mib": 0.0}}]
    assert values(rounds, "idle", "pss_mib") == [35.0, 0.0]
    assert values(rounds, "lone", "sent") == []
