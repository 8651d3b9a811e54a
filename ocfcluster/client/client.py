"""The blocking API: ``connect``, Client and Subscription.

>>> import ocfcluster                                               # doctest: +SKIP
>>> with ocfcluster.connect() as client:
...     client.create_topic("demo")
...     with client.subscribe("demo") as events:
...         client.publish("demo", b"hello").wait()
...         print(next(events).data)
b'hello'
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ocfcluster.client.admin import Admin
from ocfcluster.client.arguments import (
    Data,
    as_filter,
    as_policy,
    as_topics,
    check_callback,
    check_socket,
    check_timeout,
    check_topic,
)
from ocfcluster.client.connection import Connection, deadline_of
from ocfcluster.client.controlsocket import Dial, dial_path
from ocfcluster.client.events import Event, GroupInfo, Published, Receipt, Run, TopicInfo
from ocfcluster.client.eventsocket import EventSocket
from ocfcluster.client.group import Group
from ocfcluster.client.locate import default_socket_path
from ocfcluster.client.publisher import Publisher
from ocfcluster.client.session import Stage
from ocfcluster.client.starting import FromSeq, as_earlier
from ocfcluster.errors import ClientError, InvalidArgument, NotConnected, TopicExists
from ocfcluster.limits import CLOSE_FLUSH_NS, SECOND_NS
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request
from ocfcluster.wire.topics import DEFAULT_SETTINGS, TopicSettings

if TYPE_CHECKING:
    from typing import Self

    from ocfcluster.wire.filter import Filter

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_CLOSE_FLUSH_S = CLOSE_FLUSH_NS / SECOND_NS


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    resume: bool = True,
    timeout: float | None = 5.0,
) -> Client:
    """A client of the agent at ``socket`` (default: ``default_socket_path()``).

    ``name`` shows in the agent's status. With ``resume`` the client outlives its agent: it reconnects, and its
    subscriptions and publications go on; without, the agent's end is the client's. Raises AgentUnreachable.
    """
    return Client(socket, name=name, resume=resume, timeout=timeout)


class Client:
    """A connection to an agent, and what is done over it. Every method is thread-safe. Use it as a context manager."""

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
        self._closed = True  # for __del__, should connecting fail
        self._path = check_socket(socket) or default_socket_path()
        self._dial = dial or partial(dial_path, self._path)
        self._name = name
        self._resume = resume
        self._timeout = timeout
        self._pid = os.getpid()
        self._connection = self._open()
        self._default = Publisher(weakref.proxy(self), None)  # no cycle: what nobody holds ends at once
        self._closed = False
        _clients.add(self)

    def _open(self) -> Connection:
        connection = Connection(self._path, self._name, self._resume, self._dial)
        try:
            connection.open(self._timeout)
        except BaseException:
            connection.close(flush_timeout=0)
            raise
        return connection

    def connection(self) -> Connection:
        """The connection below, for the library's own parts. In a forked child the first use makes a new one."""
        if self._closed:
            raise NotConnected("the client is closed")
        if self._pid != os.getpid():
            self._connection = self._open()
            self._pid = os.getpid()
        return self._connection

    @property
    def socket_path(self) -> str:
        return self._path

    # --- publishing ---------------------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        data: Data,
        *,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """``Publisher.publish`` of the client's own publisher."""
        return self._default.put(topic, data, re_id, properties, timeout)

    def publish_many(
        self,
        topic: str,
        datas: Iterable[Data],
        *,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """``Publisher.publish_many`` of the client's own publisher."""
        return self._default.publish_many(
            datas, topic=topic, re_id=re_id, properties=properties, timeout=timeout
        )

    def publisher(self, topic: str | None = None) -> Publisher:
        """A publisher of its own FIFO order and window, for ``topic`` unless a publication names another."""
        return Publisher(self, topic)

    def flush(self, timeout: float | None = None) -> None:
        """Until everything published through this client is answered. Raises WouldBlock, WouldDeadlock."""
        self.connection().flush(None, timeout)

    # --- subscribing --------------------------------------------------------------------------------------------

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
        timeout: float | None = None,
    ) -> Subscription:
        """Subscribe to one topic, or to several in one order. It has started when this returns.

        It gets what comes from now on; and before that, of what the topics keep, all from ``from_seq`` on (a seq of the
        history as it is now, or the ``position`` of an event; of several topics a dict by name), or the last
        ``from_last`` events of each, or all that is ``retained``. What was asked for with ``from_seq`` and is not kept
        any more is a gap notice.

        Without ``on_event`` iterate over the subscription or ``get`` from it. With it ``dispatch`` runs the
        callbacks, in the one order of the cluster across all of this client's callback subscriptions.

        ``filter`` (``Property("severity") == "high"``, or its text) has the agent send only events whose properties
        it lets through; the holes that this leaves in ``seq`` are no gaps. ``on_slow`` says what is to happen where
        16 MiB wait for this subscription: ``"block"`` publishers, for a bounded time, then miss events;
        ``"drop_oldest"``, with a notice of the gap; ``"disconnect"``, the end, after a notice.
        Raises UnknownTopic, NotPermitted, InvalidArgument (FilterError for the text of a filter), LimitReached.
        """
        return self.subscribe_for(
            topics, on_event, timeout, filter, on_slow,
            from_seq=from_seq, from_last=from_last, retained=retained,
        )  # fmt: skip

    def subscribe_for(
        self,
        topics: str | Iterable[str],
        on_event: Callable[[Event], object] | None,
        timeout: float | None = None,
        filter: Filter | str | None = None,  # noqa: A002
        on_slow: str = "block",
        *,
        manual: bool = False,
        from_seq: FromSeq | None = None,
        from_last: int | None = None,
        retained: bool = False,
    ) -> Subscription:
        """As ``subscribe``. With ``manual`` the program says when an event that a callback got is done."""
        check_callback(on_event)
        names = [check_topic(name) for name in as_topics(topics)]
        wanted, policy = as_filter(filter), as_policy(on_slow)
        earlier = as_earlier(names, from_seq, from_last, retained)
        connection = self.connection()
        event_socket = connection.subscribe(names, on_event, timeout, wanted, policy, earlier, manual)
        return Subscription(self, connection, event_socket, on_event is not None)

    def dispatch(self, timeout: float | None = None) -> None:
        """Run callbacks in this thread until no callback subscription is left, at most ``timeout`` seconds.

        A callback that runs at their end returns first; of what is pending one event at least is dispatched (0: that
        one). Raises NoSubscription where there is none to begin with, NotConnected where all have ended.
        """
        self.connection().dispatcher.run(check_timeout(timeout))

    # --- groups -------------------------------------------------------------------------------------------------

    def group(self, name: str) -> Group:
        """The group ``name``, which needs no creation: join it, cast to it, ask its members."""
        return Group(self, name)

    def groups(self, *, timeout: float | None = None) -> list[GroupInfo]:
        """The groups that are in use, by name."""
        answer: frames.Groups = self.connection().call(Request.GROUP_LIST, None, timeout)
        return sorted(map(GroupInfo._make, answer.groups))

    # --- topics -------------------------------------------------------------------------------------------------

    def create_topic(
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
        body = frames.TopicCreate(check_topic(name), scope == "local", settings)
        deadline = deadline_of(timeout)
        connection = self.connection()
        with connection.lock:
            answer = connection.call_locked(Request.TOPIC_CREATE, body, deadline)
            connection.session.topics.pop(name, None)
            if not isinstance(answer, frames.Topic):
                answer = connection.call_locked(Request.TOPIC_RESOLVE, frames.TopicResolve(name), deadline)
                connection.session.topics.pop(name, None)
        return TopicInfo.of(answer)

    def alter_topic(self, name: str, settings: TopicSettings, *, timeout: float | None = None) -> None:
        """Give a topic other settings, at one place in the order. Raises UnknownTopic, NotPermitted,
        InvalidArgument."""
        body = frames.TopicAlter(check_topic(name), settings)
        self.connection().call(Request.TOPIC_ALTER, body, timeout)

    def remove_topic(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a topic; its subscriptions end. Raises UnknownTopic, NotPermitted."""
        connection = self.connection()
        with connection.lock:
            connection.call_locked(
                Request.TOPIC_REMOVE, frames.TopicRemove(check_topic(name)), deadline_of(timeout)
            )
            connection.session.topics.pop(name, None)

    def topics(self, *, timeout: float | None = None) -> list[TopicInfo]:
        """All topics that the agent knows, by name."""
        answer: frames.Topics = self.connection().call(Request.TOPIC_LIST, None, timeout)
        return sorted(map(TopicInfo.of, answer.topics), key=lambda topic: topic.name)

    def topic(self, name: str, *, timeout: float | None = None) -> TopicInfo:
        """One topic, found also by an alias. Raises UnknownTopic, NotPermitted (a group that is not in use, and in
        which this program has no right)."""
        body = frames.TopicResolve(check_topic(name))
        connection = self.connection()
        with connection.lock:
            answer = connection.call_locked(Request.TOPIC_RESOLVE, body, deadline_of(timeout))
            connection.session.topics.pop(
                name, None
            )  # looked at, not published to: it may be another by then
        return TopicInfo.of(answer)

    def access(self, name: str, *, timeout: float | None = None) -> frames.TopicAccess:
        """Who may publish to a topic (or group), subscribe to it and administer it, and what this program may.
        Raises UnknownTopic."""
        body = frames.TopicResolve(check_topic(name))
        answer: frames.TopicAccess = self.connection().call(Request.TOPIC_ACCESS, body, timeout)
        return answer

    # --- the agent ----------------------------------------------------------------------------------------------

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The agent's own account of itself; its keys are listed in docs/operating.md."""
        answer: frames.Status = self.connection().call(Request.STATUS, None, timeout)
        return answer.document

    def members(self, *, timeout: float | None = None) -> list[Any]:
        """The members of the cluster as the agent knows them, oldest first."""
        return list(self.status(timeout=timeout).get("members", []))

    def barrier(self, *, timeout: float | None = None) -> None:
        """Until this node has delivered everything that was ordered before the call."""
        self.connection().call(Request.BARRIER, None, timeout)

    @property
    def admin(self) -> Admin:
        """Changes of the node table, and what else an operator does."""
        return Admin(self)

    @property
    def agent(self) -> frames.Welcome | None:
        """What the agent said about itself when it welcomed this client last."""
        return self.connection().session.welcome

    @property
    def node_id(self) -> int:
        """The node of this client's agent."""
        welcome = self.agent
        return 0 if welcome is None else welcome.node_id

    @property
    def event_bytes(self) -> int:
        """The largest event that the cluster takes."""
        welcome = self.agent
        return 0 if welcome is None else welcome.event_bytes

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush for up to 5 s, say in the log what is unanswered then, and end all subscriptions."""
        if self._closed:
            return
        self._closed = True
        if self._pid == os.getpid():
            self._connection.close(_CLOSE_FLUSH_S)

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and self._pid == os.getpid():
            if self._connection.session.stage is not Stage.ENDED:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._closed = True
            self._connection.close_later(_CLOSE_FLUSH_S)

    def __repr__(self) -> str:
        return f"<Client of {self._path}{' (closed)' if self._closed else ''}>"

    def abandon_in_child(self) -> None:
        """After a fork: this process's copies go; the client connects anew when it is used."""
        self._connection.abandon_in_child()


class Subscription:
    """A subscription that has started. Iterate over it, ``get`` from it, or open its ``runs()``.

    Without ``on_event`` only; several threads may take from it, and each event goes to one of them.
    """

    def __init__(
        self, client: Client, connection: Connection, event_socket: EventSocket, callback: bool
    ) -> None:
        self._client = client  # kept alive as long as its subscription
        self._connection = connection
        self._socket = event_socket
        self._callback = callback
        self._take = event_socket.take_event
        self._polls: list[select.poll] = []

    @property
    def starts(self) -> list[frames.Start]:
        """Where it started in each topic: ``topic``, ``next_seq`` (of the first event that comes), ``local``."""
        return list(self._socket.state.starts.values())

    @property
    def topics(self) -> list[str]:
        return list(self._socket.state.starts)

    def fileno(self) -> int:
        """The descriptor: readable exactly while something waits to be taken. The same at every call."""
        return self._socket.fileno()

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None if there is none within ``timeout`` seconds (0: look, None: wait for ever).

        Raises NotConnected behind the notice that ended the subscription, InvalidArgument once it is closed.
        """
        self._check_pull()
        if timeout is not None:
            check_timeout(timeout)
        event = self._take()
        if event is not None:
            return event
        event = self._wait(self._take, timeout)
        return event if isinstance(event, Event) else None

    def get_run(self, timeout: float | None = None) -> Run | None:
        """The next run of events, or what is left of one; else as ``get``."""
        self._check_pull()
        if timeout is not None:
            check_timeout(timeout)
        run = self._socket.take_run()
        if run is None:
            run = self._wait(self._socket.take_run, timeout)
        return run

    def set_callback(self, callback: bool) -> None:
        """Whether events come by callback, for the library's own parts."""
        self._callback = callback

    def _check_pull(self) -> None:
        if self._callback:
            raise TopicExists("this subscription delivers by callback")

    def _wait(self, take: Callable[[], Any], timeout: float | None) -> Any:
        event_socket = self._socket
        deadline = deadline_of(timeout)
        descriptor = event_socket.enter_wait()
        try:
            poll = self._polls.pop()
        except IndexError:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
        try:
            while True:
                if event_socket.early:
                    self._connection.pump()
                left = None if deadline is None else max(0.0, 1000 * (deadline - time.monotonic()))
                if left == 0 and not event_socket.early:
                    return take() if poll.poll(0) else None
                poll.poll(left)
                taken = take()
                if taken is not None or left == 0:
                    return taken
        finally:
            self._polls.append(poll)
            event_socket.leave_wait()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event; ends (StopIteration) where the subscription has ended or was closed."""
        try:
            event = self.get()
        except (NotConnected, InvalidArgument):
            raise StopIteration from None
        if event is None:
            raise StopIteration
        return event

    def runs(self) -> Iterator[Run]:
        """Runs as they come, opened on access: the fast way to take many events. Ends as iteration does."""
        while True:
            try:
                run = self.get_run()
            except (NotConnected, InvalidArgument):
                return
            if run is None:
                return
            yield run

    def close(self) -> None:
        """No event after this returns; allowed in the subscription's own callback."""
        self._connection.unsubscribe(self._socket)

    @property
    def closed(self) -> bool:
        return self._socket.closed

    @property
    def event_socket(self) -> EventSocket:
        """What is below, for the library's own parts."""
        return self._socket

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        event_socket = getattr(self, "_socket", None)
        if event_socket is None or event_socket.closed or self._callback:
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self._connection.unsubscribe_later(event_socket)

    def __repr__(self) -> str:
        return f"<Subscription to {', '.join(self._socket.state.topics)}{' (closed)' if self.closed else ''}>"


def _close_all() -> None:
    for client in list(_clients):
        with contextlib.suppress(ClientError, OSError):
            client.close()


def _after_fork() -> None:
    for client in list(_clients):
        client.abandon_in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)

__all__ = ["Client", "Published", "Publisher", "Stage", "Subscription", "connect"]
