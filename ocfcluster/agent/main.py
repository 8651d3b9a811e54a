"""What `ocfcluster agent` runs: configuration, machine set-up, log, signals; then the daemon until it is stopped."""

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
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import structlog

from ocfcluster.agent.config import AgentConfig, load
from ocfcluster.agent.daemon import Agent, new_incarnation
from ocfcluster.agent.listener import Listener
from ocfcluster.agent.network import open_transport
from ocfcluster.agent.node_api import NodeApi
from ocfcluster.agent.state_dir import StateDirectory
from ocfcluster.errors import ConfigurationError, SetupError, StateDirectoryError
from ocfcluster.limits import MILLISECOND_NS
from ocfcluster.net.heap import keep_freed_memory
from ocfcluster.net.transport import Transport
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.settings import Settings

EXIT_FAILURE: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_SETUP: Final = 3

log = structlog.get_logger("ocfcluster.agent")


def run_agent(config: AgentConfig | Path | None = None) -> int:
    """Run an agent in the foreground until SIGTERM or SIGINT; the exit code.

    ``config``: a configuration, the file of one, or None for a single development node. 0: stopped in order;
    2: the configuration is wrong; 3: the machine is not ready (both say why in one line on standard error);
    1: a mistake in the agent itself, with its traceback in the log.
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
    """Open everything, then serve. What was opened is closed again where a later part fails."""
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
        agent = _open(config, socket_path, state_path, warnings)
        for warning in agent.warnings:
            log.warning(warning)
        return runner(_serve(agent))
    finally:
        if made_directory:
            shutil.rmtree(made_directory, ignore_errors=True)


def _open(config: AgentConfig, socket_path: str, state_path: Path, warnings: list[str]) -> Agent:
    incarnation = new_incarnation()
    opened: list[StateDirectory | Listener | Transport] = []
    try:
        state_dir = StateDirectory(state_path, config.cluster.name, config.node.id)
        opened.append(state_dir)
        transport, network_warnings = open_transport(config, incarnation)
        opened.append(transport)
        listener = Listener(socket_path, int(config.node.socket_mode, 8))
        opened.append(listener)
        return Agent(
            config, node_factory(config, transport, state_dir, incarnation), transport, state_dir, listener,
            incarnation=incarnation, warnings=[*warnings, *network_warnings],
        )  # fmt: skip
    except BaseException:
        for part in reversed(opened):
            part.close()
        raise


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
        record=state_dir.record,
    )
    return lambda now, wall_ns: Node(settings, now, wall_ns)


async def _serve(agent: Agent) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop, f"the agent was stopped by {signal.Signals(number).name}")
    log.info(
        "started", node_id=agent.config.node.id, cluster=agent.config.cluster.name, socket=agent.listener.path,
        transport=agent.config.transport(), state_dir=str(agent.state_dir.path),
    )  # fmt: skip
    notify_supervisor("READY=1")
    keep_freed_memory()  # else each burst faults its receive buffers in anew
    gc.collect()
    gc.freeze()  # what is there now stays; collections look at what the traffic makes alone
    await agent.run()
    if agent.failure is not None:
        return EXIT_FAILURE
    log.info("stopped")
    return 0


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
