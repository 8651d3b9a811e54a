"""What `ocfcluster agent` runs: configuration, machine set-up, log, signals; then the daemon until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO, cast

import structlog

from ocfcluster import limits
from ocfcluster.agent.config import AgentConfig, configured_by, load
from ocfcluster.agent.incarnations import Incarnations
from ocfcluster.agent.logfile import standard_error
from ocfcluster.agent.reload import Reloader
from ocfcluster.agent.supervisor import Supervisor, keep_watchdog
from ocfcluster.errors import ConfigurationError, SetupError, StateDirectoryError
from ocfcluster.net.heap import keep_freed_memory

EXIT_CONFIGURATION: Final = 2
EXIT_SETUP: Final = 3

log = structlog.get_logger("ocfcluster.agent")


def run_agent(config: AgentConfig | Path | None = None, *, insecure: bool = False) -> int:
    """Run an agent in the foreground until SIGTERM or SIGINT; the exit code.

    ``config``: a configuration, the file of one, or None for a single development node; ``insecure`` goes over what the
    file says. 0: stopped in order;
    2: the configuration is wrong; 3: the machine is not ready (both say why in one line on standard error);
    1: a mistake in the agent itself, with its traceback in the log, or no memory left; 6: the cluster goes on without
    this node, and ``cluster.rejoin`` is off.
    """
    try:
        file = config if isinstance(config, Path) else None
        if config is None:
            settings, temporary = AgentConfig(), True
        elif isinstance(config, Path):
            settings, temporary = load(config, insecure=insecure), False
        else:
            settings, temporary = config, False
        _configure_log(settings)
        raise_descriptor_limit()
        with configured_by(file):
            return _run(settings, temporary=temporary, file=file, read=partial(load, insecure=insecure))
    except ConfigurationError as error:
        standard_error.write(f"ocfcluster agent: {error}\n")
        return EXIT_CONFIGURATION
    except (SetupError, StateDirectoryError) as error:
        standard_error.write(f"ocfcluster agent: {error}\n")
        return EXIT_SETUP


def _run(
    config: AgentConfig,
    *,
    temporary: bool,
    file: Path | None = None,
    read: Callable[[Path], AgentConfig] = load,
) -> int:
    """Serve until this node ends, in one incarnation or several."""
    runner = loop_runner(config)
    socket_path = config.socket_path()
    warnings: list[str] = []
    made_directory = ""
    if temporary and not config.node.state_dir:
        made_directory = tempfile.mkdtemp(prefix="ocfcluster-")
        warnings.append("the state directory is temporary: this node forgets its topics when it stops")
    state_path = Path(made_directory) if made_directory else config.state_path()
    warnings += descriptor_warnings(config)
    if not config.cluster.table():
        warnings.append("no cluster.nodes are configured: this node runs alone, for development")
    try:
        return runner(_Process(config, socket_path, state_path, warnings, file, read).run())
    finally:
        if made_directory:
            shutil.rmtree(made_directory, ignore_errors=True)


class _Process(Incarnations):
    """The agents of a process that is nothing else: signals end them and read their file again, and the memory is
    theirs."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._reloads: set[asyncio.Task[None]] = set()
        self._supervisor = Supervisor()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if self.reloader is not None:
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup, self.reloader)
        watchdog = asyncio.create_task(keep_watchdog(self._supervisor))
        try:
            return await super().run()
        finally:
            watchdog.cancel()
            self._supervisor.close()

    def _on_signal(self, number: int) -> None:
        if self.agent is not None:
            self._supervisor.tell("STOPPING=1")
        self.leave(f"the agent was stopped by {signal.Signals(number).name}")

    def _on_hangup(self, reloader: Reloader) -> None:
        async def reload() -> None:
            self._supervisor.tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                await reloader.reload(check=False)
            finally:
                self._supervisor.tell("READY=1")

        task = asyncio.get_running_loop().create_task(reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def configured(self, config: AgentConfig) -> None:
        _configure_log(config)

    def prepare(self) -> None:
        self._supervisor.tell("READY=1")
        keep_freed_memory()  # else each burst faults its receive buffers in anew
        gc.collect()
        gc.freeze()  # what is there now stays; collections look at what the traffic makes alone

    def rest(self) -> None:
        gc.unfreeze()
        gc.collect()


def loop_runner(config: AgentConfig) -> Callable[[Coroutine[Any, Any, int]], int]:
    """What runs the agent in the event loop of its configuration. Raises ConfigurationError."""
    factory = None
    if config.node.event_loop == "uvloop":
        try:
            import uvloop
        except ImportError:
            raise ConfigurationError(
                'node.event_loop: "uvloop" is not installed (pip install "ocfcluster[uvloop]"); or set it to "asyncio"'
            ) from None
        factory = uvloop.new_event_loop

    def run(coroutine: Coroutine[Any, Any, int]) -> int:
        runner = asyncio.Runner(loop_factory=factory)
        try:
            return runner.run(coroutine)
        finally:
            try:
                runner.close()
            except RuntimeError as error:  # it starts a thread, for which there may be no memory
                log.warning("the event loop was not closed", error=str(error))

    return run


def raise_descriptor_limit() -> None:
    """Every subscription is a descriptor: take as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # the soft limit stays; accepting clients says so when it is reached


def descriptor_warnings(config: AgentConfig) -> list[str]:
    """Whether ``limits.clients`` programs with one subscription each find descriptors here; else what to do."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = limits.DESCRIPTORS_PER_CLIENT * config.limits.clients + limits.DESCRIPTORS_OF_AGENT
    if most == resource.RLIM_INFINITY or most >= wanted:
        return []
    text = (
        f"limits.clients is {config.limits.clients}, for which {wanted} descriptors are needed (socket, process and a "
        f"subscription of each), and this process may have {most}: beyond that programs are refused; raise "
        "LimitNOFILE (ulimit -n) or lower limits.clients"
    )
    return [text]


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
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", standard_error)),  # it has what is used
        cache_logger_on_first_use=False,
    )
