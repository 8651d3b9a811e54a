"""Filters on the program's side: they choose, they open, and they swallow no notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ocfcluster.client.events import Event, Notice, NoticeCode, Run, RunMeta
from ocfcluster.components.connectivity import Change, ConnectivityCode, ConnectivityEvent, Link, LinkState
from ocfcluster.components.filters import ConnectivityFilter, GroupFilter, MembershipFilter
from ocfcluster.components.groups import GroupCode, GroupEvent, GroupMember
from ocfcluster.components.membership import TOPIC, MembershipCode, MembershipEvent, Node
from ocfcluster.errors import Malformed
from ocfcluster.wire.run import HEADER, RunKind, build_run

VIEW = MembershipEvent(MembershipCode.NEW_MEMBERSHIP, 2, (Node(1, 1), Node(2, 2)), (Node(2, 2),))
LONELY = MembershipEvent(MembershipCode.NOT_PRIMARY, 2, VIEW.members)
META = RunMeta(0, 0, 1, 1, 1, 1, 1, 1)
GAP = Notice(NoticeCode.GAP, TOPIC, 3, 4)


def event(data: bytes, topic: str = TOPIC) -> Event:
    run = build_run(RunKind.PUBLICATION, 1, 0, 1, [data])
    return next(Run(topic, run, 0, HEADER.unpack_from(run), META).events())


EVENTS = [
    event(VIEW.encode()),
    next(Run.of_notice(GAP, META).events()),
    event(LONELY.encode()),
    event(b"x", "t"),
]


def test_all_events_of_the_topic_as_objects() -> None:
    assert list(MembershipFilter().over(EVENTS)) == [VIEW, GAP, LONELY]


def test_some_codes_alone_and_every_notice() -> None:
    assert list(MembershipFilter(MembershipCode.NEW_MEMBERSHIP).over(EVENTS)) == [VIEW, GAP]
    seen: list[Any] = []
    on_event = MembershipFilter(MembershipCode.NOT_PRIMARY, MembershipCode.EVICTED).calls(seen.append)
    for one in EVENTS:
        on_event(one)
    assert seen == [GAP, LONELY]


def test_asyncio() -> None:
    async def source() -> AsyncIterator[Event]:
        for one in EVENTS:
            yield one

    async def main() -> list[Any]:
        return [one async for one in MembershipFilter().over_async(source())]

    assert asyncio.run(main()) == [VIEW, GAP, LONELY]


def test_what_is_none_of_the_topics_formats() -> None:
    with pytest.raises(Malformed):
        MembershipFilter().open(event(b"x"))


def test_events_of_a_group() -> None:
    said = GroupEvent(GroupCode.CAST, 7, data=b"hello")
    joined = GroupEvent(GroupCode.JOIN, 8, members=(GroupMember(8, 1, 2),), joined=(GroupMember(8, 1, 2),))
    cluster = META._replace(node_id=0)
    run = build_run(RunKind.PUBLICATION, 1, 0, 1, [joined.encode()])
    change = next(Run("group:lock", run, 0, HEADER.unpack_from(run), cluster).events())
    events = [event(said.encode(), "group:lock"), change, event(said.encode(), "group:other")]
    assert list(GroupFilter("lock").over(events)) == [said, joined]
    assert list(GroupFilter("lock", GroupCode.JOIN, GroupCode.LEAVE).over(events)) == [joined]
    with pytest.raises(Malformed):  # a program that claims to be the cluster
        GroupFilter("lock").open(event(joined.encode(), "group:lock"))


def test_events_of_connectivity() -> None:
    lost = ConnectivityEvent(
        ConnectivityCode.CONNECT, 1, links=(Link(1, 2, 0, LinkState.NONE, Change.FAILED),)
    )
    eligible = ConnectivityEvent(ConnectivityCode.ELIGIBLE, 1)
    events = [event(one.encode(), "oc.connectivity") for one in (lost, eligible)]
    assert list(ConnectivityFilter().over(events)) == [lost, eligible]
    assert list(ConnectivityFilter(ConnectivityCode.CONNECT).over(events)) == [lost]
