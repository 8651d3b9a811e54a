"""How an agent ends: it leaves, is stopped with all others, or is evicted and begins again; and its disk."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

import ocfcluster
from ocfcluster.agent import incarnations as module
from ocfcluster.agent import state_dir
from ocfcluster.agent.config import AgentConfig, Cluster, Security
from ocfcluster.agent.config import Node as NodeSection
from ocfcluster.agent.incarnations import EXIT_EVICTED, EXIT_FAILURE, Incarnations
from ocfcluster.client.session import Stage
from ocfcluster.errors import ConfigurationError, SetupError, StateDirectoryError
from ocfcluster.limits import MILLISECOND_NS
from ocfcluster.protocol.effects import FetchSnapshot, Forget, Persist, State, Stop
from ocfcluster.protocol.operator import Rejoin
from ocfcluster.wire.frames import Shutdown
from tests.keyed import new_key, write_keys
from tests.unit.fake_node import FakeNode, RawClient


class Life:
    """A process that runs incarnations of a node whose decisions the test makes."""

    def __init__(self, directory: Path, **cluster: Any) -> None:
        self.path = str(directory / "agent.sock")
        self.state = directory / "state"
        config = AgentConfig(
            cluster=Cluster(**cluster), node=NodeSection(socket=self.path, state_dir=str(self.state))
        )
        self.nodes: list[FakeNode] = []
        self.records: list[bytes] = []
        self.incarnations = Incarnations(config, self.path, self.state, [])
        self.code: int | None = None

    def make_node(self, _config: object, _transport: object, state_dir: Any, _incarnation: int) -> Any:
        def make(now: int, wall_ns: int) -> FakeNode:
            self.nodes.append(FakeNode())
            self.records.append(state_dir.record)
            return self.nodes[-1]

        return make

    @property
    def agent(self) -> Any:
        return self.incarnations.agent

    @property
    def programs(self) -> list[Any]:
        """The clients that are not the agent's own component."""
        return [client for client in self.agent.clients.values() if not self.agent.components.is_own(client)]

    def decide(self, state: State, reason: str) -> None:
        self.nodes[-1].change(state, reason)
        self.agent.settle(0)

    def signal(self) -> None:
        self.incarnations.leave("the agent was stopped by SIGTERM")

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the agent sets no event
                await asyncio.sleep(0.002)

    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> int | None:
        """Run ``test`` beside the process; its exit code once that has ended, None if it did not within 2 s."""

        async def both() -> int | None:
            running = asyncio.create_task(self.incarnations.run())
            try:
                await self.until(lambda: self.agent is not None and self.agent._stopping is not None)
                await test()
                async with asyncio.timeout(2):
                    return await asyncio.shield(running)
            except TimeoutError:
                return None
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        return asyncio.run(both())

    def client(self) -> RawClient:
        return RawClient(self.path, lambda: None)

    async def told(self, client: RawClient) -> Shutdown:
        await self.until(lambda: client.answers() or client.eof)
        assert isinstance(client.told[-1], Shutdown)
        client.close()
        return client.told[-1]


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Life]:
    def begin(**cluster: Any) -> Life:
        made = Life(tmp_path, **cluster)
        monkeypatch.setattr(module, "node_factory", made.make_node)
        monkeypatch.setattr(module, "REJOIN_CALM_NS", 1 << 62)
        return made

    return begin


# --- leaving -----------------------------------------------------------------------------------------------------


def test_it_serves_until_the_others_let_it_go(life: Callable[..., Life]) -> None:
    one = life()

    async def test() -> None:
        client = one.client()
        await one.until(lambda: one.programs)
        one.nodes[0].leaves_at_once = False
        one.signal()
        await asyncio.sleep(0.05)
        assert one.nodes[0].left
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(one.path)  # it serves still
        assert client.answers() == []
        assert not client.eof
        one.decide(State.STOPPED, "node 2 orders now")
        assert "SIGTERM" in (await one.told(client)).reason

    assert one.run(test) == 0
    assert not Path(one.path).exists()


def test_a_second_signal_does_not_wait(life: Callable[..., Life]) -> None:
    one = life()

    async def test() -> None:
        one.nodes[0].leaves_at_once = False
        one.signal()
        await asyncio.sleep(0.01)
        one.signal()

    assert one.run(test) == 0


def test_an_ordered_stop_ends_it_without_leaving(life: Callable[..., Life]) -> None:
    one = life()

    async def test() -> None:
        client = one.client()
        await one.until(lambda: one.programs)
        one.nodes[0].effect(Stop("the cluster was told to stop"))
        one.agent.settle(0)
        assert (await one.told(client)).reason == "the cluster was told to stop"

    assert one.run(test) == 0
    assert not one.nodes[0].left


def test_a_mistake_ends_it_without_a_word_to_the_node(life: Callable[..., Life]) -> None:
    one = life()

    async def test() -> None:
        one.nodes[0].end_burst = lambda now: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        asyncio.get_running_loop().call_soon(one.agent.catch_up)

    assert one.run(test) == EXIT_FAILURE
    assert not one.nodes[0].left


# --- eviction ----------------------------------------------------------------------------------------------------


def test_an_evicted_node_begins_again_with_the_newest_record(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REJOIN_FIRST_NS", 20 * MILLISECOND_NS)
    one = life()
    incarnations: list[int] = []

    async def test() -> None:
        client = one.client()
        await one.until(lambda: one.programs)
        incarnations.append(one.agent.incarnation)
        one.nodes[0].effect(Persist(7, b"newest"))
        one.decide(State.EVICTED, "it was not heard")
        assert "it was not heard" in (await one.told(client)).reason
        await one.until(lambda: len(one.nodes) == 2 and one.agent._stopping)
        incarnations.append(one.agent.incarnation)
        status = one.agent.status()
        assert (status["evictions"], status["evicted_because"]) == (1, "it was not heard")
        one.signal()

    assert one.run(test) == 0
    assert one.records == [b"", b"newest"]
    assert incarnations[0] != incarnations[1]
    assert not one.nodes[0].left


def test_a_network_that_is_not_back_yet_is_tried_again(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = life()
    one.incarnations._back_off_ns = MILLISECOND_NS
    tries: list[int] = []
    really = module.open_network

    def open_network(config: AgentConfig, incarnation: int) -> Any:
        assert threading.current_thread() is not threading.main_thread(), "a name server may be asked"
        tries.append(incarnation)
        if len(tries) == 2:
            raise SetupError("no name server answers")
        return really(config, incarnation)

    monkeypatch.setattr(module, "open_network", open_network)

    async def test() -> None:
        one.decide(State.EVICTED, "test")
        await one.until(lambda: len(one.nodes) == 2 and one.agent and one.agent._stopping)
        one.signal()

    assert one.run(test) == 0
    assert len(tries) == 3


def no_poller(*_: object) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")  # as epoll_create is refused


def no_file(path: object, *_: object, **__: object) -> int:
    raise OSError(errno.EROFS, "Read-only file system", path)


@pytest.mark.parametrize(
    ("refuse", "says"),
    [
        (lambda patch: patch.setattr(module, "open_network", no_poller), "Too many open files"),
        (
            lambda patch: patch.setattr(state_dir.os, "open", no_file),
            "state directory .* Read-only file system",
        ),
        (
            lambda patch: patch.setattr(state_dir, "_replace", no_file),
            "state directory .* Read-only file system",
        ),
    ],
    ids=["descriptors", "lock", "identity"],
)
def test_a_machine_that_has_run_out_of_something_is_tried_again(
    refuse: Callable[[pytest.MonkeyPatch], None],
    says: str,
    life: Callable[..., Life],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = life()
    one.incarnations._back_off_ns = MILLISECOND_NS
    reasons: list[str] = []

    def log(event: str, **fields: Any) -> None:
        if event == "cannot begin again yet":
            reasons.append(fields["reason"])
            refused.undo()

    monkeypatch.setattr(module.log, "warning", log)
    with pytest.MonkeyPatch.context() as refused:

        async def test() -> None:
            (one.state / "programs.key").unlink()  # is made anew, or cannot be
            refuse(refused)
            one.decide(State.EVICTED, "test")
            await one.until(lambda: len(one.nodes) == 2 and one.agent and one.agent._stopping)
            one.signal()

        assert one.run(test) == 0
    assert len(reasons) == 1
    assert re.search(says, reasons[0])


def test_a_directory_that_has_become_another_nodes_ends_it(life: Callable[..., Life]) -> None:
    one = life()
    one.incarnations._back_off_ns = MILLISECOND_NS

    async def test() -> None:
        identity = one.state / "identity.json"
        identity.write_bytes(identity.read_bytes().replace(b'"node_id":1', b'"node_id":2'))
        one.decide(State.EVICTED, "test")

    with pytest.raises(StateDirectoryError, match="belongs to node 2"):
        one.run(test)


@pytest.mark.parametrize("refuse", [no_poller, no_file])
def test_a_first_agent_that_cannot_be_opened_is_not_tried_again(
    refuse: Callable[..., Any], life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = life()
    monkeypatch.setattr(
        *((module, "open_network") if refuse is no_poller else (state_dir.os, "open")), refuse
    )
    with pytest.raises(OSError if refuse is no_poller else StateDirectoryError):
        asyncio.run(one.incarnations.run())


def test_told_to_stop_before_it_serves_it_ends(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = life()
    one.incarnations._back_off_ns = MILLISECOND_NS
    really = module.open_network
    loop: list[asyncio.AbstractEventLoop] = []

    def open_network(config: AgentConfig, incarnation: int) -> Any:
        if loop:
            loop[0].call_soon_threadsafe(one.signal)
            time.sleep(0.05)
        return really(config, incarnation)

    monkeypatch.setattr(module, "open_network", open_network)

    async def test() -> None:
        loop.append(asyncio.get_running_loop())
        one.decide(State.EVICTED, "test")

    assert one.run(test) == 0
    assert len(one.nodes) == 2
    assert not one.nodes[1].left


def test_a_rejoin_keeps_the_keys_that_run(life: Callable[..., Life], tmp_path: Path) -> None:
    one = life()
    key = new_key()
    file = write_keys(tmp_path / "key", key)
    one.incarnations._config = msgspec.structs.replace(
        one.incarnations._config, security=Security(key_file=str(file))
    )
    one.incarnations._back_off_ns = MILLISECOND_NS

    async def test() -> None:
        file.write_text("half of a cop")
        one.decide(State.EVICTED, "test")
        await one.until(lambda: len(one.nodes) == 2 and one.agent and one.agent._stopping)
        assert one.agent.keys.document(1, [])["accepts"] == [key.id]
        one.signal()

    assert one.run(test) == 0


def test_programs_find_the_next_incarnation_by_themselves(life: Callable[..., Life]) -> None:
    one = life()

    async def test() -> None:
        client = await asyncio.to_thread(ocfcluster.connect, one.path, resume=True)
        try:
            await asyncio.to_thread(client.create_topic, "t")
            before = client.agent.incarnation
            one.decide(State.EVICTED, "test")
            await one.until(lambda: len(one.nodes) == 2)
            await one.until(
                lambda: (
                    client.agent.incarnation != before and client.connection().session.stage is Stage.READY
                )
            )
        finally:
            await asyncio.to_thread(client.close)
        one.signal()

    assert one.run(test) == 0


def test_again_and_again_it_waits_longer(life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(module, "REJOIN_FIRST_NS", 4 * MILLISECOND_NS)
    monkeypatch.setattr(module, "REJOIN_MAX_NS", 10 * MILLISECOND_NS)
    one = life()
    one.incarnations._back_off_ns = 4 * MILLISECOND_NS
    wait = one.incarnations._wait

    async def waited(lasted_ns: int, because: str) -> bool:
        waits.append(one.incarnations._back_off_ns // MILLISECOND_NS)
        return await wait(lasted_ns, because)

    monkeypatch.setattr(one.incarnations, "_wait", waited)

    async def test() -> None:
        for number in range(1, 5):
            one.decide(State.EVICTED, "test")
            await one.until(lambda: len(one.nodes) == number + 1 and one.agent and one.agent._stopping)  # noqa: B023
        monkeypatch.setattr(module, "REJOIN_CALM_NS", 0)  # it was there long enough now
        one.decide(State.EVICTED, "test")
        await one.until(lambda: len(one.nodes) == 6 and one.agent and one.agent._stopping)
        assert one.incarnations._back_off_ns == 8 * MILLISECOND_NS
        one.signal()

    assert one.run(test) == 0
    assert waits == [4, 8, 10, 10, 10]


def test_a_signal_ends_the_wait(life: Callable[..., Life]) -> None:
    one = life()
    one.incarnations._back_off_ns = 60_000 * MILLISECOND_NS

    async def test() -> None:
        one.decide(State.EVICTED, "test")
        await one.until(lambda: one.agent is None)
        one.signal()

    assert one.run(test) == 0
    assert len(one.nodes) == 1


@pytest.mark.parametrize("rejoin", [True, False])
def test_evicted_while_it_leaves_it_has_stopped_in_order(life: Callable[..., Life], rejoin: bool) -> None:
    one = life(rejoin=rejoin)

    async def test() -> None:
        one.nodes[0].leaves_at_once = False
        one.signal()
        one.decide(State.EVICTED, "test")

    assert one.run(test) == 0
    assert len(one.nodes) == 1


def test_without_rejoin_it_stays_down(life: Callable[..., Life]) -> None:
    one = life(rejoin=False)

    async def test() -> None:
        one.decide(State.EVICTED, "test")

    assert one.run(test) == EXIT_EVICTED


def test_an_operator_has_it_rejoin_all_the_same(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = life(rejoin=False)
    one.incarnations._back_off_ns = MILLISECOND_NS

    async def test() -> None:
        one.nodes[0].operator_refusal = "no"
        assert one.agent.operator(Rejoin()) == "no"
        one.nodes[0].operator_refusal = ""
        assert one.agent.operator(Rejoin()) == ""
        one.nodes[0].effect(Forget())
        one.decide(State.EVICTED, "test")
        await one.until(lambda: len(one.nodes) == 2 and one.agent and one.agent._stopping)
        one.nodes[1].operator_refusal = "no"
        one.agent.operator(Rejoin())
        one.decide(State.EVICTED, "test")

    assert one.run(test) == EXIT_EVICTED


# --- snapshots and the disk ---------------------------------------------------------------------------------------


def test_a_fetch_of_a_node_without_a_network_is_answered(life: Callable[..., Life]) -> None:
    one = life()

    async def test() -> None:
        one.nodes[0].effect(FetchSnapshot(3, ("127.0.0.1", 9), b"q", bytes))
        one.agent.settle(0)
        await one.until(lambda: one.nodes[0].fetched)
        assert one.nodes[0].fetched == [(3, None)]
        one.signal()

    assert one.run(test) == 0


def test_a_full_disk_is_a_failed_persist_and_said(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = life()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async def test() -> None:
        node = one.nodes[0]
        with monkeypatch.context() as broken:
            broken.setattr("os.fsync", full)
            node.effect(Persist(1, b"one"))
            one.agent.settle(0)
            await one.until(lambda: node.persisted_told)
        assert node.persisted_told == [(1, False)]
        assert one.agent.status()["disk_error"] == "No space left on device"
        assert [file.name for file in one.state.iterdir() if file.suffix == ".new"] == []
        node.effect(Persist(2, b"two"))
        one.agent.settle(0)
        await one.until(lambda: len(node.persisted_told) == 2)
        assert node.persisted_told[1] == (2, True)
        assert one.agent.status()["disk_error"] == ""
        one.signal()

    assert one.run(test) == 0


def test_what_was_opened_is_closed_where_a_later_part_fails(
    life: Callable[..., Life], tmp_path: Path
) -> None:
    one = life()
    (tmp_path / "agent.sock").write_text("no socket")
    with pytest.raises(SetupError, match="is there and no socket"):
        asyncio.run(one.incarnations.run())
    (tmp_path / "agent.sock").unlink()

    async def test() -> None:
        one.signal()

    assert one.run(test) == 0


# --- a state directory in memory -----------------------------------------------------------------------------------


def test_a_state_directory_in_memory_is_told_or_refused(
    life: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life()
    monkeypatch.setattr(module, "is_volatile", lambda path: True)

    def warnings(**cluster: Any) -> list[str]:
        config = AgentConfig(cluster=Cluster(**cluster))
        return module._volatile(config, tmp_path)

    assert warnings() == []
    assert "in memory" in warnings(nodes=[1, 2])[0]
    with pytest.raises(ConfigurationError, match=r"last_man_standing.*in memory"):
        warnings(nodes=[1, 2], last_man_standing=True)
    monkeypatch.setattr(module, "is_volatile", lambda path: False)
    assert warnings(nodes=[1, 2], last_man_standing=True) == []
