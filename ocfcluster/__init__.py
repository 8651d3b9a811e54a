"""ocfcluster: a cluster-wide event broker after the Open Cluster Framework's Event Notification API.

The names a program needs are importable from here: :func:`connect` (blocking) and :mod:`ocfcluster.client.aio` as
``ocfcluster.aio`` (asyncio). The function-for-function OCF API is :mod:`ocfcluster.ocf`. They are loaded when first
used, so that the agent and the command line start without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ocfcluster.client import aio
    from ocfcluster.client.client import Client, Publisher, Subscription, connect
    from ocfcluster.client.events import Event, Notice, NoticeCode, Published, Receipt, Run, TopicInfo
    from ocfcluster.client.group import Group
    from ocfcluster.client.starting import Position
    from ocfcluster.wire.filter import Filter, Property, from_node
    from ocfcluster.wire.filter_text import parse_filter
    from ocfcluster.wire.topics import Access, Retention, TopicSettings

__version__ = "0.1.0"

_HOMES = {
    "Access": "ocfcluster.wire.topics",
    "Client": "ocfcluster.client.client",
    "Event": "ocfcluster.client.events",
    "Filter": "ocfcluster.wire.filter",
    "Group": "ocfcluster.client.group",
    "Notice": "ocfcluster.client.events",
    "NoticeCode": "ocfcluster.client.events",
    "Position": "ocfcluster.client.starting",
    "Property": "ocfcluster.wire.filter",
    "Published": "ocfcluster.client.events",
    "Publisher": "ocfcluster.client.publisher",
    "Receipt": "ocfcluster.client.events",
    "Retention": "ocfcluster.wire.topics",
    "Run": "ocfcluster.client.events",
    "Subscription": "ocfcluster.client.client",
    "TopicInfo": "ocfcluster.client.events",
    "TopicSettings": "ocfcluster.wire.topics",
    "connect": "ocfcluster.client.client",
    "from_node": "ocfcluster.wire.filter",
    "parse_filter": "ocfcluster.wire.filter_text",
}

__all__ = [
    "Access", "Client", "Event", "Filter", "Group", "Notice", "NoticeCode", "Position", "Property", "Published",
    "Publisher", "Receipt", "Retention", "Run", "Subscription", "TopicInfo", "TopicSettings", "__version__", "aio",
    "connect", "from_node", "parse_filter",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module("ocfcluster.client.aio")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
