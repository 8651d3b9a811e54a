"""A real agent in its own process: starts, serves, ends in order; and what it says when it cannot."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ocfcluster.wire.frames import NoticeCode, Request, Shutdown
from tests.unit.fake_node import RawClient, read_frame

COMMAND = [
    sys.executable, "-c",
    ("import pathlib, sys; from ocfcluster.agent.main import run_agent;"
    "sys.exit(run_agent(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None))"),
]  # fmt: skip


@contextmanager
def running(directory: Path, text: str | None) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    path = directory / "agent.sock"
    arguments = []
    if text is not None:
        file = directory / "agent.toml"
        file.write_text(f'{text}\n[node]\nsocket = "{path}"\n')
        arguments = [str(file)]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OCFCLUSTER_SOCKET": str(path)},
    )
    try:
        until = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < until:
            with socket.socket(socket.AF_UNIX) as probe:
                if not probe.connect_ex(str(path)):
                    break
            time.sleep(0.02)
        yield process, path
    finally:
        process.kill()
        process.communicate()


def wait(client: RawClient, until: object) -> None:
    deadline = time.monotonic() + 10
    while not until() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.01)
        client.answers()


class PatientClient(RawClient):
    """Waits for the other process instead of stepping it."""

    def call(self, kind: Request, body: object = None, descriptors: list[int] | None = None) -> object:
        request_id = self.ask(kind, body, descriptors)  # type: ignore[arg-type]
        until = time.monotonic() + 10
        while time.monotonic() < until and not self.eof:
            for answer_kind, answered, answer in self.answers():
                if answered == request_id:
                    return answer_kind, answer
            time.sleep(0.005)
        raise AssertionError(f"no answer to {kind!r}")


@pytest.mark.parametrize("text", [None, "[cluster]\nname = 'alone'\nnodes = [1]\n[[topics]]\nname = 'ready'"])
def test_it_serves_and_ends_in_order(tmp_path: Path, text: str | None) -> None:
    with running(tmp_path, text) as (process, path):
        client = PatientClient(str(path), lambda: time.sleep(0.001))
        client.greet()
        topic_id = client.create_topic("t")
        events = client.subscribe(1, "t")
        producer = client.open_producer()
        client.publish(topic_id, producer, 1, b"hello")
        wait(client, lambda: client.receipts)
        assert client.receipts == [(producer, 1, 1, 0, 1, 2)]  # ev_id 1 is the first view's
        assert read_frame(events)[1][0][1].endswith(b"hello")
        names = [topic.topic for topic in client.call(Request.TOPIC_LIST)[1].topics]
        assert ("ready" in names) == (text is not None)
        process.send_signal(signal.SIGTERM)
        wait(client, lambda: client.eof)
        assert isinstance(client.told[-1], Shutdown)
        notice = read_frame(events)[1][0][1]
        assert (notice.code, notice.final) == (NoticeCode.SHUTDOWN, True)
        assert process.wait(10) == 0
        assert not path.exists()
        client.close()


def test_two_agents_cannot_share_a_socket(tmp_path: Path) -> None:
    with running(tmp_path, "[cluster]\nname = 'one'") as (_, path):
        second = subprocess.run(
            COMMAND,
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "OCFCLUSTER_SOCKET": str(path)},
        )
        assert second.returncode == 3
        assert "in use by a live agent" in second.stderr.splitlines()[-1]


def test_a_killed_agents_socket_and_state_are_taken_over(tmp_path: Path) -> None:
    for round_ in range(2):
        with running(tmp_path, "[cluster]\nname = 'one'\nnodes = [1]") as (process, path):
            client = PatientClient(str(path), lambda: time.sleep(0.001))
            client.greet()
            if not round_:
                client.create_topic("kept")
            else:
                until = time.monotonic() + 10
                while client.call(Request.STATUS)[1].document["topics"] < 3 and time.monotonic() < until:
                    time.sleep(0.02)
                names = [topic.topic for topic in client.call(Request.TOPIC_LIST)[1].topics]
                assert "kept" in names
            client.close()
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[nod]\n", 2, "nod: unknown key"),
        ("[cluster]\nnodes = [1, 2]\n[node]\nid = 1\n[network]\ninterface = 'nosuch0'", 3, "nosuch0"),
        ("[node]\nsocket = '/proc/nowhere/agent.sock'\nstate_dir = '{dir}/state'", 3, "/proc/nowhere"),
        ("[node]\nstate_dir = '/proc/nowhere'", 3, "state directory /proc/nowhere"),
    ],
)
def test_what_it_cannot_do_it_says_in_one_line(tmp_path: Path, text: str, code: int, words: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text.format(dir=tmp_path))
    path = str(tmp_path / "agent.sock")
    done = subprocess.run(
        [*COMMAND, str(file)], capture_output=True, text=True, timeout=20,
        env={**os.environ, "OCFCLUSTER_SOCKET": path},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ocfcluster agent: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in done.stderr
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[security]\nkey_file = '/nowhere/key'", 2, "security.key_file: /nowhere/key"),
        ("[hooks]\ncommand = ['/nowhere/hook']", 3, "hooks.command: /nowhere/hook"),
        (
            "[network]\ntransport = 'unicast'\npeers = ['127.0.0.1:99999']",
            2,
            "network.peers: '127.0.0.1:99999'",
        ),
        ("[network]\ntransport = 'unicast'\npeers = ['no..name:1']", 3, "network.peers: 'no..name:1'"),
    ],
)
def test_a_key_that_is_wrong_only_when_it_is_used_is_said_with_its_file(
    tmp_path: Path, text: str, code: int, words: str
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(f"[cluster]\nnodes = [1]\n[node]\nsocket = '{tmp_path}/agent.sock'\n{text}")
    done = subprocess.run([*COMMAND, str(file)], capture_output=True, text=True, timeout=20)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(f"ocfcluster agent: {file}: {words}"), done.stderr


def test_a_mistake_of_its_own_ends_it_with_a_traceback(tmp_path: Path) -> None:
    broken = COMMAND[2].replace(
        "sys.exit",
        "import asyncio; from ocfcluster.agent.daemon import Agent; run = Agent.run;"
        "Agent.settle_ = Agent.settle; Agent.settle = lambda self, now: (self.settle_(now), self.clients and 1 / 0);"
        "sys.exit",
    )
    environment = {**os.environ, "OCFCLUSTER_SOCKET": str(tmp_path / "agent.sock")}
    process = subprocess.Popen(
        [sys.executable, "-c", broken], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        with socket.socket(socket.AF_UNIX) as client:
            # Its own component is a client as well: it may end before anybody else comes.
            while process.poll() is None and client.connect_ex(str(tmp_path / "agent.sock")):
                time.sleep(0.02)
            with contextlib.suppress(OSError):
                client.send(b"x")
            _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "ZeroDivisionError" in errors


def test_off_loopback_it_refuses_unless_told(tmp_path: Path) -> None:
    from ocfcluster.agent.config import AgentConfig, Cluster, Network, Security
    from ocfcluster.agent.network import _check_security
    from ocfcluster.errors import ConfigurationError
    from ocfcluster.net.interfaces import Interface

    outside = Interface("eth0", "10.0.0.1", socket.AF_INET, 24, 1500, 2, False)
    config = AgentConfig(cluster=Cluster(nodes=[1, 2]), network=Network(interface="eth0"))
    with pytest.raises(ConfigurationError, match=r"security\.key_file.*eth0.*security\.insecure"):
        _check_security(config, outside)
    warned = _check_security(AgentConfig(security=Security(insecure=True)), outside)
    assert "INSECURE" in warned[0]
    assert _check_security(AgentConfig(security=Security(key_file="/key")), outside) == []
