"""Snapshots over sealed connections: whole or not at all, for who has a key and for nobody else."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from ocfcluster import limits
from ocfcluster.agent.channel import Sealing
from ocfcluster.wire.sealed_stream import GREETING, greeting
from tests.keyed import new_key
from tests.unit.test_agent_snapshots import End, ends, run, until

KEY = new_key()
NEW = new_key(KEY)


def sealing(*keys: object, cluster: str = "c") -> Sealing:
    return Sealing(cluster, keys or (KEY,))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, limits.STREAM_PIECE_BYTES, 5 * limits.MIB + 3])
def test_what_is_given_is_fetched(size: int) -> None:
    async def test() -> None:
        async with ends(sealing=sealing()) as (giver, joiner):
            giver.give = [b"head", b"", bytes(range(256)) * (size // 256), b"x" * (size % 256)]
            assert await joiner.fetch(giver.address, b"q" * limits.SNAPSHOT_REQUEST_BYTES) == b"".join(
                giver.give
            )
            assert giver.requests == [b"q" * limits.SNAPSHOT_REQUEST_BYTES]
            giver.give = None
            assert await joiner.fetch(giver.address) is None
            assert giver.counters.snapshots_refused == 1

    run(test)


@pytest.mark.parametrize(
    ("givers", "joiners"),
    [
        (sealing(), Sealing("", ())),
        (Sealing("", ()), sealing()),
        (sealing(NEW), sealing()),
        (sealing(), sealing(cluster="d")),
    ],
    ids=["joiner in the clear", "giver in the clear", "another key", "another cluster"],
)
def test_without_the_same_key_nothing_is_given(givers: Sealing, joiners: Sealing) -> None:
    async def test() -> None:
        async with ends(sealing=givers, joiners=joiners) as (giver, joiner):
            assert await joiner.fetch(giver.address) is None
            assert giver.requests == []
            assert joiner.counters.snapshot_fetches_failed == 1
            await until(lambda: giver.counters.snapshots_failed == 1)

    run(test)


def test_any_key_of_the_giver_will_do() -> None:
    async def test() -> None:
        async with ends(sealing=sealing(KEY, NEW), joiners=sealing(NEW, KEY)) as (giver, joiner):
            assert await joiner.fetch(giver.address) == b"state"

    run(test)


class Between:
    """Between a joiner and a giver: passes bytes on, changed by ``change`` (direction, bytes)."""

    def __init__(self, giver: End, change: Callable[[str, bytes], bytes]) -> None:
        self._giver = giver
        self._change = change
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = self._listening.getsockname()
        self.recorded: dict[str, bytes] = {"to": b"", "back": b""}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        near, _ = self._listening.accept()
        far = socket.create_connection(self._giver.address[:2])
        with near, far:
            back = threading.Thread(target=self._pass, args=("back", far, near))
            back.start()
            self._pass("to", near, far)
            back.join()

    def _pass(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                self.recorded[way] += data
                sink.sendall(self._change(way, data))
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self._thread.join(10)
        self._listening.close()


def changed(way: str, at: int) -> Callable[[str, bytes], bytes]:
    """One bit of the ``at``-th byte that goes ``way``."""
    seen = 0

    def change(direction: str, data: bytes) -> bytes:
        nonlocal seen
        if direction != way:
            return data
        begin, seen = seen, seen + len(data)
        if begin <= at < seen:
            here = at - begin
            return data[:here] + bytes([data[here] ^ 1]) + data[here + 1 :]
        return data

    return change


@pytest.mark.parametrize("way", ["to", "back"])
@pytest.mark.parametrize("at", [0, 3, 5, 20, GREETING.size, GREETING.size + 4, GREETING.size + 20])
def test_whatever_is_changed_between_them_nothing_is_taken(way: str, at: int) -> None:
    async def test() -> None:
        async with ends(sealing=sealing()) as (giver, joiner):
            between = Between(giver, changed(way, at))
            try:
                assert await joiner.fetch(between.address) is None
            finally:
                await asyncio.to_thread(between.close)
            assert joiner.counters.snapshots_fetched == 0

    run(test)


def test_a_stream_that_ends_early_is_nothing() -> None:
    async def test() -> None:
        async with ends(sealing=sealing()) as (giver, joiner):
            giver.give = [b"x" * (2 * limits.STREAM_PIECE_BYTES)]
            passed = 0

            def change(way: str, data: bytes) -> bytes:
                nonlocal passed
                passed += len(data) if way == "back" else 0
                if passed > limits.STREAM_PIECE_BYTES + 1000:
                    raise OSError("cut")
                return data

            between = Between(giver, change)
            try:
                assert await joiner.fetch(between.address) is None
            finally:
                await asyncio.to_thread(between.close)

    run(test)


def test_nothing_is_in_the_clear_and_a_recorded_request_is_worth_nothing() -> None:
    async def test() -> None:
        async with ends(sealing=sealing()) as (giver, joiner):
            giver.give = [b"the state of the cluster"]
            between = Between(giver, lambda _, data: data)
            try:
                assert await joiner.fetch(between.address, b"the request") == b"the state of the cluster"
            finally:
                await asyncio.to_thread(between.close)
            assert b"request" not in between.recorded["to"]
            assert b"cluster" not in between.recorded["back"]
            with socket.create_connection(giver.address[:2]) as again:
                again.sendall(between.recorded["to"])
                await until(lambda: giver.counters.snapshots_failed == 1)
            assert len(giver.requests) == 1

    run(test)


def test_a_claim_of_gigabytes_ends_the_connection() -> None:
    async def test() -> None:
        async with ends(sealing=sealing()) as (giver, _):
            with socket.create_connection(giver.address[:2]) as asking:
                asking.sendall(greeting("c", KEY, bytes(24)) + struct.pack("<I", 0xFFFF_FFF0))
                async with asyncio.timeout(limits.SNAPSHOT_REQUEST_NS / limits.SECOND_NS / 2):
                    await until(lambda: giver.counters.snapshots_failed == 1)

    run(test)
