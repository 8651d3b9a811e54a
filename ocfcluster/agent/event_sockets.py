"""What the hub asks of its agent: to watch the event sockets, and to tell programs and the node how they fare."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from ocfcluster.ipc.subscription import Subscription
from ocfcluster.wire.frames import Answer, Full, LeftOut, Reached

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent


class EventSockets:
    """The ``ipc.subscription.Watcher`` of an agent's hub."""

    __slots__ = ("_agent", "_served", "_watch_served")

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._served: Subscription | None = None  # the one whose socket has got room, while it is written to
        self._watch_served = False

    def watch_writable(self, subscription: Subscription, watch: bool) -> None:
        event_socket = subscription.socket
        if not isinstance(event_socket, socket.socket) or event_socket.fileno() < 0:
            return
        if subscription is self._served:
            self._watch_served = watch  # a slow subscriber fills up again at once: see then
        elif watch:
            self._agent.running_loop().add_writer(event_socket.fileno(), self._on_event_room, subscription)
        else:
            self._agent.running_loop().remove_writer(event_socket.fileno())

    def _on_event_room(self, subscription: Subscription) -> None:
        now = time.monotonic_ns()
        hub = self._agent.hub
        was_full = bool(hub.full)
        catches_up = subscription.replay is not None
        if catches_up:
            self._agent.catch_up()  # what is kept must be what was delivered
        self._served = subscription
        self._watch_served = True
        hub.writable(subscription, now)
        self._end_serving()
        if was_full or hub.full or self._agent.router.touched or catches_up:
            self._agent.settle(now)

    def _end_serving(self) -> None:
        """Stop watching the socket that was written to if it took all."""
        subscription, self._served = self._served, None
        if subscription is not None and not self._watch_served:
            self.watch_writable(subscription, False)

    def full_changed(self, full: bool) -> None:
        self._agent.node.set_full(full)

    def own_full_changed(self, connection: int, full: list[int]) -> None:
        client = self._agent.clients.get(connection)
        if client is not None:
            client.session.answer(0, Answer.FULL, Full(full))
            self._agent.connections.touch(client)

    def left_out(self, subscription: Subscription, positions: dict[int, int]) -> None:
        client = self._agent.clients.get(subscription.line.connection)
        if client is not None:
            reached = [Reached(topic_id, seq) for topic_id, seq in positions.items()]
            client.session.answer(0, Answer.LEFT_OUT, LeftOut(subscription.number, reached))
            self._agent.connections.touch(client)

    def tick(self, now: int) -> None:
        self._agent.stuck.look(now)

    def subscription_broken(self, subscription: Subscription) -> None:
        if subscription is self._served:
            self._end_serving()
        subscription.socket.close()

    def end_subscription(self, subscription: Subscription) -> None:
        """Unsubscribed: out of the poller first, then closed (the library's copy would keep it registered)."""
        self._agent.hub.remove(subscription, time.monotonic_ns())
        subscription.socket.close()
