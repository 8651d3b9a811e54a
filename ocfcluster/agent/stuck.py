"""Programs that do not take or finish their events: noticed, told on ``oc.local`` and in the log, shown in status."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from ocfcluster.agent.clients import Client
from ocfcluster.ipc.delivery import Hub
from ocfcluster.ipc.stuck import Outstanding, look, outstanding, unread_bytes
from ocfcluster.ipc.subscription import Subscription
from ocfcluster.limits import MILLISECOND_NS, STUCK_NS

Tell = Callable[[Mapping[str, Any], Mapping[str, str]], None]
log = structlog.get_logger("ocfcluster.agent")
_TOPICS_NAMED: Final = 16


class StuckWatch:
    """Looks once a second; says ``stuck`` once per subscription, and ``free`` when it goes on or ends."""

    __slots__ = ("told", "_clients", "_hub", "_tell")

    def __init__(self, hub: Hub, clients: Mapping[int, Client], tell: Tell) -> None:
        self.told: dict[Subscription, dict[str, Any]] = {}  # and what was said
        self._hub = hub
        self._clients = clients
        self._tell = tell

    def look(self, now: int) -> None:
        for line in self._hub.lines.values():
            for subscription in line.subscriptions.values():
                if subscription.sent_bytes:
                    look(subscription, now, unread_bytes(subscription.socket))
                    found = outstanding(subscription)
                    if found is not None and now - found.since >= STUCK_NS and subscription not in self.told:
                        self._stuck(subscription, found, now)
        for subscription in list(self.told):
            if outstanding(subscription) is None or not self._lives(subscription):
                self._free(subscription)

    def _lives(self, subscription: Subscription) -> bool:
        return subscription.line.subscriptions.get(subscription.number) is subscription

    def _stuck(self, subscription: Subscription, found: Outstanding, now: int) -> None:
        client = self._clients.get(subscription.line.connection)
        if client is None:
            return
        document = {
            "connection": client.connection,
            "name": client.name,
            "pid": client.peer.pid,
            "subscription": subscription.number,
            "topics": sorted(subscription.topics.values())[:_TOPICS_NAMED],
            **described(found, now),
        }
        self.told[subscription] = document
        log.warning("subscriber stuck", **document)
        self._say("stuck", document)

    def _free(self, subscription: Subscription) -> None:
        document = self.told.pop(subscription)
        log.info(
            "subscriber free", **{key: document[key] for key in ("connection", "name", "pid", "subscription")}
        )
        self._say("free", document)

    def _say(self, what: str, document: Mapping[str, Any]) -> None:
        self._tell(
            {"event": what, **document},
            {"event": what, "pid": str(document["pid"]), "name": document["name"]},
        )


def described(found: Outstanding, now: int) -> dict[str, Any]:
    """An outstanding event for status and events."""
    return {
        "topic": found.topic,
        "seq": found.seq,
        "age_ms": (now - found.since) // MILLISECOND_NS,
        "taken": found.taken,
    }


def oldest(subscriptions: Mapping[int, Subscription], now: int) -> dict[str, Any] | None:
    """The oldest outstanding event of a client's subscriptions."""
    known = [
        (found.since, number, found)
        for number, subscription in subscriptions.items()
        if (found := outstanding(subscription)) is not None
    ]
    if not known:
        return None
    _, number, found = min(known, key=lambda one: one[0])
    return {"subscription": number, **described(found, now)}
