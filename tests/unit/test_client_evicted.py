"""The end that an event tells of itself (the node was evicted), and the end of a history, as programs see them."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

import ocfcluster
from ocfcluster import errors
from ocfcluster.client.client import Subscription
from ocfcluster.client.events import Event, NoticeCode
from tests.unit.fake_agent import Cluster, FakeAgent


def take(events: Subscription, count: int) -> list[object]:
    """Names of notices and data of events."""
    got = []
    for _ in range(count):
        event = events.get(5)
        assert event is not None, f"only {got}"
        got.append(event.notice.name if event.notice else event.data)
    return got


def readable(thing: object) -> bool:
    return bool(select.select([thing], [], [], 0)[0])


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.create("t")
    made.create("u")
    return made


def test_without_resume_it_is_the_end_and_nothing_more_is_said(path: str, cluster: Cluster) -> None:
    agent = FakeAgent(path, cluster)
    client = ocfcluster.connect(path, resume=False)
    events, both, other = client.subscribe("t"), client.subscribe(["u", "t"]), client.subscribe("u")
    client.publish("t", b"before").wait(2)
    agent.evict(b"evicted")
    for one in (events, both):
        assert take(one, 2) == [b"before", b"evicted"]
        for timeout in (0, 1):
            with pytest.raises(errors.NotConnected, match="evicted"):
                one.get(timeout)
        assert readable(one)
        assert list(one) == []
    assert take(other, 1) == ["shutdown"]
    client.close()


def test_without_resume_runs_end_too(path: str, cluster: Cluster) -> None:
    agent = FakeAgent(path, cluster)
    with ocfcluster.connect(path, resume=False) as client, client.subscribe("t") as events:
        agent.evict(b"evicted")
        assert [list(run) for run in events.runs()] == [[b"evicted"]]


def test_callbacks_end_with_it(path: str, cluster: Cluster) -> None:
    agent = FakeAgent(path, cluster)
    with ocfcluster.connect(path, resume=False) as client:
        seen: list[Event] = []
        client.subscribe("t", on_event=seen.append)
        agent.evict(b"evicted")
        with pytest.raises(errors.NotConnected, match="evicted"):
            client.dispatch(5)
        assert [(event.data, event.notice) for event in seen] == [(b"evicted", None)]


def test_with_resume_the_next_agent_goes_on(path: str, cluster: Cluster) -> None:
    agent = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client, client.subscribe("t") as events, client.subscribe("u") as other:
        agent.evict(b"evicted")
        assert take(events, 1) == [b"evicted"]
        assert events.get(0.1) is None
        assert take(other, 1) == ["shutdown"]
        with FakeAgent(path, cluster):
            assert take(events, 1) == ["resumed"]
            client.publish("t", b"after").wait(3)
            assert take(events, 1) == [b"after"]


@pytest.mark.parametrize("resume", [False, True])
def test_the_end_of_a_history_says_how_far_it_had_got(path: str, cluster: Cluster, resume: bool) -> None:
    agent = FakeAgent(path, cluster)
    with ocfcluster.connect(path, resume=resume) as client, client.subscribe("t") as events:
        client.publish_many("t", [b"1", b"2", b"3"]).wait(2)
        agent.end_history("it is over")
        assert take(events, 3) == [b"1", b"2", b"3"]
        event = events.get(5)
        assert event is not None
        assert event.notice is not None
        assert (event.notice.code, event.notice.final) == (NoticeCode.HISTORY_LOST, True)
        assert (event.notice.last_seq, event.notice.reason) == (3, "it is over")
        with pytest.raises(errors.NotConnected):
            events.get(0)
