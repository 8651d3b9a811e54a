"""The local protocol as a program's library reads it: what an agent answers, in two reads, while much is asked.

An input is where to cut u16 and frames.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, Final

from fuzz.mutation import DEEP, framed
from fuzz.target import Target, taken
from ocfcluster.client.producer import Batch
from ocfcluster.client.session import Session, Stage
from ocfcluster.errors import MalformedFrame
from ocfcluster.limits import CONTROL_OUTPUT_BYTES
from ocfcluster.wire import frames
from ocfcluster.wire.frames import CONTROL_HEADER, RECEIPT, Answer, Request, control_frame
from ocfcluster.wire.topics import DEFAULT_SETTINGS

LEAD_BYTES: Final = 2
HISTORY: Final = "0" * 31 + "1"
VERSION: Final = frames.LOCAL_PROTOCOL_VERSION
_WELCOME: Final = frames.Welcome(VERSION, "0.1", "fuzz", HISTORY, 1, 0x1001, 5, 65_536, "safe")
_ASKED: Final = (
    (Request.TOPIC_RESOLVE, frames.TopicResolve("t")), (Request.TOPIC_LIST, None), (Request.STATUS, None),
    (Request.TOPIC_REMOVE, frames.TopicRemove("t")), (Request.TOPIC_ACCESS, frames.TopicResolve("t")),
    (Request.GROUP_SHOW, frames.GroupName("group:g")), (Request.GROUP_LIST, None), (Request.BARRIER, None),
)  # fmt: skip


def check(data: bytes) -> None:
    cut, stream = int.from_bytes(data[:LEAD_BYTES], "little"), data[LEAD_BYTES:]
    cut %= len(stream) + 1
    session = asking()
    for piece in (stream[:cut], stream[cut:]):
        try:
            session.receive(piece)
        except MalformedFrame:
            break
        assert len(session._buffer) <= CONTROL_OUTPUT_BYTES + CONTROL_HEADER.size
        session.take_effects()
    session.lost("the connection ended")
    session.take_effects()
    session.connected()
    taken(MalformedFrame, session.receive, control_frame(Answer.WELCOME, 0, _WELCOME))
    session.outgoing.clear()
    session.end("the program ended")
    assert session.stage is Stage.ENDED


def asking() -> Session:
    """A session that has asked for everything, published and subscribed."""
    session = Session(library="fuzz", name="fuzz", resume=True, clock_ns=int)
    session.connected()
    producer = session.add_producer(False)
    for _ in range(2):
        owner: Any = None
        batch = Batch(owner, "t", 16, 0, b"", [b"a", b"bb"], 100)
        producer.queue(batch, 1)
        session.publish(producer, batch)
    state = session.new_subscription(["t"], True)
    session.subscribe(state)
    session.memberships.join("group:g", session.request)
    for kind, body in _ASKED:
        session.request(kind, body)
    return session


def answers() -> Iterator[bytes]:
    """To what ``asking`` asks, in its order, request ids from 1 on."""
    topic = frames.Topic("t", 16, False, 9, 1, ["alias"], DEFAULT_SETTINGS, 3, 100, 7)
    group = frames.Group("group:g", 2**31, 4, 17, [(9, 1, 100), (17, 1, 0)])
    grant = frames.Grant("publish", ["*"], True, "anybody may")
    for number, (kind, body) in enumerate((
        (Answer.PRODUCER, frames.Producer(1234)),
        (Answer.SUBSCRIBED, frames.Subscribed(HISTORY, [frames.Start("t", 16, 10, False, 3, "away")])),
        (Answer.GROUP, group),
        (Answer.TOPIC, topic),
        (Answer.TOPICS, frames.Topics([topic, topic])),
        (Answer.STATUS, frames.Status({"a": {"b": [1, None, "x"]}})),
        (Answer.DONE, None),
        (Answer.TOPIC_ACCESS, frames.TopicAccess("t", [grant], 0, ["user:nobody"], "rule")),
        (Answer.GROUP, group),
        (Answer.GROUPS, frames.Groups([("group:g", 2**31, 4, 2)])),
        (Answer.DONE, None),
    ), 1):  # fmt: skip
        yield control_frame(kind, number, body)


def receipts(*those: tuple[int, int, int, int, int, int]) -> bytes:
    body = b"".join(RECEIPT.pack(*one) for one in those)
    return CONTROL_HEADER.pack(len(body), Answer.RECEIPTS, 0, 0, 0) + body


def seeds() -> Iterator[bytes]:
    welcome = control_frame(Answer.WELCOME, 0, _WELCOME)
    answered = list(answers())
    yield b"\7\0" + welcome
    yield b"\xff\0" + welcome + b"".join(answered)
    for one in answered:
        yield b"\x44\0" + welcome + one
    opened = welcome + answered[0]
    yield b"\0\0" + opened + receipts((1234, 1, 2, 0, 10, 20), (1234, 3, 2, errno.EPERM, 0, 0))
    yield b"\0\0" + opened + receipts((1234, 1, 4, 0, 10, 20))
    yield (
        b"\0\0"
        + opened
        + receipts((1234, 2, 1, 0, 10, 20), (1234, 1, 1, errno.EINVAL, 0, 0), (9, 1, 1, 0, 1, 1))
    )
    yield (
        b"\0\0"
        + opened
        + receipts((1234, 1, 2, errno.EBADF, 0, 0))
        + control_frame(Answer.PRODUCER, 12, frames.Producer(99))
    )
    yield b"\0\0" + opened + control_frame(Answer.REFUSED, 0, frames.Refused(1234, 1, "why"))
    yield (
        b"\0\0"
        + welcome
        + answered[1]
        + control_frame(Answer.LEFT_OUT, 0, frames.LeftOut(1, [frames.Reached(16, 40)]))
    )
    yield b"\0\0" + welcome + control_frame(Answer.FULL, 0, frames.Full([1, 2]))
    yield b"\0\0" + welcome + control_frame(Answer.SHUTDOWN, 0, frames.Shutdown("bye"))
    yield b"\0\0" + control_frame(Answer.ERROR, 0, frames.Error(errno.EPROTO, "no"))
    yield b"\0\0" + welcome + control_frame(Answer.ERROR, 2, frames.Error(errno.EINVAL, "no topic"))
    deep = b"\x91\x81\xa1a" + b"\x91" * DEEP + b"\xc0"
    yield b"\0\0" + welcome + CONTROL_HEADER.pack(len(deep), Answer.STATUS, 0, 0, 6) + deep
    other = frames.Welcome(VERSION, "0.1", "fuzz", "f" * 32, 1, 0x1002, 6, 65_536, "safe")
    yield b"\0\0" + welcome + b"".join(answered) + control_frame(Answer.WELCOME, 0, other)


TARGET: Final = Target(
    check,
    seeds,
    ("client/session.py", "client/producer.py", "client/memberships.py", "wire/frames.py"),
    framed(CONTROL_HEADER, LEAD_BYTES),
)
