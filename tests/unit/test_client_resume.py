"""The agent's end and its return: nothing is lost, nothing is doubled, everybody gets to know."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ocfcluster
from ocfcluster import errors
from ocfcluster.client.client import Subscription
from ocfcluster.client.controlsocket import dial_path
from ocfcluster.client.events import Event, NoticeCode, Receipt
from ocfcluster.client.session import Stage
from ocfcluster.limits import PRODUCER_RUNS_UNANSWERED
from ocfcluster.wire.run import read_header
from tests.unit.fake_agent import Cluster, FakeAgent


def readable(thing: object) -> bool:
    return bool(select.select([thing], [], [], 0)[0])


def take(events: Subscription, count: int, seconds: float = 5.0) -> list[Event]:
    got: list[Event] = []
    end = time.monotonic() + seconds
    while len(got) < count:
        event = events.get(max(0.0, end - time.monotonic()))
        assert event is not None, f"only {len(got)} of {count} in time: {got}"
        got.append(event)
    return got


def names(events: list[Event]) -> list[object]:
    return [event.notice.name if event.notice else event.data for event in events]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.create("t")
    made.create("u")
    made.create("here", local=True)
    return made


def test_a_restarted_agent_is_resumed(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client, client.subscribe("t") as events:
        descriptor = events.fileno()
        client.publish_many("t", [b"1", b"2"]).wait(2)
        assert names(take(events, 1)) == [b"1"]
        first.kill()
        assert names(take(events, 2)) == [b"2", "agent_lost"]
        assert not readable(events)
        with FakeAgent(path, cluster):
            assert names(take(events, 1)) == ["resumed"]
            assert client.publish("t", b"3").wait(3).seq == 3
            assert names(take(events, 1)) == [b"3"]
            assert events.fileno() == descriptor
            assert events.get(0) is None
            assert not readable(events)


def test_what_was_in_the_socket_is_kept_and_readable_throughout(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client, client.subscribe("t") as events:
        for i in range(10):
            client.publish("t", b"%d" % i).wait(2)
        assert names(take(events, 3)) == [b"0", b"1", b"2"]
        first.kill()
        with FakeAgent(path, cluster):
            assert client.publish("t", b"after").wait(3).seq == 11
            for expected in [b"%d" % i for i in range(3, 10)] + ["agent_lost", "resumed", b"after"]:
                assert readable(events)
                assert names(take(events, 1)) == [expected]
            assert not readable(events)


def test_a_full_socket_at_the_end_of_the_agent(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client, client.subscribe("t") as events:
        client.publish_many("t", [bytes([i]) * 50_000 for i in range(30)]).wait(5)
        first.kill()  # what was queued in the agent is lost with it: the next agent names the gap
        got: list[Event] = []
        with FakeAgent(path, cluster):
            while not got or got[-1].notice is None or got[-1].notice.name != "resumed":
                assert readable(events) or events.get(0) is None
                got += take(events, 1)
        kept = [event for event in got if event.notice is None]
        assert [event.data for event in kept] == [bytes([i]) * 50_000 for i in range(len(kept))]
        gap = next(event.notice for event in got if event.notice and event.notice.code is NoticeCode.GAP)
        assert (gap.topic, gap.first_seq, gap.last_seq) == ("t", len(kept) + 1, 30)


def test_unanswered_publications_are_sent_again_and_delivered_once(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    first.hold_receipts = True
    with ocfcluster.connect(path) as client:
        receipts = [client.publish("t", b"%d" % i) for i in range(300)]
        time.sleep(0.1)  # the agent takes them, and takes their outcome along
        first.kill()
        receipts += [client.publish("t", b"%d" % i) for i in range(300, 400)]
        with FakeAgent(path, cluster):
            client.flush(5)
        assert [receipt.result().seq for receipt in receipts] == list(range(1, 401))
        assert cluster.ev_id == 400


def test_publications_that_the_agent_never_took_are_sent_again(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        client.publish("t", b"open").wait(2)
        first.drop_publish = True
        receipt = client.publish_many("t", [b"x"] * 100_000)
        first.kill()
        with FakeAgent(path, cluster):
            assert receipt.wait(5).seq == 2
        assert cluster.ev_id == 100_001


def test_what_gathered_without_an_agent_goes_out_with_the_next(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    first.hold_receipts = True
    with ocfcluster.connect(path) as client:
        receipts = [client.publish("t", b"unanswered")]
        first.kill()
        time.sleep(0.05)
        receipts += [client.publish("t", b"gathered") for _ in range(5)]
        with FakeAgent(path, cluster):
            end = time.monotonic() + 3
            while not all(receipt.done() for receipt in receipts):  # nobody waits or flushes
                assert time.monotonic() < end
                time.sleep(0.01)


def test_a_forgotten_producer_is_replaced_silently_when_nothing_is_unanswered(
    path: str, cluster: Cluster
) -> None:
    with FakeAgent(path, cluster) as agent, ocfcluster.connect(path) as client:
        client.publish("t", b"1").wait(2)
        agent.forget_producers()
        assert client.publish("t", b"2").wait(2).seq == 2
        assert client.publish("t", b"3").wait(2).seq == 3


def test_a_producer_forgotten_with_publications_unanswered(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        client.publish("t", b"1").wait(2)
        first.hold_receipts = True
        receipt = client.publish("t", b"2")
        time.sleep(0.05)
        first.kill()
        cluster.next_number.clear()
        cluster.outcomes.clear()
        with FakeAgent(path, cluster):
            with pytest.raises(errors.OutcomeUnknown):
                receipt.wait(3)
            assert client.publish("t", b"3").wait(3).seq == 3


def test_another_history_ends_what_belonged_to_the_old_one(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client, client.subscribe("t") as events:
        client.publish("t", b"1").wait(2)
        first.hold_receipts = True
        receipt = client.publish("t", b"2")
        first.kill()
        other = Cluster("history-2")
        other.create("t")
        with FakeAgent(path, other):
            with pytest.raises(errors.OutcomeUnknown):
                receipt.wait(3)
            got = names(take(events, 4)) if first.runs > 1 else names(take(events, 3))
            assert got[-2:] == ["agent_lost", "history_lost"]
            with pytest.raises(errors.NotConnected):
                events.get(1)
            assert readable(events)
            assert client.publish("t", b"new").wait(3).seq == 1


def other_history() -> Cluster:
    """In it topics have other numbers."""
    made = Cluster("history-2")
    for name in ("other", "t"):
        made.create(name)
    return made


def topics_of(cluster: Cluster) -> set[int]:
    return {read_header(run).topic_id for run in cluster.log}


@pytest.mark.parametrize("many", [True, False])
def test_who_waits_for_room_in_a_history_that_ends_publishes_in_the_next(
    path: str, cluster: Cluster, many: bool
) -> None:
    first = FakeAgent(path, cluster)
    first.hold_receipts = True
    other = other_history()
    with ocfcluster.connect(path) as client, client.publisher("t") as publisher:
        receipts: list[Receipt] = []

        def publish() -> None:
            for i in range(300):
                if many:
                    receipts.append(publisher.publish_many([b"%d" % i]))
                else:
                    receipts.append(publisher.publish(b"%d" % i, re_id=i))  # each a run of its own

        thread = threading.Thread(target=publish)
        thread.start()
        end = time.monotonic() + 5
        while len(receipts) < PRODUCER_RUNS_UNANSWERED:
            assert time.monotonic() < end
            time.sleep(0.01)
        first.kill()
        with FakeAgent(path, other):
            thread.join(5)
            publisher.flush(5)
        assert len(receipts) == 300
        assert topics_of(other) == {other.topics["t"].topic_id}


def test_who_waits_for_a_producer_in_a_history_that_ends_publishes_in_the_next(
    path: str, cluster: Cluster
) -> None:
    first = FakeAgent(path, cluster)
    other = other_history()
    with ocfcluster.connect(path) as client:
        client.topic("t")
        client.connection().session.topics["t"] = cluster.topics["t"]
        first.deaf = True
        thread = threading.Thread(target=client.publish, args=("t", b"x"))
        thread.start()
        time.sleep(0.05)
        first.kill()
        with FakeAgent(path, other):
            thread.join(5)
            client.flush(5)
        assert topics_of(other) == {other.topics["t"].topic_id}


def test_local_publications_end_with_the_agents_incarnation(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        client.publish("here", b"1").wait(2)
        first.hold_receipts = True
        receipt = client.publish("here", b"2")
        first.kill()
        cluster.incarnation += 1
        cluster.next_number.clear()
        with FakeAgent(path, cluster):
            with pytest.raises(errors.OutcomeUnknown):
                receipt.wait(3)
            client.publish("here", b"3").wait(3)


def test_requests_go_on_with_the_next_agent(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        first.kill()
        timer = threading.Timer(0.2, lambda: agents.append(FakeAgent(path, cluster)))
        agents: list[FakeAgent] = []
        timer.start()
        assert client.topic("t").name == "t"
        timer.join()
        agents[0].kill()
        with pytest.raises(errors.WouldBlock):
            client.topic("t", timeout=0.05)


def test_a_subscription_that_did_not_start_in_time_is_forgotten(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        first.kill()
        with pytest.raises(errors.WouldBlock):
            client.subscribe("t", timeout=0.05)
        with FakeAgent(path, cluster) as agent:
            client.publish("t", b"1").wait(3)
            assert agent.connections == 1


def test_a_subscription_that_an_agent_began_too_late_is_forgotten(path: str, cluster: Cluster) -> None:
    with FakeAgent(path, cluster) as first, ocfcluster.connect(path) as client:
        client.publish("t", b"1").wait(3)
        first.deaf = True
        with pytest.raises(errors.WouldBlock):
            client.subscribe("t", timeout=0.05)
        first.deaf = False
        client.publish("t", b"2").wait(3)
        subscribers = first.call(lambda: [one for peer in first._peers.values() for one in peer.subscribers])
        assert not subscribers
        first.kill()
        with FakeAgent(path, cluster) as agent:
            client.publish("t", b"3").wait(3)
            assert agent.connections == 1


def test_a_command_that_was_not_answered_in_time_is_given_to_no_other_agent(
    path: str, cluster: Cluster
) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        first.kill()
        end = time.monotonic() + 3
        while (
            client.connection().session.stage is not Stage.OFFLINE
        ):  # else it is asked of the one that is gone
            assert time.monotonic() < end
            time.sleep(0.002)
        with pytest.raises(errors.WouldBlock):
            client.admin.shutdown(timeout=0.05)
        with pytest.raises(errors.WouldBlock):
            client.remove_topic("t", timeout=0.05)
        with FakeAgent(path, cluster) as agent:
            client.publish("t", b"1").wait(3)
            assert not agent.administered


def test_a_topic_removed_meanwhile_ends_the_subscription(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client, client.subscribe("u") as gone, client.subscribe("t") as stays:
        first.kill()
        del cluster.topics["u"]
        with FakeAgent(path, cluster):
            assert names(take(gone, 2)) == ["agent_lost", "topic_removed"]
            with pytest.raises(errors.NotConnected):
                gone.get(0)
            assert names(take(stays, 2)) == ["agent_lost", "resumed"]


def test_a_subscription_goes_on_with_the_topics_that_are_left(path: str, cluster: Cluster) -> None:
    cluster.create("v")
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client, client.subscribe(["t", "u", "v"]) as events:
        first.remove_topic("t")
        assert names(take(events, 1)) == ["topic_removed"]
        first.kill()
        del cluster.topics["u"]
        with FakeAgent(path, cluster):
            got = take(events, 3)
            assert names(got) == ["agent_lost", "topic_removed", "resumed"]
            assert got[1].notice is not None
            assert (got[1].notice.topic, got[1].notice.final) == ("u", False)
            client.publish("v", b"1").wait(3)
            assert names(take(events, 1)) == [b"1"]
        with FakeAgent(path, cluster) as last:
            assert names(take(events, 2)) == ["agent_lost", "resumed"]
            last.remove_topic("v")
            assert names(take(events, 1)) == ["topic_removed"]
            with pytest.raises(errors.NotConnected):
                events.get(0)


def test_more_subscriptions_than_may_be_lent_at_once_are_resumed(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        made = [client.subscribe("t") for _ in range(100)]
        first.kill()
        with FakeAgent(path, cluster):
            for one in made:
                assert names(take(one, 2)) == ["agent_lost", "resumed"]
            client.publish("t", b"all").wait(3)
            for one in made:
                assert names(take(one, 1)) == [b"all"]
        for one in made:
            one.close()


def test_shutdown_with_resume(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client, client.subscribe("t") as events:
        client.publish("t", b"1").wait(2)
        first.shutdown("upgrade")
        got = take(events, 2)
        assert names(got) == [b"1", "shutdown"]
        assert got[1].notice is not None
        assert (got[1].notice.reason, got[1].notice.final) == ("upgrade", False)
        with FakeAgent(path, cluster):
            assert names(take(events, 1)) == ["resumed"]


@pytest.mark.parametrize("orderly", [True, False])
def test_the_end_without_resume(path: str, cluster: Cluster, orderly: bool) -> None:
    agent = FakeAgent(path, cluster)
    with ocfcluster.connect(path, resume=False) as client, client.subscribe("t") as events:
        client.publish("t", b"1").wait(2)
        agent.hold_receipts = True
        unanswered = client.publish("t", b"2")
        waiting: list[object] = []

        def wait() -> None:
            try:
                unanswered.wait()
            except errors.ClientError as error:
                waiting.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        if orderly:
            agent.shutdown()
        else:
            agent.kill()
        thread.join(3)
        assert isinstance(waiting[0], errors.OutcomeUnknown)
        assert names(take(events, 3)) == [b"1", b"2", "shutdown" if orderly else "agent_lost"]
        for _ in range(3):
            assert readable(events)
            with pytest.raises(errors.NotConnected):
                events.get(0)
            with pytest.raises(errors.NotConnected):
                events.get()
        with pytest.raises(errors.NotConnected):
            client.publish("t", b"")
        with pytest.raises(errors.NotConnected):
            client.topics()
        with pytest.raises(errors.NotConnected):
            client.subscribe("t")


def test_callbacks_go_on_after_a_restart_in_order(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    seen: list[object] = []

    def on_event(event: Event) -> None:
        seen.append(event.notice.name if event.notice else event.ev_id)

    with ocfcluster.connect(path) as client:
        client.subscribe("t", on_event=on_event)
        client.subscribe("u", on_event=on_event)
        for i in range(10):
            client.publish("tu"[i % 2], b"").wait(2)
        first.kill()
        with FakeAgent(path, cluster):
            for i in range(10):
                client.publish("tu"[i % 2], b"").wait(3)
            end = time.monotonic() + 10
            while len(seen) < 24 and time.monotonic() < end:
                client.dispatch(0.05)
    assert [one for one in seen if isinstance(one, int)] == list(range(1, 21))
    assert seen[10:14].count("agent_lost") == 2
    assert seen[10:14].count("resumed") == 2


def test_a_child_process_has_nothing_of_its_parents_and_disturbs_nothing(path: str, cluster: Cluster) -> None:
    with FakeAgent(path, cluster), ocfcluster.connect(path) as client, client.subscribe("t") as events:
        client.publish("t", b"1").wait(2)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                try:
                    events.get(0)
                except errors.InvalidArgument:
                    code = 2
                if code == 2 and client.publish("t", b"child").wait(3).seq == 2:
                    code = 3
                    client.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        assert names(take(events, 2)) == [b"1", b"child"]
        assert client.publish("t", b"parent").wait(2).seq == 3
        assert names(take(events, 1)) == [b"parent"]
        assert len(cluster.next_number) >= 1


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """While this lasts nobody in the process can open another one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_without_a_free_descriptor_tries_again(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        connection = client.connection()
        with no_descriptors():
            first.kill()
            tries = set()
            end = time.monotonic() + 10
            while len(tries) < 4:  # each puts off the next one
                tries.add(connection._retry_at)
                assert time.monotonic() < end
                time.sleep(0.002)
            with pytest.raises(errors.AgentUnreachable, match="Too many open files"):
                dial_path(path)
        with FakeAgent(path, cluster):
            assert client.publish("t", b"1").wait(5).seq == 1


def in_a_child(body: Callable[[], int]) -> int:
    """The code that ``body`` gives in a forked child, which prints nothing; 99 where it raises."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            sys.stderr = open(writing, "w", buffering=1, closefd=False)  # noqa: SIM115
            sys.unraisablehook = sys.__unraisablehook__
            code = body()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as output:
        said = output.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert said == b""
    return code


def test_a_child_of_a_child_has_nothing_either(path: str, cluster: Cluster) -> None:
    """A program that becomes a daemon forks twice, and uses none of its clients in between."""
    with FakeAgent(path, cluster), ocfcluster.connect(path) as client, ocfcluster.connect(path) as other:
        mine = {os.readlink(f"/proc/self/fd/{one.connection().control.fileno()}") for one in (client, other)}

        def use() -> int:
            with os.scandir("/proc/self/fd") as entries:
                there = {os.readlink(entry) for entry in entries if os.path.lexists(entry)}
            assert not mine & there
            return client.publish("t", b"").wait(3).seq

        assert in_a_child(lambda: in_a_child(use)) == 1
        assert client.publish("t", b"").wait(2).seq == 2


def test_a_child_that_finds_no_agent_tries_again_when_it_is_used_again(path: str, cluster: Cluster) -> None:
    first = FakeAgent(path, cluster)
    with ocfcluster.connect(path) as client:
        first.kill()

        def use() -> int:
            with pytest.raises(errors.AgentUnreachable):
                client.publish("t", b"")
            with FakeAgent(path, cluster):
                return client.publish("t", b"").wait(3).seq

        assert in_a_child(use) == 1
