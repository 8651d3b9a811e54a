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

from ocfcluster.agent.supervisor import watchdog_interval_s
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
