"""Filters and policies through a real agent: asyncio, the command line, callbacks, and what an operator sees."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import ocfcluster
from ocfcluster import Property
from ocfcluster.errors import FilterError, InvalidArgument
from tests.cluster import LoopbackCluster


@pytest.fixture(scope="module")
def agents() -> Iterator[LoopbackCluster]:
    with LoopbackCluster(1, topics=["alarms", "quiet"]) as cluster:
        yield cluster


def publish(agents: LoopbackCluster, topic: str = "alarms") -> None:
    with agents.connect(1) as client:
        for number in range(10):
            severity = ("low", "high")[number % 2]
            client.publish(topic, b"%d" % number, properties={"severity": severity})
        client.flush(5)


def test_asyncio(agents: LoopbackCluster) -> None:
    async def main() -> list[bytes]:
        async with (
            ocfcluster.aio.connect(agents.socket(1)) as client,
            client.subscribe(
                "alarms", filter=Property("severity") == "high", on_slow="drop_oldest"
            ) as events,
        ):
            await asyncio.get_running_loop().run_in_executor(None, publish, agents)
            found = [await events.get(5) for _ in range(5)]
            assert await events.get(0) is None
            return [event.data for event in found if event is not None]

    assert asyncio.run(main()) == [b"1", b"3", b"5", b"7", b"9"]


def test_callbacks(agents: LoopbackCluster) -> None:
    seen: list[tuple[str, bytes]] = []
    with agents.connect(1) as client:
        low = client.subscribe(
            "alarms", lambda event: seen.append(("low", event.data)), filter='severity == "low"'
        )
        high = client.subscribe(
            "alarms", lambda event: seen.append(("high", event.data)), filter='severity == "high"'
        )
        publish(agents)
        while len(seen) < 10:
            client.dispatch(0.05)
        low.close()
        high.close()
    assert seen == [(("low", "high")[number % 2], b"%d" % number) for number in range(10)]


def test_arguments_are_checked_before_anything_happens(agents: LoopbackCluster) -> None:
    with agents.connect(1) as client:
        with pytest.raises(FilterError, match="character 13"):
            client.subscribe("alarms", filter="severity == high")
        with pytest.raises(InvalidArgument, match="Filter or the text"):
            client.subscribe("alarms", filter=3)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="drop_oldest"):
            client.subscribe("alarms", on_slow="panic")
        assert client.status()["clients"][0]["subscriptions"] == 0


def test_the_command_line(agents: LoopbackCluster) -> None:
    argv = [
        sys.executable, "-m", "ocfcluster", "subscribe", "alarms", "--filter", 'severity == "high"', "--count", "5",
        "--timeout", "20", "--json", "--socket", agents.socket(1),
    ]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "subscribed to alarms" in process.stderr.readline()
        publish(agents)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert [json.loads(line)["data"] for line in out.splitlines()] == ["1", "3", "5", "7", "9"]


def test_status_shows_who_takes_nothing(agents: LoopbackCluster) -> None:
    with agents.connect(1, name="idler") as client, client.subscribe("quiet", on_slow="disconnect") as events:
        client.publish("quiet", b"x").wait(5)
        shown = None
        end = time.monotonic() + 10
        while not shown and time.monotonic() < end:
            time.sleep(0.1)
            (shown,) = [
                one["oldest_outstanding"] for one in client.status()["clients"] if one["name"] == "idler"
            ]
        assert (shown["topic"], shown["seq"], shown["taken"]) == ("quiet", 1, False)
        text = subprocess.run(
            [sys.executable, "-m", "ocfcluster", "status", "--socket", agents.socket(1)],
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout  # fmt: skip
        assert "oldest_outstanding.topic" in text
        assert events.get(1) is not None
