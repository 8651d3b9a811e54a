"""Reading the configuration again: every key is classified, and it is all or nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

import ocfcluster
from ocfcluster.agent import config as agent_config
from ocfcluster.agent import incarnations, main, reload
from ocfcluster.agent.config import AgentConfig, load
from ocfcluster.agent.reload import KEYS, Reloader, When, changes, plan
from ocfcluster.cli import main as command
from ocfcluster.ipc.peer import Peer
from ocfcluster.limits import MILLISECOND_NS
from ocfcluster.protocol.effects import State
from ocfcluster.wire.frames import Administer, Administration, Answer, Request, Status
from tests.unit.fake_node import bench
from tests.unit.test_agent_life import Life
from tests.unit.test_agent_process import running

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
BASE = """
[cluster]
name = "blue"
nodes = [1, 2]
[node]
id = 1
[network]
transport = "unicast"
peers = ["127.0.0.1:1", "127.0.0.1:2"]
[[topics]]
name = "orders"
"""


def keys() -> set[str]:
    """Every key that a file may have."""
    found = set()
    for name, section in agent_config._SECTIONS.items():
        if name:
            prefix = f"{name}[]" if name in ("topics", "network.networks") else name
            found |= {f"{prefix}.{field}" for field in section.__struct_fields__}
    return found


def test_every_key_is_classified() -> None:
    assert set(KEYS) == keys()


def test_every_section_is_compared() -> None:
    sections = {name.split(".")[0].removesuffix("[]") for name in KEYS}
    assert sections == set(AgentConfig.__struct_fields__)


def test_the_documentation_says_when_each_key_changes() -> None:
    rows = re.findall(r"^\| `([a-z_.\[\]]+)` \|(.*)\|$", DOCUMENT.read_text(), re.MULTILINE)
    assert {key: row.split("|")[-1].strip() for key, row in rows} == {
        key: when.value for key, when in KEYS.items()
    }


# --- what differs ---------------------------------------------------------------------------------------------------


def write(directory: Path, text: str) -> Path:
    file = directory / "agent.toml"
    file.write_text(text)
    return file


def differs(directory: Path, old: str, new: str, table: dict[int, int] | None = None) -> dict[str, When]:
    before, after = load(write(directory, old)), load(write(directory, new))
    return {change.key: change.when for change in changes(before, after, table)}


def other(value: Any, kind: Any) -> Any:
    """Another value than this of a key."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, *value, "x"]
    return 1 if value is None else kind


@pytest.mark.parametrize("key", sorted(key for key in KEYS if "[]" not in key))
def test_a_change_of_any_key_is_seen(key: str) -> None:
    section, name = key.split(".")
    before = AgentConfig()
    part = getattr(before, section)
    value: Any = other(getattr(part, name), None)
    if key == "network.networks":
        value = [agent_config.RedundantNetwork("eth1")]
    elif key == "cluster.nodes":
        value = [1, 2]
    after = msgspec.structs.replace(before, **{section: msgspec.structs.replace(part, **{name: value})})
    found = changes(before, after)
    assert [(change.key, change.when) for change in found] == [(key, KEYS[key])]
    assert changes(before, before) == []


def test_networks_are_compared_one_by_one(tmp_path: Path) -> None:
    one = BASE.replace('peers = ["127.0.0.1:1", "127.0.0.1:2"]', "")
    two = "".join(
        f'[[network.networks]]\ninterface = "lo"\nname = "{name}"\npeers = ["127.0.0.1:{port}"]\nport = {port}\n'
        for name, port in (("a", 1), ("b", 2))
    )
    start = one.replace("[[topics]]", two + "[[topics]]")
    assert differs(tmp_path, start, start) == {}
    moved = start.replace('["127.0.0.1:2"]', '["127.0.0.1:3"]')
    assert differs(tmp_path, start, moved) == {"network.networks[1].peers": When.NOW}
    moved = start.replace('name = "b"', 'name = "c"').replace("port = 2", "port = 4")
    assert differs(tmp_path, start, moved) == {
        "network.networks[1].name": When.RESTART, "network.networks[1].port": When.RESTART,
    }  # fmt: skip
    assert differs(tmp_path, BASE, start) == {"network.peers": When.NOW, "network.networks": When.RESTART}


def test_topics_come_by_name(tmp_path: Path) -> None:
    added = BASE + '[[topics]]\nname = "new"\nscope = "local"\n'
    assert differs(tmp_path, BASE, added) == {"topics[new]": When.NOW}
    assert differs(tmp_path, added, BASE) == {"topics[new]": When.NOW}
    assert differs(tmp_path, BASE, BASE + 'scope = "local"') == {"topics[orders].scope": When.COMMAND}


def test_a_file_that_follows_the_node_table_in_force_is_no_change(tmp_path: Path) -> None:
    added = BASE.replace("[1, 2]", "[1, 2, 3]")
    assert differs(tmp_path, BASE, added, {1: 1, 2: 1}) == {"cluster.nodes": When.COMMAND}
    assert differs(tmp_path, BASE, added, {1: 1, 2: 1, 3: 1}) == {}
    assert differs(tmp_path, BASE, BASE.replace("[1, 2]", "{ 1 = 1, 2 = 1 }")) == {}
    assert differs(tmp_path, added, BASE) == {"cluster.nodes": When.COMMAND}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense = 1", "unknown key"),
        (BASE.replace("127.0.0.1:2", "no such host!:2"), "no such host!"),
        (BASE.replace("127.0.0.1:2", "node-2..example:2"), "node-2..example"),
        (BASE + '[hooks]\ncommand = ["/nowhere/hook"]', "/nowhere/hook"),
        (BASE + '[hooks]\ncommand = ["hook"]', "hooks.command"),
        (BASE + '[hooks]\ntopic = "oc.x"', "hooks.topic"),
        (BASE + '[hooks]\ntopic = "orders"', "hooks.topic"),
    ],
)
def test_what_is_wrong_is_said_as_at_the_start(tmp_path: Path, text: str, words: str) -> None:
    planned = plan(write(tmp_path, text), AgentConfig(), None)
    assert not planned.works
    assert words in planned.error
    document = planned.document(applied=False)
    assert document["file"] == str(tmp_path / "agent.toml")
    assert document["file"] not in document["error"]
    assert document["reason"] == planned.error


def test_peers_of_another_family_need_another_socket(tmp_path: Path) -> None:
    running = load(write(tmp_path, BASE))
    six = BASE.replace('"127.0.0.1:1", "127.0.0.1:2"', '"[::1]:1", "[::1]:2"')
    planned = plan(write(tmp_path, six), running, None)
    assert [(change.key, change.when) for change in planned.changes] == [("network.peers", When.RESTART)]
    four = BASE.replace("127.0.0.1:2", "127.0.0.1:3")
    planned = plan(write(tmp_path, four), running, None)
    assert planned.works
    assert planned.peers == [[("127.0.0.1", 1), ("127.0.0.1", 3)]]


def test_a_file_that_is_gone_is_an_error_too(tmp_path: Path) -> None:
    assert "No such file" in plan(tmp_path / "gone", AgentConfig(), None).error


# --- all or nothing -------------------------------------------------------------------------------------------------


class Process:
    """What a Reloader asks of its process."""

    def __init__(self, file: Path) -> None:
        self.config = load(file)
        self.applied: list[AgentConfig] = []
        self.reloader = Reloader(file, lambda: self.config, lambda: None, self.apply, asyncio.to_thread)

    def apply(self, planned: reload.Plan) -> None:
        assert planned.config is not None
        self.config = planned.config
        self.applied.append(planned.config)

    def reload(self, *, check: bool = False) -> dict[str, Any]:
        return asyncio.run(self.reloader.reload(check=check))


def test_it_is_all_or_nothing_and_check_changes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, BASE)
    process = Process(file)
    file.write_text(BASE + '[log]\nlevel = "debug"\n[limits]\nclients = 5\n')
    said = process.reload(check=True)
    assert (said["applied"], said["works"], process.applied) == (False, True, [])
    assert [one["key"] for one in said["changes"]] == ["limits.clients", "log.level"]
    said = process.reload()
    assert said["applied"]
    assert process.config.limits.clients == 5
    assert process.reload()["changes"] == []

    file.write_text(BASE + '[log]\nlevel = "error"\n[limits]\nwindow_bytes = 65536\n')
    for check in (True, False):
        said = process.reload(check=check)
        assert (said["applied"], said["works"]) == (False, False)
        assert said["reason"] == "limits.window_bytes: only with a restart of this agent"
        assert {one["key"]: one["when"] for one in said["changes"]} == {
            "limits.clients": "now", "limits.window_bytes": "restart", "log.level": "now",
        }  # fmt: skip
    assert process.config.log.level == "debug"
    file.write_text("wrong")
    assert process.reload()["error"]
    assert (process.reloader.reloads, process.reloader.refusals) == (2, 2)
    assert len(process.applied) == 2


def test_two_at_once_do_not_undo_each_other(tmp_path: Path) -> None:
    file = write(tmp_path, BASE)
    process = Process(file)

    async def both() -> list[dict[str, Any]]:
        file.write_text(BASE + "[limits]\nclients = 5\n")
        return await asyncio.gather(*[process.reloader.reload(check=False) for _ in range(2)])

    first, second = asyncio.run(both())
    assert sorted(len(one["changes"]) for one in (first, second)) == [0, 1]


# --- in an agent ----------------------------------------------------------------------------------------------------


def administer(made: Any, check: bool) -> Any:
    client = made.client()
    asked = Administration.RELOAD_CHECK if check else Administration.RELOAD
    return client.call(Request.ADMINISTER, Administer(asked))


def test_an_agent_without_a_file_says_so(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        kind, body = administer(made, True)
        assert (kind, body.errno) == (Answer.ERROR, errno.EINVAL)
        assert "without a configuration file" in body.message


def test_what_has_changed_counts_in_the_agent(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        agent = made.agent
        planned = reload.Plan(
            "file",
            AgentConfig(
                limits=agent_config.Limits(clients=3, subscriptions_per_client=1),
                timing=agent_config.Timing(suspicion_ms=700),
                topics=[agent_config.TopicSetting("fresh", "local")],
                hooks=agent_config.Hooks(topic="news"),
                access=agent_config.AccessSection(create=("uid:4711",)),
            ),
            [],
            [],
        )
        agent.reloading.apply(planned)
        made.step()
        gate = agent.requests.permissions.gate
        verdict = gate.create(Peer(1, 4711, 4711), "mine")
        assert verdict is not None
        assert verdict.allowed
        assert made.node.topics["fresh"].local
        assert made.node.topics["news"].local
        assert made.node.timing.suspicion_ns == 700 * MILLISECOND_NS
        client = made.client()
        client.subscribe(1, "fresh")
        made.client()
        made.client()
        refused = made.client(greet=False)
        refused.answers()
        assert agent.counters.clients_refused == 1
        commands = made.node.commands
        agent.reloading.apply(planned)
        assert made.node.commands == commands  # nothing is made twice


def test_an_agent_that_has_ended_takes_the_configuration_for_the_next_one(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        pass
    made.agent.reloading.apply(
        reload.Plan("file", AgentConfig(limits=agent_config.Limits(clients=3)), [], [])
    )
    assert made.agent.config.limits.clients == 3
    assert not hasattr(made.node, "timing")


class ReloadedLife(Life):
    """A process with a file."""

    def __init__(self, directory: Path, text: str) -> None:
        super().__init__(directory)
        self.file = directory / "agent.toml"
        self.text = f'{text}\n[node]\nsocket = "{self.path}"\nstate_dir = "{self.state}"\n'
        self.file.write_text(self.text)
        self.incarnations = main._Process(load(self.file), self.path, self.state, [], self.file)


def test_sighup_reloads_and_the_next_incarnation_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ReloadedLife(tmp_path, "")
    monkeypatch.setattr(incarnations, "node_factory", one.make_node)
    logs: list[AgentConfig] = []
    monkeypatch.setattr(main, "_configure_log", logs.append)
    notified: list[str] = []
    monkeypatch.setattr(main.Supervisor, "tell", lambda _, state: notified.append(state))

    async def test() -> None:
        first = one.agent
        one.file.write_text(one.text + "[limits]\nclients = 7\n[cluster]\nrejoin = false\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await one.until(lambda: first.config.limits.clients == 7)
        await one.until(lambda: notified[-1] == "READY=1")
        assert notified[-2].startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert [config.limits.clients for config in logs] == [7]
        assert first.status()["configuration"]["reloads"] == 1
        one.file.write_text("wrong")
        os.kill(os.getpid(), signal.SIGHUP)
        await one.until(lambda: first.status()["configuration"]["refusals"] == 1)
        assert first.config.limits.clients == 7
        one.decide(State.EVICTED, "silent")  # rejoin is off now

    assert one.run(test) == incarnations.EXIT_EVICTED


def test_a_link_that_has_been_turned_is_followed(tmp_path: Path) -> None:
    for name, clients in (("one", 5), ("two", 6)):
        (tmp_path / name).write_text(f"[limits]\nclients = {clients}\n")
    file = tmp_path / "agent.toml"
    file.symlink_to("one")
    made = incarnations.Incarnations(load(file), None, tmp_path / "state", [], file)
    file.unlink()
    file.symlink_to("two")
    (tmp_path / "one").unlink()
    assert made.reloader is not None
    assert asyncio.run(made.reloader.reload(check=True))["changes"][0]["after"] == 6


def test_what_is_read_while_an_agent_is_opened_counts_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server may take its time there."""
    one = ReloadedLife(tmp_path, "")
    monkeypatch.setattr(incarnations, "node_factory", one.make_node)
    monkeypatch.setattr(main, "_configure_log", lambda _: None)
    really = incarnations.open_network

    def open_network(config: AgentConfig, incarnation: int) -> Any:
        one.file.write_text(one.text + "[limits]\nclients = 7\n")
        os.kill(os.getpid(), signal.SIGHUP)
        end = time.monotonic() + 10
        while one.incarnations._config.limits.clients != 7 and time.monotonic() < end:
            time.sleep(0.005)
        return really(config, incarnation)

    monkeypatch.setattr(incarnations, "open_network", open_network)

    async def test() -> None:
        await one.until(lambda: one.agent.config.limits.clients == 7)
        one.signal()

    assert one.run(test) == 0


def test_a_process_is_reloaded_by_a_program(tmp_path: Path) -> None:
    text = '[cluster]\nname = "alone"\nnodes = [1]\n'
    with running(tmp_path, text) as (process, path):
        file = tmp_path / "agent.toml"
        original = file.read_text()
        with ocfcluster.connect(str(path), resume=False) as client:
            assert client.admin.reload(check=True)["changes"] == []
            file.write_text(
                original + '[[topics]]\nname = "late"\n[limits]\nclients = 1\n[log]\nlevel = "error"\n'
            )
            document = client.admin.reload()
            assert document["applied"], document
            client.publish("late", b"x").wait(5)
            with pytest.raises(ocfcluster.errors.AgentUnreachable):  # limits.clients
                ocfcluster.connect(str(path), resume=False, timeout=2)
            file.write_text(original.replace("alone", "other"))
            document = client.admin.reload()
            assert not document["applied"]
            assert "cluster.name" in document["reason"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_without_a_file_hanging_up_ends_the_process_as_ever(tmp_path: Path) -> None:
    with running(tmp_path, None) as (process, _):
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == -signal.SIGHUP


# --- the command ----------------------------------------------------------------------------------------------------


class Answers:
    """A client whose agent answers with ``document``."""

    document: dict[str, Any] = {}  # noqa: RUF012 - each test sets it

    def __init__(self) -> None:
        self.checks: list[bool] = []
        self.admin = self

    def reload(self, *, check: bool, timeout: float) -> dict[str, Any]:
        assert timeout > 5
        self.checks.append(check)
        return self.document

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: made)
    return made


def document(before: str, after: str, directory: Path) -> Callable[[bool], dict[str, Any]]:
    config = load(write(directory, before))
    planned = plan(write(directory, after), config, {1: 1, 2: 1})
    return lambda applied: planned.document(applied=applied)


@pytest.mark.parametrize(
    ("after", "code", "out", "err"),
    [
        (BASE, 0, ["nothing differs"], []),
        (BASE + "[limits]\nclients = 3", 0, ["limits.clients", "1024", "3", "at run time"], []),
        (
            BASE.replace('"blue"', '"red"'),
            5,
            ["cluster.name", "with a restart"],
            ["cluster.name: only with a restart"],
        ),
        (BASE.replace("[1, 2]", "[1, 2, 3]"), 5, ["by a command"], ["ocfcluster node add"]),
        ("colour = 1", 2, [], ["colour: unknown key"]),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_the_command_says_what_and_leaves_with_why(
    answers: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    after: str, code: int, out: list[str], err: list[str], check: bool,
) -> None:  # fmt: skip
    made = document(BASE, after, tmp_path)
    answers.document = made(code == 0 and not check)
    with pytest.raises(SystemExit) as ended:
        command(["reload", "--check"] if check else ["reload"])
    assert ended.value.code == code
    printed = capsys.readouterr()
    for words in out:
        assert words in printed.out
    for words in err:
        assert words in printed.err
    assert printed.err.count(f"{tmp_path}/agent.toml: ") == bool(code)
    assert answers.checks == [check]
    if code and not check:
        assert "nothing has changed" in printed.err
    with pytest.raises(SystemExit) as ended:
        command(["reload", "--json"])
    assert ended.value.code == code
    assert json.loads(capsys.readouterr().out)["works"] == (code == 0)


def test_a_document_passes_the_local_protocol(tmp_path: Path) -> None:
    made = document(BASE, BASE.replace("[1, 2]", "{ 1 = 1, 2 = 3 }") + '[[topics]]\nname = "x"', tmp_path)
    encoded = msgspec.msgpack.encode(Status(made(False)))
    assert msgspec.msgpack.decode(encoded, type=Status).document["works"] is False


def test_who_may_not_administer_may_not_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(tmp_path) as made:
        client = made.client()
        monkeypatch.setattr(os, "geteuid", lambda: 12_345)
        next(iter(made.agent.clients.values())).peer = type(next(iter(made.agent.clients.values())).peer)(
            1, 54_321, 1
        )
        kind, body = client.call(Request.ADMINISTER, Administer(Administration.RELOAD))
        assert (kind, body.errno) == (Answer.ERROR, errno.EPERM)
