"""Agents for tests: their configuration, processes, logs and end.

    with LoopbackCluster(3, topics=["news"]) as cluster, cluster.connect(1) as client:
        client.publish("news", b"hello").wait()

``LoopbackCluster`` needs no root: all agents are on loopback multicast. ``tests.netns.cluster.Cluster`` has the same
interface with one network namespace per node. Nodes are numbered from 1.
"""

from __future__ import annotations

import ctypes
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import ocfcluster
from ocfcluster.errors import ClientError

ROOT: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 8.0
POLL_S: Final = 0.02
LOG_LINES: Final = 30  # of each agent, shown when a test fails
_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)

Topics = Iterable[str | tuple[str, str]]  # a name, or (name, "global" or "local")


class ClusterError(Exception):
    """An agent did not do what the test takes for granted; its last words are in the text."""


def end_with_parent() -> None:
    """For ``preexec_fn``: the process is killed when the one that started it dies, whatever way; also where a test has
    stopped it, and no other signal would reach it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def toml(document: Mapping[str, Any]) -> str:
    """TOML of nested tables, lists of tables, and plain values."""
    lines: list[str] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            lines += [f"[{key}]", *(f"{name} = {_value(item)}" for name, item in value.items()), ""]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for table in value:
                lines += [f"[[{key}]]", *(f"{name} = {_value(item)}" for name, item in table.items()), ""]
        else:
            raise TypeError(f"{key} is no table")
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{json.dumps(str(key))} = {_value(item)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)  # a string, number or truth value is written alike in TOML


class BaseCluster:
    """Agents 1 to ``n``; a context manager that starts them, waits until all are active, and ends them in order.

    Keyword arguments are sections of the agents' configuration that go over what is set here, for instance
    ``limits={"event_bytes": 4096}`` or ``network={"mtu": 9000}``.

    A failure inside the block leaves the directory with configurations and logs, and prints where it is and the
    end of each log. An agent that does not leave with 0 is a failure, too.
    """

    def __init__(
        self,
        n: int,
        network: Mapping[str, Any],
        *,
        delivery: str = "safe",
        topics: Topics = (),
        config: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.nodes: Final = range(1, n + 1)
        self.directory: Final = Path(tempfile.mkdtemp(prefix="ocf-test-"))
        self.directory.chmod(0o711)  # other users reach the sockets, where node.socket_mode lets them
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        self._config: dict[str, dict[str, Any]] = {
            "cluster": {
                "name": f"test-{random.SystemRandom().randrange(1 << 32):08x}",
                "nodes": list(self.nodes),
                "delivery": delivery,
            },
            "node": {},
            "network": dict(network),
            "security": {"insecure": True},
        }
        for section, values in config.items():
            self._config.setdefault(section, {}).update(values)
        self._topics = [
            {"name": topic, "scope": "global"}
            if isinstance(topic, str)
            else {"name": topic[0], "scope": topic[1]}
            for topic in topics
        ]

    # --- what a test asks for -------------------------------------------------------------------------------

    def socket(self, i: int) -> str:
        """The path of the socket of node ``i``'s agent."""
        return str(self.directory / f"{i}.sock")

    @property
    def sockets(self) -> dict[int, str]:
        return {i: self.socket(i) for i in self.nodes}

    def log(self, i: int) -> Path:
        """What node ``i``'s agents have written, all since the cluster began."""
        return self.directory / f"{i}.log"

    def state_dir(self, i: int) -> Path:
        return self.directory / f"{i}.state"

    def agent(self, i: int) -> subprocess.Popen[bytes]:
        """The process of node ``i``'s agent, running or not."""
        return self._agents[i]

    def connect(self, i: int, **options: Any) -> ocfcluster.Client:
        """A client of node ``i``, with ``resume`` off unless ``options`` say else."""
        return ocfcluster.connect(self.socket(i), **{"resume": False, "timeout": 5.0, **options})

    def status(self, i: int) -> dict[str, Any]:
        """What node ``i``'s agent says of itself. Raises ClientError where it does not answer."""
        with self.connect(i, name="test-status", timeout=2.0) as client:
            return dict(client.status())

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program beside node ``i``'s agent, in a process group of its own."""
        options = {"start_new_session": True, "cwd": ROOT, **options}
        # Safe beside threads: the function calls one system call, and its library is loaded already.
        return subprocess.Popen(argv, preexec_fn=end_with_parent, **options)  # noqa: PLW1509

    # --- the agents' lives ----------------------------------------------------------------------------------

    def configuration(self, i: int) -> dict[str, Any]:
        """The configuration of node ``i``, section by section."""
        document: dict[str, Any] = {section: dict(values) for section, values in self._config.items()}
        document["node"].update(id=i, state_dir=str(self.state_dir(i)), socket=self.socket(i))
        if self._topics:
            document["topics"] = self._topics
        return document

    def configuration_file(self, i: int) -> Path:
        """Where the configuration of node ``i`` is, once its agent was started."""
        return self.directory / f"{i}.toml"

    def start_agent(self, i: int) -> None:
        """Start node ``i``'s agent (again); it keeps its state directory."""
        if i in self._agents and self._agents[i].poll() is None:
            raise ClusterError(f"the agent of node {i} runs already")
        file = self.configuration_file(i)
        file.write_text(toml(self.configuration(i)), "utf-8")
        argv = [sys.executable, "-m", "ocfcluster", "agent", "--config", str(file)]
        with self.log(i).open("ab") as log:
            self._agents[i] = self.popen(i, argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop_agent(self, i: int, *, kill: bool = False) -> int:
        """End node ``i``'s agent in order, or at once; its exit status (0 in order, minus the signal if killed)."""
        agent = self._agents[i]
        if agent.poll() is None:
            agent.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            return agent.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
            raise ClusterError(f"the agent of node {i} did not end on SIGTERM\n{self.last_words()}") from None

    def wait_active(self, nodes: Iterable[int] | None = None, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the agents of ``nodes`` (all) say that they are active. Raises ClusterError."""
        deadline = time.monotonic() + timeout_s
        for i in self.nodes if nodes is None else nodes:
            while (state := self._state(i)) != "active":
                code = self._agents[i].poll()
                if code is not None:
                    raise ClusterError(f"the agent of node {i} ended with {code}\n{self.last_words()}")
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"node {i} is {state!r} after {timeout_s:g} s, not active\n{self.last_words()}"
                    )
                time.sleep(POLL_S)

    def _state(self, i: int) -> str:
        try:
            return str(self.status(i).get("state"))
        except ClientError as error:
            return str(error)

    def start(self) -> Self:
        """Start all agents and wait until they are active; on failure none stays."""
        try:
            for i in self.nodes:
                self.start_agent(i)
            self.wait_active()
        except BaseException:
            self._end()
            print(f"the agents' configurations and logs are kept in {self.directory}")
            raise
        return self

    def stop(self) -> None:
        """End the agents that run, in order. Raises ClusterError where one left with another status than 0."""
        running = [i for i, agent in self._agents.items() if agent.poll() is None]
        bad = {i: code for i, code in self._end().items() if i in running and code != 0}
        if bad:
            raise ClusterError(f"exit statuses of the agents: {bad}\n{self.last_words()}")

    def _end(self) -> dict[int, int]:
        """SIGTERM to all agents, SIGKILL to those that do not end in time; all exit statuses."""
        for agent in self._agents.values():
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for agent in self._agents.values():
            try:
                agent.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        return {i: agent.returncode for i, agent in self._agents.items()}

    def last_words(self) -> str:
        """The end of every agent's log."""
        text = []
        for i in self._agents:
            lines = self.log(i).read_text("utf-8", "replace").splitlines()
            text.append(f"--- node {i}, {self.log(i)}, last of {len(lines)} lines")
            text += lines[-LOG_LINES:]
        return "\n".join(text)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.stop()
            except ClusterError:
                print(f"the agents' configurations and logs are kept in {self.directory}")
                raise
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self._end()
            print(f"the agents' configurations and logs are kept in {self.directory}\n{self.last_words()}")


class LoopbackCluster(BaseCluster):
    """``n`` agents on loopback multicast, in a group and on a port of their own."""

    def __init__(
        self, n: int, *, delivery: str = "safe", topics: Topics = (), **config: Mapping[str, Any]
    ) -> None:
        chance = random.SystemRandom()
        network = {
            "transport": "multicast",
            "interface": "127.0.0.1",
            "group": f"239.192.{chance.randrange(256)}.{chance.randrange(1, 255)}",
            "port": free_port(),
        }
        super().__init__(n, network, delivery=delivery, topics=topics, config=config)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
