"""A TCP connection between two agents as the snapshots use it: in the clear, or sealed (``wire.sealed_stream``).

Everything runs on the agent's loop, in pieces between which other events have their turn.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from typing import Final, Protocol

from ocfcluster import limits
from ocfcluster.errors import Malformed
from ocfcluster.limits import SECOND_NS
from ocfcluster.wire import sealed_stream
from ocfcluster.wire.keys import ClusterKey
from ocfcluster.wire.sealed_stream import GREETING, LENGTH, SealedStream

_STALL_S: Final = limits.SNAPSHOT_STALL_NS / SECOND_NS


class Channel(Protocol):
    async def send(self, buffers: list[bytes]) -> None:
        """All of ``buffers``. OSError: the other end is gone or takes nothing."""

    async def receive(self, size: int) -> bytes:
        """Exactly ``size`` bytes. Memory is taken as they come, not as they are claimed. OSError, Malformed: too few,
        or
        not what the other end has sent."""


class ClearChannel:
    """Bytes as they are."""

    __slots__ = ("_socket",)

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def receive(self, size: int) -> bytes:
        pieces: list[bytes] = []
        left = size
        while left:
            try:
                piece = self._socket.recv(min(left, limits.SNAPSHOT_PIECE_BYTES))
            except BlockingIOError:
                await ready(self._socket, writing=False)
                continue
            if not piece:
                raise Malformed(f"it ended {left} bytes too early")
            pieces.append(piece)
            left -= len(piece)
            await asyncio.sleep(0)
        return b"".join(pieces)

    async def send(self, buffers: list[bytes]) -> None:
        at = 0  # of the buffer to go on with
        offset = 0  # of what of it was sent
        while at < len(buffers):
            pieces: list[memoryview] = []
            room = limits.SNAPSHOT_PIECE_BYTES
            for number in range(at, min(len(buffers), at + limits.SNAPSHOT_BUFFERS)):
                piece = memoryview(buffers[number])[offset if number == at else 0 :][:room]
                pieces.append(piece)
                room -= len(piece)
                if not room:
                    break
            try:
                sent = self._socket.sendmsg(pieces, [], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await ready(self._socket, writing=True)
                continue
            offset += sent
            while at < len(buffers) and offset >= len(buffers[at]):
                offset -= len(buffers[at])
                at += 1
            await asyncio.sleep(0)


class SealedChannel:
    """Bytes in sealed pieces."""

    __slots__ = ("_channel", "_stream", "_rest")

    def __init__(self, channel: Channel, stream: SealedStream) -> None:
        self._channel = channel
        self._stream = stream
        self._rest = b""  # opened, and not asked for yet

    async def send(self, buffers: list[bytes]) -> None:
        for piece in sealed_stream.pieces(buffers):
            await self._channel.send([self._stream.seal(piece)])

    async def receive(self, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            if not self._rest:
                length = await self._channel.receive(LENGTH.size)
                sealed = await self._channel.receive(sealed_stream.sealed_bytes(length))
                self._rest = self._stream.open(length, sealed)
            part, self._rest = self._rest[:left], self._rest[left:]
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


class Sealing:
    """How connections begin: without ``keys`` in the clear. The first key is the one to connect with."""

    __slots__ = ("keys", "_cluster")

    def __init__(self, cluster: str, keys: Sequence[ClusterKey]) -> None:
        self._cluster = cluster
        self.keys = list(keys)

    async def connected(self, connected: socket.socket) -> Channel:
        """This end has connected. Raises OSError, Malformed."""
        channel = ClearChannel(connected)
        if not self.keys:
            return channel
        key = self.keys[0]
        first = sealed_stream.greeting(self._cluster, key, secrets.token_bytes(sealed_stream.NONCE_BYTES))
        await channel.send([first])
        second = await channel.receive(GREETING.size)
        if sealed_stream.greeted_key(self._cluster, [key], second) is not key:
            raise Malformed("the other end answers with another key")
        return SealedChannel(channel, SealedStream(self._cluster, key, first, second, connecting=True))

    async def accepted(self, connected: socket.socket) -> Channel:
        """The other end has connected. Raises OSError, Malformed."""
        channel = ClearChannel(connected)
        if not self.keys:
            return channel
        first = await channel.receive(GREETING.size)
        key = sealed_stream.greeted_key(self._cluster, self.keys, first)
        second = sealed_stream.greeting(self._cluster, key, secrets.token_bytes(sealed_stream.NONCE_BYTES))
        await channel.send([second])
        return SealedChannel(channel, SealedStream(self._cluster, key, first, second, connecting=False))


async def ready(connected: socket.socket, *, writing: bool) -> None:
    """Until the socket can be read or written; TimeoutError where that takes too long."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    descriptor = connected.fileno()
    (loop.add_writer if writing else loop.add_reader)(descriptor, _set, future)
    try:
        async with asyncio.timeout(_STALL_S):
            await future
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(descriptor)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
