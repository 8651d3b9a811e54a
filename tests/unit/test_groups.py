"""Groups from the program's side, against live agents on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ocfcluster
from ocfcluster import ocf
from ocfcluster.client import Client, Event, Subscription, open_event
from ocfcluster.components.groups import GroupCode, GroupEvent, LeaveReason
from ocfcluster.errors import InvalidArgument, Malformed, NoSubscription, NoSuchMember
from ocfcluster.wire.group import message
from tests.cluster import LoopbackCluster
from tests.unit.fake_node import Bench, RawClient, bench, read_all

NAMES = (f"g{number}" for number in range(1000))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LoopbackCluster]:
    with LoopbackCluster(3) as started:
        yield started


@pytest.fixture
def name() -> str:
    return next(NAMES)


def take(events: Subscription, count: int = 1) -> list[GroupEvent]:
    return [open_event(event) for event in take_events(events, count)]


def take_events(events: Subscription, count: int = 1) -> list[Event]:
    found = []
    for _ in range(count):
        event = events.get(timeout=10)
        assert event is not None, f"only {len(found)} of {count} events came"
        assert event.notice is None, event.notice
        found.append(event)
    return found


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everybody_sees_the_same_members_in_the_same_order(cluster: LoopbackCluster, name: str):
    with cluster.connect(1) as one, cluster.connect(2) as two, cluster.connect(3) as three:
        observers = [client.subscribe(f"group:{name}") for client in (one, two, three)]
        first = one.group(name).join()
        second = two.group(f"group:{name}").join()
        first.cast(b"hello").wait(10)
        one.group(name).join()  # once more changes nothing
        second.leave()
        second.leave()
        told = [take_events(observer, 5) for observer in observers]
        for observer in observers:
            assert observer.get(timeout=0.1) is None
            observer.close()
        opened = [open_event(event) for event in told[0]]
        assert [one.code.name for one in opened] == ["MEMBERS", "JOIN", "JOIN", "CAST", "LEAVE"]
        assert opened[0].members == ()
        assert [one.member for one in opened[2].members] == [first.member, opened[2].member]
        assert (opened[3].member, opened[3].data) == (first.member, b"hello")
        assert (opened[4].reason, opened[4].member) == (LeaveReason.LEFT, opened[2].member)
        assert [event.ev_id for event in told[0]][1:3] == [first.member, opened[2].member]
        for other in told[1:]:
            assert [(event.seq, event.ev_id, event.data) for event in other][1:] == [
                (event.seq, event.ev_id, event.data) for event in told[0]
            ][1:]
        assert [event.seq for event in told[0]] == [0, 1, 2, 3, 4]
        assert told[0][0].local
        assert not told[0][1].local
        assert three.group(name).members() == list(opened[4].members)
        (listed,) = [one for one in three.groups() if one.name == name]
        assert (listed.members, listed.last_seq) == (1, 4)


def test_what_is_for_one_member_is_for_nobody_else(cluster: LoopbackCluster, name: str):
    with cluster.connect(1) as one, cluster.connect(2) as two, cluster.connect(2) as beside:
        sender, receiver = one.group(name).join(), two.group(name).join()
        subscriptions = [client.subscribe(f"group:{name}") for client in (one, two, beside)]
        sender.send(receiver.member, b"secret", properties={"k": "v"}).wait(10)
        (_, mine), (_, theirs), (_, others) = (take_events(one, 2) for one in subscriptions)
        assert (open_event(theirs).data, open_event(theirs).withheld) == (b"secret", False)
        for event in (mine, others):
            opened = open_event(event)
            assert b"secret" not in event.data
            assert (opened.code, opened.withheld, opened.data) == (GroupCode.SEND, True, b"")
            assert (opened.member, opened.to) == (sender.member, receiver.member)
            assert (event.seq, event.ev_id) == (theirs.seq, theirs.ev_id)
            with pytest.raises(InvalidArgument):
                sender.reply(event, b"?")
        assert theirs.properties["k"] == "v"
        answer = receiver.reply(theirs, b"answered").wait(10)
        (reply,) = take_events(subscriptions[0])
        assert (reply.ev_id, reply.re_id, open_event(reply).data) == (answer.ev_id, theirs.ev_id, b"answered")
        assert take(subscriptions[2])[0].withheld
        receiver.leave()
        with pytest.raises(NoSuchMember) as refused:
            sender.send(theirs.ev_id, b"x").wait(10)
        assert refused.value.errno == errno.ESRCH
        for subscription in subscriptions:
            subscription.close()


def test_a_request_ends_with_the_last_possible_reply(cluster: LoopbackCluster, name: str):
    with cluster.connect(1) as one, cluster.connect(2) as two, cluster.connect(3) as three:
        asker = one.group(name).join()
        replies, leaves = two.group(name).join(), three.group(name).join()
        answers = two.subscribe(f"group:{name}", lambda event: _serve(replies, event))
        departs = three.subscribe(f"group:{name}", lambda event: _depart(leaves, event))
        with _dispatching(two), _dispatching(three):
            began = time.monotonic()
            result = asker.request(b"who?", timeout=20)
            assert time.monotonic() - began < 10
            assert result.complete
            assert [(one.data, one.event.re_id) for one in result.replies] == [(b"me", result.ev_id)]
            assert len(result.left) == 1
            assert len(result.members) == 2
            assert asker.request(b"quiet", timeout=0.3).missing == tuple(
                one for one in asker.members() if one.member == replies.member
            )
            answers.close()
            departs.close()


def _serve(group: Any, event: Event) -> None:
    if event.notice is None and open_event(event).data == b"who?":
        group.reply(event, b"me")


def _depart(group: Any, event: Event) -> None:
    if event.notice is None and open_event(event).data == b"who?":
        group.leave()


class _dispatching:  # noqa: N801 - reads as what it does
    def __init__(self, client: Client) -> None:
        import threading

        self._thread = threading.Thread(target=self._run, args=(client,), daemon=True)

    @staticmethod
    def _run(client: Client) -> None:
        with contextlib.suppress(NoSubscription):  # they are closed
            client.dispatch()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)


MEMBER = """
import sys, ocfcluster
client = ocfcluster.connect(sys.argv[1])
group = client.group(sys.argv[2]).join()
for number in range(200):
    group.cast(b"%d" % number)
print(group.member, flush=True)
sys.stdin.read()
"""


def test_a_process_that_dies_leaves_behind_what_it_said(cluster: LoopbackCluster, name: str):
    with cluster.connect(3) as client, client.subscribe(f"group:{name}") as events:
        process = subprocess.Popen(
            [sys.executable, "-c", MEMBER, cluster.socket(2), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        member = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        told = take(events, 2)
        assert told[1].joined[0].pid == process.pid
        while told[-1].code is not GroupCode.LEAVE:
            told += take(events)
        assert (told[-1].reason, told[-1].member) == (LeaveReason.DIED, member)
        assert [one.data for one in told[2:-1]] == [b"%d" % number for number in range(len(told) - 3)]
        assert events.get(timeout=0.2) is None
        assert client.group(name).members() == []
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.close()


def test_a_client_that_closes_leaves_in_order(cluster: LoopbackCluster, name: str):
    with cluster.connect(1) as observer, observer.subscribe(f"group:{name}") as events:
        with cluster.connect(2) as client:
            client.group(name).join().cast(b"last")
        told = take(events, 4)
        assert [one.code.name for one in told] == ["MEMBERS", "JOIN", "CAST", "LEAVE"]
        assert told[-1].reason == LeaveReason.LEFT


def test_a_restart_of_the_agent_is_a_leave_and_a_join(name: str):
    with (
        LoopbackCluster(3) as own,
        own.connect(1) as observer,
        observer.subscribe(f"group:{name}") as events,
        ocfcluster.connect(own.socket(3), name="member") as client,
    ):
        group = client.group(name).join()
        before = group.member
        own.stop_agent(3, kill=True)
        until(lambda: not group.member)
        own.start_agent(3)
        assert group.cast(b"after").wait(20)
        assert group.member not in (0, before)
        told = take(events, 5)
        assert [one.code.name for one in told] == ["MEMBERS", "JOIN", "LEAVE", "JOIN", "CAST"]
        assert told[2].reason == LeaveReason.NODE_LEFT
        assert (told[1].member, told[3].member, told[4].member) == (before, group.member, group.member)


def test_a_broken_connection_is_a_leave_and_a_join(cluster: LoopbackCluster, name: str):
    with (
        cluster.connect(1) as observer,
        observer.subscribe(f"group:{name}") as events,
        ocfcluster.connect(cluster.socket(2)) as client,
    ):
        group = client.group(name).join()
        own = group.subscribe()
        before = group.member
        connection = client.connection()
        with connection.lock:
            assert connection.control is not None
            connection.control.shutdown()
        told = take(events, 4)
        assert [one.code.name for one in told] == ["MEMBERS", "JOIN", "LEAVE", "JOIN"]
        assert told[2].reason == LeaveReason.DIED
        until(lambda: group.member == told[3].member)
        assert group.member != before
        names = []
        while "resumed" not in names:
            event = own.get(timeout=10)
            assert event is not None
            names.append(event.notice.name if event.notice else open_event(event).code.name)
        assert names[0] == "MEMBERS"
        assert "agent_lost" in names
        own.close()


def test_what_programs_may_not_say(cluster: LoopbackCluster, name: str):
    with cluster.connect(1) as client, client.subscribe(f"group:{name}") as events:
        group = client.group(name)
        for call in (
            lambda: group.send(1, b"x"),
            lambda: client.group(""),
            lambda: client.group("x" * 300),
            lambda: client.group(5),  # type: ignore[arg-type]
            lambda: group.cast(b"x", properties={"oc.to": "1"}),
            lambda: group.cast("text"),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidArgument):
                call()
        take(events)
        client.publish(f"group:{name}", GroupEvent(GroupCode.LEAVE, 5).encode()).wait(10)
        client.publish(f"group:{name}", b"whatever").wait(10)
        for event in take_events(events, 2):
            with pytest.raises(Malformed):
                open_event(event)
        with pytest.raises(InvalidArgument):
            group.reply(event, b"x")
        with group, pytest.raises(InvalidArgument):
            group.send(0, b"x")


def test_asyncio(cluster: LoopbackCluster, name: str):
    async def main() -> None:
        async with (
            ocfcluster.aio.connect(cluster.socket(1)) as one,
            ocfcluster.aio.connect(cluster.socket(2)) as two,
        ):
            asker = await one.group(name).join(10)

            async def serve() -> None:
                async with two.group(name) as group, group.subscribe() as events:
                    ready.set()
                    async for event in events:
                        opened = open_event(event)
                        if opened.code is GroupCode.CAST:
                            await group.reply(event, b"re " + opened.data)
                        if opened.code is GroupCode.SEND and not opened.withheld:
                            await group.reply(event, b"bye")
                            return

            ready = asyncio.Event()
            server = asyncio.create_task(serve())
            await ready.wait()
            result = await asker.request(b"q", 10)
            assert [one.data for one in result.replies] == [b"re q"]
            assert result.complete
            events = await asker.subscribe()
            other = next(one for one in await asker.members(10) if one.member != asker.member)
            await (await asker.send(other, b"go"))
            await server
            codes = []
            while "LEAVE" not in codes:
                event = await events.get(10)
                assert event is not None
                codes.append(open_event(event).code.name)
            assert codes == ["MEMBERS", "SEND", "REPLY", "LEAVE"]
            assert asker.member
            await asker.leave(10)
            assert not asker.member
            assert name in [one.name for one in await one.groups()]
            with pytest.raises(InvalidArgument):
                await asker.send(other, b"x")

    asyncio.run(main())


def test_ocf_functions(cluster: LoopbackCluster, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OCFCLUSTER_SOCKET", cluster.socket(1))
    monkeypatch.setattr(ocf, "_client", None)
    ed = ocf.oc_ev_subscribe(f"group:{name}", None)
    member = ocf.oc_gs_join(name)
    ocf.oc_gs_cast(name, b"x").wait(10)
    codes = []
    for _ in range(3):
        event = ocf.oc_ev_get_event(ed, 10_000)
        assert event is not None
        codes.append(int.from_bytes(event.data[:4], "little"))
        ocf.oc_ev_event_done(event)
    assert codes == [ocf.OC_EV_GS_MEMBERS, ocf.OC_EV_GS_JOIN, ocf.OC_EV_GS_CAST]
    assert ocf.OC_EV_GET_CLASS(codes[1]) == ocf.OC_EV_GROUP_CLASS == 3
    assert [ocf.OC_EV_GET_EVENT(code) for code in (ocf.OC_EV_GS_JOIN, ocf.OC_EV_GS_REPLY)] == [1, 4]
    ocf.oc_gs_reply(event, b"y").wait(10)
    ocf.oc_gs_send(name, member, b"z").wait(10)
    with pytest.raises(OSError, match="member") as refused:
        ocf.oc_gs_send(name, member + 1, b"z").wait(10)
    assert refused.value.errno == errno.ESRCH
    ocf.oc_gs_leave(name)
    ocf.oc_ev_unsubscribe(ed)
    assert ocf._client is not None
    ocf._client.close()


def run_command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ocfcluster", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_commands(cluster: LoopbackCluster, name: str):
    socket = ("--socket", cluster.socket(2))
    joined = subprocess.Popen(
        [sys.executable, "-m", "ocfcluster", "group", "join", name, "--json", "--socket", cluster.socket(1)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert joined.stderr is not None
    assert joined.stdout is not None
    assert "as member" in joined.stderr.readline()
    assert "nobody" in run_command("group", "members", "nobody here", *socket).stderr
    (member,) = json.loads(run_command("group", "members", name, "--json", *socket).stdout)
    assert (member["node_id"], member["pid"]) == (1, joined.pid)
    assert str(member["member"]) in run_command("group", "members", name, *socket).stdout
    listed = json.loads(run_command("group", "list", "--json", *socket).stdout)
    assert {"group": name, "members": 1}.items() <= next(
        one for one in listed if one["group"] == name
    ).items()
    assert name in run_command("group", "list", *socket).stdout
    assert "under seq" in run_command("group", "cast", name, "hello", *socket).stderr
    missing = json.loads(
        run_command("group", "cast", name, "?", "--ask", "0.2", "--json", *socket, code=1).stdout
    )
    assert [one["member"] for one in missing["missing"]] == [member["member"]]
    assert "no reply" in run_command("group", "cast", name, "?", "--ask", "0.2", *socket, code=1).stderr
    lines = [json.loads(joined.stdout.readline()) for _ in range(3)]
    assert [line["group"]["event"] for line in lines] == ["members", "join", "cast"]
    assert lines[2]["group"]["data"] == "hello"
    watch = subprocess.Popen(
        [sys.executable, "-m", "ocfcluster", "group", "members", name, "--watch", *socket],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout is not None
    assert f"members {member['member']}" in watch.stdout.readline()
    joined.send_signal(signal.SIGINT)
    joined.communicate(timeout=30)
    assert "leave (left)" in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=30)


def test_who_is_told_to_end_ends_though_nothing_is_ordered(name: str):
    with LoopbackCluster(2) as pair:
        joined = subprocess.Popen(
            [sys.executable, "-m", "ocfcluster", "group", "join", name, "--socket", pair.socket(2)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert joined.stderr is not None
        assert "as member" in joined.stderr.readline()
        pair.agent(1).send_signal(signal.SIGSTOP)
        try:
            until(lambda: not pair.status(2)["primary"])
            joined.send_signal(signal.SIGINT)
            joined.communicate(timeout=15)
        finally:
            joined.kill()
            pair.agent(1).send_signal(signal.SIGCONT)


GUIDE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_guides_example(
    cluster: LoopbackCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OCFCLUSTER_SOCKET", cluster.socket(3))
    examples = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (example,) = [text for text in examples if "client.group(" in text]
    exec(compile(example, str(GUIDE), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines() == ["MEMBERS [3] b''", "CAST [] b'hello'"]


# --- the agent by itself ----------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def records(events: Any, agent: Bench) -> list[tuple[Any, Any]]:
    agent.agent.settle(0)
    return [record for _, frame in read_all(events, agent.step) for record in frame]


def test_members_are_told_again_where_a_subscription_goes_on(agent: Bench):
    from ocfcluster.wire.frames import Answer, GroupName, Position, RecordFlags, Request, Subscribe
    from ocfcluster.wire.run import check_run, run_events

    client: RawClient = agent.client()
    kind, joined = client.call(Request.GROUP_JOIN, GroupName("group:a"))
    assert (kind, joined.members) == (Answer.GROUP, [(joined.member, 1, joined.members[0][2])])
    cluster_id = agent.node.cluster_id
    position = Position("group:a", joined.topic_id, joined.last_seq - 1)
    kind, answer, events = client.lend(Subscribe(1, ["group:a"], False, cluster_id, [position]))
    assert (answer.starts[0].next_seq, answer.starts[0].gap_from) == (joined.last_seq + 1, joined.last_seq)
    ((fields, run),) = records(events, agent)
    assert fields[2] == RecordFlags.LOCAL | RecordFlags.RETAINED
    assert fields[8] == joined.last_seq
    (data,) = run_events(run, check_run(run))
    assert [one.member for one in GroupEvent.decode(data).members] == [joined.member]


def test_a_group_that_is_forgotten_ends_its_subscriptions(agent: Bench, monkeypatch: pytest.MonkeyPatch):
    from ocfcluster import limits
    from ocfcluster.wire.frames import Answer, GroupName, Notice, NoticeCode, Request, Subscribe, TopicResolve

    monkeypatch.setattr(limits, "GROUPS", 1)
    client = agent.client()
    events = client.subscribe(1, "group:a")
    records(events, agent)
    assert client.call(Request.TOPIC_RESOLVE, TopicResolve("group:b"))[0] == Answer.TOPIC
    ((_, notice),) = records(events, agent)
    assert isinstance(notice, Notice)
    assert (notice.code, notice.topic, notice.final) == (NoticeCode.TOPIC_REMOVED, "group:a", True)
    client.call(Request.GROUP_JOIN, GroupName("group:b"))
    for kind, body in (
        (Request.TOPIC_RESOLVE, TopicResolve("group:c")), (Request.GROUP_JOIN, GroupName("group:c")),
    ):  # fmt: skip
        answer, error = client.call(kind, body)
        assert (answer, error.errno) == (Answer.ERROR, errno.ENOMEM)
    answer, error, _ = client.lend(Subscribe(2, ["group:c"], False))
    assert (answer, error.errno) == (Answer.ERROR, errno.ENOMEM)


def test_what_is_no_group_is_refused(agent: Bench):
    from ocfcluster.wire.frames import Answer, GroupName, Request, Subscribe

    client = agent.client()
    for kind in (Request.GROUP_JOIN, Request.GROUP_LEAVE, Request.GROUP_SHOW):
        for topic in ("group:", "a", "", "group:\0", "group:" + "x" * 250):
            answer, error = client.call(kind, GroupName(topic))
            assert (answer, error.errno) == (Answer.ERROR, errno.EINVAL)
    answer, error = client.call(Request.GROUP_LEAVE, GroupName("group:a"))
    assert (answer, error.errno) == (Answer.ERROR, errno.EINVAL)
    answer, error, _ = client.lend(Subscribe(1, ["group:"], False))
    assert (answer, error.errno) == (Answer.ERROR, errno.EINVAL)
    answer, group = client.call(Request.GROUP_SHOW, GroupName("group:a"))
    assert (answer, group.topic_id, group.members) == (Answer.GROUP, 0, [])


def test_a_local_producer_cannot_publish_to_a_group(agent: Bench):
    from ocfcluster.wire.frames import Request, TopicResolve

    client = agent.client()
    topic_id = client.call(Request.TOPIC_RESOLVE, TopicResolve("group:a"))[1].topic_id
    producer = client.open_producer(local=True)
    client.publish(topic_id, producer, 1, message(GroupCode.CAST, 0, b"x"))
    client.answers()
    assert [receipt[3] for receipt in client.receipts] == [errno.EINVAL]


def test_the_end_of_a_connection_comes_behind_what_it_said(agent: Bench):
    from ocfcluster.wire.frames import GroupName, Request

    observer, client = agent.client(), agent.client()
    events = observer.subscribe(1, "group:a")
    joined = client.call(Request.GROUP_JOIN, GroupName("group:a"))[1]
    producer = client.open_producer()
    agent.node.space = 0
    for number in range(1, 4):
        client.publish(joined.topic_id, producer, number, message(GroupCode.CAST, joined.member, b"x"))
    agent.step()
    client.socket.close()
    agent.step()
    assert len(records(events, agent)) == 2  # MEMBERS and JOIN
    agent.node.space = 1 << 20
    agent.agent.settle(0)
    assert len(records(events, agent)) == 4
    assert agent.node.groups.by_name["group:a"].members == {}
