"""A13: the agent goes away."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any, Final

import ocfcluster
from ocfcluster import ocf
from ocfcluster.client import Client, NoticeCode, Receipt
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    QUIET_S,
    Agent,
    Background,
    Context,
    expect,
    expect_equal,
    expect_errno,
    must,
    readable,
    settles,
)
from ocfcluster.conformance.registry import obligation

TOPIC = "conformance"


def _prepared(agent: Agent, *, resume: bool = False) -> Client:
    """A client of an agent of one's own, with TOPIC made."""
    client = ocfcluster.connect(agent.socket, name="conformance", resume=resume, timeout=PATIENCE_S)
    client.create_topic(TOPIC)
    return client


def _expect_end(ed: int, code: NoticeCode, waiting: Background) -> None:
    """The blocked get_event returns the notice; after it ENOTCONN, with a readable descriptor, until unsubscribe."""
    told = must(waiting.result("a blocked get_event when the agent went"), "the notice")
    notice = must(told.notice, "the notice within the event")
    expect_equal(notice.code, code, "code of the notice")
    expect(notice.reason and notice.final, f"the notice gives no reason or is not final: {notice}")
    ocf.oc_ev_event_done(told)
    for timeout in (0, 200, -1):
        task = Background(ocf.oc_ev_get_event, ed, timeout)
        expect_errno(errno.ENOTCONN, "get_event after the end", task.result, "get_event after the end")
    expect(readable(ocf.oc_ev_get_fd(ed)), "the descriptor is not readable after the end")
    ocf.oc_ev_unsubscribe(ed)
    expect_errno(errno.EINVAL, "get_event after unsubscribe", ocf.oc_ev_get_event, ed, 0)


def _ends_with_notice(context: Context, end: Callable[[Agent], None], code: NoticeCode) -> None:
    with context.own_agent() as agent:
        os.environ["OCFCLUSTER_SOCKET"] = agent.socket
        _prepared(agent).close()
        ed = ocf.oc_ev_subscribe(TOPIC, None)
        ocf.oc_ev_publish(TOPIC, b"x").wait()
        event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event")
        waiting = Background(ocf.oc_ev_get_event, ed, -1)
        time.sleep(QUIET_S)
        end(agent)
        expect_equal(event.data, b"x", "data of an outstanding event after the agent went")
        ocf.oc_ev_event_done(event)
        _expect_end(ed, code, waiting)


_TRIES: Final = 5


@obligation("A13")
def shutdown_is_told(context: Context) -> None:
    """An agent that is told to stop tells its subscribers: a notice, then ENOTCONN; nothing hangs."""
    _ends_with_notice(context, lambda agent: agent.stop(), NoticeCode.SHUTDOWN)


@obligation("A13")
def loss_is_told(context: Context) -> None:
    """The subscribers of an agent that dies get a notice, then ENOTCONN; nothing hangs."""
    _ends_with_notice(context, lambda agent: agent.kill(), NoticeCode.AGENT_LOST)


@obligation("A13")
def callbacks_are_told(context: Context) -> None:
    """handle_events calls the function with the notice and then returns with ENOTCONN."""
    with context.own_agent() as agent:
        os.environ["OCFCLUSTER_SOCKET"] = agent.socket
        _prepared(agent).close()
        seen: list[Any] = []

        def on_event(event: Any) -> None:
            seen.append(event.notice and event.notice.code)
            ocf.oc_ev_event_done(event)

        ed = ocf.oc_ev_subscribe(TOPIC, on_event)
        task = Background(ocf.oc_ev_handle_events)
        ocf.oc_ev_publish(TOPIC, b"x").wait()
        expect(settles(lambda: seen == [None]), f"callbacks: {seen}")
        agent.kill()
        expect_errno(
            errno.ENOTCONN, "handle_events after the end", task.result, "handle_events when the agent went"
        )
        expect_equal(seen, [None, NoticeCode.AGENT_LOST], "callbacks")
        ocf.oc_ev_unsubscribe(ed)


@obligation("A13")
def publishers_do_not_hang(context: Context) -> None:
    """Without resume, whoever publishes or waits for a receipt gets an error when the agent dies."""
    # It may die just when everything is answered, on a machine that is busy: then once more.
    unanswered = any(_unanswered_at_the_end(context) for _ in range(_TRIES))
    expect(unanswered, "every publication was answered though the agent was killed")


def _unanswered_at_the_end(context: Context) -> int:
    """How many publications fail when an agent is killed while somebody publishes."""
    lost = (errno.ENOTCONN, errno.EIO)
    receipts: list[Receipt] = []
    with context.own_agent() as agent:
        client = _prepared(agent)

        def publish() -> None:
            while True:
                receipts.append(client.publish(TOPIC, b"x"))

        publishing = Background(publish)
        expect(settles(lambda: len(receipts) > 1000), f"only {len(receipts)} publications in all this time")
        agent.kill()
        try:
            publishing.result("publish when the agent went")
        except OSError as error:
            expect(error.errno in lost, f"errno {error.errno} instead of ENOTCONN or EIO: {error}")
        unanswered = 0
        for receipt in receipts:
            try:
                receipt.wait(PATIENCE_S)
            except OSError as error:
                expect(error.errno in lost, f"errno {error.errno} instead of ENOTCONN or EIO: {error}")
                unanswered += 1
        client.close()
    return unanswered


@obligation("A13")
def resumed_after_a_restart(context: Context) -> None:
    """With resume a subscription is told of the loss, waits, is told how it goes on, and gets what comes then."""
    with context.own_agent() as agent:
        client = _prepared(agent, resume=True)
        subscription = client.subscribe(TOPIC)
        descriptor = subscription.fileno()
        waiting = Background(subscription.get)
        time.sleep(QUIET_S)
        agent.kill()
        told = must(waiting.result("get when the agent went"), "the notice")
        expect_equal(must(told.notice, "a notice").code, NoticeCode.AGENT_LOST, "code of the notice")
        expect(not told.notice.final, "the notice says that it is the end")
        waiting = Background(subscription.get)
        time.sleep(QUIET_S)
        expect(waiting.running, "get did not go on waiting while the agent is away")
        agent.restart()
        after = must(waiting.result("get after the agent came back", 2 * PATIENCE_S), "how it goes on")
        going_on = (NoticeCode.RESUMED, NoticeCode.HISTORY_LOST)
        expect(must(after.notice, "a notice").code in going_on, f"how it goes on: {after.notice}")
        expect_equal(subscription.fileno(), descriptor, "the descriptor after the restart")
        if after.notice.code is NoticeCode.RESUMED:
            client.publish(TOPIC, b"again").wait(PATIENCE_S)
            event = must(subscription.get(timeout=PATIENCE_S), "the event after the restart")
            while event.notice is not None:  # a gap may be told before
                event = must(subscription.get(timeout=PATIENCE_S), "the event after the restart")
            expect_equal(event.data, b"again", "data")
        client.close()
