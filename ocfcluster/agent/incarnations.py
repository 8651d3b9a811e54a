"""A node's agents, one after the other: a node that the cluster has evicted begins again as a new incarnation, with
the record on disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog

from ocfcluster.agent.config import AgentConfig, load
from ocfcluster.agent.daemon import Agent, new_incarnation
from ocfcluster.agent.hooks import Hooks, check_command
from ocfcluster.agent.keys import KeyRing, open_keys
from ocfcluster.agent.listener import Listener
from ocfcluster.agent.network import open_network
from ocfcluster.agent.node_api import NodeApi
from ocfcluster.agent.reload import Plan, Reloader
from ocfcluster.agent.state_dir import StateDirectory, is_volatile
from ocfcluster.errors import ConfigurationError, SetupError, StateDirectoryUnavailable
from ocfcluster.limits import REJOIN_CALM_NS, REJOIN_FIRST_NS, REJOIN_MAX_NS, SECOND_NS
from ocfcluster.net.transport import Transport
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.settings import Settings

EXIT_FAILURE: Final = 1
EXIT_EVICTED: Final = 6

log = structlog.get_logger("ocfcluster.agent")


class Incarnations:
    """This node's agents, one after the other: the next one where the cluster went on without the last one."""

    def __init__(
        self,
        config: AgentConfig,
        socket_path: str | None,
        state_path: Path,
        warnings: list[str],
        file: Path | None = None,
        read: Callable[[Path], AgentConfig] = load,
    ) -> None:
        """``socket_path``: where programs reach the agents; None: only in this process, by ``Agent.admit``. ``file``:
        where ``config`` is from, to be read again by ``read``; None: nowhere."""
        self._config = config
        self.hooks = Hooks(config.hooks)
        self.reloader: Reloader | None = None
        if file is not None:
            self.reloader = Reloader(
                file.absolute(), lambda: self._config, self._table, self._apply, asyncio.to_thread, read
            )
        self._socket_path = socket_path
        self._state_path = state_path
        self._warnings = warnings
        self._stop = asyncio.Event()
        self._back_off_ns = REJOIN_FIRST_NS
        self.agent: Agent | None = None  # the one that serves now
        self._read_meanwhile: Plan | None = None  # a configuration that was read while an agent was opened

    async def run(self) -> int:
        """Until this node ends, and its hook is told so; the exit code of a process that is nothing but the agent.

        Raises SetupError, StateDirectoryError, ConfigurationError, and OSError: of the first agent, where that cannot
        be opened. For a later one only what does not pass by itself ends it.
        """
        check_command(self._config.hooks)
        try:
            return await self._run()
        finally:
            await self.hooks.ended()

    async def _run(self) -> int:
        evictions, because = 0, ""
        # Once: what the file says since then counts when it has been checked, by a command.
        keys = open_keys(self._config.security.key_file, self._config.cluster.name)
        while True:
            self._read_meanwhile = None
            try:
                agent = self.agent = await _open(
                    self._config, self._socket_path, self._state_path, self._warnings, keys
                )
            except (SetupError, StateDirectoryUnavailable, OSError) as error:
                if not evictions:
                    raise
                # What a running agent survives (no descriptors, a disk that is full or read-only) does not end it here.
                log.warning("cannot begin again yet", reason=str(error))
                if not await self._wait(0, because):
                    return 0
                continue
            if self._stop.is_set():
                agent.stop("the agent was stopped before it began")
            agent.evictions, agent.evicted_because = evictions, because
            agent.hooks, agent.reloading.reloader = self.hooks, self.reloader
            if self._read_meanwhile is not None:  # as soon as it runs
                asyncio.get_running_loop().call_soon(agent.reloading.apply, self._read_meanwhile)
            began = time.monotonic_ns()
            await self._serve(agent)
            self.agent = None
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
                return 0

    async def _wait(self, lasted_ns: int, because: str) -> bool:
        """Until the next incarnation may begin; False: until the process is told to stop."""
        if lasted_ns >= REJOIN_CALM_NS:
            self._back_off_ns = REJOIN_FIRST_NS
        wait_s = self._back_off_ns / SECOND_NS
        self._back_off_ns = min(2 * self._back_off_ns, REJOIN_MAX_NS)
        log.warning("evicted", reason=because, rejoins_in_s=wait_s)
        self.rest()
        try:
            async with asyncio.timeout(wait_s):
                await self._stop.wait()
        except TimeoutError:
            return True
        log.info("stopped")
        return False

    def leave(self, reason: str) -> None:
        """End in order, and do not begin again. Call it in the loop's thread."""
        if self._stop.is_set():
            self.hooks.abandon()  # told twice: whoever ends this is in a hurry
        self._stop.set()
        if self.agent is not None:
            self.agent.leave(reason)

    async def _serve(self, agent: Agent) -> None:
        for warning in agent.warnings:
            log.warning(warning)
        log.info(
            "started", node_id=agent.config.node.id, cluster=agent.config.cluster.name, socket=agent.socket_path,
            transport=agent.config.transport(), state_dir=str(agent.state_dir.path),
        )  # fmt: skip
        self.prepare()
        await agent.run()

    def _table(self) -> dict[int, int] | None:
        """The node table in force; None: there is none."""
        configuration = self.agent.node.configuration if self.agent is not None else None
        return None if configuration is None else configuration.table

    def _apply(self, plan: Plan) -> None:
        """A configuration that has been read again: for this agent, and for those that follow."""
        if plan.config is None:
            raise RuntimeError("a plan without a configuration")
        self._config = plan.config
        self.configured(plan.config)
        self.hooks.section = plan.config.hooks
        if self.agent is not None:
            self.agent.reloading.apply(plan)
        else:
            self._read_meanwhile = plan

    # --- for who owns the process --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """An agent is ready and begins to serve."""

    def configured(self, config: AgentConfig) -> None:
        """This configuration counts from here on."""

    def rest(self) -> None:
        """An agent has ended, and the next one does not begin at once."""


async def _open(
    config: AgentConfig, socket_path: str | None, state_path: Path, warnings: list[str], keys: KeyRing | None
) -> Agent:
    """Open everything. What was opened is closed again where a later part fails."""
    incarnation = new_incarnation()
    with ExitStack() as opened:
        state_dir = StateDirectory(state_path, config.cluster.name, config.node.id)
        opened.callback(state_dir.close)
        warnings = [*warnings, *_volatile(config, state_path)]
        # Beside the loop, whose signs of life a supervisor waits for: peers may have names to be looked up.
        transport, snapshots, network_warnings = await asyncio.to_thread(open_network, config, incarnation)
        opened.callback(transport.close)
        for listening in snapshots:
            opened.callback(listening.close)
        listener = None
        if socket_path is not None:
            listener = Listener(socket_path, int(config.node.socket_mode, 8))
            opened.callback(listener.close)
        agent = Agent(
            config, node_factory(config, transport, state_dir, incarnation), transport, state_dir, listener,
            incarnation=incarnation, snapshots=snapshots, warnings=[*warnings, *network_warnings],
            keys=keys,
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
        window_bytes=config.limits.window_bytes,
        backlog_bytes=config.limits.backlog_bytes,
        bootstrap=config.cluster.bootstrap,
        last_man_standing=config.cluster.last_man_standing,
        record=state_dir.record,
        **config.times()._asdict(),
    )
    return lambda now, wall_ns: Node(settings, now, wall_ns)
