"""An agent in a thread of the program that uses it: no process of its own, and no socket in the file system.

>>> from ocfcluster.embedded import EmbeddedAgent
>>> with EmbeddedAgent() as agent, agent.connect() as client:
...     topic = client.create_topic("demo")
...     with client.subscribe("demo") as events:
...         receipt = client.publish("demo", b"hello")
...         print(next(events).data)
b'hello'

It is a member of its cluster like any other agent, by the same code: only the way from the program to it is shorter.
What the program does with Python's interpreter lock, the agent waits for: a program that computes for long makes its
node slow, and one that holds the lock for longer than the suspicion time gets it evicted. Where that may be, run
``ocfcluster agent``.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import socket
import tempfile
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from ocfcluster.agent.config import AgentConfig, configured_by, load
from ocfcluster.agent.incarnations import Incarnations
from ocfcluster.agent.main import loop_runner
from ocfcluster.client import Client
from ocfcluster.client.aio import AsyncClient
from ocfcluster.errors import AgentUnreachable, ConfigurationError, SetupError
from ocfcluster.net.memory import MemoryTransport

PATH: Final = "(embedded)"  # what clients and errors show in place of a socket's path
_START_S: Final = 10.0
_GIVE_UP_S: Final = 5.0  # one that did not begin in time is told to end, and waited for for so long
_embedded: weakref.WeakSet[EmbeddedAgent] = weakref.WeakSet()


class EmbeddedAgent:
    """An agent of this process. Made, it serves; use it as a context manager, or ``close`` it.

    ``config``: a configuration, the file of one, or None for a single development node. Without ``node.socket`` only
    this process can connect, by ``connect`` and ``connect_async``; with it other programs of this machine can, too.
    Raises ConfigurationError, SetupError, StateDirectoryError as ``ocfcluster agent`` reports them. One that does not
    begin to serve within 10 s is a SetupError and ends: at once, or as soon as what it waits for lets it.

    What the agent logs goes to the ``logging`` module, logger ``ocfcluster.agent``, unless the program has set up
    structlog itself. After a fork the child has no agent: its clients raise AgentUnreachable.
    """

    def __init__(self, config: AgentConfig | str | os.PathLike[str] | None = None) -> None:
        file = None if config is None or isinstance(config, AgentConfig) else Path(config)
        if config is None:
            config = AgentConfig()
        elif not isinstance(config, AgentConfig):
            config = load(config)
        self.config = config
        self._temporary = ""
        self._pid = os.getpid()
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._agents: _InThread | None = None
        self._began = threading.Event()
        self._ended = threading.Event()
        self._closing = False
        self._error: BaseException | None = None
        self._exit_code = 0
        with configured_by(file):
            state_path = self._state_path()
            runner = loop_runner(config)
        _log_to_logging()
        self._thread = threading.Thread(
            target=lambda: self._work(runner, state_path, file), name="ocfcluster-agent", daemon=True
        )
        self._thread.start()
        _embedded.add(self)
        atexit.register(self.close)
        try:
            if not self._began.wait(_START_S):
                raise SetupError(f"the agent did not begin to serve within {_START_S:.0f} s")
            if self._error is not None:
                raise self._error
        except BaseException:
            # Nobody has it: it would be a member that nobody can close, with its lock and its ports.
            self.close(_GIVE_UP_S)
            raise

    def connect(self, *, name: str = "", resume: bool = True, timeout: float | None = 5.0) -> Client:
        """A client of this agent, as ``ocfcluster.connect`` makes one. Raises AgentUnreachable."""
        client = Client(PATH, name=name, resume=resume, timeout=timeout, dial=self._dial)
        self._clients.add(client)
        return client

    def connect_async(
        self, *, name: str = "", resume: bool = True, timeout: float | None = 5.0
    ) -> AsyncClient:
        """A client of this agent, as ``ocfcluster.client.aio.connect`` makes one."""
        return AsyncClient(PATH, name=name, resume=resume, timeout=timeout, dial=self._dial)

    @property
    def failed(self) -> str:
        """Why the agent has ended by itself (evicted with ``cluster.rejoin`` off, a mistake in it).

        Empty: it has not."""
        if self._error is not None:
            return f"{type(self._error).__name__}: {self._error}"
        if self._ended.is_set() and self._exit_code:
            return f"exit code {self._exit_code}"
        return ""

    def close(self, timeout: float | None = None) -> None:
        """Close the clients that ``connect`` made, leave the cluster in order, and end: within ``timeout`` seconds at
        most (None: ``timing.leave_timeout_ms`` bounds it). Nothing to do the second time."""
        if self._pid != os.getpid():
            return
        atexit.unregister(self.close)
        self._closing = True  # before the loop is looked for: see _serve
        for client in list(self._clients):
            client.close()
        loop, agents = self._loop, self._agents
        if loop is not None and agents is not None and not self._ended.is_set():
            try:
                loop.call_soon_threadsafe(agents.leave, "the program ended its agent")
            except RuntimeError:
                pass  # it has ended meanwhile
        self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def abandon_in_child(self) -> None:
        """After a fork: what makes a live agent of this process, too, is closed here, without a word to anybody. The
        lock of the state directory would outlive the agent, and so would its ports and what its programs wait at.

        Closed and no more: the child shares the parent's poller, and would take out of it for both.
        """
        agent = self._agents.agent if self._agents is not None else None
        if agent is None:
            return
        agent.state_dir.close()
        # A transport in memory has no port, but locks that the agent's thread may have held.
        if not isinstance(agent.transport, MemoryTransport):
            agent.transport.close()
        for listening in agent.snapshots._listening:  # noqa: SLF001 - its own close goes to the poller
            listening.close()
        if agent.listener is not None:
            agent.listener.socket.close()  # the path is the parent's
        for client in agent.clients.values():
            client.socket.close()
        for subscription in agent.hub.subscriptions():
            subscription.socket.close()

    # --- the agent's thread -------------------------------------------------------------------------------------

    def _work(self, runner: object, state_path: Path, file: Path | None) -> None:
        try:
            with configured_by(file):
                self._exit_code = runner(self._serve(state_path))  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - whoever waits is told, or ``failed`` says it
            self._error = error
        finally:
            self._ended.set()
            self._began.set()
            if self._temporary:
                shutil.rmtree(self._temporary, ignore_errors=True)

    async def _serve(self, state_path: Path) -> int:
        self._loop = asyncio.get_running_loop()
        agents = self._agents = _InThread(self.config, self.config.node.socket or None, state_path, [])
        agents.began = self._began
        if self._closing:  # told to end before there was a loop to be told in
            return 0
        return await agents.run()

    def _state_path(self) -> Path:
        if self.config.node.state_dir or self.config.node.socket:
            return self.config.state_path()
        if len(self.config.cluster.table()) > 1:
            raise ConfigurationError(
                "node.state_dir: the agent of a cluster needs one, on a disk; or node.socket, beside which it then is"
            )
        self._temporary = tempfile.mkdtemp(prefix="ocfcluster-")
        return Path(self._temporary)

    def _dial(self) -> socket.socket:
        """One end of a new connection; the agent is handed the other."""
        if self._pid != os.getpid():
            raise AgentUnreachable("the embedded agent is one of the process that this one was forked from")
        if self._loop is None or self._ended.is_set():
            raise AgentUnreachable("the embedded agent has ended")
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise AgentUnreachable(f"no connection to the embedded agent: {error.strerror}") from None
        try:
            self._loop.call_soon_threadsafe(self._hand_over, theirs)
        except RuntimeError:
            ours.close()
            theirs.close()
            raise AgentUnreachable("the embedded agent has ended") from None
        return ours

    def _hand_over(self, theirs: socket.socket) -> None:
        agent = self._agents.agent if self._agents is not None else None
        if agent is None:
            theirs.close()  # between two incarnations: the client tries again
        else:
            agent.connections.admit(theirs)


class _InThread(Incarnations):
    began: threading.Event

    def prepare(self) -> None:
        self.began.set()


def _log_to_logging() -> None:
    """Else structlog would write to the program's standard output."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _after_fork() -> None:
    for agent in list(_embedded):
        agent.abandon_in_child()


os.register_at_fork(after_in_child=_after_fork)
