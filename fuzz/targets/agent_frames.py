"""The local protocol as an agent reads it: what a program writes, in two reads, with descriptors beside them.

An input is where to cut u16, how many descriptors u8, and frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fuzz.mutation import framed
from fuzz.target import Target, taken, well_formed
from fuzz.targets.runs import open_run, publications
from ocfcluster.errors import InvalidArgument, MalformedFrame
from ocfcluster.ipc.session import Incoming, Session, Stage
from ocfcluster.limits import CONTROL_FRAME_BYTES, RUN_BYTES
from ocfcluster.wire import control, frames
from ocfcluster.wire.filter import decode_filter, encode_filter
from ocfcluster.wire.filter_text import parse_filter
from ocfcluster.wire.frames import CONTROL_HEADER, Request, control_frame, read_body
from ocfcluster.wire.topics import Access, Retention, TopicSettings, settings_fault

LEAD_BYTES: Final = 3
_EVENT_BYTES: Final = 65_536


def check(data: bytes) -> None:
    cut, descriptors, stream = int.from_bytes(data[:2], "little"), data[2:3], data[LEAD_BYTES:]
    lent = list(range(1000, 1000 + descriptors[0] % 4 if descriptors else 1000))
    cut %= len(stream) + 1
    whole, pieces = Session(_EVENT_BYTES), Session(_EVENT_BYTES)
    feed(whole, [stream], lent)
    feed(pieces, [stream[:cut], stream[cut:]], lent)
    if whole.stage is Stage.FAILED:
        return
    if not lent:  # with descriptors it matters what they come beside
        assert list(pieces.requests) == list(whole.requests)
        assert bytes(pieces._partial) == bytes(whole._partial)
    for request in whole.requests:
        if isinstance(request, bytes):
            assert whole.stage is Stage.OPEN
            open_run(request)
        else:
            read(request)
    assert set(whole.abandoned_descriptors()) <= set(lent)


def feed(session: Session, pieces: list[bytes], descriptors: list[int]) -> None:
    for piece in pieces:
        taken(MalformedFrame, session.receive, piece, list(descriptors))
        descriptors = []
        assert len(session._partial) <= max(CONTROL_FRAME_BYTES, RUN_BYTES) + CONTROL_HEADER.size
        for buffer in session.output():
            session.sent(len(buffer))
        assert session.output_bytes == 0


def read(request: Incoming) -> None:
    """One request, as far as it is judged by itself."""
    body = well_formed(read_body, request.kind, request.body)
    if body is None:
        return
    again = control_frame(request.kind, request.request_id, body)
    assert read_body(request.kind, again[CONTROL_HEADER.size :]) == body
    if isinstance(body, frames.Subscribe):
        well_formed(decode_filter, body.filter)
    elif isinstance(body, frames.TopicCreate):
        command(control.TopicCreate(body.topic, body.local, body.settings))
    elif isinstance(body, frames.TopicAlter):
        command(control.TopicAlter(body.topic, body.settings))
    elif isinstance(body, frames.GroupName):
        command(control.GroupOpen(body.topic))
        command(control.GroupJoin(body.topic, 1))
    elif isinstance(body, frames.Administer):
        command(control.NodeAdd(body.node_id, body.votes))


def command(operand: control.Operand) -> None:
    made = taken(InvalidArgument, control.control_run, operand, 1)
    if made is not None:
        open_run(made)
        if isinstance(operand, control.TopicCreate):
            assert not settings_fault(operand.settings)


def requests() -> Iterator[tuple[Request, frames.Body | None]]:
    """One of each kind but HELLO and PUBLISH."""
    settings = TopicSettings(Retention(10, 4096, 60), Access(("user:a",), ("*", "gid:5"), ("uid:0",)))
    begin = frames.Begin("t", 5, 16, "0" * 32)
    chosen = encode_filter(parse_filter('a == "x" and not present(b)'))
    yield Request.OPEN_PRODUCER, frames.OpenProducer(True)
    yield Request.RESUME_PRODUCER, frames.Producer(2**63 | 1, b"token")
    yield Request.CLOSE_PRODUCER, frames.Producer(2**63 | 1, b"token")
    yield (
        Request.SUBSCRIBE,
        frames.Subscribe(1, ["t", "oc.membership"], True, filter=chosen, on_slow=1, begins=[begin]),
    )
    yield (
        Request.SUBSCRIBE,
        frames.Subscribe(1, ["t"], False, "0" * 32, [frames.Position("t", 16, 4)], retained=True),
    )
    yield Request.UNSUBSCRIBE, frames.Unsubscribe(1)
    yield Request.OUT_OF_LINE, frames.OutOfLine(1, True, "t", 4)
    yield Request.TOPIC_RESOLVE, frames.TopicResolve("t")
    yield Request.TOPIC_CREATE, frames.TopicCreate("t", False, settings)
    yield Request.TOPIC_ALTER, frames.TopicAlter("t", settings)
    yield Request.TOPIC_REMOVE, frames.TopicRemove("t")
    yield Request.TOPIC_LIST, None
    yield Request.STATUS, None
    yield Request.BARRIER, None
    yield Request.ADMINISTER, frames.Administer(frames.Administration.NODE_ADD, 4, 1, [1, 2], ["0a0b0c0d"])
    yield Request.GROUP_JOIN, frames.GroupName("group:g")
    yield Request.GROUP_SHOW, frames.GroupName("group:g")
    yield Request.GROUP_LIST, None
    yield Request.REPORT, frames.Report("oc.connectivity", b"data", 1)
    yield Request.TOPIC_ACCESS, frames.TopicResolve("t")
    yield Request.GOODBYE, None


def seeds() -> Iterator[bytes]:
    hello = control_frame(Request.HELLO, 1, frames.Hello(frames.LOCAL_PROTOCOL_VERSION, "library", "program"))
    every = b""
    for kind, body in requests():
        lent = bytes([kind is Request.SUBSCRIBE])
        yield b"\7\0" + lent + hello + control_frame(kind, 2, body)
        every += control_frame(kind, 2, body) if kind is not Request.SUBSCRIBE else b""
    yield b"\xff\0\0" + hello + every
    for run in publications():
        yield b"\x40\0\0" + hello + CONTROL_HEADER.pack(len(run), Request.PUBLISH, 0, 0, 0) + run
    yield b"\0\0\0" + hello + CONTROL_HEADER.pack(2**32 - 1, Request.STATUS, 0, 0, 3)


TARGET: Final = Target(
    check,
    seeds,
    ("ipc/session.py", "wire/frames.py", "wire/control.py", "wire/topics.py"),
    framed(CONTROL_HEADER, LEAD_BYTES),
)
