"""A11, A12 and A14: version, threads and forks, and what draft 0.3 had."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import ocfcluster
from ocfcluster import ocf
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    Background,
    Context,
    expect,
    expect_equal,
    must,
    settles,
)
from ocfcluster.conformance.registry import obligation


@obligation("A11")
def version_without_an_agent(context: Context) -> None:
    """get_version works with no agent: API draft level and library version, and no agent's."""
    os.environ["OCFCLUSTER_SOCKET"] = f"{context.socket}.nobody"
    version = ocf.oc_ev_get_version()
    expect_equal(version.api, "0.4", "the API draft level")
    expect_equal(version.library, ocfcluster.__version__, "the library's version")
    expect(not version.agent, f"the version of an agent that is not there: {version.agent!r}")


@obligation("A11")
def version_with_an_agent(context: Context) -> None:
    """Once connected, get_version gives the agent's version too."""
    ocf.oc_ev_subscribe(context.topic(), None)
    version = ocf.oc_ev_get_version()
    expect_equal(version.api, "0.4", "the API draft level")
    expect(
        isinstance(version.agent, str) and version.agent[:1].isdigit(),
        f"the agent's version: {version.agent!r}",
    )


@obligation("A12")
def one_caller_per_event(context: Context) -> None:
    """Concurrent get_event on one descriptor gives each event to one caller, in order for each of them."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    total, callers = 2000, 4
    taken: list[list[int]] = [[] for _ in range(callers)]

    def caller(into: list[int]) -> None:
        while (event := ocf.oc_ev_get_event(ed, PATIENCE_MS)) is not None and event.data != b"end":
            into.append(int(event.data))
            ocf.oc_ev_event_done(event)

    tasks = [Background(caller, into) for into in taken]
    for number in range(total):
        ocf.oc_ev_publish(topic, b"%d" % number)
    for _ in range(callers):
        ocf.oc_ev_publish(topic, b"end")
    for task in tasks:
        task.result("a thread in get_event", 2 * PATIENCE_S)
    expect_equal(Counter(number for into in taken for number in into), Counter(range(total)), "events taken")
    expect(all(into == sorted(into) for into in taken), "a caller got events out of order")


@obligation("A12")
def publishing_from_many_threads(context: Context) -> None:
    """Publications of many threads are all delivered, once, each thread's in its order."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    threads, each = 4, 300

    def publisher(name: int) -> None:
        receipts = [ocf.oc_ev_publish(topic, b"%d %d" % (name, number)) for number in range(each)]
        for receipt in receipts:
            receipt.wait()

    tasks = [Background(publisher, name) for name in range(threads)]
    seen: dict[int, list[int]] = {name: [] for name in range(threads)}
    for number in range(threads * each):
        event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), f"event {number + 1} of {threads * each}")
        name, count = event.data.split()
        seen[int(name)].append(int(count))
        ocf.oc_ev_event_done(event)
    for task in tasks:
        task.result("a publishing thread")
    expect_equal(seen, {name: list(range(each)) for name in range(threads)}, "events per publishing thread")


@obligation("A12")
def any_call_from_any_thread(context: Context) -> None:
    """Subscribing, unsubscribing and publishing in several threads at once disturb each other in nothing."""
    topics = [context.topic() for _ in range(4)]

    def worker(topic: str) -> None:
        for number in range(15):
            ed = ocf.oc_ev_subscribe(topic, None)
            ocf.oc_ev_publish(topic, b"%d" % number)
            event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event just published")
            expect_equal((event.topic, event.data), (topic, b"%d" % number), "topic and data")
            ocf.oc_ev_event_done(event)
            ocf.oc_ev_unsubscribe(ed)

    for task in [Background(worker, topic) for topic in topics]:
        task.result("a working thread", 2 * PATIENCE_S)


@obligation("A12")
def a_child_is_its_own(context: Context) -> None:
    """After a fork the child has no descriptors, publishes as itself, and leaves its parent's alone."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    ocf.oc_ev_publish(topic, b"parent 1").wait()
    code = _in_child(lambda: _as_child(ed, topic))
    expect_equal(code, 0, "exit code of the child (see _as_child)")
    ocf.oc_ev_publish(topic, b"parent 2").wait()
    events = [must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "an event after the fork") for _ in range(3)]
    expect_equal(
        [event.data for event in events], [b"parent 1", b"child", b"parent 2"], "what the parent got"
    )
    expect_equal([event.seq for event in events], [1, 2, 3], "seq")


def _as_child(ed: int, topic: str) -> int:
    """What a forked child tries: 0, or which of it did not come out as it must."""
    calls: tuple[tuple[Callable[..., object], tuple[int, ...]], ...] = (
        (ocf.oc_ev_get_event, (ed, 0)),
        (ocf.oc_ev_get_fd, (ed,)),
        (ocf.oc_ev_unsubscribe, (ed,)),
    )
    for number, (call, arguments) in enumerate(calls, start=1):
        try:
            call(*arguments)
            return number
        except OSError as error:
            if error.errno != errno.EINVAL:
                return 10 + number
    published = ocf.oc_ev_publish(topic, b"child").wait(PATIENCE_S)
    return 0 if published.seq == 2 else 20


def _in_child(call: Any) -> int:
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = call()
        finally:
            os._exit(code)
    done: list[int] = []
    reaper = threading.Thread(target=lambda: done.append(os.waitpid(child, 0)[1]), daemon=True)
    reaper.start()
    reaper.join(PATIENCE_S)
    if not done:
        os.kill(child, 9)
        return -1
    return os.waitstatus_to_exitcode(done[0])


@obligation("A14")
def handle_event_never_blocks(context: Context) -> None:
    """handle_event dispatches what is pending on one descriptor and returns at once where nothing is."""
    topic, other = context.topic(), context.topic()
    seen: list[bytes] = []

    def on_event(event: Any) -> None:
        seen.append(event.data)
        ocf.oc_ev_event_done(event)

    ed = ocf.oc_ev_subscribe(topic, on_event)
    ocf.oc_ev_subscribe(other, on_event)
    Background(ocf.oc_ev_handle_event, ed).result("handle_event with nothing pending", 1.0)
    receipts = [ocf.oc_ev_publish(topic, b"%d" % number) for number in range(3)]
    receipts[-1].wait()

    def dispatch() -> bool:
        Background(ocf.oc_ev_handle_event, ed).result("handle_event", 2.0)
        return len(seen) >= 3

    expect(settles(dispatch), f"only {seen} of three pending events were dispatched")
    expect_equal(seen, [b"0", b"1", b"2"], "what was dispatched")


@obligation("A14")
def handle_event_runs_earlier_turns_first(context: Context) -> None:
    """handle_event on one descriptor first runs what came before it on the client's other callback descriptors."""
    first, second = context.topic(), context.topic()
    seen: list[str] = []

    def on_event(event: Any) -> None:
        seen.append(event.topic)
        ocf.oc_ev_event_done(event)

    ocf.oc_ev_subscribe(first, on_event)
    ed = ocf.oc_ev_subscribe(second, on_event)
    ocf.oc_ev_publish(first, b"x").wait()
    ocf.oc_ev_publish(second, b"x").wait()
    expect(
        settles(lambda: ocf.oc_ev_handle_event(ed) is not None and second in seen), "nothing was dispatched"
    )
    expect_equal(seen, [first, second], "the order of callbacks")


@obligation("A14")
def my_node(context: Context) -> None:
    """is_my_nodeid tells the agent's node from others."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    ocf.oc_ev_publish(topic, b"x").wait()
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event")
    expect(
        bool(ocf.oc_ev_is_my_nodeid(ed, event.node_id)), "the node of an event published here is not my node"
    )
    expect(not ocf.oc_ev_is_my_nodeid(ed, event.node_id + 1), "another node is my node")


@obligation("A14")
def replaced_function(context: Context) -> None:
    """set_on_event puts another function in place for the events that follow; None turns to get_event."""
    topic = context.topic()
    seen: list[tuple[str, bytes]] = []

    def named(name: str) -> Any:
        def on_event(event: Any) -> None:
            seen.append((name, event.data))
            ocf.oc_ev_event_done(event)

        return on_event

    ed = ocf.oc_ev_subscribe(topic, named("old"))
    for name in ("old", "new"):
        if name == "new":
            ocf.oc_ev_set_on_event(ed, named("new"))
        ocf.oc_ev_publish(topic, name.encode()).wait()
        expect(settles(lambda n=name: ocf.oc_ev_handle_event(ed) is not None and seen[-1:] == [(n, n.encode())]),  # type: ignore[misc]
               f"callbacks: {seen}")  # fmt: skip
    ocf.oc_ev_set_on_event(ed, None)
    ocf.oc_ev_publish(topic, b"pulled").wait()
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "an event by get_event after set_on_event(None)")
    expect_equal(event.data, b"pulled", "data")
