# ruff: noqa: ASYNC109 - the timeouts are those of the blocking API, and raise its errors
"""The asyncio API: the same session, with the program's event loop in the place of threads.

>>> import asyncio, ocfcluster                                      # doctest: +SKIP
>>> async def main():
...     async with ocfcluster.aio.connect() as client:
...         await client.create_topic("demo")
...         events = await client.subscribe("demo")
...         await (await client.publish("demo", b"hello"))
...         async for event in events:
...             print(event.data)
...             break
>>> asyncio.run(main())
b'hello'

Everything belongs to the loop in which ``connect`` was awaited, and to its thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ocfcluster.client.aioconnection import AsyncConnection
from ocfcluster.client.aiogroup import AsyncGroup
from ocfcluster.client.aiopublisher import AsyncPublisher, AsyncReceipt
from ocfcluster.client.arguments import (
    Data,
    as_filter,
    as_policy,
    as_topics,
    check_callback,
    check_name,
    check_socket,
    check_timeout,
    check_topic,
)
from ocfcluster.client.controlsocket import Dial, dial_path
from ocfcluster.client.events import Event, GroupInfo, Run, TopicInfo
from ocfcluster.client.eventsocket import EventSocket
from ocfcluster.client.locate import default_socket_path
from ocfcluster.client.starting import FROM_NOW_ON, Earlier, FromSeq, as_earlier
from ocfcluster.errors import InvalidArgument, NotConnected, TopicExists
from ocfcluster.limits import CLOSE_FLUSH_NS, SECOND_NS
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request
from ocfcluster.wire.topics import DEFAULT_SETTINGS, TopicSettings

if TYPE_CHECKING:
    from typing import Self

    from ocfcluster.wire.filter import Filter

_connections: weakref.WeakSet[AsyncConnection] = weakref.WeakSet()


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    resume: bool = True,
    timeout: float | None = 5.0,
) -> AsyncClient:
    """A client of the agent at ``socket``: use it with ``async with``, or ``await`` it and ``close`` it later.

    The arguments are those of ``ocfcluster.connect``.
    """
    return AsyncClient(socket, name=name, resume=resume, timeout=timeout)


class AsyncSubscription:
    """``async for event in subscription``; it starts when it is awaited, entered or first iterated over.

    Several tasks may take from it, and each event goes to one of them.
    """

    def __init__(
        self,
        client: AsyncClient,
        topics: list[str],
        on_event: Callable[[Event], object] | None,
        encoded_filter: bytes = b"",
        on_slow: int = 0,
        earlier: Earlier = FROM_NOW_ON,
    ) -> None:
        self._client = client
        self._topics = topics
        self._earlier = earlier
        self._on_event = on_event
        self._filter = encoded_filter
        self._on_slow = on_slow
        self._socket: EventSocket | None = None
        self._starting: asyncio.Lock = asyncio.Lock()

    async def start(self) -> AsyncSubscription:
        """Subscribe, unless that was done. Raises UnknownTopic, LimitReached, ..."""
        async with self._starting:
            if self._socket is None:
                connection = self._client.connection()
                self._socket = await connection.subscribe(
                    self._topics, self._on_event, self._filter, self._on_slow, self._earlier
                )
        return self

    def __await__(self) -> Generator[Any, None, AsyncSubscription]:
        return self.start().__await__()

    async def __aenter__(self) -> Self:
        self._socket = (await self.start()).started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def started(self) -> EventSocket:
        """What is below, for the library's own parts. Raises InvalidArgument before the start."""
        if self._socket is None:
            raise InvalidArgument("the subscription has not started: await it first")
        return self._socket

    @property
    def starts(self) -> list[frames.Start]:
        """Where it started in each topic: ``topic``, ``next_seq`` (of the first event that comes), ``local``."""
        return list(self.started().state.starts.values())

    def fileno(self) -> int:
        """The descriptor: readable exactly while something waits to be taken."""
        return self.started().fileno()

    async def _pulled(self, timeout: float | None) -> EventSocket:
        check_timeout(timeout)
        event_socket = (await self.start()).started()
        if self._on_event is not None:
            raise TopicExists("this subscription delivers by callback")
        return event_socket

    async def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None if there is none within ``timeout`` seconds (0: look).

        Raises NotConnected behind the notice that ended the subscription, InvalidArgument once it is closed.
        """
        event_socket = await self._pulled(timeout)
        event = event_socket.take_event()
        if event is None and timeout != 0:
            event = await self._client.connection().wait_taking(
                event_socket, event_socket.take_event, timeout
            )
        return event

    async def get_run(self, timeout: float | None = None) -> Run | None:
        """The next run of events, or what is left of one; else as ``get``."""
        event_socket = await self._pulled(timeout)
        run = event_socket.take_run()
        if run is None and timeout != 0:
            run = await self._client.connection().wait_taking(event_socket, event_socket.take_run, timeout)
        return run

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            event = await self.get()
        except (NotConnected, InvalidArgument):
            if self._socket is None:
                raise
            raise StopAsyncIteration from None
        if event is None:
            raise StopAsyncIteration
        return event

    async def runs(self) -> AsyncIterator[Run]:
        """Runs as they come: the fast way to take many events."""
        while True:
            try:
                run = await self.get_run()
            except (NotConnected, InvalidArgument):
                if self._socket is None:
                    raise
                return
            if run is None:
                return
            yield run

    async def close(self) -> None:
        """No event after this returns."""
        if self._socket is not None:
            await self._client.unsubscribe(self._socket)

    def __del__(self) -> None:
        event_socket = self._socket
        if event_socket is None or event_socket.closed or self._on_event is not None:
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self._client.unsubscribe_later(event_socket)

    def __repr__(self) -> str:
        closed = self._socket is not None and self._socket.closed
        return f"<AsyncSubscription to {', '.join(self._topics)}{' (closed)' if closed else ''}>"


class AsyncClient:
    """A connection to an agent, on the running loop."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        name: str = "",
        resume: bool = True,
        timeout: float | None = 5.0,
        dial: Dial | None = None,
    ) -> None:
        """As ``connect``. ``dial``: makes the connection to an agent that has no path (``ocfcluster.embedded``)."""
        self._connection: AsyncConnection | None = None
        self._path = check_socket(socket) or default_socket_path()
        self._dial = dial or partial(dial_path, self._path)
        self._name = check_name(name)
        self._resume = resume
        self._timeout = check_timeout(timeout)
        self._default = AsyncPublisher(self, None)
        self._closed = False
        self._pid = os.getpid()

    async def connect_once(self) -> None:
        if self._connection is None:
            connection = AsyncConnection(
                self._path, self._name, self._resume, self._dial, asyncio.get_running_loop()
            )
            _connections.add(connection)
            try:
                await connection.open(self._timeout)
            except BaseException:
                connection.close_now()
                raise
            self._connection = connection

    async def open(self) -> AsyncClient:
        """Connect, unless that was done. Raises AgentUnreachable."""
        await self.connect_once()
        return self

    def __await__(self) -> Generator[Any, None, AsyncClient]:
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        await self.connect_once()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def connection(self) -> AsyncConnection:
        """The connection below, for the library's own parts."""
        if self._closed:
            raise NotConnected("the client is closed")
        if self._connection is None or self._pid != os.getpid():
            raise NotConnected("the client is not connected in this process: await it first")
        return self._connection

    async def unsubscribe(self, event_socket: EventSocket) -> None:
        if self._closed or self._connection is None:
            event_socket.close()
        else:
            await self._connection.unsubscribe(event_socket)

    def unsubscribe_later(self, event_socket: EventSocket) -> None:
        """For the garbage collector, which may run in any thread and amid anything: in a turn of the loop."""
        if self._connection is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._connection.loop.call_soon_threadsafe(self._connection.drop, event_socket)

    # --- publishing and subscribing -----------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        data: Data,
        *,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncReceipt:
        """``AsyncPublisher.publish`` of the client's own publisher."""
        return await self._default.publish(
            data, topic=topic, re_id=re_id, properties=properties, timeout=timeout
        )

    async def publish_many(
        self,
        topic: str,
        datas: Iterable[Data],
        *,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncReceipt:
        """``AsyncPublisher.publish_many`` of the client's own publisher."""
        return await self._default.publish_many(
            datas, topic=topic, re_id=re_id, properties=properties, timeout=timeout
        )

    def publisher(self, topic: str | None = None) -> AsyncPublisher:
        """A publisher of its own FIFO order and window."""
        return AsyncPublisher(self, topic)

    async def flush(self, timeout: float | None = None) -> None:
        """Until everything published through this client is answered. Raises WouldBlock."""
        connection = self.connection()
        await connection.flush(connection.session.producers, timeout)

    def subscribe(
        self,
        topics: str | Iterable[str],
        on_event: Callable[[Event], object] | None = None,
        *,
        filter: Filter | str | None = None,  # noqa: A002 - what it is called everywhere
        on_slow: str = "block",
        from_seq: FromSeq | None = None,
        from_last: int | None = None,
        retained: bool = False,
    ) -> AsyncSubscription:
        """A subscription to one topic, or to several in one order; it starts when awaited or iterated over.

        ``from_seq``, ``from_last`` and ``retained`` are those of the blocking ``subscribe``.

        With ``on_event`` the loop runs the callback, a plain function, in the one order of the cluster across all of
        this client's callback subscriptions, from when the subscription is awaited. ``filter`` and ``on_slow`` are
        those of the blocking ``Client.subscribe``.
        """
        check_callback(on_event)
        names = [check_topic(name) for name in as_topics(topics)]
        earlier = as_earlier(names, from_seq, from_last, retained)
        return AsyncSubscription(self, names, on_event, as_filter(filter), as_policy(on_slow), earlier)

    # --- groups -------------------------------------------------------------------------------------------------

    def group(self, name: str) -> AsyncGroup:
        """The group ``name``, which needs no creation: join it, cast to it, ask its members."""
        return AsyncGroup(self, name)

    async def groups(self, *, timeout: float | None = None) -> list[GroupInfo]:
        """The groups that are in use, by name."""
        answer: frames.Groups = await self.connection().call(Request.GROUP_LIST, None, timeout)
        return sorted(map(GroupInfo._make, answer.groups))

    @property
    def node_id(self) -> int:
        """The node of this client's agent."""
        welcome = self.connection().session.welcome
        return 0 if welcome is None else welcome.node_id

    @property
    def event_bytes(self) -> int:
        """The largest event that the cluster takes."""
        welcome = self.connection().session.welcome
        return 0 if welcome is None else welcome.event_bytes

    # --- topics and the agent -----------------------------------------------------------------------------------

    async def create_topic(
        self,
        name: str,
        scope: str = "global",
        *,
        settings: TopicSettings = DEFAULT_SETTINGS,
        timeout: float | None = None,
    ) -> TopicInfo:
        """Create a topic. One that exists with the same scope is as good, if its settings are the same or none are
        given here. Raises TopicExists, NotPermitted, InvalidArgument."""
        if scope not in ("global", "local"):
            raise InvalidArgument(f"scope {scope!r}: it is 'global' or 'local'")
        connection = self.connection()
        body = frames.TopicCreate(check_topic(name), scope == "local", settings)
        answer = await connection.call(Request.TOPIC_CREATE, body, timeout)
        connection.session.topics.pop(name, None)
        if not isinstance(answer, frames.Topic):
            answer = await connection.call(Request.TOPIC_RESOLVE, frames.TopicResolve(name), timeout)
            connection.session.topics.pop(name, None)
        return TopicInfo.of(answer)

    async def alter_topic(self, name: str, settings: TopicSettings, *, timeout: float | None = None) -> None:
        """Give a topic other settings, at one place in the order. Raises UnknownTopic, NotPermitted,
        InvalidArgument."""
        await self.connection().call(
            Request.TOPIC_ALTER, frames.TopicAlter(check_topic(name), settings), timeout
        )

    async def remove_topic(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a topic; its subscriptions end. Raises UnknownTopic, NotPermitted."""
        connection = self.connection()
        await connection.call(Request.TOPIC_REMOVE, frames.TopicRemove(check_topic(name)), timeout)
        connection.session.topics.pop(name, None)

    async def topics(self, *, timeout: float | None = None) -> list[TopicInfo]:
        """All topics that the agent knows, by name."""
        answer: frames.Topics = await self.connection().call(Request.TOPIC_LIST, None, timeout)
        return sorted(map(TopicInfo.of, answer.topics), key=lambda topic: topic.name)

    async def topic(self, name: str, *, timeout: float | None = None) -> TopicInfo:
        """One topic, found also by an alias. Raises UnknownTopic, NotPermitted (a group that is not in use, and in
        which this program has no right)."""
        body = frames.TopicResolve(check_topic(name))
        connection = self.connection()
        answer = await connection.call(Request.TOPIC_RESOLVE, body, timeout)
        connection.session.topics.pop(name, None)  # looked at, not published to: it may be another by then
        return TopicInfo.of(answer)

    async def access(self, name: str, *, timeout: float | None = None) -> frames.TopicAccess:
        """Who may publish to a topic (or group), subscribe to it and administer it, and what this program may.
        Raises UnknownTopic."""
        body = frames.TopicResolve(check_topic(name))
        answer: frames.TopicAccess = await self.connection().call(Request.TOPIC_ACCESS, body, timeout)
        return answer

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The agent's own account of itself; its keys are listed in docs/operating.md."""
        answer: frames.Status = await self.connection().call(Request.STATUS, None, timeout)
        return answer.document

    async def members(self, *, timeout: float | None = None) -> list[Any]:
        """The members of the cluster as the agent knows them, oldest first."""
        return list((await self.status(timeout=timeout)).get("members", []))

    async def barrier(self, *, timeout: float | None = None) -> None:
        """Until this node has delivered everything that was ordered before the call."""
        await self.connection().call(Request.BARRIER, None, timeout)

    def abandon(self) -> None:
        """Close at once, without a word about what is under way."""
        self._closed = True
        if self._connection is not None and self._pid == os.getpid():
            self._connection.session.end("the client was closed")
            self._connection.close_now()

    async def close(self) -> None:
        """Flush for up to 5 s, say in the log what is unanswered then, and end all subscriptions."""
        if self._closed:
            return
        self._closed = True
        if self._connection is not None and self._pid == os.getpid():
            await self._connection.close(CLOSE_FLUSH_NS / SECOND_NS)

    def __del__(self) -> None:
        connection = self._connection
        if connection is not None and not self._closed and self._pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                connection.loop.call_soon_threadsafe(connection.close_now)

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._path}{' (closed)' if self._closed else ''}>"


def _after_fork() -> None:
    for connection in list(_connections):
        connection.abandon_in_child()


os.register_at_fork(after_in_child=_after_fork)
