"""What `ocfcluster agent` runs: configuration, machine set-up, log, signals; then the daemon until it is stopped.

A node that the cluster has evicted begins again in the same process, as a new incarnation with the record on disk.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import structlog

from ocfcluster.agent.config import AgentConfig, load
from ocfcluster.agent.daemon import Agent, new_incarnation
from ocfcluster.agent.listener import Listener
from ocfcluster.agent.network import open_network
from ocfcluster.agent.node_api import NodeApi
from ocfcluster.agent.state_dir import StateDirectory, is_volatile
from ocfcluster.errors import ConfigurationError, SetupError, StateDirectoryError
from ocfcluster.limits import MILLISECOND_NS, REJOIN_CALM_NS, REJOIN_FIRST_NS, REJOIN_MAX_NS, SECOND_NS
from ocfcluster.net.heap import keep_freed_memory
from ocfcluster.net.transport import Transport
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.settings import Settings

EXIT_FAILURE: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_SETUP: Final = 3
EXIT_EVICTED: Final = 6

log = structlog.get_logger("ocfcluster.agent")


def run_agent(config: AgentConfig | Path | None = None) -> int:
    """Run an agent in the foreground until SIGTERM or SIGINT; the exit code.

    ``config``: a configuration, the file of one, or None for a single development node. 0: stopped in order;
    2: the configuration is wrong; 3: the machine is not ready (both say why in one line on standard error);
    1: a mistake in the agent itself, with its traceback in the log; 6: the cluster goes on without this node, and
    ``cluster.rejoin`` is off.
    """
    try:
        if config is None:
            settings, temporary = AgentConfig(), True
        elif isinstance(config, Path):
            settings, temporary = load(config), False
        else:
            settings, temporary = config, False
        _configure_log(settings)
        raise_descriptor_limit()
        return _run(settings, temporary=temporary)
    except ConfigurationError as error:
        print(f"ocfcluster agent: {error}", file=sys.stderr)  # noqa: T201 - a command's last word
        return EXIT_CONFIGURATION
    except (SetupError, StateDirectoryError) as error:
        print(f"ocfcluster agent: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_SETUP


def _run(config: AgentConfig, *, temporary: bool) -> int:
    """Serve until this node ends, in one incarnation or several."""
    runner = _loop_runner(config)
    socket_path = config.socket_path()
    warnings: list[str] = []
    made_directory = ""
    if temporary and not config.node.state_dir:
        made_directory = tempfile.mkdtemp(prefix="ocfcluster-")
        warnings.append("the state directory is temporary: this node forgets its topics when it stops")
    state_path = Path(made_directory or config.node.state_dir or f"{socket_path}.state")
    if not config.cluster.table():
        warnings.append("no cluster.nodes are configured: this node runs alone, for development")
    try:
        return runner(Incarnations(config, socket_path, state_path, warnings).run())
    finally:
        if made_directory:
            shutil.rmtree(made_directory, ignore_errors=True)


class Incarnations:
    """This node's agents, one after the other: the next one where the cluster went on without the last one."""

    def __init__(self, config: AgentConfig, socket_path: str, state_path: Path, warnings: list[str]) -> None:
        self._config = config
        self._socket_path = socket_path
        self._state_path = state_path
        self._warnings = warnings
        self._agent: Agent | None = None
        self._stop = asyncio.Event()
        self._back_off_ns = REJOIN_FIRST_NS

    async def run(self) -> int:
        """The exit code of the process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        evictions, because = 0, ""
        while True:
            agent = self._agent = _open(self._config, self._socket_path, self._state_path, self._warnings)
            agent.evictions, agent.evicted_because = evictions, because
            began = time.monotonic_ns()
            await _serve(agent)
            self._agent = None
            if agent.failure is not None:
                return EXIT_FAILURE
            if agent.node.refused:
                raise SetupError(agent.node.refused)
            if not agent.evicted or self._stop.is_set():
                log.info("stopped")
                return 0
            evictions, because = evictions + 1, agent.evicted
            rejoins = self._config.cluster.rejoin or agent.forgets
            del agent  # what it held is freed before the next one fetches as much
            if not rejoins:
                log.error("evicted", reason=because, rejoins=False)
                return EXIT_EVICTED
            if not await self._wait(time.monotonic_ns() - began, because):
                log.info("stopped")
                return 0

    async def _wait(self, lasted_ns: int, because: str) -> bool:
        """Until the next incarnation may begin; False: until the process is told to stop."""
        if lasted_ns >= REJOIN_CALM_NS:
            self._back_off_ns = REJOIN_FIRST_NS
        wait_s = self._back_off_ns / SECOND_NS
        self._back_off_ns = min(2 * self._back_off_ns, REJOIN_MAX_NS)
        log.warning("evicted", reason=because, rejoins_in_s=wait_s)
        gc.unfreeze()
        gc.collect()
        try:
            async with asyncio.timeout(wait_s):
                await self._stop.wait()
        except TimeoutError:
            return True
        return False

    def _on_signal(self, number: int) -> None:
        self._stop.set()
        if self._agent is not None:
            notify_supervisor("STOPPING=1")
            self._agent.leave(f"the agent was stopped by {signal.Signals(number).name}")


def _open(config: AgentConfig, socket_path: str, state_path: Path, warnings: list[str]) -> Agent:
    """Open everything. What was opened is closed again where a later part fails."""
    incarnation = new_incarnation()
    with ExitStack() as opened:
        state_dir = StateDirectory(state_path, config.cluster.name, config.node.id)
        opened.callback(state_dir.close)
        warnings = [*warnings, *_volatile(config, state_path)]
        transport, snapshots, network_warnings = open_network(config, incarnation)
        opened.callback(transport.close)
        if snapshots is not None:
            opened.callback(snapshots.close)
        listener = Listener(socket_path, int(config.node.socket_mode, 8))
        opened.callback(listener.close)
        agent = Agent(
            config, node_factory(config, transport, state_dir, incarnation), transport, state_dir, listener,
            incarnation=incarnation, snapshots=snapshots, warnings=[*warnings, *network_warnings],
        )  # fmt: skip
        opened.pop_all()
        return agent


def _volatile(config: AgentConfig, state_path: Path) -> list[str]:
    """What to warn of where the state directory does not outlive the machine. Raises ConfigurationError."""
    if len(config.cluster.table()) < 2 or not is_volatile(state_path):
        return []
    if config.cluster.last_man_standing:
        raise ConfigurationError(
            f"cluster.last_man_standing: the state directory {state_path} is in memory (tmpfs), and a node that "
            "forgets at a restart may take an old view for the last one: name one on a disk as node.state_dir"
        )
    warning = (
        f"the state directory {state_path} is in memory (tmpfs): after a restart of this machine the node is a "
        "stranger to its cluster, which may have to wait for it; name one on a disk as node.state_dir"
    )
    return [warning]


def node_factory(
    config: AgentConfig, transport: Transport, state_dir: StateDirectory, incarnation: int
) -> Callable[[int, int], NodeApi]:
    """Makes the sans-IO node from (monotonic ns, wall clock ns)."""
    settings = Settings(
        cluster_name=config.cluster.name,
        node_id=config.node.id,
        incarnation=incarnation,
        store_id=state_dir.store_id,
        seed=new_incarnation(),
        table=config.cluster.table(),
        delivery=config.cluster.delivery,
        mtu=transport.mtu,
        ip_overhead_bytes=transport.ip_overhead_bytes,
        receive_buffer_bytes=transport.receive_buffer_bytes,
        limits=config.replicated_limits(),
        heartbeat_ns=config.timing.heartbeat_ms * MILLISECOND_NS,
        suspicion_ns=config.timing.suspicion_ms * MILLISECOND_NS,
        window_bytes=config.limits.window_bytes,
        backlog_bytes=config.limits.backlog_bytes,
        sync_timeout_ns=config.timing.sync_timeout_ms * MILLISECOND_NS,
        leave_timeout_ns=config.timing.leave_timeout_ms * MILLISECOND_NS,
        quorum_lost_after_ns=config.timing.quorum_lost_after_ms * MILLISECOND_NS,
        history_wait_ns=config.timing.history_wait_ms * MILLISECOND_NS,
        new_history_after_ns=config.timing.new_history_after_s * SECOND_NS,
        bootstrap=config.cluster.bootstrap,
        last_man_standing=config.cluster.last_man_standing,
        record=state_dir.record,
    )
    return lambda now, wall_ns: Node(settings, now, wall_ns)


async def _serve(agent: Agent) -> None:
    for warning in agent.warnings:
        log.warning(warning)
    log.info(
        "started", node_id=agent.config.node.id, cluster=agent.config.cluster.name, socket=agent.listener.path,
        transport=agent.config.transport(), state_dir=str(agent.state_dir.path),
    )  # fmt: skip
    notify_supervisor("READY=1")
    keep_freed_memory()  # else each burst faults its receive buffers in anew
    gc.collect()
    gc.freeze()  # what is there now stays; collections look at what the traffic makes alone
    await agent.run()


def notify_supervisor(state: str) -> None:
    """Tell systemd (``Type=notify``), where it asks to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
        try:
            notifying.sendto(state.encode(), address.replace("@", "\0", 1))
        except OSError as error:
            log.warning("the supervisor cannot be told", error=error.strerror)


def _loop_runner(config: AgentConfig) -> Callable[[Coroutine[Any, Any, int]], int]:
    if config.node.event_loop == "asyncio":
        return asyncio.run
    try:
        import uvloop
    except ImportError:
        raise ConfigurationError(
            'node.event_loop: "uvloop" is not installed (pip install "ocfcluster[uvloop]"); or set it to "asyncio"'
        ) from None

    def run(coroutine: Coroutine[Any, Any, int]) -> int:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(coroutine)

    return run


def raise_descriptor_limit() -> None:
    """Every subscription is a descriptor: take as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # the soft limit stays; accepting clients says so when it is reached


def _configure_log(config: AgentConfig) -> None:
    """Structured lines on standard error: readable on a terminal, JSON elsewhere, unless told."""
    console = config.log.format == "console" or (config.log.format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.log.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
