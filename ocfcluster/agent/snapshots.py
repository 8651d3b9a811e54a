"""Snapshots by TCP: given to nodes that join, and fetched by this one.

A connection carries one request and its answer: u32 length and the request, then u64 length and the snapshot, all
little-endian; length 0 says that none is given. What is in them is the node's affair, and whether the connection is
sealed that of ``channel``. Everything runs on the agent's loop; whoever makes no progress is given up.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog

from ocfcluster import limits
from ocfcluster.agent.channel import Channel, Sealing, ready
from ocfcluster.agent.metrics import Counters
from ocfcluster.errors import Malformed
from ocfcluster.limits import SECOND_NS
from ocfcluster.net.tcp import any_port_of, open_tcp
from ocfcluster.net.transport import Address
from ocfcluster.protocol.effects import FetchSnapshot

REQUEST_LENGTH: Final = struct.Struct("<I")
SNAPSHOT_LENGTH: Final = struct.Struct("<Q")
_ACCEPT_PAUSE_S: Final = 0.2  # after the system has run out of descriptors

_Result = TypeVar("_Result")

log = structlog.get_logger("ocfcluster.agent")


class Shell(Protocol):
    """What snapshots ask of the agent."""

    def give_snapshot(self, request: bytes) -> Callable[[], list[bytes]] | None:
        """What makes the answer to a node's request, in whatever thread; None: there is none."""

    def snapshot_fetched(self, token: int, snapshot: object) -> None:
        """What a FetchSnapshot has brought, as it was read; None: nothing whole."""


class Snapshots:
    """Both ends of the transfer. ``listening``, a socket per network, is its own from here on; none: nobody fetches
    from this node.

    ``paths``: by which (own address, other address) the node at an address can be reached; they are tried in turn.
    ``sealing``: how connections begin; None: in the clear.
    """

    __slots__ = (
        "_shell", "_listening", "_paths", "_counters", "_sealing", "_loop", "_tasks", "_connections", "_giving",
        "_fetch",
    )  # fmt: skip

    def __init__(
        self,
        shell: Shell,
        listening: Sequence[socket.socket],
        paths: Callable[[Address], list[tuple[Address, Address]]],
        counters: Counters,
        sealing: Sealing | None = None,
    ) -> None:
        self._shell = shell
        self._sealing = sealing or Sealing("", ())
        self._listening = list(listening)
        self._paths = paths
        self._counters = counters
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections = 0
        self._giving = 0
        self._fetch: asyncio.Task[object] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watch()

    def listen(self, listening: socket.socket) -> None:
        """Another network is there."""
        self._listening.append(listening)
        self._watch()

    def close(self) -> None:
        """Accept nothing more, and give up what is under way; ``ended`` waits for the end of that."""
        for listening in self._listening:
            if self._loop is not None:
                self._loop.remove_reader(listening.fileno())
            listening.close()
        self._listening.clear()
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Until everything that ``close`` gave up has let go of its socket."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, coroutine: Coroutine[Any, Any, Any], then: Callable[[asyncio.Task[Any]], None]) -> Any:
        if self._loop is None:
            raise RuntimeError("the agent does not run")
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, then))
        return task

    def _done(self, then: Callable[[asyncio.Task[Any]], None], task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (mistake := task.exception()) is not None:
            raise mistake  # the loop's handler ends the agent
        then(task)

    # --- giving -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._loop is None or self._connections >= limits.SNAPSHOT_CONNECTIONS:
            return
        for listening in self._listening:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _unwatch(self) -> None:
        if self._loop is not None:
            for listening in self._listening:
                self._loop.remove_reader(listening.fileno())

    def _accept(self, listening: socket.socket) -> None:
        """Take one connection: the rest waits for the next turn of the loop, or until one of these ends."""
        if self._loop is None or self._connections >= limits.SNAPSHOT_CONNECTIONS:
            return  # the last one came by another network in this same turn
        try:
            connected, _ = listening.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._unwatch()
                self._loop.call_later(_ACCEPT_PAUSE_S, self._watch)
            return  # else it has gone again already
        connected.setblocking(False)
        self._connections += 1
        if self._connections == limits.SNAPSHOT_CONNECTIONS:
            self._unwatch()
        self._start(self._serve(connected), self._served)

    def _served(self, _: asyncio.Task[Any]) -> None:
        self._connections -= 1
        if self._connections == limits.SNAPSHOT_CONNECTIONS - 1:
            self._watch()

    async def _serve(self, connected: socket.socket) -> None:
        with connected:
            try:
                async with asyncio.timeout(limits.SNAPSHOT_REQUEST_NS / SECOND_NS):
                    channel = await self._sealing.accepted(connected)
                    (length,) = REQUEST_LENGTH.unpack(await channel.receive(REQUEST_LENGTH.size))
                    if length > limits.SNAPSHOT_REQUEST_BYTES:
                        raise Malformed(f"a request of {length} bytes")
                    request = await channel.receive(length)
                await self._give(channel, request)
            except (OSError, Malformed) as error:  # TimeoutError is an OSError
                self._counters.snapshots_failed += 1
                log.debug("a snapshot was not given", error=_why(error))

    async def _give(self, channel: Channel, request: bytes) -> None:
        making = None
        if self._giving < limits.SNAPSHOTS_AT_ONCE:
            making = self._shell.give_snapshot(request)
        if making is None:
            self._counters.snapshots_refused += 1
            await channel.send([SNAPSHOT_LENGTH.pack(0)])
            return
        self._giving += 1
        try:
            began = time.monotonic()
            buffers = await _elsewhere(making)
            total = sum(map(len, buffers))
            await channel.send([SNAPSHOT_LENGTH.pack(total), *buffers])
        finally:
            self._giving -= 1
        self._counters.snapshots_given += 1
        self._counters.snapshots_given_bytes += total
        log.info("snapshot given", bytes=total, seconds=round(time.monotonic() - began, 3))

    # --- fetching ---------------------------------------------------------------------------------------------

    def fetch(self, effect: FetchSnapshot) -> None:
        """Begin to fetch; what an earlier call began is given up, and not told."""
        if self._fetch is not None:
            self._fetch.cancel()

        def told(task: asyncio.Task[object]) -> None:
            if not task.cancelled():
                self._shell.snapshot_fetched(effect.token, task.result())

        self._fetch = self._start(self._read(effect), told)

    async def _read(self, effect: FetchSnapshot) -> object:
        snapshot = await self._fetched(effect.address, effect.request)
        return None if snapshot is None else await _elsewhere(partial(effect.read, snapshot))

    async def _fetched(self, address: Address, request: bytes) -> bytes | None:
        """The snapshot that the node at ``address`` gives; None where nothing whole came by any network."""
        host = str(address[0])
        began = time.monotonic()
        snapshot: bytes | None = None
        for source, there in self._paths(address):
            host = str(there[0])
            try:
                with open_tcp(there) as connecting:
                    await _connect(connecting, source, there)
                    snapshot = await self._ask(connecting, request)
                break
            except (OSError, Malformed) as error:
                log.warning("a snapshot was not fetched", host=host, error=_why(error))
        if snapshot is None:
            self._counters.snapshot_fetches_failed += 1
            return None
        if not snapshot:
            self._counters.snapshot_fetches_failed += 1
            log.info("a snapshot was refused", host=host)
            return None
        self._counters.snapshots_fetched += 1
        self._counters.snapshots_fetched_bytes += len(snapshot)
        seconds = round(time.monotonic() - began, 3)
        log.info("snapshot fetched", host=host, bytes=len(snapshot), seconds=seconds)
        return snapshot

    async def _ask(self, connected: socket.socket, request: bytes) -> bytes:
        channel = await self._sealing.connected(connected)
        await channel.send([REQUEST_LENGTH.pack(len(request)), request])
        (length,) = SNAPSHOT_LENGTH.unpack(await channel.receive(SNAPSHOT_LENGTH.size))
        if length > limits.SNAPSHOT_BYTES:
            raise Malformed(f"a snapshot of {length} bytes")
        return await channel.receive(length)


async def _elsewhere(work: Callable[[], _Result]) -> _Result:
    """In a thread: a snapshot of all that may be kept takes seconds to read, and who says nothing for so long is given
    up by the others."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


async def _connect(connecting: socket.socket, source: Address, address: Address) -> None:
    connecting.bind(any_port_of(source))  # over the interface of the cluster
    code = connecting.connect_ex(address)
    if code == errno.EINPROGRESS:
        await ready(connecting, writing=True)
        code = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no progress"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
