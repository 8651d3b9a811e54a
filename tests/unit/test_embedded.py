"""An agent in a thread of the program: a member like any other, by another way to it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ocfcluster
from ocfcluster import embedded
from ocfcluster.agent import incarnations
from ocfcluster.agent.config import AgentConfig, Cluster, Network, Node
from ocfcluster.embedded import EmbeddedAgent
from ocfcluster.errors import AgentUnreachable, ConfigurationError, SetupError, StateDirectoryError
from ocfcluster.wire.frames import NoticeCode
from tests.cluster import LoopbackCluster, free_port


@pytest.fixture
def others() -> set[threading.Thread]:
    """Threads that there were before: clients of other tests of this process may not have ended yet."""
    return set(threading.enumerate())


def left(others: set[threading.Thread]) -> list[str]:
    mine = [thread.name for thread in threading.enumerate() if thread not in others]
    return [name for name in mine if name.startswith("ocfcluster")]


def test_programs_publish_and_subscribe_without_a_path_in_the_file_system(
    others: set[threading.Thread],
) -> None:
    with EmbeddedAgent() as agent, agent.connect(name="inside") as client:
        temporary = Path(agent._temporary)
        assert temporary.is_dir()
        client.create_topic("t")
        with client.subscribe("t") as events:
            assert client.publish_many("t", [b"a", b"b"]).wait().seq == 1
            assert [next(events).data for _ in range(2)] == [b"a", b"b"]
        status = client.status()
        assert status["socket"] == ""
        assert [(one["name"], one["pid"]) for one in status["clients"]] == [("inside", os.getpid())]
    assert not temporary.exists()
    assert left(others) == []
    agent.close()  # again: nothing to do
    assert agent.failed == ""
    with pytest.raises(AgentUnreachable, match="has ended"):
        agent.connect()


def test_asyncio_programs_use_it_too() -> None:
    async def main(agent: EmbeddedAgent) -> bytes:
        async with agent.connect_async() as client:
            await client.create_topic("t")
            events = await client.subscribe("t")
            await (await client.publish("t", b"hello"))
            async for event in events:
                return event.data
        return b""

    with EmbeddedAgent() as agent:
        assert asyncio.run(main(agent)) == b"hello"


def test_closing_it_flushes_its_clients(tmp_path: Path) -> None:
    config = AgentConfig(node=Node(state_dir=str(tmp_path / "state")))
    agent = EmbeddedAgent(config)
    client = agent.connect()
    client.create_topic("t")
    receipts = [client.publish("t", b"x") for _ in range(100)]
    agent.close()
    assert [receipt.wait(0).seq for receipt in receipts] == list(range(1, 101))
    with EmbeddedAgent(config) as again, again.connect() as client:
        assert client.topic("t").scope == "global"


def test_what_is_wrong_is_said_where_it_is_made(tmp_path: Path, others: set[threading.Thread]) -> None:
    with pytest.raises(ConfigurationError, match=r"node\.state_dir"):
        EmbeddedAgent(AgentConfig(cluster=Cluster(nodes=[1, 2, 3])))
    with pytest.raises(ConfigurationError, match="no-such-file"):
        EmbeddedAgent(tmp_path / "no-such-file")
    file = tmp_path / "agent.toml"
    file.write_text(f"[node]\nstate_dir = '{tmp_path}/state'\n[security]\nkey_file = '/nowhere/key'")
    with pytest.raises(ConfigurationError, match=rf"^{file}: security\.key_file: /nowhere/key"):
        EmbeddedAgent(file)
    config = AgentConfig(node=Node(state_dir=str(tmp_path / "state")))
    with EmbeddedAgent(config), pytest.raises(StateDirectoryError, match="in use"):
        EmbeddedAgent(config)
    assert left(others) == []


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("patient", [True, False])
def test_an_agent_that_begins_too_late_does_not_serve_unseen(
    patient: bool, tmp_path: Path, others: set[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it ends while its maker waits for that, or later: by then somebody else may have its place."""
    opened = threading.Event()
    really = incarnations.open_network

    def open_network(*arguments: Any) -> Any:
        opened.wait(1.0 if patient else 20.0)
        return really(*arguments)

    monkeypatch.setattr(incarnations, "open_network", open_network)
    monkeypatch.setattr(embedded, "_START_S", 0.2)
    monkeypatch.setattr(embedded, "_GIVE_UP_S", 10.0 if patient else 0.2, raising=False)
    config = AgentConfig(node=Node(state_dir=str(tmp_path / "state"), socket=str(tmp_path / "agent.sock")))
    began = time.monotonic()
    with pytest.raises(SetupError, match="did not begin"):
        EmbeddedAgent(config)
    assert time.monotonic() - began < 10.0
    if not patient:
        assert left(others)
        opened.set()
        until(lambda: not left(others))
    assert left(others) == []
    monkeypatch.undo()
    with EmbeddedAgent(config) as again, again.connect() as client:
        client.create_topic("t")


def test_an_agent_whose_thread_begins_too_late_does_not_serve_unseen(
    tmp_path: Path, others: set[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = threading.Event()
    really = embedded.loop_runner

    def late(config: AgentConfig) -> Any:
        def run(coroutine: Any) -> int:
            begins.wait(20.0)
            return really(config)(coroutine)

        return run

    monkeypatch.setattr(embedded, "loop_runner", late)
    monkeypatch.setattr(embedded, "_START_S", 0.1)
    monkeypatch.setattr(embedded, "_GIVE_UP_S", 0.1, raising=False)
    with pytest.raises(SetupError, match="did not begin"):
        EmbeddedAgent(AgentConfig(node=Node(state_dir=str(tmp_path / "state"))))
    begins.set()
    until(lambda: not left(others))
    assert not (tmp_path / "state").exists(), "nothing was opened"


def test_an_agent_whose_maker_is_interrupted_ends(
    others: set[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = incarnations.open_network

    def open_network(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return really(*arguments)

    monkeypatch.setattr(incarnations, "open_network", open_network)
    with pytest.raises(KeyboardInterrupt):
        EmbeddedAgent()
    assert left(others) == []


def test_other_programs_reach_it_where_a_socket_is_configured(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with EmbeddedAgent(AgentConfig(node=Node(socket=path))) as agent, agent.connect() as inside:
        inside.create_topic("t")
        with ocfcluster.connect(path) as outside, outside.subscribe("t") as events:
            inside.publish("t", b"hello")
            assert next(events).data == b"hello"
    assert not Path(path).exists()


def test_without_a_free_descriptor_there_is_no_connection_to_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with EmbeddedAgent() as agent:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(AgentUnreachable, match="Too many open files"):
                agent._dial()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_state_directory_that_is_not_named_is_beside_the_socket(tmp_path: Path) -> None:
    file = tmp_path / "1.toml"
    file.write_text(
        "[cluster]\nnodes = [1, 2]\n[node]\nid = 1\n"
        f"socket = '{tmp_path}/agent.sock'\n"
        f"[network]\ntransport = 'unicast'\npeers = ['127.0.0.1']\nport = {free_port()}\n"
    )
    with EmbeddedAgent(str(file)) as agent, agent.connect() as client:
        assert client.status()["state_dir"] == f"{tmp_path}/agent.sock.state"
    assert (tmp_path / "agent.sock.state" / "identity.json").exists()


def test_a_forked_child_has_no_agent_and_leaves_its_parents_alone() -> None:
    with EmbeddedAgent() as agent, agent.connect() as client:
        client.create_topic("t")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                client.publish("t", b"from the child")
            except AgentUnreachable as error:
                code = 0 if "forked" in str(error) else 2
            agent.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.publish("t", b"from the parent").wait(5).seq == 1


def test_a_forked_child_does_not_outlive_the_agent_in_its_place(tmp_path: Path) -> None:
    """Its lock, its ports, its listener, and the connections of its programs are the parent's alone."""
    path, same = str(tmp_path / "agent.sock"), str(tmp_path / "same.sock")
    config = AgentConfig(
        node=Node(socket=path, state_dir=str(tmp_path / "state")),
        network=Network(transport="unicast", interface="127.0.0.1", port=free_port()),
    )
    with EmbeddedAgent(config) as agent, socket.socket(socket.AF_UNIX) as program:
        program.connect(path)
        os.link(path, same)  # stays where the agent takes its own name away
        with agent.connect() as client:
            client.create_topic("t")
            events = client.subscribe("t")
            descriptor = os.dup(events.fileno())
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            client.publish("t", b"the parent's goes on").wait(5)
            assert next(events).data == b"the parent's goes on"
            events.close()
        try:
            agent.close()
            program.settimeout(10)
            while program.recv(4096):
                pass
            with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
                late.connect(same)
            with socket.socket(fileno=descriptor) as end:
                assert end.recv(1, socket.MSG_DONTWAIT) == b""
            with EmbeddedAgent(config) as again, again.connect() as client:
                assert client.topic("t").scope == "global"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_it_is_a_member_of_its_cluster_and_comes_back_when_that_went_on_without_it() -> None:
    with LoopbackCluster(3, topics=["t"]) as cluster:
        cluster.agent(3).send_signal(signal.SIGTERM)
        assert cluster.agent(3).wait(10) == 0
        with (
            EmbeddedAgent(cluster.directory / "3.toml") as agent,
            agent.connect() as client,
            client.subscribe("t") as events,
            cluster.connect(1) as other,
        ):
            other.publish("t", b"from node 1").wait(5)
            assert events.get(timeout=10).data == b"from node 1"
            assert agent._loop is not None
            agent._loop.call_soon_threadsafe(evict, agent)
            codes = []
            while NoticeCode.RESUMED not in codes:
                event = events.get(timeout=20)
                codes.append(event.notice.code if event.notice else None)
            assert client.publish("t", b"again").wait(10).seq == 2
            assert events.get(timeout=10).data == b"again"
            assert agent.failed == ""


def evict(agent: EmbeddedAgent) -> None:
    assert agent._agents is not None
    serving = agent._agents.agent
    assert serving is not None
    serving.evicted = "a test said so"
    serving.stop("evicted")


def test_an_agent_that_is_not_closed_is_closed_at_exit(tmp_path: Path) -> None:

    program = (
        "from ocfcluster.agent.config import AgentConfig, Node\n"
        "from ocfcluster.embedded import EmbeddedAgent\n"
        f"client = EmbeddedAgent(AgentConfig(node=Node(state_dir={str(tmp_path / 'state')!r}))).connect()\n"
        "_ = client.create_topic('t')\n"
        "receipt = client.publish('t', b'x')\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 30
