"""The client library: what a program uses to publish and to subscribe. ``docs/api.md`` is its guide.

``Client`` and its parts are the blocking API, :mod:`ocfcluster.client.aio` the asyncio API; both stand on
:mod:`ocfcluster.client.session`, which does no input or output.
"""

from __future__ import annotations

from ocfcluster.client.client import Client, Publisher, Subscription, connect
from ocfcluster.client.events import Event, GroupInfo, Notice, NoticeCode, Published, Receipt, Run, TopicInfo
from ocfcluster.client.group import Group, Replies, open_event
from ocfcluster.client.starting import Position
from ocfcluster.wire.topics import Access, Retention, TopicSettings

__all__ = [
    "Access", "Client", "Event", "Group", "GroupInfo", "Notice", "NoticeCode", "Position", "Published", "Publisher",
    "Receipt", "Replies", "Retention", "Run", "Subscription", "TopicInfo", "TopicSettings", "connect", "open_event",
]  # fmt: skip
