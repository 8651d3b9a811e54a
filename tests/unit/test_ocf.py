"""The OCF API's obligations, against the fake agent."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocfcluster import ocf
from ocfcluster.client.events import Event
from ocfcluster.client.session import Stage
from ocfcluster.errors import NotConnected
from ocfcluster.ocf import (
    oc_ev_event_done,
    oc_ev_get_event,
    oc_ev_get_fd,
    oc_ev_get_version,
    oc_ev_handle_event,
    oc_ev_handle_events,
    oc_ev_is_my_nodeid,
    oc_ev_publish,
    oc_ev_set_on_event,
    oc_ev_subscribe,
    oc_ev_topic_create,
    oc_ev_topic_list,
    oc_ev_topic_remove,
    oc_ev_unsubscribe,
)
from tests.unit.fake_agent import Cluster, FakeAgent


def readable(ed: int) -> bool:
    return bool(select.select([oc_ev_get_fd(ed)], [], [], 0)[0])


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    cluster = Cluster()
    cluster.create("t")
    cluster.create("u")
    path = str(tmp_path / "agent.sock")
    monkeypatch.setenv("OCFCLUSTER_SOCKET", path)
    with FakeAgent(path, cluster) as fake:
        yield fake
        for ed in list(ocf._descriptors):
            oc_ev_unsubscribe(ed)
        if ocf._client is not None:
            ocf._client.close()
        ocf._client = None


def fill_the_window() -> None:
    for _ in range(300):
        oc_ev_publish("t", bytes(65_000), timeout=50)


def refused(code: int, call, *arguments) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OSError, match=r".") as caught:
        call(*arguments)
    assert caught.value.errno == code, caught.value


def test_a1_descriptors_are_independent(agent: FakeAgent) -> None:
    first, second, other = oc_ev_subscribe("t"), oc_ev_subscribe("t"), oc_ev_subscribe("u", oc_ev_event_done)
    assert len({first, second, other}) == 3
    oc_ev_publish("t", b"x").wait(2)
    for ed in (first, second):
        event = oc_ev_get_event(ed, 1000)
        assert event is not None
        assert event.data == b"x"
        oc_ev_event_done(event)


def test_a2_unknown_topics(agent: FakeAgent) -> None:
    for name in ("nowhere", "", "x" * 256, "a\0b"):
        refused(errno.EINVAL, oc_ev_subscribe, name)
    assert "nowhere" not in [topic.name for topic in oc_ev_topic_list()]


def test_a3_no_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCFCLUSTER_SOCKET", str(tmp_path / "no.sock"))
    monkeypatch.setattr(ocf, "_client", None)
    refused(errno.ECONNREFUSED, oc_ev_subscribe, "t")


def test_a4_get_event_on_a_callback_descriptor(agent: FakeAgent) -> None:
    refused(errno.EEXIST, oc_ev_get_event, oc_ev_subscribe("t", oc_ev_event_done), 0)


def test_a5_handle_events_ends_when_no_callback_is_left(agent: FakeAgent) -> None:
    refused(errno.ENOENT, oc_ev_handle_events)
    pull = oc_ev_subscribe("t")
    refused(errno.ENOENT, oc_ev_handle_events)
    seen: list[tuple[str, int]] = []

    def on_event(event: Event) -> None:
        seen.append((event.topic, event.ev_id))
        oc_ev_event_done(event)
        if event.data == b"end":
            oc_ev_unsubscribe(eds[event.topic])

    eds = {name: oc_ev_subscribe(name, on_event) for name in ("t", "u")}
    for i in range(20):
        oc_ev_publish("tu"[i % 2], b"")
    oc_ev_publish("t", b"end")
    oc_ev_publish("u", b"end").wait(2)
    assert oc_ev_handle_events() == 0
    assert [ev_id for _, ev_id in seen] == list(range(1, 23))
    event = oc_ev_get_event(pull, 0)
    assert event is not None


def test_a6_timeouts(agent: FakeAgent) -> None:
    ed = oc_ev_subscribe("t")
    assert oc_ev_get_event(ed, 0) is None
    began = time.monotonic()
    assert oc_ev_get_event(ed, 30) is None
    assert 0.025 < time.monotonic() - began < 1
    threading.Timer(0.05, lambda: oc_ev_publish("t", b"late")).start()
    event = oc_ev_get_event(ed, -1)
    assert event is not None
    assert event.data == b"late"


def test_a7_the_descriptor_of_a_callback_waits_for_event_done(agent: FakeAgent) -> None:
    held: list[Event] = []
    ed = oc_ev_subscribe("t", held.append)
    descriptor = oc_ev_get_fd(ed)
    assert not readable(ed)
    oc_ev_publish("t", b"1")
    oc_ev_publish("t", b"2").wait(2)
    assert readable(ed)
    oc_ev_handle_event(ed)
    assert [event.data for event in held] == [b"1"]
    assert readable(ed)
    oc_ev_handle_event(ed)  # A9: not before the first is done
    assert len(held) == 1
    oc_ev_event_done(held[0])
    oc_ev_handle_event(ed)
    assert [event.data for event in held] == [b"1", b"2"]
    assert not readable(ed)
    assert oc_ev_get_fd(ed) == descriptor
    deadline = time.monotonic() + 2
    while len(agent.out_of_line) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [out for _, out in agent.out_of_line] == [True, False, True]


def test_a8_event_done(agent: FakeAgent) -> None:
    ed = oc_ev_subscribe("t")
    oc_ev_publish("t", b"1").wait(2)
    event = oc_ev_get_event(ed, 1000)
    assert event is not None
    oc_ev_event_done(event)
    refused(errno.EINVAL, oc_ev_event_done, event)
    refused(errno.EINVAL, oc_ev_event_done, object())
    refused(errno.EINVAL, oc_ev_event_done, None)


def test_a9_the_event_of_a_callback_that_raised_is_not_done(agent: FakeAgent) -> None:
    held: list[Event] = []

    def bad(event: Event) -> None:
        held.append(event)
        raise ValueError("a mistake of the program")

    ed = oc_ev_subscribe("t", bad)
    for data in (b"1", b"2"):
        oc_ev_publish("t", data).wait(2)
    with pytest.raises(ValueError, match="a mistake"):
        oc_ev_handle_event(ed)
    oc_ev_topic_list()  # answered behind what the agent was told before
    assert [out for _, out in agent.out_of_line] == [True]
    oc_ev_handle_event(ed)
    assert [event.data for event in held] == [b"1"]
    oc_ev_event_done(held[0])
    with pytest.raises(ValueError, match="a mistake"):
        oc_ev_handle_event(ed)
    assert [event.data for event in held] == [b"1", b"2"]
    oc_ev_topic_list()
    assert [out for _, out in agent.out_of_line] == [True, False, True]


def test_a9_event_done_from_another_thread_lets_the_next_come(agent: FakeAgent) -> None:
    seen: list[bytes] = []

    def on_event(event: Event) -> None:
        seen.append(event.data)
        if event.data == b"3":
            oc_ev_event_done(event)
            oc_ev_unsubscribe(ed)
        else:
            threading.Timer(0.03, oc_ev_event_done, [event]).start()

    ed = oc_ev_subscribe("t", on_event)
    for data in (b"1", b"2", b"3"):
        oc_ev_publish("t", data)
    oc_ev_handle_events()
    assert seen == [b"1", b"2", b"3"]


def test_a9_one_descriptor_that_waits_holds_up_no_other(agent: FakeAgent) -> None:
    held: list[Event] = []
    seen: list[bytes] = []

    def on_event(event: Event) -> None:
        seen.append(event.data)
        oc_ev_event_done(event)

    oc_ev_subscribe("t", held.append)
    other = oc_ev_subscribe("u", on_event)
    for i in range(10):
        oc_ev_publish("tu"[i % 2], b"%d" % i)
    oc_ev_publish("u", b"end").wait(2)
    oc_ev_handle_event(other)
    assert len(held) == 1
    assert seen == [b"1", b"3", b"5", b"7", b"9", b"end"]


def test_a9_several_pull_events_may_be_outstanding(agent: FakeAgent) -> None:
    ed = oc_ev_subscribe("t")
    for i in range(3):
        oc_ev_publish("t", b"%d" % i)
    events = [oc_ev_get_event(ed, 1000) for _ in range(3)]
    oc_ev_unsubscribe(ed)
    for i, event in reversed(list(enumerate(events))):
        assert event is not None
        assert event.data == b"%d" % i  # A10: valid until done
        oc_ev_event_done(event)


def test_a10_unsubscribe(agent: FakeAgent) -> None:
    ed = oc_ev_subscribe("t")
    oc_ev_publish("t", b"dropped").wait(2)
    oc_ev_unsubscribe(ed)
    for call in (oc_ev_unsubscribe, oc_ev_get_fd, oc_ev_get_event, oc_ev_handle_event):
        refused(errno.EINVAL, call, ed)
    refused(errno.EINVAL, oc_ev_is_my_nodeid, ed, 1)
    refused(errno.EINVAL, oc_ev_set_on_event, ed, print)
    refused(errno.EINVAL, oc_ev_get_fd, -1)


def test_a11_version(agent: FakeAgent) -> None:
    assert oc_ev_get_version().agent is None
    oc_ev_subscribe("t")
    version = oc_ev_get_version()
    assert (version.api, version.agent) == ("0.4", "fake 1")


def test_a12_a_child_has_no_descriptors(agent: FakeAgent) -> None:
    ed = oc_ev_subscribe("t")
    oc_ev_publish("t", b"1").wait(2)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            try:
                oc_ev_get_event(ed, 0)
            except OSError as error:
                code = 2 if error.errno == errno.EINVAL else 1
            oc_ev_publish("t", b"child").wait(3)
            own = oc_ev_subscribe("t")
            oc_ev_publish("t", b"child 2").wait(3)
            event = oc_ev_get_event(own, 3000)
            if code == 2 and event is not None and event.data == b"child 2":
                code = 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    got = [oc_ev_get_event(ed, 1000) for _ in range(3)]
    assert [event.data for event in got if event] == [b"1", b"child", b"child 2"]


@pytest.mark.parametrize("orderly", [True, False])
def test_a13_the_agents_end(agent: FakeAgent, orderly: bool) -> None:
    notices: list[str] = []

    def on_event(event: Event) -> None:
        notices.append(event.notice.name if event.notice else "event")
        oc_ev_event_done(event)

    pull, callback = oc_ev_subscribe("t"), oc_ev_subscribe("u", on_event)
    fd = oc_ev_get_fd(pull)
    timer = threading.Timer(0.05, agent.shutdown if orderly else agent.kill)
    timer.start()
    event = oc_ev_get_event(pull, -1)
    assert event is not None
    assert event.notice is not None
    assert event.notice.final
    oc_ev_event_done(event)
    refused(errno.ENOTCONN, oc_ev_handle_events)
    assert notices == ["shutdown" if orderly else "agent_lost"] == [event.notice.name]
    for _ in range(2):
        refused(errno.ENOTCONN, oc_ev_get_event, pull, -1)
        refused(errno.ENOTCONN, oc_ev_handle_event, callback)
        assert readable(pull)
        assert readable(callback)
    assert oc_ev_get_fd(pull) == fd
    oc_ev_unsubscribe(pull)
    timer.join()
    with FakeAgent(agent.path, agent.cluster):  # what is subscribed to after that is fine
        again = oc_ev_subscribe("t")
        oc_ev_publish("t", b"again").wait(2)
        fresh = oc_ev_get_event(again, 1000)
        assert fresh is not None
        assert fresh.data == b"again"
        refused(errno.ENOTCONN, oc_ev_handle_event, callback)
        assert ocf._client is not None
        ocf._client.close()


def test_a13_what_waits_from_an_agent_that_has_ended_comes_before_the_next_ones(agent: FakeAgent) -> None:
    seen: list[str] = []

    def on_event(event: Event) -> None:
        seen.append(event.notice.name if event.notice else event.data.decode())
        oc_ev_event_done(event)
        if event.notice:
            oc_ev_publish("u", b"after").wait(2)
            made.append(oc_ev_subscribe("u", on_event))
            oc_ev_publish("u", b"last").wait(2)
        if event.data == b"last":
            oc_ev_unsubscribe(made.pop())

    made: list[int] = []
    oc_ev_subscribe("t", on_event)
    oc_ev_publish("t", b"before").wait(2)
    first = ocf._client
    assert first is not None
    agent.shutdown()
    while first.connection().session.stage is not Stage.ENDED:
        time.sleep(0.005)
    with FakeAgent(agent.path, agent.cluster):
        oc_ev_publish("t", b"to the next one").wait(2)
        assert ocf._client is not first
        refused(errno.ENOTCONN, oc_ev_handle_events)
        assert seen == ["before", "shutdown", "last"]
        assert not made
        ocf._client.close()


def test_a13_an_event_of_an_agent_that_has_ended_holds_up_no_other(agent: FakeAgent) -> None:
    seen: list[bytes] = []
    kept: list[Event] = []

    def keep(event: Event) -> None:
        seen.append(event.notice.name.encode() if event.notice else event.data)
        if event.notice:
            oc_ev_event_done(event)
        else:
            kept.append(event)

    def finish(event: Event) -> None:
        seen.append(event.data)
        oc_ev_event_done(event)
        oc_ev_event_done(kept.pop())
        oc_ev_unsubscribe(second)

    oc_ev_subscribe("t", keep)
    oc_ev_publish("t", b"kept").wait(2)
    first = ocf._client
    assert first is not None
    while not kept:
        first.dispatch(0.1)
    agent.kill()
    while first.connection().session.stage is not Stage.ENDED:
        time.sleep(0.005)
    with FakeAgent(agent.path, agent.cluster):
        second = oc_ev_subscribe("t", finish)
        oc_ev_publish("t", b"of the next one").wait(2)
        refused(errno.ENOTCONN, oc_ev_handle_events)
        assert seen == [b"kept", b"of the next one", b"agent_lost"]
        assert ocf._client is not None
        ocf._client.close()


def test_a13_what_a_callback_raises_is_no_end(agent: FakeAgent) -> None:
    def on_event(event: Event) -> None:
        oc_ev_event_done(event)
        raise NotConnected(event.data.decode())

    oc_ev_subscribe("t", on_event)
    for data in (b"1", b"2"):
        oc_ev_publish("t", data).wait(2)
    for said in ("1", "2"):
        with pytest.raises(NotConnected, match=said):
            oc_ev_handle_events()


def test_a14_set_on_event_and_node_id(agent: FakeAgent) -> None:
    seen: list[str] = []

    def make(name: str):  # type: ignore[no-untyped-def]
        def on_event(event: Event) -> None:
            seen.append(name)
            oc_ev_event_done(event)

        return on_event

    ed = oc_ev_subscribe("t", make("first"))
    oc_ev_publish("t", b"").wait(2)
    oc_ev_handle_event(ed)
    oc_ev_set_on_event(ed, make("second"))
    oc_ev_publish("t", b"").wait(2)
    oc_ev_handle_event(ed)
    assert seen == ["first", "second"]
    oc_ev_set_on_event(ed, None)
    oc_ev_publish("t", b"pulled").wait(2)
    refused(errno.EINVAL, oc_ev_handle_event, ed)
    event = oc_ev_get_event(ed, 1000)
    assert event is not None
    oc_ev_event_done(event)
    oc_ev_set_on_event(ed, make("third"))
    refused(errno.EEXIST, oc_ev_get_event, ed, 0)
    oc_ev_publish("t", b"").wait(2)
    oc_ev_handle_event(ed)
    assert seen[2:] == ["third"]
    assert oc_ev_is_my_nodeid(ed, 1)
    assert not oc_ev_is_my_nodeid(ed, 2)
    refused(errno.EINVAL, oc_ev_set_on_event, oc_ev_subscribe("t"), print)


def test_a15_publish(agent: FakeAgent) -> None:
    ed = oc_ev_subscribe("t")
    receipt = oc_ev_publish("t", b"data", 1 << 40, {"k": "v"}, 1000)
    published = receipt.wait(2)
    event = oc_ev_get_event(ed, 1000)
    assert event is not None
    assert (event.seq, event.ev_id, event.re_id) == (published.seq, published.ev_id, 1 << 40)
    refused(errno.EMSGSIZE, oc_ev_publish, "t", bytes(2 << 20))
    refused(errno.EINVAL, oc_ev_publish, "nowhere", b"")
    refused(errno.EINVAL, oc_ev_publish, "t", b"", 1 << 64)
    agent.hold_receipts = True
    with pytest.raises(OSError, match="in the time given") as caught:
        fill_the_window()
    assert caught.value.errno == errno.EAGAIN
    agent.release_receipts()


def test_a16_topics(agent: FakeAgent) -> None:
    assert oc_ev_topic_create("mine", "local").scope == "local"
    refused(errno.EEXIST, oc_ev_topic_create, "mine", "global")
    refused(errno.EINVAL, oc_ev_topic_create, "mine", "galactic")
    ed = oc_ev_subscribe("mine")
    oc_ev_topic_remove("mine")
    event = oc_ev_get_event(ed, 1000)
    assert event is not None
    assert event.notice is not None
    assert event.notice.name == "topic_removed"
    refused(errno.EINVAL, oc_ev_topic_remove, "mine")


def test_e3_the_32_bit_numbers(agent: FakeAgent) -> None:
    ed = oc_ev_subscribe("t")
    agent.cluster.ev_id = 2**31 - 1
    oc_ev_publish("t", b"", 2**31).wait(2)
    event = oc_ev_get_event(ed, 1000)
    assert event is not None
    assert (event.ev_id, event.ev_id32, event.re_id32, event.seq32) == (2**31, 1, 1, 1)


def test_the_drafts_codes_of_membership_events() -> None:
    codes = [
        ocf.OC_EV_MS_NEW_MEMBERSHIP, ocf.OC_EV_MS_NOT_PRIMARY, ocf.OC_EV_MS_PRIMARY_RESTORED, ocf.OC_EV_MS_EVICTED,
    ]  # fmt: skip
    assert [ocf.OC_EV_GET_CLASS(code) for code in codes] == [ocf.OC_EV_MEMB_CLASS] * 4 == [2] * 4
    assert [ocf.OC_EV_GET_EVENT(code) for code in codes] == [1, 2, 3, 4]
    assert set(ocf.__all__) <= set(dir(ocf))
