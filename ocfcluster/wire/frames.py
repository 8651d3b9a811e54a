"""Frames between an agent and its programs: the control connection (a stream) and the event sockets (messages).

Control connection: every frame is CONTROL_HEADER and a body. PUBLISH carries a run as it is and RECEIPTS carry
packed records; every other body is one msgspec structure below as a MessagePack array. The fields are positional:
new ones go to the end, with defaults.

Event socket: every message is EVENT_HEADER and records; a record is RECORD_HEADER and a run or a notice. A run too
large for a message comes in several, each alone with one record of kind PART that holds the next piece of it.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Annotated, Any, Final, TypeVar

import msgspec

from ocfcluster.errors import InvalidArgument, MalformedFrame
from ocfcluster.limits import CLIENT_NAME_BYTES, FRAME_HEADER_BYTES, RECORD_HEADER_BYTES
from ocfcluster.wire.topics import DEFAULT_SETTINGS, TopicSettings

LOCAL_PROTOCOL_VERSION: Final = 2

CONTROL_HEADER: Final = struct.Struct("<IBBHI")  # body length, Request|Answer, 0, 0, request id
RECEIPT: Final = struct.Struct("<QQIIQQ")  # producer, first number, count, errno (0: delivered), seq, ev_id
EVENT_HEADER: Final = struct.Struct("<IIQII")  # connection, subscription, turn, records, 0
RECORD_HEADER: Final = struct.Struct("<IBBHIIQQQQQ")
# record length with this header, RecordKind, RecordFlags, number of the piece (of PART, from 0; else 0), skip, node_id,
# incarnation, m_sequence, seq and ev_id of the run's first publication behind skip, order_time ns

assert EVENT_HEADER.size == FRAME_HEADER_BYTES  # noqa: S101 - fixed by the format itself
assert RECORD_HEADER.size == RECORD_HEADER_BYTES  # noqa: S101

LOCAL_ID: Final = 1 << 63  # ids (ev_id, producer) with this bit are this agent's own and never leave the node


class Request(IntEnum):
    """What a client asks. Each is answered by one frame with the same request id, but for PUBLISH, RESUME_PRODUCER
    and GOODBYE."""

    HELLO = 1
    PUBLISH = 2  # the body is a run; answered by RECEIPTS once its outcome is known
    OPEN_PRODUCER = 3
    CLOSE_PRODUCER = 4
    SUBSCRIBE = 5  # lends one end of a SOCK_SEQPACKET pair (SCM_RIGHTS, with the frame's first byte)
    UNSUBSCRIBE = 6
    OUT_OF_LINE = 7
    TOPIC_RESOLVE = 8
    TOPIC_CREATE = 9
    TOPIC_REMOVE = 10
    TOPIC_LIST = 11
    STATUS = 12
    BARRIER = 13
    GOODBYE = 14
    ADMINISTER = 15  # for root and the agent's own user; answered by DONE, STATUS or ERROR
    TOPIC_ALTER = 16
    GROUP_JOIN = 17  # the connection becomes a member; answered by GROUP at the JOIN's place in the order
    GROUP_LEAVE = 18
    GROUP_SHOW = 19  # answered by GROUP
    GROUP_LIST = 20  # answered by GROUPS
    RESUME_PRODUCER = 21  # not answered: what is published on a producer that is not this client's gets EBADF
    REPORT = 24  # a component's word on a reserved topic, outside of the order; answered by DONE or ERROR
    TOPIC_ACCESS = 32  # who may do what with a topic


class Administration(IntEnum):
    """What ADMINISTER asks for. The first five are ordered, the next three are for an agent that waits to form."""

    NODE_ADD = 1  # node_id, votes
    NODE_REMOVE = 2  # node_id
    NODE_VOTES = 3  # node_id, votes
    SEQUENCE = 4  # node_id: the member that is to order from now on
    SHUTDOWN = 5  # all members
    BOOTSTRAP_WITHOUT = 6  # nodes
    NEW_HISTORY = 7
    REJOIN = 8
    KEYS_CHECK = 32  # keys: may this agent's key file name just these, in this order? DONE, or why not
    KEYS_LOAD = 33  # read the key file again
    KEYS_LOAD_FORCED = 34  # ... whoever is lost by it
    RELOAD = 9  # the agent reads its configuration again; answered by STATUS
    RELOAD_CHECK = 10  # what RELOAD would do; answered by STATUS


class Answer(IntEnum):
    WELCOME = 64  # also with request id 0, once a cluster that was not formed at HELLO is
    DONE = 65  # no body
    ERROR = 66
    PRODUCER = 67  # also with request id 0: the producer that is resumed has another token from now on
    SUBSCRIBED = 68
    TOPIC = 69
    TOPICS = 70
    STATUS = 71
    RECEIPTS = 72  # request id 0; any number of RECEIPT records
    FULL = 73  # request id 0; which of this client's own subscriptions hold the publishers up
    SHUTDOWN = 74  # request id 0; the agent ends in order
    GROUP = 75
    GROUPS = 76
    LEFT_OUT = 77  # request id 0; how far a subscription has got past what its filter left out
    REFUSED = 80  # request id 0; why a publication is refused whose receipt will give EINVAL
    TOPIC_ACCESS = 96


class RecordKind(IntEnum):
    RUN = 1
    NOTICE = 2
    PART = 3  # a piece of a run; the run begins with its length
    LAST = 4  # a run, the subscription's last: this node was evicted


class RecordFlags(IntFlag):
    NONE = 0
    LOCAL = 1  # of a local topic, or a local notification: seq and ev_id are this agent's own
    RETAINED = 2
    NOTICE = 4


# Numbers are held to the fields that they are put into elsewhere (a u32 of an event frame, a u64 of a receipt);
# MessagePack itself ends at 2^64 - 1. Names and lists are bounded by the frame; their owners answer for them.
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
U64 = Annotated[int, msgspec.Meta(ge=0)]
ShortText = Annotated[str, msgspec.Meta(max_length=CLIENT_NAME_BYTES)]


class Body(msgspec.Struct, array_like=True, frozen=True):
    """Base of the bodies below: a MessagePack array of the fields in their order."""


class Hello(Body, frozen=True):
    version: U32 = LOCAL_PROTOCOL_VERSION
    library: ShortText = ""
    name: ShortText = ""  # for status and logs


class Welcome(Body, frozen=True):
    version: U32
    library: str  # the agent's version
    cluster: str  # cluster name
    cluster_id: str  # the history; empty while the cluster is not formed
    node_id: U32
    incarnation: U64
    connection: U32  # number of this connection, in every frame of its event sockets
    event_bytes: U64  # largest event
    delivery: str  # "safe" or "agreed"


class OpenProducer(Body, frozen=True):
    local: bool = False


class Producer(Body, frozen=True):
    """``token`` shows on other connections of the program that the producer is its own."""

    producer: U64
    token: bytes = b""


class Position(Body, frozen=True):
    """Where a subscription has got to in one topic: the last seq taken, in a history."""

    topic: str
    topic_id: U32
    seq: U64


class OnSlow(IntEnum):
    """What becomes of a subscription that does not take its events."""

    BLOCK = 0  # publishers wait for it, within the cluster's budget for that; then it misses events
    DROP_OLDEST = 1  # it loses its oldest events; nobody waits
    DISCONNECT = 2  # it ends


class Begin(Body, frozen=True):
    """Where a new subscription is to begin in one topic: with the event ``seq``."""

    topic: str
    seq: U64
    topic_id: U32 = 0  # 0: whichever topic has the name now
    cluster_id: str = ""  # empty: the history as it is now


class Subscribe(Body, frozen=True):
    subscription: U32  # chosen by the client, unique among its live ones
    topics: list[str]
    callback: bool  # frames carry turns
    cluster_id: str = ""  # with positions: the history they belong to
    positions: list[Position] = []  # of one that goes on where it was
    filter: bytes = b""  # of wire/filter.py; empty: everything
    on_slow: U32 = 0  # OnSlow
    begins: list[Begin] = []  # of a new one: some of its topics
    from_last: U64 = 0  # of a new one: so many of the events that are kept of each topic
    retained: bool = False  # of a new one: all that is kept of each topic


class Unsubscribe(Body, frozen=True):
    subscription: U32


class OutOfLine(Body, frozen=True):
    """A callback subscription whose event is not done holds up nobody while it is out of line."""

    subscription: U32
    out: bool
    topic: str = ""  # of the event that is not done
    seq: U64 = 0


class Start(Body, frozen=True):
    """The definite start of a subscription in one topic: the first event it gets has seq ``next_seq``."""

    topic: str
    topic_id: U32
    next_seq: U64
    local: bool
    gap_from: U64 = 0  # with a position: the first seq that could not be given any more, 0 if none
    gap_reason: str = ""  # why it could not


class Subscribed(Body, frozen=True):
    cluster_id: str
    starts: list[Start]
    history_lost: bool = False  # the positions asked for belong to another history


class TopicResolve(Body, frozen=True):
    topic: str


class TopicCreate(Body, frozen=True):
    topic: str
    local: bool = False
    settings: TopicSettings = DEFAULT_SETTINGS


class TopicAlter(Body, frozen=True):
    topic: str
    settings: TopicSettings


class TopicRemove(Body, frozen=True):
    topic: str


class Administer(Body, frozen=True):
    command: U32  # Administration
    node_id: U32 = 0
    votes: U32 = 0
    nodes: list[U32] = []
    keys: list[ShortText] = []


class Report(Body, frozen=True):
    """``data`` for the subscribers of ``topic`` on this node: a local notification (``seq`` 0), or what stands at the
    place ``seq`` that the order has for it."""

    topic: str
    data: bytes
    seq: U64 = 0


class Refused(Body, frozen=True):
    """Of the run that begins with number ``first_number`` of ``producer``."""

    producer: U64
    first_number: U64
    message: str


class Topic(Body, frozen=True):
    topic: str
    topic_id: U32
    local: bool
    last_seq: U64
    subscribers: U32 = 0  # on this node
    aliases: list[str] = []
    settings: TopicSettings = DEFAULT_SETTINGS
    kept_events: U64 = 0  # of the newest, for who begins earlier than now
    kept_bytes: U64 = 0  # of memory
    kept_from: U64 = 0  # seq of the first of them, 0 if there are none


class Topics(Body, frozen=True):
    topics: list[Topic]


class GroupName(Body, frozen=True):
    """What GROUP_JOIN, GROUP_LEAVE and GROUP_SHOW are about: the group's topic, ``group:NAME``."""

    topic: str


class Group(Body, frozen=True):
    """A group as it is: where a JOIN answers, at its place in the order."""

    topic: str
    topic_id: U32  # 0: not in use
    last_seq: U64
    member: U64  # of this connection; 0: it is none
    members: list[tuple[U64, U32, U32]]  # member, node_id, pid; oldest first


class Groups(Body, frozen=True):
    groups: list[tuple[str, U32, U64, U32]]  # topic, topic_id, last seq, how many members


class Grant(Body, frozen=True):
    """One right: who has it, and whether the asking client has, with the reason as the end of a sentence."""

    right: str  # "publish", "subscribe" or "administer"
    principals: list[str]
    allowed: bool
    why: str


class TopicAccess(Body, frozen=True):
    """Who may do what with a topic or a group, as its agent sees it."""

    topic: str
    grants: list[Grant]
    uid: U32  # of the client
    unknown: list[str] = []  # principals whose name is no user or group of this node
    rule: str = ""  # of a group: the rule that holds for it; empty: none, anybody may

    def may(self, right: str) -> bool:
        """Whether the client that asked has this right: "publish", "subscribe" or "administer"."""
        return any(grant.right == right and grant.allowed for grant in self.grants)


class Status(Body, frozen=True):
    """A nested document of plain values; its keys are listed in docs/operating.md."""

    document: dict[str, Any]


class Error(Body, frozen=True):
    errno: U32
    message: str


class Full(Body, frozen=True):
    subscriptions: list[U32]


class Reached(Body, frozen=True):
    topic_id: U32
    seq: U64


class LeftOut(Body, frozen=True):
    """All events of these topics up to these seqs were written to the subscription's socket, or left out."""

    subscription: U32
    positions: list[Reached]


class Shutdown(Body, frozen=True):
    reason: str


class NoticeCode(IntEnum):
    GAP = 1
    AGENT_LOST = 2
    RESUMED = 3
    SHUTDOWN = 4
    EVICTED = 5
    TOPIC_REMOVED = 6
    HISTORY_LOST = 7
    SLOW = 8
    NOT_PERMITTED = 9


class Notice(Body, frozen=True):
    """The data of a notice record: what a subscription is told besides its events."""

    code: U32
    topic: str = ""
    first_seq: U64 = 0
    last_seq: U64 = 0
    reason: str = ""
    final: bool = False  # the subscription ends with it


_BODIES: Final[dict[int, type[Body]]] = {
    Request.HELLO: Hello, Request.OPEN_PRODUCER: OpenProducer, Request.CLOSE_PRODUCER: Producer,
    Request.RESUME_PRODUCER: Producer,
    Request.SUBSCRIBE: Subscribe, Request.UNSUBSCRIBE: Unsubscribe, Request.OUT_OF_LINE: OutOfLine,
    Request.TOPIC_RESOLVE: TopicResolve, Request.TOPIC_CREATE: TopicCreate, Request.TOPIC_REMOVE: TopicRemove,
    Request.TOPIC_ALTER: TopicAlter, Request.ADMINISTER: Administer, Request.TOPIC_ACCESS: TopicResolve,
    Request.GROUP_JOIN: GroupName, Request.GROUP_LEAVE: GroupName, Request.GROUP_SHOW: GroupName,
    Request.REPORT: Report,
    Answer.WELCOME: Welcome, Answer.ERROR: Error, Answer.PRODUCER: Producer, Answer.SUBSCRIBED: Subscribed,
    Answer.TOPIC: Topic, Answer.TOPICS: Topics, Answer.STATUS: Status, Answer.FULL: Full,
    Answer.SHUTDOWN: Shutdown, Answer.TOPIC_ACCESS: TopicAccess, Answer.GROUP: Group, Answer.GROUPS: Groups,
    Answer.REFUSED: Refused, Answer.LEFT_OUT: LeftOut,
}  # fmt: skip
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(body) for kind, body in _BODIES.items()}
_NOTICE: Final = msgspec.msgpack.Decoder(Notice)
_encode: Final = msgspec.msgpack.Encoder().encode

AnyBody = TypeVar("AnyBody", bound=Body)


def control_frame(kind: int, request_id: int = 0, body: Body | None = None) -> bytes:
    """A whole control frame; without ``body`` it is only the header. Raises InvalidArgument."""
    try:
        encoded = b"" if body is None else _encode(body)
    except (UnicodeEncodeError, OverflowError) as error:  # a lone surrogate, a number beyond 64 bits
        raise InvalidArgument(f"{body!r:.200}: {error}") from None
    return CONTROL_HEADER.pack(len(encoded), kind, 0, 0, request_id) + encoded


def read_body(kind: int, body: bytes | memoryview) -> Body:
    """The decoded body of a frame of ``kind``. Raises MalformedFrame."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise MalformedFrame(f"frames of kind {kind} carry no structure of this version")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(f"frame of kind {kind}: {error}") from None


def encode_notice(notice: Notice) -> bytes:
    return _encode(notice)


def read_notice(data: bytes | memoryview) -> Notice:
    """Raises MalformedFrame."""
    try:
        return _NOTICE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(f"notice: {error}") from None
