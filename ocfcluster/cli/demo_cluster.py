"""Three agents on this machine for the demo: processes, their configuration and logs, and their end."""

from __future__ import annotations

import ctypes
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import ocfcluster
from ocfcluster.errors import ClientError, SetupError

NODES = (1, 2, 3)
STOP_TIMEOUT_S = 5.0
POLL_S = 0.02
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

_CONFIGURATION = """\
[cluster]
name = "{cluster}"
nodes = [{nodes}]

[node]
id = {node}
state_dir = "{directory}/state-{node}"
socket = "{directory}/agent-{node}.sock"

[network]
transport = "multicast"
interface = "127.0.0.1"
group = "{group}"
port = {port}
"""


class DemoCluster:
    """A context manager around three agents. On success it leaves nothing behind; on failure the logs stay."""

    __slots__ = ("_agents", "directory", "keep")

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ocfcluster-demo-"))
        self.keep = False  # whether the directory with the logs stays
        self._agents: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._configure()
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if kind is None and not self.keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def discard(self) -> None:
        """Removes the directory also after a failure that the logs cannot explain (Ctrl-C)."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def socket_path(self, node: int) -> str:
        return str(self.directory / f"agent-{node}.sock")

    def log_path(self, node: int) -> Path:
        return self.directory / f"agent-{node}.log"

    def wait_active(self, timeout_s: float) -> None:
        """Returns once all three agents are in one view. Raises SetupError with the last words of an agent."""
        deadline = time.monotonic() + timeout_s
        waiting = list(NODES)
        while waiting:
            self._check_alive()
            if self._is_active(waiting[0]):
                waiting.pop(0)
            elif time.monotonic() > deadline:
                raise SetupError(f"node {waiting[0]} did not find the others within {timeout_s:g} s")
            else:
                time.sleep(POLL_S)

    def _is_active(self, node: int) -> bool:
        try:
            with ocfcluster.connect(self.socket_path(node), name="demo", resume=False, timeout=1.0) as client:
                return str(client.status().get("state")) == "active"
        except ClientError:
            return False

    def _check_alive(self) -> None:
        for node, agent in self._agents.items():
            if agent.poll() is not None:
                raise SetupError(
                    f"the agent of node {node} ended with code {agent.returncode}: {self._last_words(node)}"
                )

    def _last_words(self, node: int) -> str:
        lines = self.log_path(node).read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "(it said nothing)"

    def _start(self) -> None:
        for node in NODES:
            self.start(node)

    def _configure(self) -> None:
        chance = random.SystemRandom()
        group = f"239.192.{chance.randrange(256)}.{chance.randrange(1, 255)}"
        cluster = f"demo-{chance.randrange(1 << 32):08x}"
        port = _free_port()
        for node in NODES:
            path = self.directory / f"agent-{node}.toml"
            path.write_text(
                _CONFIGURATION.format(
                    cluster=cluster, nodes=", ".join(map(str, NODES)), node=node, directory=self.directory,
                    group=group, port=port,
                ),
                "utf-8",
            )  # fmt: skip

    def start(self, node: int) -> None:
        """Start node ``node``'s agent; again, after it was killed."""
        path = self.directory / f"agent-{node}.toml"
        with self.log_path(node).open("ab") as log:
            self._agents[node] = subprocess.Popen(
                [sys.executable, "-m", "ocfcluster", "agent", "--config", str(path)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                # Beside threads, too: it calls one function of a library that is loaded already.
                preexec_fn=_end_with_parent,  # noqa: PLW1509
            )  # fmt: skip

    def kill(self, node: int) -> None:
        """kill -9 of node ``node``'s agent."""
        self._agents[node].kill()
        self._agents[node].wait()

    def sequencer(self) -> int:
        """The node that orders, by what node 1's agent says."""
        with ocfcluster.connect(self.socket_path(NODES[0]), name="demo", resume=False, timeout=1.0) as client:
            return int(client.status()["sequencer"])

    def _stop(self) -> None:
        for agent in self._agents.values():
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for agent in self._agents.values():
            try:
                agent.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()


def _end_with_parent() -> None:
    """In the child: SIGTERM when the demo dies, whatever way, so that no agent is left behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
