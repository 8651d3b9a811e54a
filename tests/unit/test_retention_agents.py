"""Real agents that keep events: what programs ask for, in every API, and what they are refused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import time
from collections.abc import Iterator

import pytest

import ocfcluster
from ocfcluster import NoticeCode, Position, Retention, TopicSettings, aio, ocf
from ocfcluster.cli import main
from ocfcluster.client.client import Subscription
from ocfcluster.client.events import Event
from ocfcluster.errors import InvalidArgument
from tests.cluster import LoopbackCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LoopbackCluster]:
    with LoopbackCluster(1) as made:
        yield made


@pytest.fixture
def client(cluster: LoopbackCluster) -> Iterator[ocfcluster.Client]:
    with cluster.connect(1) as made:
        yield made


def kept(client: ocfcluster.Client, name: str, scope: str = "global", count: int = 10, **bounds: int) -> str:
    """A topic with ``count`` events, in two runs."""
    client.create_topic(name, scope, settings=TopicSettings(Retention(**bounds)))
    for half in (range(1, count // 2 + 1), range(count // 2 + 1, count + 1)):
        client.publish_many(name, [b"%d" % seq for seq in half]).wait(5)
    return name


def seqs(subscription: Subscription) -> list[object]:
    """Seqs, and the ends of gaps, of what there is."""
    return [what(event) for event in iter(lambda: subscription.get(0.2), None)]


def what(event: Event | None) -> object:
    assert event is not None
    return event.seq if event.notice is None else (event.notice.first_seq, event.notice.last_seq)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_blocking(client: ocfcluster.Client, scope: str) -> None:
    name = kept(client, f"blocking {scope}", scope, events=7)
    info = client.topic(name)
    assert (info.kept_events, info.kept_from) == (7, 4)
    assert info.kept_bytes > 2 * 256
    for how, wanted in (
        ({}, []),
        ({"retained": True}, [4, 5, 6, 7, 8, 9, 10]),
        ({"from_last": 2}, [9, 10]),
        ({"from_last": 0}, []),
        ({"from_seq": 9}, [9, 10]),
        ({"from_seq": 11}, []),
        ({"from_seq": 1}, [(1, 3), 4, 5, 6, 7, 8, 9, 10]),
    ):
        with client.subscribe(name, **how) as subscription:
            assert seqs(subscription) == wanted, how
    client.alter_topic(name, TopicSettings(Retention(events=2)))
    with client.subscribe(name, retained=True) as subscription:
        assert seqs(subscription) == [9, 10]
    client.alter_topic(name, TopicSettings())
    assert client.topic(name).kept_events == 0
    with client.subscribe(name, from_seq=9) as subscription:
        assert seqs(subscription) == [(9, 10)]


def test_several_topics_in_one_order(client: ocfcluster.Client) -> None:
    one, other = kept(client, "one", events=100), kept(client, "other", events=100)
    client.publish(one, b"last").wait(5)
    with client.subscribe([one, other], from_seq={one: 9, other: 10}) as subscription:
        got = [(event.topic, event.seq) for event in iter(lambda: subscription.get(0.2), None)]
    assert got == [(one, 9), (one, 10), (other, 10), (one, 11)]
    with client.subscribe([other, "oc.membership"], retained=True) as subscription:
        first = subscription.get(2)
        assert first is not None
        assert (first.topic, first.retained) == ("oc.membership", True)
        assert seqs(subscription) == list(range(1, 11))


def test_callbacks_begin_with_kept_events(client: ocfcluster.Client) -> None:
    name = kept(client, "callback", events=5)
    seen: list[int] = []
    with client.subscribe(name, lambda event: seen.append(event.seq), retained=True):
        client.publish(name, b"new").wait(5)
        end = time.monotonic() + 10
        while len(seen) < 6 and time.monotonic() < end:
            client.dispatch(0.1)
    assert seen == [6, 7, 8, 9, 10, 11]


def test_the_ocf_api(
    cluster: LoopbackCluster, client: ocfcluster.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCFCLUSTER_SOCKET", cluster.socket(1))
    name = kept(client, "ocf", events=3)
    ed = ocf.oc_ev_subscribe(name, None, from_last=2)
    assert [what(ocf.oc_ev_get_event(ed, 2000)) for _ in range(2)] == [9, 10]
    ocf.oc_ev_unsubscribe(ed)
    with pytest.raises(OSError, match="no event 12 yet") as refused:
        ocf.oc_ev_subscribe(name, None, from_seq=12)
    assert refused.value.errno == errno.EINVAL


def test_asyncio(cluster: LoopbackCluster, client: ocfcluster.Client) -> None:
    name = kept(client, "aio", events=3)

    async def run() -> list[object]:
        async with aio.connect(cluster.socket(1)) as there, there.subscribe(name, from_seq=7) as events:
            return [what(await events.get(2)) for _ in range(4)]

    assert asyncio.run(run()) == [(7, 7), 8, 9, 10]


def test_what_grew_old_in_an_idle_cluster_is_not_given(client: ocfcluster.Client) -> None:
    name = kept(client, "old", seconds=1)
    with client.subscribe(name, retained=True) as subscription:
        assert len(seqs(subscription)) == 10
    time.sleep(1.2)
    with client.subscribe(name, retained=True) as subscription:
        assert seqs(subscription) == []


def test_arguments_that_cannot_be_meant(client: ocfcluster.Client) -> None:
    name = kept(client, "arguments", events=3)
    for how in (
        {"from_seq": 1, "from_last": 1}, {"from_last": 1, "retained": True}, {"from_seq": 0}, {"from_seq": -1},
        {"from_seq": "1"}, {"from_seq": True}, {"from_last": -1}, {"from_last": 1.5}, {"retained": 1},
        {"from_seq": {"another": 1}}, {"from_seq": Position("", 0, 1)}, {"from_seq": Position("x", 17, 0)},
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            client.subscribe(name, **how)
    with pytest.raises(InvalidArgument, match="several topics"):
        client.subscribe([name, "oc.membership"], from_seq=1)


def test_a_position_of_another_history_is_a_gap(client: ocfcluster.Client) -> None:
    name = kept(client, "history", events=3)
    with client.subscribe(name, from_last=1) as subscription:
        event = subscription.get(2)
        assert event is not None
        position = event.position
    with client.subscribe(name, from_seq=position.next) as subscription:
        assert seqs(subscription) == []
    with client.subscribe(name, from_seq=position._replace(cluster_id="f" * 32)) as subscription:
        first = subscription.get(2)
        assert first is not None
        assert first.notice is not None
        assert (first.notice.first_seq, first.notice.last_seq) == (10, 0)
        assert "history" in first.notice.reason
        assert seqs(subscription) == [(1, 7), 8, 9, 10]


def test_the_command_line(
    cluster: LoopbackCluster,
    client: ocfcluster.Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OCFCLUSTER_SOCKET", cluster.socket(1))

    def command(*arguments: str) -> str:
        with contextlib.suppress(SystemExit):
            main(list(arguments))
        return capsys.readouterr().out

    command("topic", "create", "cli", "--retain-events", "4")
    client.publish_many("cli", [b"%d" % seq for seq in range(1, 11)]).wait(5)
    assert "4 events from seq 7 on" in command("topic", "show", "cli")
    command("topic", "alter", "cli", "--retain-events", "3", "--retain-seconds", "60")
    shown = json.loads(command("topic", "show", "cli", "--json"))
    assert shown["retention"] == {"events": 3, "bytes": 0, "seconds": 60}
    assert (shown["kept"]["events"], shown["kept"]["first_seq"]) == (3, 8)
    assert command("subscribe", "cli", "--retained", "--count", "3", "--raw").split() == ["8", "9", "10"]
    assert command("subscribe", "cli", "--from-last", "1", "--count", "1", "--raw").split() == ["10"]
    gap, event = command("subscribe", "cli", "--from-seq", "2", "--count", "1", "--json").splitlines()
    assert json.loads(gap)["last_seq"] == 7
    assert json.loads(event)["seq"] == 8
    client.create_topic("cli")  # without settings any are as good
    with pytest.raises(ocfcluster.errors.TopicExists):
        client.create_topic("cli", settings=TopicSettings(Retention(events=9)))


def test_local_events_of_the_next_agent_are_not_taken_for_known_ones() -> None:
    """It counts them from 1 again: whoever comes back gets them from there, or is told that it cannot."""
    with LoopbackCluster(3) as cluster, cluster.connect(1, resume=True) as client:
        names = [
            kept(client, "keeps", "local", count=2, events=10),
            kept(client, "keeps none", "local", count=2),
        ]
        subscriptions = [client.subscribe(name) for name in names]
        for name, subscription in zip(names, subscriptions, strict=True):
            client.publish(name, b"3").wait(5)
            assert what(subscription.get(2)) == 3
        cluster.stop_agent(1, kill=True)
        cluster.start_agent(1)
        cluster.wait_active()
        with cluster.connect(1) as other:
            for name in names:
                other.publish(name, b"of the next agent").wait(20)
        firsts = []
        for subscription in subscriptions:
            event = subscription.get(20)
            while event is not None and event.notice is not None and event.notice.code is not NoticeCode.GAP:
                event = subscription.get(20)
            firsts.append(what(event))
        assert firsts[0] == 1
        assert firsts[1] in (1, (1, 1))  # it came before the subscription was there again, or after
