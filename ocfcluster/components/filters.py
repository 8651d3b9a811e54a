"""Ready-made filters of the cluster's own topics, on the program's side: they choose events and open them.

>>> from ocfcluster.components.filters import MembershipFilter
>>> from ocfcluster.components.membership import MembershipCode
>>> changes = MembershipFilter(MembershipCode.NEW_MEMBERSHIP)
>>> with client.subscribe(changes.topic) as events:                 # doctest: +SKIP
...     for change in changes.over(events):
...         print(change)
<MembershipEvent NEW_MEMBERSHIP 1: members 1 2 3, in 1 2 3>

A filter of a kind of its own is a subclass with ``topic`` and ``decode``.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from ocfcluster.client.events import Event, Notice
from ocfcluster.components.connectivity import TOPIC as CONNECTIVITY
from ocfcluster.components.connectivity import ConnectivityEvent
from ocfcluster.components.groups import GroupEvent, group_topic, open_event
from ocfcluster.components.membership import TOPIC as MEMBERSHIP
from ocfcluster.components.membership import MembershipEvent

__all__ = ["ConnectivityFilter", "GroupFilter", "MembershipFilter", "TypedFilter"]


class Coded(Protocol):
    """What opened events have in common."""

    @property
    def code(self) -> int: ...


Opened = TypeVar("Opened", bound=Coded)


class TypedFilter(Generic[Opened]):
    """Events of ``topic`` with one of ``codes`` (none named: all), as objects.

    Notices come through as they are, whatever was chosen: a gap or the end of the subscription is no less true for
    who wants but some of the events.
    """

    topic: str

    def __init__(self, *codes: int) -> None:
        self.codes = frozenset(map(int, codes))

    def decode(self, event: Event) -> Opened:
        """What an event of the topic says, no notice. Raises Malformed."""
        raise NotImplementedError

    def open(self, event: Event) -> Opened | Notice | None:
        """The event as an object; a notice as itself; None for what was not chosen, or belongs to another topic.

        Raises Malformed for data that is none of the topic's formats.
        """
        if event.notice is not None:
            return event.notice
        if event.topic != self.topic:
            return None
        opened = self.decode(event)
        return opened if not self.codes or opened.code in self.codes else None

    def over(self, events: Iterable[Event]) -> Iterator[Opened | Notice]:
        """What ``open`` gives of each event that was chosen; ``events`` is a subscription, or any events."""
        for event in events:
            opened = self.open(event)
            if opened is not None:
                yield opened

    async def over_async(self, events: AsyncIterable[Event]) -> AsyncIterator[Opened | Notice]:
        """``over`` for an asyncio subscription."""
        async for event in events:
            opened = self.open(event)
            if opened is not None:
                yield opened

    def calls(self, function: Callable[[Opened | Notice], object]) -> Callable[[Event], None]:
        """A callback for ``subscribe`` that calls ``function`` with what was chosen."""

        def on_event(event: Event) -> None:
            opened = self.open(event)
            if opened is not None:
                function(opened)

        return on_event


class MembershipFilter(TypedFilter[MembershipEvent]):
    """``oc.membership`` as MembershipEvents; ``codes`` are MembershipCodes."""

    topic = MEMBERSHIP

    def decode(self, event: Event) -> MembershipEvent:
        return MembershipEvent.decode(event.data)


class ConnectivityFilter(TypedFilter[ConnectivityEvent]):
    """``oc.connectivity`` as ConnectivityEvents; ``codes`` are ConnectivityCodes."""

    topic = CONNECTIVITY

    def decode(self, event: Event) -> ConnectivityEvent:
        return ConnectivityEvent.decode(event.data)


class GroupFilter(TypedFilter[GroupEvent]):
    """The events of one group as GroupEvents; ``codes`` are GroupCodes.

    Where a program published to the group by other means than the group's, ``open`` raises Malformed.
    """

    def __init__(self, group: str, *codes: int) -> None:
        super().__init__(*codes)
        self.topic = group_topic(group)

    def decode(self, event: Event) -> GroupEvent:
        return open_event(event)
