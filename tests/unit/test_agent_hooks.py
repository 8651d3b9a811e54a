"""The hook: what it is told, by real processes, one at a time, within its time, and never at the loop's cost."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ocfcluster.agent import incarnations
from ocfcluster.agent.config import AgentConfig, Cluster
from ocfcluster.agent.config import Hooks as HooksSection
from ocfcluster.agent.config import Node as NodeSection
from ocfcluster.agent.hooks import ENVIRONMENT, Hooks, NodeState, Told, check_command
from ocfcluster.errors import SetupError
from ocfcluster.limits import PRODUCERS_PER_NODE
from ocfcluster.protocol.effects import NotificationCode, State
from tests.unit.fake_node import FakeNode, bench, read_frame
from tests.unit.test_agent_life import Life

# Writes what it was told to a file of its own in the directory that is its argument, after a pause.
RECORD = """
import json, os, pathlib, sys, time
directory, pause = pathlib.Path(sys.argv[1]), float(sys.argv[2])
told = json.loads(sys.stdin.read())
(directory / f"{time.monotonic_ns()}.began").write_text(told["event"])
time.sleep(pause)
document = {"told": told, "environment": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(),
            "group": os.getpgid(0), "descriptors": sorted(os.listdir("/proc/self/fd"))}
name = f"{time.monotonic_ns()}.json"
(directory / (name + ".new")).write_text(json.dumps(document))
(directory / (name + ".new")).rename(directory / name)
"""


def recorder(directory: Path, pause: float = 0.0) -> list[str]:
    return [sys.executable, "-c", RECORD, str(directory), str(pause)]


def told(state: NodeState, **other: Any) -> Told:
    fields: dict[str, Any] = {
        "event": state, "cluster": "blue", "cluster_id": "", "node_id": 1, "incarnation": 77, "m_sequence": 3,
        "reason": "why", "time_ns": 5, "socket": "/run/a.sock",
    }  # fmt: skip
    return Told(**{**fields, **other})


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))]


def events(directory: Path) -> list[str]:
    return [one["told"]["event"] for one in records(directory)]


async def began(directory: Path) -> None:
    while not any(name.endswith(".began") for name in os.listdir(directory)):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def run(section: HooksSection, test: Callable[[Hooks], Coroutine[Any, Any, None]]) -> Hooks:
    """``test`` with hooks on a loop that notices when somebody holds it up."""
    hooks = Hooks(section)

    async def all_of_it() -> None:
        slowest = 0.0

        async def watch() -> None:
            nonlocal slowest
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.001)
                slowest = max(slowest, time.monotonic() - began)

        watching = asyncio.create_task(watch())
        await test(hooks)
        await asyncio.wait_for(hooks.ended(), 20)
        watching.cancel()
        assert slowest < 0.25  # no command here is as quick

    asyncio.run(all_of_it())
    return hooks


def nowhere(state: NodeState, topic: str, data: bytes) -> None:
    raise AssertionError("there is no topic")


def test_a_command_is_told_on_its_input_and_in_a_clean_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the agent")

    async def test(hooks: Hooks) -> None:
        hooks.tell(told("primary", reason="new\nline \ud800 and ü"), nowhere)

    hooks = run(HooksSection(command=recorder(tmp_path)), test)
    (one,) = records(tmp_path)
    assert one["told"]["event"] == "primary"
    assert one["told"]["node_id"] == 1
    environment = one["environment"]
    environment.pop("LC_CTYPE", None)  # Python's own
    assert {key: environment[key] for key in ENVIRONMENT} == ENVIRONMENT
    assert environment["OCFCLUSTER_EVENT"] == "primary"
    assert environment["OCFCLUSTER_SOCKET"] == "/run/a.sock"
    assert set(environment) == set(ENVIRONMENT) | {f"OCFCLUSTER_{name.upper()}" for name in Told._fields}
    assert one["cwd"] == "/"
    assert one["group"] == one["pid"]  # so that all of it can be killed
    assert len(one["descriptors"]) <= 4  # standard ones, and the listing itself
    assert (hooks.runs, hooks.failures, hooks.last_error) == (1, 0, "")


def test_one_at_a_time_and_the_newest_state_wins_but_an_eviction_is_never_lost(tmp_path: Path) -> None:
    async def test(hooks: Hooks) -> None:
        hooks.tell(told("primary"), nowhere)
        await began(tmp_path)
        for state in ("not_primary", "primary", "not_primary", "evicted", "primary", "not_primary"):
            hooks.tell(told(state), nowhere)  # type: ignore[arg-type]
        assert hooks.document()["waiting"] == 2
        assert hooks.document()["running"]

    hooks = run(HooksSection(command=recorder(tmp_path, 0.3)), test)
    assert events(tmp_path) == ["primary", "evicted", "not_primary"]
    times = sorted(
        [(int(file.stem), +1) for file in tmp_path.glob("*.began")]
        + [(int(file.stem), -1) for file in tmp_path.glob("*.json")]
    )
    assert [change for _, change in times] == [1, -1, 1, -1, 1, -1]
    assert (hooks.runs, hooks.skipped, hooks.failures) == (3, 4, 0)


def test_the_same_state_is_told_once_and_who_never_was_primary_has_nothing_to_lose(tmp_path: Path) -> None:
    async def test(hooks: Hooks) -> None:
        hooks.tell(told("not_primary"), nowhere)
        hooks.tell(told("evicted"), nowhere)
        assert hooks.state is None
        for _ in range(3):
            hooks.tell(told("primary"), nowhere)
            await hooks.ended()

    assert run(HooksSection(command=recorder(tmp_path)), test).runs == 1
    assert events(tmp_path) == ["primary"]


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/child; wait"

    async def test(hooks: Hooks) -> None:
        hooks.tell(told("primary"), nowhere)

    start = time.monotonic()
    hooks = run(HooksSection(command=["/bin/sh", "-c", script], timeout_ms=300), test)
    assert 0.3 <= time.monotonic() - start < 5
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            break  # dead, and nobody's to bury here
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{child}").exists()
    assert (hooks.timeouts, hooks.failures) == (1, 1)
    assert "300 ms" in hooks.last_error


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/bin/sh", "-c", "exit 7"], "left with 7"),
        (["/bin/sh", "-c", "kill -9 $$"], "signal 9"),
        (["/nowhere/hook"], "could not be started"),
        (["/bin/sh", "-c", "exec 0<&-; exit 1"], "left with 1"),  # it need not read what it is told
    ],
)
def test_failures_are_counted_and_the_next_one_runs(command: list[str], words: str) -> None:
    async def test(hooks: Hooks) -> None:
        hooks.tell(told("primary"), nowhere)
        await hooks.ended()
        hooks.tell(told("not_primary"), nowhere)

    hooks = run(HooksSection(command=command), test)
    assert (hooks.runs, hooks.failures, hooks.timeouts) == (2, 2, 0)
    assert words in hooks.last_error


def test_no_shell_reads_the_arguments(tmp_path: Path) -> None:
    async def test(hooks: Hooks) -> None:
        hooks.tell(told("primary"), nowhere)

    target = tmp_path / "a b; touch $(x)"
    assert run(HooksSection(command=["/usr/bin/touch", str(target)]), test).failures == 0
    assert target.exists()


def test_who_is_in_a_hurry_kills_it(tmp_path: Path) -> None:
    async def test(hooks: Hooks) -> None:
        hooks.tell(told("primary"), nowhere)
        hooks.tell(told("not_primary"), nowhere)
        await began(tmp_path)
        hooks.abandon()

    start = time.monotonic()
    hooks = run(HooksSection(command=recorder(tmp_path, 60)), test)
    assert time.monotonic() - start < 10
    assert hooks.runs == 1
    assert "signal 9" in hooks.last_error


def test_a_command_that_cannot_be_run_is_refused_beforehand(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    for path in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(SetupError, match=r"hooks\.command"):
            check_command(HooksSection(command=[path]))
    if os.geteuid():
        with pytest.raises(SetupError, match="execute"):
            check_command(HooksSection(command=[str(plain)]))
    check_command(HooksSection(command=["/bin/sh"]))
    check_command(HooksSection())


# --- in an agent ----------------------------------------------------------------------------------------------------


class HookedLife(Life):
    def __init__(self, directory: Path, hooks: HooksSection, **cluster: Any) -> None:
        super().__init__(directory)
        self.incarnations._config = AgentConfig(
            cluster=Cluster(**cluster),
            node=NodeSection(socket=self.path, state_dir=str(self.state)),
            hooks=hooks,
        )
        self.incarnations.hooks.section = hooks


def test_an_agents_whole_life_as_its_hook_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "told"
    directory.mkdir()
    one = HookedLife(tmp_path, HooksSection(command=recorder(directory)), rejoin=True)
    monkeypatch.setattr(incarnations, "node_factory", one.make_node)

    def seen() -> list[str]:
        return [f"{one['told']['event']} {one['told']['reason']}" for one in records(directory)]

    async def test() -> None:
        await one.until(lambda: len(seen()) == 1)
        one.nodes[0].notify(NotificationCode.NOT_PRIMARY)
        one.agent.settle(0)
        await one.until(lambda: len(seen()) == 2)
        one.nodes[0].notify(NotificationCode.PRIMARY_RESTORED)
        one.agent.settle(0)
        await one.until(lambda: len(seen()) == 3)
        one.nodes[0].notify(NotificationCode.NOT_PRIMARY)
        one.agent.settle(0)
        await one.until(lambda: len(seen()) == 4)
        one.nodes[0].view([])  # another view: primary again, without a word of it
        one.agent.settle(0)
        await one.until(lambda: len(seen()) == 5)
        assert one.agent.status()["hooks"]["runs"] == 5
        first = one.agent
        one.decide(State.EVICTED, "it was silent")
        await one.until(lambda: one.agent is not None and one.agent is not first)
        await one.until(lambda: len(seen()) == 7)
        one.signal()

    assert one.run(test) == 0
    assert [text.split()[0] for text in seen()] == [
        "primary", "not_primary", "primary", "not_primary", "primary", "evicted", "primary",
    ]  # fmt: skip
    assert seen()[5] == "evicted it was silent"
    assert len({one["told"]["incarnation"] for one in records(directory)}) == 2


def test_an_agent_that_ends_evicted_still_tells_its_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "told"
    directory.mkdir()
    one = HookedLife(tmp_path, HooksSection(command=recorder(directory, 0.3)), rejoin=False)
    monkeypatch.setattr(incarnations, "node_factory", one.make_node)

    async def test() -> None:
        one.decide(State.EVICTED, "gone")

    assert one.run(test) == incarnations.EXIT_EVICTED
    assert events(directory)[-1] == "evicted"


def test_a_local_topic_is_told_too(tmp_path: Path) -> None:
    config = AgentConfig(hooks=HooksSection(topic="news"))
    with bench(tmp_path, config, active=False) as made:
        made.agent.hooks = Hooks(config.hooks)
        made.node.activate()
        made.agent.settle(0)
        assert made.node.topics["news"].local
        client = made.client()
        received = client.subscribe(1, "news")
        for code in (NotificationCode.NOT_PRIMARY, NotificationCode.PRIMARY_RESTORED):
            made.node.notify(code)
            made.agent.settle(0)
        found = [json.loads(read_frame(received)[1][0][1][-1000:].partition(b'{"event"')[2].join([b'{"event"', b""]))
                 for _ in range(2)]  # fmt: skip
        assert [one["event"] for one in found] == ["not_primary", "primary"]
        assert found[0]["node_id"] == 1


def test_a_topic_that_is_global_or_missing_is_said_and_changes_nothing(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        teller = made.agent.teller
        assert "no such topic" in teller._topic.publish(None, b"x")
        client = made.client()
        client.create_topic("everywhere")
        assert "local" in teller._topic.publish(made.node.topics["everywhere"], b"x")


def test_the_topics_producer_survives_the_end_of_a_history_and_of_producers(tmp_path: Path) -> None:
    config = AgentConfig(hooks=HooksSection(topic="news"))
    with bench(tmp_path, config) as made:
        topic, publish = made.node.topics["news"], made.agent.teller._topic.publish
        assert publish(topic, b"x") == publish(topic, b"x") == ""
        made.agent.local.forget_history()
        assert publish(topic, b"x") == ""
        made.agent.local.forget_history()
        for _ in range(PRODUCERS_PER_NODE):
            assert made.agent.local.open_producer()
        assert "too many" in publish(topic, b"x")


def test_an_agent_without_hooks_tells_nobody() -> None:
    assert FakeNode().state is State.ACTIVE
    hooks = Hooks(HooksSection())
    hooks.tell(told("primary"), nowhere)
    assert hooks.document()["waiting"] == 0
