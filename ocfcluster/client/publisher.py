"""Publishing from threads: gathering into runs, the window, and the receipts.

The first publication of an idle client goes out at once, from the calling thread. While the agent has not taken
what was written before, more gather into one run; the calling thread looks at 1, 2, 4, 8, ... gathered ones whether
the agent is ready, and a full run goes out in any case. What is left over when the program stops publishing is sent
by the library's thread, by ``flush`` and by ``wait``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final

from ocfcluster.client.arguments import (
    Data,
    as_bytes,
    as_events,
    as_properties,
    check_re_id,
    check_timeout,
    check_topic,
)
from ocfcluster.client.connection import Connection, deadline_of
from ocfcluster.client.events import Receipt
from ocfcluster.client.producer import Batch, Producer, largest_of, partly, run_size, split
from ocfcluster.client.session import Stage
from ocfcluster.errors import ClientError, InvalidArgument, NotConnected, TooLarge, WouldBlock
from ocfcluster.limits import RUN_BYTES, RUN_COUNT
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request

if TYPE_CHECKING:
    from typing import Self

    from ocfcluster.client.client import Client

_LENGTH_BYTES: Final = 4


class Publisher:
    """Publications in one FIFO order. Made by ``Client.publisher``; every method is thread-safe.

    >>> with client.publisher("demo") as p:                          # doctest: +SKIP
    ...     receipts = [p.publish(b"%d" % i) for i in range(1000)]
    ...     p.flush()
    ...     print(receipts[-1].wait().seq)
    """

    def __init__(self, client: Client, topic: str | None) -> None:
        self._client = client
        self._topic = topic
        self._connection: Connection | None = None
        self._global: Producer | None = None
        self._local: Producer | None = None
        self._closed = False
        # What the last publication resolved to, so that an equal one costs a comparison:
        self._last_topic: str | None = None
        self._event_bytes = 0  # of the cluster's largest event, as of the last event that did not join others
        self._producer: Producer | None = None
        if topic is not None:
            check_topic(topic)

    # --- publishing ---------------------------------------------------------------------------------------------

    def publish(
        self,
        data: Data,
        *,
        topic: str | None = None,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Publish one event. Blocks while the window is full, at most ``timeout`` seconds.

        ``re_id`` is the ev_id of the event that this one answers, 0 for none. Raises UnknownTopic, TooLarge,
        WouldBlock (nothing was published), WouldDeadlock, NotConnected.
        """
        return self.put(topic, data, re_id, properties, timeout)

    def put(
        self,
        topic: str | None,
        data: Data,
        re_id: int,
        properties: Mapping[str, str] | None,
        timeout: float | None,
    ) -> Receipt:
        """``publish`` without keywords, for the library's own parts: this is the hot path."""
        if type(data) is not bytes:
            data = as_bytes(data)
        if timeout is not None:
            check_timeout(timeout)
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connected()
        with connection.lock:
            producer = self._producer
            if producer is not None and topic == self._last_topic and properties is None:
                batch = producer.gathering
                if batch is not None and batch.re_id == re_id and not batch.properties:
                    size = batch.size + len(data) + _LENGTH_BYTES
                    if (
                        size <= RUN_BYTES
                        and len(data) <= self._event_bytes
                        and batch.count < RUN_COUNT
                        and batch.topic == (topic or self._topic)
                    ):
                        assert batch.events is not None  # noqa: S101 - it gathers
                        batch.events.append(data)
                        index = batch.count
                        batch.count = index + 1
                        batch.size = size
                        if index == batch.look_at:
                            batch.look_at = 2 * index
                            self._look(connection, producer)
                        return Receipt(batch.alone, index, 1)
            return self._publish(connection, data, topic, re_id, properties, timeout)

    def _publish(
        self,
        connection: Connection,
        data: bytes,
        topic: str | None,
        re_id: int,
        properties: Mapping[str, str] | None,
        timeout: float | None,
    ) -> Receipt:
        """Join what gathers, or begin a new batch, and send it at once if the agent is idle. The lock is held."""
        deadline = deadline_of(timeout)
        encoded = as_properties(properties)
        check_re_id(re_id)
        info, producer = self._prepare(connection, topic, deadline)
        self._check_size(connection, len(data))
        size = run_size(1, len(data), encoded)
        batch = producer.gathering
        if batch is not None:
            if batch.joins(info.topic_id, re_id, encoded, len(data)):
                index = batch.join(data)
                if index >= batch.look_at:
                    batch.look_at = 2 * index
                    self._look(connection, producer)
                return Receipt(batch.alone, index, 1)
            connection.send_gathered(producer)
            connection.flush_output()
        room = max(size, RUN_BYTES)
        while not producer.has_room(room):
            info, producer = self._wait_for_room(connection, topic, producer, room, deadline)
            self._check_size(connection, len(data))
        batch = Batch(connection, info.topic, info.topic_id, re_id, encoded, [data], size)
        if producer.gathering is not None:  # another thread began one while this one waited
            connection.send_gathered(producer)
        producer.gathering = batch
        if size >= RUN_BYTES or not producer.unanswered:
            connection.send_gathered(producer)
            connection.flush_output()
        else:
            self._look(connection, producer)
        return Receipt(batch.alone, 0, 1)

    def _look(self, connection: Connection, producer: Producer) -> None:
        """Send what has gathered if the agent is ready for it, else see that it is sent then."""
        control = connection.control
        if control is not None and not connection.session.outgoing and control.idle():
            connection.send_gathered(producer)
            connection.flush_output()
        else:
            connection.arm()

    def publish_many(
        self,
        datas: Iterable[Data],
        *,
        topic: str | None = None,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Publish the events of a list (or other iterable), in full runs: the fast way. One receipt for all.

        Errors as ``publish``. Where one comes in the middle, as WouldBlock does where the window stays closed for
        longer than ``timeout``, it says how many of them, from the first on, were published.
        """
        events = as_events(datas)
        deadline = deadline_of(timeout)
        encoded = as_properties(properties)
        check_re_id(re_id)
        cuts = split(events, encoded)
        connection = self._connected()
        batches: list[Batch] = []
        with connection.lock:
            info, producer = self._prepare(connection, topic, deadline)
            largest = largest_of(events, cuts, min(RUN_BYTES, connection.session.event_bytes))
            self._check_size(connection, largest)
            for begin, end, size in cuts:
                try:
                    while not producer.has_room(size):
                        info, producer = self._wait_for_room(connection, topic, producer, size, deadline)
                        self._check_size(connection, largest)
                except ClientError as error:
                    raise partly(error, begin, len(events)) from None
                if producer.gathering is not None:
                    connection.send_gathered(producer)
                batch = Batch(connection, info.topic, info.topic_id, re_id, encoded, events[begin:end], size)
                producer.queue(batch, time.time_ns())
                connection.session.publish(producer, batch)
                connection.flush_output()
                batches.append(batch)
        return Receipt(tuple(batches), 0, len(events))

    # --- what both need -----------------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        if self._closed:
            raise NotConnected("the publisher is closed")
        connection = self._client.connection()
        if connection is not self._connection:  # the first use, or the first in a child process
            self._connection = connection
            self._global = self._local = self._producer = None
        return connection

    def _prepare(
        self, connection: Connection, topic: str | None, deadline: float | None
    ) -> tuple[frames.Topic, Producer]:
        """The topic, and an open producer for its scope, as they are now. May give the lock away for a while."""
        name = topic if topic is not None else self._topic
        if name is None:
            raise InvalidArgument("publish needs a topic")
        while True:
            if self._closed:
                raise NotConnected("the publisher is closed")
            connection.check_open()
            if connection.session.stage is Stage.ENDED:
                raise NotConnected("the connection to the agent has ended")
            info = resolve(connection, name, deadline)
            producer = self._producer_for(connection, info.local)
            if producer.id:
                break
            self._open(connection, producer, deadline)  # whoever waited looks again what the topic is
        self._last_topic = topic
        self._producer = producer
        return info, producer

    def _producer_for(self, connection: Connection, local: bool) -> Producer:
        producer = self._local if local else self._global
        if producer is None:
            producer = connection.session.add_producer(local)
            if local:
                self._local = producer
            else:
                self._global = producer
        return producer

    def _open(self, connection: Connection, producer: Producer, deadline: float | None) -> None:
        connection.session.open(producer)
        connection.flush_output()
        if not connection.wait_until(lambda: bool(producer.id) or not producer.opening, deadline):
            raise WouldBlock("the cluster has not opened a producer in the time given")
        if producer.refusal is not None:
            raise producer.refusal

    def _wait_for_room(
        self, connection: Connection, topic: str | None, producer: Producer, size: int, deadline: float | None
    ) -> tuple[frames.Topic, Producer]:
        """Until there is room, and then ``_prepare``: the history may have ended meanwhile, and the topic with it."""
        session = connection.session
        room = connection.wait_until(
            lambda: producer.has_room_again(size) or session.stage is Stage.ENDED, deadline, deadlocks=True
        )
        if not room and not producer.has_room(size):
            raise WouldBlock("the cluster has not taken enough of what was published in the time given")
        return self._prepare(connection, topic, deadline)

    def _check_size(self, connection: Connection, size: int) -> None:
        event_bytes = self._event_bytes = connection.session.event_bytes
        if size > event_bytes:
            raise TooLarge(f"an event of {size} bytes; the cluster takes at most {event_bytes}")

    def flush(self, timeout: float | None = None) -> None:
        """Until everything published here is answered, at most ``timeout`` seconds.

        Raises WouldBlock, WouldDeadlock. What was refused shows in the receipts.
        """
        connection = self._connected()
        producers = [producer for producer in (self._global, self._local) if producer is not None]
        if producers:
            connection.flush(producers, timeout)

    def close(self, timeout: float | None = 5.0) -> None:
        """Flush, and give the producers back. Raises WouldBlock where ``timeout`` seconds did not suffice: what is
        unanswered then goes on, and its receipts come."""
        if self._closed:
            return
        try:
            self.flush(timeout)
        except NotConnected:
            pass
        finally:
            self._closed = True
            connection, self._connection = self._connection, None
            if connection is not None:
                with connection.lock:
                    for producer in (self._global, self._local):
                        if producer is not None and producer in connection.session.producers:
                            connection.session.close_producer(producer)
                    connection.flush_output()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def resolve(connection: Connection, name: str, deadline: float | None) -> frames.Topic:
    """The topic of that name. Asks the agent the first time. The lock is held."""
    topics = connection.session.topics
    while name not in topics:  # also where the history ended behind the answer
        connection.call_locked(Request.TOPIC_RESOLVE, frames.TopicResolve(check_topic(name)), deadline)
    return topics[name]
