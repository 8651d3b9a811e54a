"""Snapshots by TCP: whole or not at all, bounded, and no stranger upsets the agent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ocfcluster import limits
from ocfcluster.agent import channel
from ocfcluster.agent.channel import Sealing
from ocfcluster.agent.metrics import Counters
from ocfcluster.agent.snapshots import Snapshots
from ocfcluster.net.tcp import listen_at
from ocfcluster.protocol.effects import FetchSnapshot

HOSTS = [("127.0.0.1", 0), ("::1", 0, 0, 0)]


class End:
    """An agent as far as snapshots know it."""

    def __init__(self, host: Any = HOSTS[0], sealing: Sealing | None = None) -> None:
        self.listening = listen_at(host, "network.port")
        self.address = self.listening.getsockname()
        self.counters = Counters()
        self.networks: list[Any] = []  # other addresses that are tried before the one that is asked for
        self.snapshots = Snapshots(self, [self.listening], self.paths, self.counters, sealing)
        self.give: list[bytes] | None = [b"state"]
        self.requests: list[bytes] = []
        self.fetched: list[tuple[int, bytes | None]] = []
        self.told = asyncio.Event()

    def paths(self, address: Any) -> list[tuple[Any, Any]]:
        return [(self.address, there) for there in (*self.networks, address)]

    def give_snapshot(self, request: bytes) -> Callable[[], list[bytes]] | None:
        self.requests.append(request)
        give = self.give
        return None if give is None else lambda: give

    def snapshot_fetched(self, token: int, snapshot: Any) -> None:
        self.fetched.append((token, snapshot))
        self.told.set()

    async def fetch(self, address: Any, request: bytes = b"please", token: int = 1) -> bytes | None:
        self.told.clear()
        self.snapshots.fetch(FetchSnapshot(token, address, request, bytes))
        async with asyncio.timeout(20):
            await self.told.wait()
        return self.fetched[-1][1]


@asynccontextmanager
async def ends(
    host: Any = HOSTS[0], sealing: Sealing | None = None, joiners: Sealing | None = None
) -> AsyncIterator[tuple[End, End]]:
    """A giver and a joiner, with the same ``sealing`` unless ``joiners`` is another."""
    made = End(host, sealing), End(host, joiners or sealing)
    mistakes: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: mistakes.append(context))
    for end in made:
        end.snapshots.start(loop)
    try:
        yield made
    finally:
        for end in made:
            end.snapshots.close()
            await end.snapshots.ended()
    assert mistakes == []


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - sockets set no event
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("host", HOSTS, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    "buffers",
    [
        [b"x"],
        [b"", b"head", b"", b"tail", b""],
        [bytes([n % 251]) * n for n in range(3000)],
        [b"a" * 3, bytes(range(256)) * 20_000, b"z"],
    ],
    ids=["one byte", "empty ones", "many", "a large one"],
)
def test_what_is_given_is_fetched(host: Any, buffers: list[bytes]) -> None:
    async def test() -> None:
        async with ends(host) as (giver, joiner):
            giver.give = buffers
            assert await joiner.fetch(giver.address, b"q" * limits.SNAPSHOT_REQUEST_BYTES) == b"".join(
                buffers
            )
            assert giver.requests == [b"q" * limits.SNAPSHOT_REQUEST_BYTES]
            assert giver.counters.snapshots_given == joiner.counters.snapshots_fetched == 1
            size = len(b"".join(buffers))
            assert giver.counters.snapshots_given_bytes == joiner.counters.snapshots_fetched_bytes == size

    run(test)


def test_the_loop_turns_while_a_snapshot_is_put_together_and_while_it_is_read() -> None:
    """Both may take seconds, and who is not heard for one is given up by the others."""

    async def test() -> None:
        async with ends() as (giver, joiner):
            turned = [threading.Event(), threading.Event()]
            loop = asyncio.get_running_loop()

            def making() -> list[bytes]:
                loop.call_soon_threadsafe(turned[0].set)
                return [b"state" if turned[0].wait(10) else b"the giver's loop stood still"]

            def read(snapshot: bytes) -> bytes:
                loop.call_soon_threadsafe(turned[1].set)
                return snapshot if turned[1].wait(10) else b"the joiner's loop stood still"

            giver.give_snapshot = lambda request: making  # type: ignore[method-assign]
            joiner.snapshots.fetch(FetchSnapshot(1, giver.address, b"q", read))
            async with asyncio.timeout(30):
                await joiner.told.wait()
            assert joiner.fetched == [(1, b"state")]

    run(test)


def serve_once(listening: socket.socket, answer: bytes) -> None:
    """Answer one request, in a thread of its own: the loop has the other end alone."""
    connected, _ = listening.accept()
    with connected:
        connected.recv(100)
        connected.sendall(answer)


def read_all(address: Any) -> int:
    with socket.create_connection(address[:2]) as connected:
        connected.sendall(struct.pack("<I", 1) + b"q")
        return sum(iter(lambda: len(connected.recv(1 << 20)), 0))


@pytest.mark.parametrize("giving", [True, False], ids=["giving", "fetching"])
def test_other_work_goes_on_meanwhile(giving: bool) -> None:
    async def test() -> None:
        async with ends() as (giver, joiner):
            state = b"x" * (48 * limits.MIB)
            giver.give = [state]
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            busy = asyncio.create_task(others())
            if giving:
                assert await asyncio.to_thread(read_all, giver.address) == 8 + len(state)
            else:
                with socket.create_server(("127.0.0.1", 0)) as listening:
                    answer = struct.pack("<Q", len(state)) + state
                    serving = asyncio.create_task(asyncio.to_thread(serve_once, listening, answer))
                    assert await joiner.fetch(listening.getsockname()) == state
                    await serving
            busy.cancel()
            assert turns > len(state) / limits.SNAPSHOT_PIECE_BYTES

    run(test)


def test_what_has_come_already_is_read_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_PIECE_BYTES", 1000)

    async def test() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        with near, far:
            far.sendall(b"x" * 100_000)
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            busy = asyncio.create_task(others())
            assert await channel.ClearChannel(near).receive(100_000) == b"x" * 100_000
            busy.cancel()
            assert turns >= 99

    run(test)


def test_refused_and_unreachable_are_nothing() -> None:
    async def test() -> None:
        async with ends() as (giver, joiner):
            giver.give = None
            assert await joiner.fetch(giver.address) is None
            assert (giver.counters.snapshots_refused, giver.counters.snapshots_given) == (1, 0)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                assert await joiner.fetch(free.getsockname()) is None
            assert joiner.counters.snapshot_fetches_failed == 2

    run(test)


def test_a_newer_fetch_replaces_an_older_one() -> None:
    async def test() -> None:
        async with ends() as (giver, joiner):
            with socket.create_server(("127.0.0.1", 0)) as slow:
                joiner.snapshots.fetch(FetchSnapshot(1, slow.getsockname(), b"first", bytes))
                connected, _ = await asyncio.to_thread(slow.accept)
                assert await joiner.fetch(giver.address, b"second", token=2) == b"state"
                with connected, contextlib.suppress(OSError):
                    connected.sendall(struct.pack("<Q", 4) + b"late")
                await asyncio.sleep(0.02)
            assert joiner.fetched == [(2, b"state")]

    run(test)


def test_what_claims_too_much_is_given_up_at_once() -> None:
    async def test() -> None:
        async with ends() as (giver, joiner):
            with socket.create_server(("127.0.0.1", 0)) as listening:
                joiner.snapshots.fetch(FetchSnapshot(1, listening.getsockname(), b"q", bytes))
                connected, _ = await asyncio.to_thread(listening.accept)
                with connected:
                    connected.sendall(struct.pack("<Q", limits.SNAPSHOT_BYTES + 1))
                    async with asyncio.timeout(channel._STALL_S / 2):
                        await joiner.told.wait()
            assert joiner.fetched == [(1, None)]
            with socket.create_connection(giver.address[:2]) as asking:
                asking.sendall(struct.pack("<I", limits.SNAPSHOT_REQUEST_BYTES + 1))
                async with asyncio.timeout(limits.SNAPSHOT_REQUEST_NS / limits.SECOND_NS / 2):
                    await until(lambda: giver.counters.snapshots_failed == 1)

    run(test)


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"\x05\0\0", struct.pack("<Q", 6) + b"state", struct.pack("<Q", limits.SNAPSHOT_BYTES + 1) + b"x" * 100,
        struct.pack("<Q", 2**64 - 1), b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_not_whole_is_nothing(answer: bytes) -> None:
    async def test() -> None:
        async with ends() as (_, joiner):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readexactly(10)
                writer.write(answer)
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1")
            assert await joiner.fetch(server.sockets[0].getsockname()) is None
            assert joiner.counters.snapshot_fetches_failed == 1
            server.close()

    run(test)


def test_whoever_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_STALL_S", 0.05)

    async def test() -> None:
        async with ends() as (giver, joiner):
            with socket.create_server(("127.0.0.1", 0)) as silent:
                assert await joiner.fetch(silent.getsockname()) is None
            giver.give = [b"x" * limits.MIB] * 48
            with socket.create_connection(giver.address[:2]) as deaf:
                deaf.sendall(struct.pack("<I", 1) + b"q")
                await until(lambda: giver.counters.snapshots_failed == 1)
            assert await joiner.fetch(giver.address) is not None

    run(test)


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"\0", struct.pack("<I", limits.SNAPSHOT_REQUEST_BYTES + 1), struct.pack("<I", 2**32 - 1) + b"x" * 9000,
        struct.pack("<I", 5) + b"four", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)  # fmt: skip
def test_foreign_connections_are_counted_and_closed(sent: bytes) -> None:
    async def test() -> None:
        async with ends() as (giver, joiner):
            reader, writer = await asyncio.open_connection(*giver.address[:2])
            writer.write(sent)
            if writer.can_write_eof():
                writer.write_eof()
            try:
                assert await asyncio.wait_for(reader.read(), 10) == b""
            except ConnectionResetError:
                pass  # closed with something unread
            writer.close()
            await until(lambda: giver.counters.snapshots_failed == 1)
            assert giver.requests == []
            assert await joiner.fetch(giver.address) == b"state"

    run(test)


def test_one_that_says_nothing_has_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_REQUEST_NS", 50 * limits.MILLISECOND_NS)

    async def test() -> None:
        async with ends() as (giver, _):
            with socket.create_connection(giver.address[:2]) as quiet:
                for _ in range(3):  # a byte now and then does not make it longer
                    quiet.sendall(b"\1")
                    await asyncio.sleep(0.02)
                await until(lambda: giver.counters.snapshots_failed == 1)

    run(test)


def test_so_many_at_once_and_no_more() -> None:
    async def test() -> None:
        async with ends() as (giver, joiner):
            giver.give = [b"x" * limits.MIB] * 48
            deaf = []
            for number in range(limits.SNAPSHOTS_AT_ONCE):
                deaf.append(socket.create_connection(giver.address[:2]))
                deaf[-1].sendall(struct.pack("<I", 1) + b"q")
                await until(lambda: len(giver.requests) == number + 1)  # noqa: B023
            assert await joiner.fetch(giver.address) is None
            assert (len(giver.requests), giver.counters.snapshots_refused) == (limits.SNAPSHOTS_AT_ONCE, 1)
            quiet = [
                socket.create_connection(giver.address[:2])
                for _ in range(limits.SNAPSHOT_CONNECTIONS - limits.SNAPSHOTS_AT_ONCE)
            ]
            await until(lambda: giver.snapshots._connections == limits.SNAPSHOT_CONNECTIONS)
            joiner.snapshots.fetch(FetchSnapshot(2, giver.address, b"waits for its turn", bytes))
            await asyncio.sleep(0.05)
            assert (giver.snapshots._connections, len(joiner.fetched)) == (limits.SNAPSHOT_CONNECTIONS, 1)
            giver.give = [b"now"]
            for connected in (*deaf, *quiet):
                connected.close()
            await until(lambda: len(joiner.fetched) == 2)
            assert joiner.fetched[-1] == (2, b"now")

    run(test)


def test_closing_gives_up_what_is_under_way() -> None:
    async def test() -> None:
        async with ends() as (giver, joiner):
            giver.give = [b"x" * limits.MIB] * 48
            silent = socket.create_server(("127.0.0.1", 0))
            with silent, socket.create_connection(giver.address[:2]) as deaf:
                deaf.sendall(struct.pack("<I", 1) + b"q")
                await until(lambda: bool(giver.requests))
                joiner.snapshots.fetch(FetchSnapshot(1, silent.getsockname(), b"q", bytes))
                await asyncio.sleep(0.02)
                for end in (giver, joiner):
                    end.snapshots.close()
                    await asyncio.wait_for(end.snapshots.ended(), 1)
            assert joiner.fetched == []

    run(test)


def test_a_node_without_a_network_fetches_nothing() -> None:
    async def test() -> None:
        async with ends() as (giver, _):
            alone = End()
            alone.listening.close()
            alone.snapshots = Snapshots(alone, [], lambda _: [], alone.counters)
            alone.snapshots.start(asyncio.get_running_loop())
            assert await alone.fetch(giver.address) is None
            assert giver.requests == []

    run(test)


def test_a_network_that_does_not_work_is_followed_by_the_next() -> None:
    async def test() -> None:
        async with ends() as (giver, joiner):
            with socket.create_server(("127.0.0.1", 0)) as gone:
                joiner.networks = [gone.getsockname()]
            assert await joiner.fetch(giver.address) == b"state"
            assert joiner.counters.snapshot_fetches_failed == 0
            giver.give = None
            joiner.networks = [giver.address]
            giver.requests.clear()
            assert await joiner.fetch(giver.address) is None
            assert len(giver.requests) == 1  # a refusal is an answer, whatever the network

    run(test)


def test_every_network_is_listened_on() -> None:
    async def test() -> None:
        second = listen_at(("127.0.0.1", 0), "network.port")
        there = second.getsockname()
        async with ends() as (giver, joiner):
            giver.snapshots.close()
            giver.snapshots = Snapshots(
                giver, [listen_at(("127.0.0.1", 0), "network.port"), second], giver.paths, giver.counters
            )
            giver.snapshots.start(asyncio.get_running_loop())
            assert await joiner.fetch(there) == b"state"

    run(test)


def test_a_mistake_of_the_node_reaches_the_loop() -> None:
    async def test() -> None:
        giver = End()
        giver.snapshots.start(asyncio.get_running_loop())
        mistakes: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: mistakes.append(context["exception"])
        )
        giver.give_snapshot = lambda request: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        with socket.create_connection(giver.address[:2]) as asking:
            asking.sendall(struct.pack("<I", 1) + b"q")
            await until(lambda: bool(mistakes))
        assert isinstance(mistakes[0], ZeroDivisionError)
        giver.snapshots.close()
        await giver.snapshots.ended()

    run(test)
