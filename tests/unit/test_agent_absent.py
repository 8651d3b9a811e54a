"""Networks that are not there at the start: tried again, taken when they come, and let go where the agent has ended."""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ocfcluster.agent import absent
from ocfcluster.agent.absent import AbsentNetworks
from ocfcluster.agent.config import AgentConfig, Cluster, Network, RedundantNetwork
from ocfcluster.errors import SetupError
from ocfcluster.limits import MILLISECOND_NS
from ocfcluster.net.memory import MemoryHub, MemoryTransport
from ocfcluster.net.redundant import Absent, RedundantTransport


class Agent:
    """What AbsentNetworks asks of the agent."""

    def __init__(self) -> None:
        self.hub = MemoryHub()
        self.config = AgentConfig(
            cluster=Cluster(nodes=[1, 2]),
            network=Network(networks=[RedundantNetwork("eth1"), RedundantNetwork("eth2")]),
        )
        self.transport = RedundantTransport(
            [("eth1", self.hub.transport()), ("eth2", Absent("no eth2"))], b""
        )
        self.incarnation = 7
        self.closed = False
        self.ends_at_try = 0
        self.reloaded_at_try = 0
        self.warnings: list[str] = ["old"]
        self.watched: list[MemoryTransport] = []
        self.listening: list[socket.socket] = []
        self.snapshots: Any = self

    def watch_network(self, transport: MemoryTransport) -> None:
        self.watched.append(transport)

    def listen(self, listening: socket.socket) -> None:
        self.listening.append(listening)


def run(
    monkeypatch: pytest.MonkeyPatch, test: Callable[[Agent, list[int]], Coroutine[Any, Any, None]]
) -> None:
    """``test`` with an agent whose second network comes at the third try."""
    agent = Agent()
    tries: list[int] = []

    def open_one(config: AgentConfig, network: RedundantNetwork, incarnation: int) -> Any:
        assert (config, network.name, incarnation) == (agent.config, "eth2", 7)
        tries.append(1)
        if len(tries) < 3:
            raise SetupError(f"still no eth2 ({len(tries)})")
        agent.closed = agent.ends_at_try == len(tries)
        if agent.reloaded_at_try == len(tries):
            agent.config = copy.copy(config)
        return agent.hub.transport(mtu=1300), socket.create_server(("127.0.0.1", 0)), ["loud"]

    monkeypatch.setattr(absent, "open_one", open_one)
    monkeypatch.setattr(absent, "NETWORK_RETRY_NS", 5 * MILLISECOND_NS)

    async def all_of_it() -> None:
        networks = AbsentNetworks(agent)  # type: ignore[arg-type]
        networks.start()
        async with asyncio.timeout(10):
            await test(agent, tries)
        networks.close()

    asyncio.run(all_of_it())
    agent.transport.close()
    for listening in agent.listening:
        listening.close()


def test_it_is_tried_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(agent: Agent, tries: list[int]) -> None:
        assert "no eth2" in agent.warnings[1]
        while len(tries) < 2:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.001)
        while not agent.watched:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert agent.transport.absent() == {}
        assert agent.transport.transports[1] is agent.watched[0]
        assert len(agent.listening) == 1
        assert agent.warnings[:2] == ["old", "loud"]
        assert "small ones" in agent.warnings[2]
        await asyncio.sleep(0.03)
        assert len(tries) == 3

    run(monkeypatch, test)


def test_the_reason_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(agent: Agent, tries: list[int]) -> None:
        while not tries:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.001)
        while agent.transport.absent()[1].error == "no eth2":  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert agent.transport.absent()[1].error.startswith("still no eth2")
        agent.closed = True

    run(monkeypatch, test)


def test_an_agent_that_has_ended_lets_it_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(agent: Agent, tries: list[int]) -> None:
        agent.ends_at_try = 3
        while len(tries) < 3:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert agent.watched == []
        assert list(agent.hub.transports) == [agent.transport.address]

    run(monkeypatch, test)


def test_what_was_opened_for_an_older_configuration_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(agent: Agent, tries: list[int]) -> None:
        agent.reloaded_at_try = 3  # the first one that opens it
        while not agent.watched:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.001)
        assert len(tries) == 4
        assert len(agent.listening) == 1

    run(monkeypatch, test)


def test_an_agent_with_all_of_its_networks_does_nothing() -> None:
    agent = Agent()
    agent.transport.attach(1, agent.hub.transport())

    async def test() -> None:
        networks = AbsentNetworks(agent)  # type: ignore[arg-type]
        networks.start()
        networks.close()
        assert networks._timer is None

    asyncio.run(test())
    agent.transport.close()
