"""Networks that were not there when the agent started: tried again until they are.

A machine that restarts with one of its interfaces dead is to be a member by the others.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING

import structlog

from ocfcluster.agent.config import AgentConfig
from ocfcluster.agent.network import open_one
from ocfcluster.errors import ConfigurationError, SetupError
from ocfcluster.limits import NETWORK_RETRY_NS, SECOND_NS
from ocfcluster.net.redundant import RedundantTransport
from ocfcluster.net.transport import Transport

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

_Opened = tuple[Transport, socket.socket, list[str]]
log = structlog.get_logger("ocfcluster.agent")


class AbsentNetworks:
    """Opens what is absent of one agent's networks, beside its loop, every NETWORK_RETRY_NS."""

    __slots__ = ("_agent", "_timer", "_under_way", "_warnings")

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._warnings: dict[int, str] = {}

    def start(self) -> None:
        """Say what is absent, and begin to try."""
        transport = self._agent.transport
        if isinstance(transport, RedundantTransport):
            for number, absent in transport.absent().items():
                warning = f"a network is missing, the others are used: {absent.error}"
                self._warnings[number] = warning
                self._agent.warnings.append(warning)
                log.warning(warning)
            self._again()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        transport = self._agent.transport
        if isinstance(transport, RedundantTransport) and transport.absent() and not self._agent.closed:
            self._timer = asyncio.get_running_loop().call_later(
                NETWORK_RETRY_NS / SECOND_NS, self._try, transport
            )

    def _try(self, transport: RedundantTransport) -> None:
        loop = asyncio.get_running_loop()
        config = self._agent.config
        networks = config.network.all()
        for number in transport.absent():
            # A name server may be asked for peers.
            opening = loop.run_in_executor(None, open_one, config, networks[number], self._agent.incarnation)
            self._under_way += 1
            opening.add_done_callback(partial(self._tried, transport, number, config))

    def _tried(
        self,
        transport: RedundantTransport,
        number: int,
        config: AgentConfig,
        opening: asyncio.Future[_Opened],
    ) -> None:
        self._under_way -= 1
        if not opening.cancelled():
            try:
                opened = opening.result()
            except (ConfigurationError, SetupError) as error:
                transport.absent()[number].error = str(error)
            else:
                self._opened(transport, number, config, *opened)
        if not self._under_way:
            self._again()

    def _opened(
        self, redundant: RedundantTransport, number: int, config: AgentConfig, transport: Transport,
        listening: socket.socket, warnings: list[str],
    ) -> None:  # fmt: skip
        agent = self._agent
        if agent.closed or agent.config is not config:  # read again meanwhile: its peers may be others
            transport.close()
            listening.close()
            return
        name = redundant.names()[number]
        redundant.attach(number, transport)
        agent.watch_network(transport)
        agent.snapshots.listen(listening)
        agent.warnings.remove(self._warnings.pop(number))
        if transport.mtu < redundant.mtu:
            small = (
                f"network {name!r} has an mtu of {transport.mtu}, and packets of {redundant.mtu} are in use: "
            )
            warnings = [*warnings, f"{small}it carries small ones alone until this agent is restarted"]
        agent.warnings += warnings
        for warning in warnings:
            log.warning(warning)
        log.info("a network is there", network=name, address=transport.address[0])
