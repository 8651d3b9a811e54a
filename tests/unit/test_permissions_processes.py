"""Permissions of a real cluster: processes of other users, names of this machine, and an agent that starts again."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Iterator
from typing import Any

import pytest

import ocfcluster
from ocfcluster import Access, TopicSettings
from ocfcluster.client import NoticeCode
from ocfcluster.conformance.context import Context
from ocfcluster.conformance.permissions import STRANGER, Stranger, errno_of
from tests.cluster import LoopbackCluster

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
NAME = pwd.getpwuid(STRANGER).pw_name if os.geteuid() == 0 else "nobody"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LoopbackCluster]:
    with LoopbackCluster(3, node={"socket_mode": "0666"}, access={"create": [f"user:{NAME}"]}) as started:
        yield started


def as_stranger(cluster: LoopbackCluster, i: int, do: Any) -> Any:
    """What ``do(client of node i)`` gives in a process of another user."""

    def ask() -> Any:
        with ocfcluster.connect(cluster.socket(i), timeout=5.0) as client:
            return do(client)

    return Stranger(Context(cluster.socket(i)), ask).result()


def test_names_of_this_machine(cluster: LoopbackCluster) -> None:
    settings = TopicSettings(access=Access(publish=(f"user:{NAME}",), subscribe=("user:no-such-user",)))
    with cluster.connect(1) as root, cluster.connect(2) as other, other.subscribe("oc.membership"):
        root.create_topic("named", settings=settings)

        def use(client: ocfcluster.Client) -> list[Any]:
            published = client.publish("named", b"x").wait(5.0)
            rights = client.access("named")
            return [published.seq, errno_of(client.subscribe, "named"), rights.unknown, rights.uid]

        assert as_stranger(cluster, 2, use) == [1, "EPERM", ["user:no-such-user"], STRANGER]


def test_who_creates_a_topic_administers_it(cluster: LoopbackCluster) -> None:
    with cluster.connect(1) as root:
        root.create_topic("roots")

        def administer(client: ocfcluster.Client) -> list[str]:
            client.create_topic("own")
            client.create_topic("roots")  # it exists: as good
            return [
                errno_of(client.alter_topic, "own", TopicSettings(access=Access(("uid:1",), ("*",), ("*",)))),
                errno_of(client.publish("own", b"x").wait, 5.0), errno_of(client.remove_topic, "own"),
                errno_of(client.remove_topic, "roots"), errno_of(client.create_topic, "group:*"),
                errno_of(client.admin.shutdown),
            ]  # fmt: skip

        assert as_stranger(cluster, 3, administer) == ["", "EPERM", "", "EPERM", "EPERM", "EPERM"]
        assert "own" not in [topic.name for topic in root.topics()]


def test_an_agent_that_starts_again_has_the_settings_from_the_others(cluster: LoopbackCluster) -> None:
    with cluster.connect(1) as root:
        root.create_topic("kept")
        cluster.stop_agent(2, kill=True)
        root.alter_topic("kept", TopicSettings(access=Access(publish=(), subscribe=("uid:1",))))
        cluster.start_agent(2)
        cluster.wait_active()

        def use(client: ocfcluster.Client) -> list[str]:
            return [errno_of(client.publish("kept", b"x").wait, 5.0), errno_of(client.subscribe, "kept")]

        assert as_stranger(cluster, 2, use) == ["EPERM", "EPERM"]
        with cluster.connect(2) as here:
            assert here.topic("kept").settings.access == Access((), ("uid:1",))
            assert here.publish("kept", b"root may").wait(5.0).seq == 1


def test_a_subscription_that_resumes_needs_its_right(cluster: LoopbackCluster) -> None:
    """Its agent starts again while the topic is altered: the subscription ends with a notice, and nothing hangs."""
    with cluster.connect(1) as root:
        root.create_topic("resumed")

        def read(client: ocfcluster.Client) -> list[Any]:
            with client.subscribe("resumed") as events:
                notices = []
                while True:
                    event = events.get(20.0)
                    if event is None or event.notice is None:
                        return ["an event, or nothing", repr(event)]
                    notices.append(int(event.notice.code))
                    if event.notice.final:
                        return [notices[-1], errno_of(events.get, 0)]

        def ask() -> Any:
            with ocfcluster.connect(cluster.socket(3), timeout=5.0, resume=True) as client:
                return read(client)

        stranger = Stranger(Context(cluster.socket(3)), ask)
        with cluster.connect(3) as here:
            while not here.topic("resumed").subscribers:
                pass
        cluster.stop_agent(3, kill=True)
        root.alter_topic("resumed", TopicSettings(access=Access(subscribe=())))
        cluster.start_agent(3)
        assert stranger.result() == [int(NoticeCode.NOT_PERMITTED), "ENOTCONN"]
        cluster.wait_active()


def test_the_asyncio_client_asks_too(cluster: LoopbackCluster) -> None:
    import asyncio

    async def ask() -> list[Any]:
        async with ocfcluster.aio.connect(cluster.socket(1)) as client:
            rights = await client.access("oc.membership")
            return [rights.may("subscribe"), rights.may("publish"), rights.uid]

    assert asyncio.run(ask()) == [True, False, os.getuid()]


def test_a_closed_socket_stays_closed(cluster: LoopbackCluster) -> None:
    os.chmod(cluster.socket(1), 0o660)
    try:
        with pytest.raises(Exception, match="other users may open"):
            Stranger(Context(cluster.socket(1)), lambda: errno.EPERM).result()
    finally:
        os.chmod(cluster.socket(1), 0o666)
