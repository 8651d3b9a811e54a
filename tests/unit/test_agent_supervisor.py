"""What systemd is told by an agent of type notify, and when it is not told any more."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocfcluster.agent import incarnations, main
from ocfcluster.agent.config import AgentConfig, Components
from ocfcluster.agent.supervisor import Supervisor, watchdog_interval_s
from tests.shortage import no_descriptors
from tests.unit.test_agent_life import Life
from tests.unit.test_agent_process import COMMAND

PERIOD_S = 0.4  # WatchdogSec=


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20.0)
        yield listening


def test_systemd_is_told_that_the_agent_serves_lives_and_stops(
    supervisor: socket.socket, tmp_path: Path
) -> None:
    agent = subprocess.Popen(
        COMMAND,
        env={
            **os.environ,
            "OCFCLUSTER_SOCKET": str(tmp_path / "agent.sock"),
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": str(round(PERIOD_S * 1e6)),
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        said = {supervisor.recv(100): time.monotonic(), supervisor.recv(100): time.monotonic()}
        assert set(said) == {b"READY=1", b"WATCHDOG=1"}
        began = time.monotonic()
        for _ in range(6):
            assert supervisor.recv(100) == b"WATCHDOG=1"
        assert time.monotonic() - began > 5 * PERIOD_S / 2 * 0.9  # not all the time either

        agent.send_signal(signal.SIGSTOP)  # an agent that hangs
        time.sleep(2 * PERIOD_S)
        supervisor.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            supervisor.recv(100)  # one may have been under way
        with pytest.raises(BlockingIOError):
            supervisor.recv(100)

        supervisor.settimeout(20.0)
        agent.send_signal(signal.SIGCONT)
        agent.send_signal(signal.SIGTERM)
        while (told := supervisor.recv(100)) != b"STOPPING=1":
            assert told == b"WATCHDOG=1"
        assert agent.wait(20) == 0
    finally:
        agent.kill()
        agent.wait()


def test_an_agent_without_descriptors_shows_that_it_lives_and_can_be_stopped(
    supervisor: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    supervisor.setblocking(False)
    one = Life(tmp_path)
    config = AgentConfig(
        components=Components(connectivity="external")
    )  # the built-in one opens what it needs
    one.incarnations = main._Process(config, one.path, one.state, [])
    monkeypatch.setattr(incarnations, "node_factory", one.make_node)
    told: list[bytes] = []

    def saw(state: bytes, times: int = 1) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                told.append(supervisor.recv(100))
        return told.count(state) >= times

    async def test() -> None:
        await one.until(lambda: saw(b"READY=1"))
        with no_descriptors():
            told.clear()
            await one.until(lambda: saw(b"WATCHDOG=1", 5))
            os.kill(os.getpid(), signal.SIGTERM)
            await one.until(lambda: saw(b"STOPPING=1"))
            await one.until(lambda: one.nodes[0].left)

    assert one.run(test) == 0


def test_a_socket_that_could_not_be_opened_at_the_start_is_opened_later(
    supervisor: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with no_descriptors():
        made = Supervisor()
        made.tell("READY=1")
    made.tell("WATCHDOG=1")
    assert supervisor.recv(100) == b"WATCHDOG=1"
    made.close()
    made.tell("STOPPING=1")
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(100)


def test_a_supervisor_that_hangs_holds_nothing_up(
    supervisor: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    most = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    made = Supervisor()
    for _ in range(most + 2):
        made.tell("WATCHDOG=1")
    made.close()


def test_what_there_was_no_room_for_is_told_with_the_next_sign_of_life(
    supervisor: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    made = Supervisor()
    supervisor.setblocking(False)

    def told() -> list[bytes]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(supervisor.recv(100))
        return found

    for _ in range(int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 2):
        made.live(watched=True)
    made.tell("RELOADING=1")
    made.tell("READY=1")
    made.live(watched=True)
    assert set(told()) == {b"WATCHDOG=1"}
    made.live(watched=False)
    made.live(watched=True)
    assert told() == [b"READY=1", b"WATCHDOG=1"]
    made.close()


@pytest.mark.parametrize("name", ["@ocfcluster-test-{}", "{}/with@sign"])
def test_the_supervisor_is_found_in_both_name_spaces(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = name.format(os.getpid() if name.startswith("@") else tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.settimeout(5.0)
        made = Supervisor()
        made.tell("READY=1")
        made.close()
        assert listening.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("allowed", "process", "interval_s"),
    [
        (None, None, 0.0),
        ("30000000", None, 15.0),
        ("30000000", "self", 15.0),
        ("30000000", "1", 0.0),  # WatchdogSec= of the process that started this one
        ("soon", None, 0.0),
    ],
)
def test_signs_of_life_are_given_where_they_are_waited_for(
    allowed: str | None, process: str | None, interval_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("WATCHDOG_USEC", allowed),
        ("WATCHDOG_PID", str(os.getpid()) if process == "self" else process),
    ):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == pytest.approx(interval_s)
