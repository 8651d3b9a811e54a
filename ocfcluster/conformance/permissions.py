"""A3: who may publish, subscribe and administer. A process of another user asks; that takes root to begin with."""

from __future__ import annotations

import errno
import json
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any, Final

import ocfcluster
from ocfcluster import ocf
from ocfcluster.client import Access, NoticeCode, TopicSettings
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    Context,
    NotRun,
    Violation,
    expect,
    expect_equal,
    must,
    settles,
)
from ocfcluster.conformance.registry import obligation

STRANGER: Final = 65_534  # uid and gid of a process that has no rights by itself; mostly called nobody
NAMED: Final = f"uid:{STRANGER}"
_CLOSED: Final = "closed"


class Stranger:
    """A child of the check that runs as another user. What ``do`` gives, as JSON has it, is its ``result``."""

    def __init__(self, context: Context, do: Callable[[], Any]) -> None:
        """Raises NotRun where there can be none."""
        if os.geteuid() != 0:
            raise NotRun("needs root, to become another user")
        reading, writing = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(reading)
            os.write(writing, json.dumps(_as_stranger(context.socket, do)).encode())
            os._exit(0)
        os.close(writing)
        self._answer = reading

    def result(self) -> Any:
        """What it says, when it has ended. Raises NotRun where the agent's socket is closed to it."""
        said = b""
        while piece := os.read(self._answer, 65_536):
            said += piece
        os.close(self._answer)
        os.waitpid(self._child, 0)
        kind, result = json.loads(said or b'["failed", "it ended without a word"]')
        if kind == _CLOSED:
            raise NotRun(f"needs a socket that other users may open (node.socket_mode): {result}")
        if kind == "failed":
            raise Violation(f"a process of user {STRANGER}: {result}")
        return result


def _as_stranger(path: str, do: Callable[[], Any]) -> tuple[str, Any]:
    try:
        os.setgroups([])
        os.setresgid(STRANGER, STRANGER, STRANGER)
        os.setresuid(STRANGER, STRANGER, STRANGER)
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except PermissionError as error:
                return _CLOSED, str(error)
        return "said", do()
    except BaseException:  # noqa: BLE001 - said to the parent, whatever it is
        return "failed", traceback.format_exc()


def errno_of(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The name of the errno that a call fails with; empty: it succeeds."""
    try:
        call(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def topic_for(
    context: Context, publish: tuple[str, ...] = ("*",), subscribe: tuple[str, ...] = ("*",),
    administer: tuple[str, ...] = (),
) -> str:  # fmt: skip
    """A fresh topic with these lists."""
    name = context.new_name()
    context.client().create_topic(name, settings=TopicSettings(access=Access(publish, subscribe, administer)))
    return name


@obligation("A3")
def publishing_takes_the_right(context: Context) -> None:
    """Who may not publish gets EPERM from the receipt, and nobody gets the event; who is named may."""
    closed, open_to_named = topic_for(context, publish=()), topic_for(context, publish=("uid:1", NAMED))
    ed = ocf.oc_ev_subscribe(closed, None)

    def publish() -> list[str]:
        receipts = [
            ocf.oc_ev_publish(topic, b"x") for topic in (closed, open_to_named, closed, open_to_named)
        ]
        return [errno_of(receipt.wait, PATIENCE_S) for receipt in receipts]

    said = Stranger(context, publish).result()
    expect_equal(
        said, ["EPERM", "", "EPERM", ""], "receipts of a closed topic and one that names the user, twice"
    )
    ocf.oc_ev_publish(closed, b"mine").wait()
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event of who may publish")
    expect_equal((event.data, event.seq), (b"mine", 1), "the first event of the closed topic")


@obligation("A3")
def subscribing_takes_the_right(context: Context) -> None:
    """Who may not subscribe gets EPERM; who is named may."""
    closed, open_to_named = (
        topic_for(context, subscribe=()),
        topic_for(context, subscribe=(f"gid:{STRANGER}",)),
    )

    def subscribe() -> list[str]:
        return [errno_of(ocf.oc_ev_subscribe, topic, None) for topic in (closed, open_to_named)]

    said = Stranger(context, subscribe).result()
    expect_equal(said, ["EPERM", ""], "subscribing to a closed topic and to one that names the group")


@obligation("A3")
def administration_takes_the_right(context: Context) -> None:
    """Who may not administer gets EPERM for altering and removing a topic; who is named may."""
    closed, open_to_named = topic_for(context), topic_for(context, administer=(NAMED,))
    settings = TopicSettings(access=Access(administer=(NAMED,), publish=()))

    def administer() -> list[str]:
        with ocfcluster.connect(context.socket, timeout=PATIENCE_S) as client:
            return [
                errno_of(client.alter_topic, closed, settings), errno_of(ocf.oc_ev_topic_remove, closed),
                errno_of(client.admin.sequence, 0),
                errno_of(client.alter_topic, open_to_named, settings),
                errno_of(ocf.oc_ev_topic_remove, open_to_named),
            ]  # fmt: skip

    said = Stranger(context, administer).result()
    wanted = ["EPERM", "EPERM", "EPERM", "", ""]
    expect_equal(said, wanted, "altering and removing a topic, operating, altering and removing one's own")
    names = [topic.name for topic in context.client().topics()]
    expect_equal((closed in names, open_to_named in names), (True, False), "which topics are left")


@obligation("A3")
def a_right_that_is_taken_away_is_told(context: Context) -> None:
    """A subscription whose right goes with an alteration of the topic ends there with a notice that says so."""
    topic = topic_for(context)
    client = context.client()

    def read() -> list[Any]:
        ed = ocf.oc_ev_subscribe(topic, None)
        event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event before the alteration")
        ocf.oc_ev_event_done(event)
        last = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the notice")
        notice = last.notice
        code, final = (0, False) if notice is None else (int(notice.code), notice.final)
        return [str(event.data), code, final, errno_of(ocf.oc_ev_get_event, ed, 0)]

    stranger = Stranger(context, read)
    subscribed = settles(lambda: client.topic(topic).subscribers == 1)
    client.publish(topic, b"before")
    client.flush()
    client.alter_topic(topic, TopicSettings(access=Access(subscribe=())))
    client.publish(topic, b"after").wait(PATIENCE_S)
    said = stranger.result()
    expect(subscribed, "the other user's subscription was not seen")
    expect_equal(
        said, [str(b"before"), int(NoticeCode.NOT_PERMITTED), True, "ENOTCONN"], "what the subscription got"
    )
